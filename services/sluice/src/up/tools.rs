//! Finding programs, and tying a child's life to ours.

use std::{
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

pub(super) fn on_path(name: &str) -> Option<PathBuf> {
    let dirs = runtime::env::optional("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).map(|dir| dir.join(name)).find(|path| is_program(path))
}

pub(super) fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// Runs `program` so that the kernel sends it `signal` should we die, however we die.
pub(super) fn tied_to_us(signal: &str, program: PathBuf) -> (OsString, Vec<OsString>) {
    ("setpriv".into(), vec!["--pdeathsig".into(), signal.into(), program.into()])
}

/// The same, as another user.
pub(super) fn tied_as(user: &str, signal: &str, program: PathBuf) -> (OsString, Vec<OsString>) {
    let args = ["--reuid", user, "--regid", user, "--init-groups", "--pdeathsig", signal];
    ("setpriv".into(), args.into_iter().map(OsString::from).chain([program.into()]).collect())
}
