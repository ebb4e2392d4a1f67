//! Opens the plugin and looks at its table before anything in it is called.
#![allow(unsafe_code)]

use std::env;
use std::ffi::CStr;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::error::DpdkError;
use super::table::{ABI, SYMBOL, Table};

/// The plugin's file.
const FILE: &str = "libvelo_fabric_dpdk.so";

/// The opened plugin. It stays open until the process ends, as DPDK's threads run in it.
#[derive(Clone, Copy)]
pub(super) struct Plugin {
    pub(super) table: &'static Table,
}

impl Plugin {
    /// Opens `path`, or else what VELO_DPDK_PLUGIN names, or else the one beside the executable or in `../lib/velo`.
    pub(super) fn open(path: Option<&Path>) -> Result<Self, DpdkError> {
        let places = match path
            .map(Path::to_path_buf)
            .or_else(|| env::var_os("VELO_DPDK_PLUGIN").map(PathBuf::from))
        {
            Some(named) => vec![named],
            None => beside_executable(),
        };
        let Some(plugin) = places.iter().find(|place| place.is_file()).cloned() else {
            return Err(DpdkError::PluginMissing { looked_in: places });
        };
        // SAFETY: the plugin's initialisers are those of DPDK's libraries, which register drivers and touch nothing of ours.
        let library = match unsafe { Library::new(&plugin) } {
            Ok(library) => library,
            Err(why) => return Err(DpdkError::LibraryMissing { plugin, why: chain(&why) }),
        };
        // SAFETY: a symbol of this name is a `Table`, or begins as one: `abi`, then `size`.
        let table = match unsafe { library.get::<*const Table>(SYMBOL.as_bytes()) } {
            Ok(symbol) => *symbol,
            Err(_) => return Err(DpdkError::NoTable { plugin }),
        };
        // SAFETY: as above; nothing but the two numbers is read.
        let (abi, size) = unsafe { ((*table).abi, (*table).size) };
        if abi != ABI || size as usize != size_of::<Table>() {
            return Err(DpdkError::WrongAbi { plugin, found: abi });
        }
        std::mem::forget(library);
        // SAFETY: it is a table of this version, and the library is never closed.
        Ok(Self { table: unsafe { &*table } })
    }

    /// DPDK's version.
    pub(super) fn version(self) -> String {
        // SAFETY: a function without conditions, which returns a constant string.
        unsafe { CStr::from_ptr((self.table.version)()) }.to_string_lossy().into_owned()
    }
}

fn beside_executable() -> Vec<PathBuf> {
    let Ok(executable) = env::current_exe() else { return vec![FILE.into()] };
    // The second is for tests and examples, which lie one folder deeper; the last is where a package puts it.
    let above: Vec<&Path> = executable.ancestors().skip(1).take(2).collect();
    above
        .iter()
        .map(|dir| dir.join(FILE))
        .chain(above.last().map(|dir| dir.join("lib/velo").join(FILE)))
        .collect()
}

/// An error and what it comes from.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text += &format!(": {error}");
        source = error.source();
    }
    text
}
