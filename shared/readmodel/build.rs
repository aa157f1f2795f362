//! The migrations are embedded: a new file must lead to a new build, which cargo cannot know by itself.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}
