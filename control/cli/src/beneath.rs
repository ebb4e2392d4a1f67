//! Opens paths below a directory without ever passing through a symbolic link.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Opens `path`, relative to `root`; the empty path opens the root itself again.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` where a link is in the way; else what the system says.
pub fn open(root: BorrowedFd<'_>, path: &[u8], flags: OFlags, mode: Mode) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    // Without O_CREAT and O_TMPFILE, openat2 refuses any mode.
    let at_once = rustix::fs::openat2(
        root,
        path,
        flags,
        if flags.contains(OFlags::CREATE) { mode } else { Mode::empty() },
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    );
    match at_once {
        // Old kernels, sandboxes that do not know the call, and paths longer than one call may be given.
        Err(Errno::NOSYS | Errno::PERM | Errno::NAMETOOLONG) => {}
        other => return other,
    }
    let (parents, name) = split(path);
    let mut dir = None::<OwnedFd>;
    for component in parents.split(|byte| *byte == b'/').filter(|component| !component.is_empty()) {
        let at = dir.as_ref().map_or(root, AsFd::as_fd);
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        dir = Some(rustix::fs::openat(at, OsStr::from_bytes(component), flags, Mode::empty())?);
    }
    let at = dir.as_ref().map_or(root, AsFd::as_fd);
    rustix::fs::openat(at, OsStr::from_bytes(name), flags, mode)
}

/// The directory part (empty for none) and the last component of a path.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&path[..0], path),
    }
}

/// The target of the link at `path`, relative to `root`.
///
/// # Errors
/// What the system says; `EINVAL` or `ENOENT` where it is no link.
pub fn read_link(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<u8>, Errno> {
    let link = open(root, path, OFlags::PATH, Mode::empty())?;
    // An empty path reads the link that is open itself.
    Ok(rustix::fs::readlinkat(&link, "", Vec::new())?.into_bytes())
}
