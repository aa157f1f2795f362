//! Loads two versions of the sample application into the local engine, as `hello:v1` and `hello:v2`: something to
//! deploy on a machine that has no image yet.
#![expect(clippy::print_stdout, reason = "a command line tool")]

use anyhow::Result;
use testkit::{Docker, SampleImage};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let docker = Docker::connect().await?;
    for version in ["v1", "v2"] {
        SampleImage::new(version).load(&docker, &format!("hello:{version}")).await?;
        println!("loaded hello:{version}");
    }
    Ok(())
}
