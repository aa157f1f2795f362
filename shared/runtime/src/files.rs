//! Files that must be whole, or secret.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

/// Creates the directory `path` and those above it that are missing, so that a crash does not take them away again.
pub fn create_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    if let Some(above) = path.parent().filter(|above| !above.as_os_str().is_empty()) {
        create_dir(above)?;
    }
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists || !path.is_dir() => Err(error),
        Ok(()) | Err(_) => sync_names(path),
    }
}

/// Makes the name of `path` durable: a sync of the file itself need not do that.
pub fn sync_names(path: &Path) -> io::Result<()> {
    let above = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    File::open(if above.as_os_str().is_empty() { Path::new(".") } else { above })?.sync_all()
}

/// Replaces `path` by `content` so that a reader, or a crash, finds the old or the new, whole.
/// `mode` is the permission of the new file, e.g. `0o600`.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
    name.push(format!(".{}.new", std::process::id()));
    let fresh = dir.join(name);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(mode).open(&fresh)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&fresh, path)
    })();
    if let Err(error) = written {
        // The half-written file is of no use to anyone; the first error is the one that counts.
        fs::remove_file(&fresh).ok();
        return Err(error);
    }
    sync_names(path)
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt,
        sync::atomic::{AtomicUsize, Ordering},
    };

    use testkit::{LossyDisk, Luck, Names};

    use super::*;

    #[test]
    fn a_power_loss_leaves_the_old_or_the_new_and_never_less_than_was_promised() {
        // The letter of POSIX, which no journaling file system is as bad as.
        let disk = LossyDisk::mount(Names::Posix).expect("mounts");
        let path = disk.path().join("a/b/state.json");
        create_dir(path.parent().expect("a directory")).expect("created");
        let content = |number: usize| format!("{number} ").repeat(5000);
        let promised = AtomicUsize::new(0);
        for loss in 0..40 {
            std::thread::scope(|scope| {
                let writer = scope.spawn(|| {
                    for number in promised.load(Ordering::SeqCst) + 1.. {
                        if replace(&path, content(number).as_bytes(), 0o600).is_err() {
                            return;
                        }
                        promised.store(number, Ordering::SeqCst);
                    }
                });
                while promised.load(Ordering::SeqCst) < 5 * (loss + 1) {
                    assert!(!writer.is_finished(), "the disk works");
                    std::thread::yield_now();
                }
                // The writer is this process, which must live: what it asks for fails for a moment.
                let luck = if loss % 4 == 0 { Luck::None } else { Luck::Seeded(loss as u64) };
                disk.power_loss_until(&[], luck, || writer.is_finished()).expect("the power comes back");
            });
            let found = fs::read_to_string(&path).expect("is there");
            let number: usize = found.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
            assert_eq!(found, content(number), "whole");
            let promised = promised.fetch_max(number, Ordering::SeqCst);
            assert!(number >= promised, "loss {loss}: {number} where {promised} was promised");
        }
    }

    #[test]
    fn a_made_directory_stays() {
        let disk = LossyDisk::mount(Names::Posix).expect("mounts");
        let path = disk.path().join("a/b/c");
        create_dir(&path).expect("created");
        create_dir(&path).expect("found");
        disk.power_loss(&[], Luck::None).expect("the power comes back");
        assert!(path.is_dir());
        replace(&path.join("file"), b"no directory", 0o600).expect("written");
        assert!(create_dir(&path.join("file")).is_err());
    }

    #[test]
    fn a_replaced_file_has_the_new_content_the_mode_and_no_leftover() {
        let dir = std::env::temp_dir().join(format!("sluice-files-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("secret");
        replace(&path, b"one", 0o600).expect("first");
        replace(&path, b"two", 0o600).expect("second");
        assert_eq!(std::fs::read(&path).expect("readable"), b"two");
        assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&dir).expect("there").count(), 1);
        std::fs::remove_dir_all(&dir).expect("removed");
    }
}
