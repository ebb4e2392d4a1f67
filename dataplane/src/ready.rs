//! `run/velod.json`: says to other programs of this node that velod is ready, and where it listens.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use velo_object::NodeId;

/// The file; gone when this is dropped.
#[derive(Debug)]
pub(crate) struct ReadyFile {
    path: PathBuf,
}

impl ReadyFile {
    /// Writes it in one step, so that no reader sees half of it.
    pub(crate) fn write(path: &Path, node: &NodeId, listen: &[SocketAddr]) -> anyhow::Result<Self> {
        let said = serde_json::json!({
            "pid": std::process::id(),
            "node": node.to_hex(),
            "listen": listen.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        let draft = path.with_extension("json.new");
        let written = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&draft)
            .and_then(|mut file| file.write_all(said.to_string().as_bytes()))
            .and_then(|()| fs::rename(&draft, path));
        written
            .with_context(|| format!("cannot write {}: velod needs its data directory", path.display()))?;
        Ok(Self { path: path.to_owned() })
    }
}

impl Drop for ReadyFile {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_there_while_it_is_held() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("velod.json");
        let listen = ["127.0.0.1:7440".parse().expect("an address")];
        let ready = ReadyFile::write(&path, &NodeId::from_bytes([7; 32]), &listen).expect("written");
        let said: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("there")).expect("JSON");
        assert_eq!(said["pid"], std::process::id());
        assert_eq!(said["node"], "07".repeat(32));
        assert_eq!(said["listen"][0], "127.0.0.1:7440");
        drop(ready);
        assert!(!path.exists());
        let refused =
            ReadyFile::write(&dir.path().join("no/such.json"), &NodeId::from_bytes([7; 32]), &listen);
        assert!(refused.is_err_and(|error| error.to_string().contains("no/such.json")));
    }
}
