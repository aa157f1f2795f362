use std::{
    fs::{self, File, OpenOptions},
    io::Write,
    os::unix::fs::{FileExt, OpenOptionsExt},
};

use super::*;

fn disk(names: Names) -> LossyDisk {
    LossyDisk::mount(names).expect("mounts")
}

fn lose(disk: &LossyDisk, luck: Luck) {
    disk.power_loss(&[], luck).expect("the power comes back");
}

fn synced(path: &Path, content: &[u8]) {
    let mut file = File::create(path).expect("created");
    file.write_all(content).expect("written");
    file.sync_all().expect("synced");
}

fn sync_directory(path: &Path) {
    File::open(path).expect("opened").sync_all().expect("synced");
}

fn names(path: &Path) -> Vec<String> {
    let entries = fs::read_dir(path).expect("listed");
    let mut names: Vec<_> = entries.map(|e| e.expect("read").file_name().into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn it_is_a_file_system() {
    let disk = disk(Names::Posix);
    let (a, b) = (disk.path().join("a"), disk.path().join("b"));
    fs::create_dir_all(a.join("deep/er")).expect("made");
    fs::write(a.join("one"), "one").expect("written");
    assert!(File::create_new(a.join("one")).is_err());
    fs::rename(a.join("one"), a.join("deep/two")).expect("renamed");
    fs::hard_link(a.join("deep/two"), a.join("deep/three")).expect("linked");
    fs::rename(&a, &b).expect("a directory renamed");
    assert_eq!(names(&b.join("deep")), ["er", "three", "two"]);
    assert_eq!(fs::read(b.join("deep/three")).expect("read"), b"one");
    assert!(fs::remove_dir(b.join("deep")).is_err());
    fs::remove_dir_all(&b).expect("removed");
    assert!(names(disk.path()).is_empty());

    // Many names and large content take more than one request.
    let content: Vec<u8> = (0..3_000_000_u32).map(|n| n as u8).collect();
    let large = disk.path().join("large");
    fs::write(&large, &content).expect("written");
    assert_eq!(fs::read(&large).expect("read"), content);
    let file = OpenOptions::new().write(true).open(&large).expect("opened");
    file.set_len(10).expect("cut");
    file.write_all_at(b"end", 12).expect("written beyond the end");
    assert_eq!(fs::read(&large).expect("read"), [&content[..10], b"\0\0end"].concat());
    (0..1000).for_each(|n| fs::write(disk.path().join(format!("file-{n:04}")), "").expect("written"));
    assert_eq!(names(disk.path()).len(), 1001);
}

#[test]
fn what_was_not_synced_is_gone() {
    let disk = disk(Names::Journaled);
    let log = disk.path().join("log");
    synced(&log, b"kept ");
    let mut file = OpenOptions::new().append(true).open(&log).expect("opened");
    file.write_all(b"lost").expect("written");
    fs::write(disk.path().join("other"), "lost").expect("written");
    assert_eq!(fs::read(&log).expect("read"), b"kept lost");
    drop(file);
    lose(&disk, Luck::None);
    assert_eq!(fs::read(&log).expect("read"), b"kept ");
    assert_eq!(names(disk.path()), ["log"]);

    let options = OpenOptions::new().append(true).custom_flags(0o4010000).open(&log);
    options.expect("opened with O_SYNC").write_all(b"and kept").expect("written");
    lose(&disk, Luck::None);
    assert_eq!(fs::read(&log).expect("read"), b"kept and kept");
}

#[test]
fn a_name_lasts_as_long_as_the_file_system_promises() {
    for (names_by, left) in [(Names::Journaled, vec!["new"]), (Names::Posix, vec![])] {
        let disk = disk(names_by);
        synced(&disk.path().join("new"), b"new");
        lose(&disk, Luck::None);
        assert_eq!(names(disk.path()), left);
        synced(&disk.path().join("new"), b"new");
        sync_directory(disk.path());

        // A rename is whole, and not durable by itself.
        synced(&disk.path().join("draft"), b"newer");
        sync_directory(disk.path());
        fs::rename(disk.path().join("draft"), disk.path().join("new")).expect("renamed");
        lose(&disk, Luck::None);
        assert_eq!(names(disk.path()), ["draft", "new"]);
        assert_eq!(fs::read(disk.path().join("new")).expect("read"), b"new");
        fs::rename(disk.path().join("draft"), disk.path().join("new")).expect("renamed");
        sync_directory(disk.path());
        fs::remove_file(disk.path().join("new")).expect("removed");
        lose(&disk, Luck::None);
        assert_eq!(names(disk.path()), ["new"]);
        assert_eq!(fs::read(disk.path().join("new")).expect("read"), b"newer");
    }
}

#[test]
fn a_directory_synced_late_does_not_bring_back_what_was_renamed_away() {
    let disk = disk(Names::Posix);
    let (from, to) = (disk.path().join("from"), disk.path().join("to"));
    fs::create_dir(&from).expect("made");
    fs::create_dir(&to).expect("made");
    sync_directory(disk.path());
    synced(&from.join("file"), b"content");
    fs::rename(from.join("file"), to.join("file")).expect("renamed");
    sync_directory(&to);
    sync_directory(&from);
    lose(&disk, Luck::None);
    assert!(names(&from).is_empty());
    assert_eq!(fs::read(to.join("file")).expect("read"), b"content");
}

#[test]
fn luck_keeps_some_of_the_rest_and_the_same_for_the_same_seed() {
    let outcome = |seed| {
        let disk = disk(Names::Posix);
        let path = disk.path().join("file");
        synced(&path, &[1; 64 * 1024]);
        sync_directory(disk.path());
        let file = OpenOptions::new().write(true).open(&path).expect("opened");
        file.write_all_at(&[2; 128 * 1024], 0).expect("written");
        (0..20).for_each(|n| fs::write(disk.path().join(n.to_string()), "").expect("written"));
        drop(file);
        lose(&disk, Luck::Seeded(seed));
        (fs::read(&path).expect("read"), names(disk.path()))
    };
    let outcomes: Vec<_> = (0..12).map(outcome).collect();
    assert_eq!(outcomes[3], outcome(3));
    assert!(outcomes.iter().any(|(content, _)| content.contains(&1) && content.contains(&2)), "torn");
    assert!(outcomes.iter().any(|(_, names)| names.len() > 1 && names.len() < 21), "some names survive");
    assert!(outcomes.iter().all(|(content, _)| content.len() >= 64 * 1024));
}

#[test]
fn a_process_gets_no_answer_after_the_power_is_cut() {
    let disk = disk(Names::Journaled);
    let path = disk.path().join("file");
    // Every write reaches the disk before the next, and standard output tells of each.
    let mut child = Command::new("dd")
        .args(["if=/dev/zero", "bs=1", "oflag=dsync", "status=none"])
        .arg(format!("of={}", path.display()))
        .spawn()
        .expect("dd starts");
    let end = Instant::now() + END_DEADLINE;
    while path.metadata().map_or(0, |file| file.len()) < 100 {
        assert!(Instant::now() < end, "dd writes nothing");
    }
    let pid = Pid::from_child(&child);
    disk.power_loss(&[pid], Luck::None).expect("the power comes back");
    assert!(path.metadata().expect("still there").len() >= 100);
    assert!(!child.wait().expect("ended").success());
}
