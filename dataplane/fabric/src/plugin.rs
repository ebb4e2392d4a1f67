//! Opens plugins: a table of C functions in a shared library, looked at before anything in it is called. So one velod uses a library
//! where it is installed, and runs where it is not.
#![allow(unsafe_code)]

use std::env;
use std::path::{Path, PathBuf};

use libloading::Library;

/// What is known of a plugin before it is opened.
pub(crate) struct PluginNames {
    /// The library that it joins us with.
    pub(crate) library: &'static str,
    /// Its file.
    pub(crate) file: &'static str,
    /// The variable that names another.
    pub(crate) variable: &'static str,
    /// Its one exported symbol.
    pub(crate) symbol: &'static str,
    /// The version of the table behind that.
    pub(crate) abi: u32,
    /// How the library is installed.
    pub(crate) install: &'static str,
    /// How the plugin is built.
    pub(crate) build: &'static str,
}

/// A plugin cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PluginError {
    /// It is not where it is looked for.
    #[error("the {library} plugin is missing ({}): install it beside velod, or name it in {variable}", list(.looked_in))]
    Missing {
        /// What it is for.
        library: &'static str,
        /// The variable that may name it.
        variable: &'static str,
        /// The places.
        looked_in: Vec<PathBuf>,
    },
    /// It is there, but what it needs is not.
    #[error("{} cannot be loaded: {why}; install {install}", .plugin.display())]
    Library {
        /// The plugin.
        plugin: PathBuf,
        /// The dynamic linker's words, which name the library.
        why: String,
        /// What to install.
        install: &'static str,
    },
    /// It was built without the library, or is of another version of Velo.
    #[error(
        "{} has no table {symbol}: it was built without its library ({build} builds it with), or for another version of Velo",
        .plugin.display()
    )]
    NoTable {
        /// The plugin.
        plugin: PathBuf,
        /// What it should export.
        symbol: &'static str,
        /// How it is built.
        build: &'static str,
    },
    /// Its table is of another version.
    #[error("{} has version {found} of the table, and this velod wants {wanted}: install both from one build", .plugin.display())]
    WrongAbi {
        /// The plugin.
        plugin: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        wanted: u32,
    },
}

/// Opens `path`, or else what the variable names, or else the one beside the executable or in `../lib/velo`. It stays open until the
/// process ends, as threads of the library run in it.
///
/// # Safety
/// A symbol of the plugin's name is a `T`, or begins as one: with its version and its size, four bytes each. The library's
/// initialisers touch nothing of ours.
pub(crate) unsafe fn open<T>(names: &PluginNames, path: Option<&Path>) -> Result<&'static T, PluginError> {
    let PluginNames { library, file, variable, symbol, abi: wanted, install, build } = *names;
    let named = path.map(Path::to_path_buf).or_else(|| env::var_os(variable).map(PathBuf::from));
    let places = named.map_or_else(|| beside_executable(file), |named| vec![named]);
    let Some(plugin) = places.iter().find(|place| place.is_file()).cloned() else {
        return Err(PluginError::Missing { library, variable, looked_in: places });
    };
    // SAFETY: the caller's promise about initialisers.
    let opened = match unsafe { Library::new(&plugin) } {
        Ok(opened) => opened,
        Err(why) => return Err(PluginError::Library { plugin, why: chain(&why), install }),
    };
    // SAFETY: the caller's promise about the symbol.
    let table = match unsafe { opened.get::<*const T>(symbol.as_bytes()) } {
        Ok(table) => *table,
        Err(_) => return Err(PluginError::NoTable { plugin, symbol, build }),
    };
    // SAFETY: as above; nothing but the two numbers is read.
    let (found, size) = unsafe { (table.cast::<u32>().read(), table.cast::<u32>().add(1).read()) };
    if found != wanted || size as usize != size_of::<T>() {
        return Err(PluginError::WrongAbi { plugin, found, wanted });
    }
    std::mem::forget(opened);
    // SAFETY: it is a table of this version, and the library is never closed.
    Ok(unsafe { &*table })
}

fn beside_executable(file: &str) -> Vec<PathBuf> {
    let Ok(executable) = env::current_exe() else { return vec![file.into()] };
    // The second is for tests and examples, which lie one folder deeper; the last is where a package puts it.
    let above: Vec<&Path> = executable.ancestors().skip(1).take(2).collect();
    let beside = above.iter().map(|dir| dir.join(file));
    beside.chain(above.last().map(|dir| dir.join("lib/velo").join(file))).collect()
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

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}
