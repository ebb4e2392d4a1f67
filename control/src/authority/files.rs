//! How the small files of an identity and an authority are read and replaced: bounded, and never half-written.

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::AuthorityError;

/// The largest file, in bytes.
pub(super) const MOST_BYTES: u64 = 1 << 20;

/// Reads a file of at most [`MOST_BYTES`].
pub(crate) fn read(path: &Path) -> Result<Vec<u8>, AuthorityError> {
    let error = |source| AuthorityError::Io { path: path.to_owned(), source };
    let bytes = fs::metadata(path).map_err(error)?.len();
    if bytes > MOST_BYTES {
        return Err(AuthorityError::Malformed {
            what: path.display().to_string(),
            why: format!("it has {bytes} bytes"),
        });
    }
    fs::read(path).map_err(error)
}

/// Replaces a file: written beside it, synced, renamed, and the rename synced.
pub(crate) fn replace(path: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let error = |source| AuthorityError::Io { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or(Path::new("."));
    let beside = path.with_extension(format!("new-{}", std::process::id()));
    let _ = fs::remove_file(&beside);
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        // The mode above is masked by the umask.
        file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        fs::File::open(folder)?.sync_all()
    })();
    written.map_err(|source| {
        let _ = fs::remove_file(&beside);
        error(source)
    })
}

/// Makes a folder that only its owner may enter, if it is not there. Others may pass through the one above it: the socket for
/// those who may use this node is beside it.
pub(crate) fn private_folder(path: &Path) -> Result<(), AuthorityError> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |path: &Path, mode| fs::DirBuilder::new().recursive(true).mode(mode).create(path);
    let above = path.parent().map_or(Ok(()), |parent| make(parent, 0o711));
    let made = above.and_then(|()| make(path, 0o700));
    made.map_err(|source| AuthorityError::Io { path: path.to_owned(), source })
}
