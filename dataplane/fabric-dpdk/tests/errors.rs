//! What is missing for DPDK is said, with what to do; nothing of it ends the process.
mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use support::{dpdk_is_here, role, skip, spawn};
use velo_fabric::PluginError;
use velo_fabric::packet::port::dpdk::{Dpdk, DpdkError, DpdkOptions, HugePages};

fn probe(plugin: &Path) -> DpdkError {
    Dpdk::probe(Some(plugin)).expect_err("this is no plugin")
}

/// Compiles a plugin of one line of C; none where there is no compiler.
fn compiled(dir: &Path, source: &str) -> Option<std::path::PathBuf> {
    let (c, so) = (dir.join("plugin.c"), dir.join("plugin.so"));
    fs::write(&c, source).expect("a folder of ours");
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&so).arg(&c).status().ok()?;
    status.success().then_some(so)
}

#[test]
fn a_plugin_that_is_none() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let path = dir.path().join("libvelo_fabric_dpdk.so");
    let error = probe(&path);
    assert!(matches!(error, DpdkError::Plugin(PluginError::Missing { .. })), "{error}");
    assert!(error.to_string().contains("VELO_DPDK_PLUGIN"), "{error}");

    fs::write(&path, "no library").expect("a folder of ours");
    let error = probe(&path);
    assert!(matches!(error, DpdkError::Plugin(PluginError::Library { .. })), "{error}");
    assert!(error.to_string().contains("install DPDK"), "{error}");
}

#[test]
fn a_plugin_of_another_build() {
    let dir = tempfile::tempdir().expect("a folder can be made");
    let Some(plugin) = compiled(dir.path(), "int other;") else {
        return skip("plugins of other builds: no cc");
    };
    let error = probe(&plugin);
    assert!(matches!(error, DpdkError::Plugin(PluginError::NoTable { .. })), "{error}");
    assert!(error.to_string().contains("--features libdpdk"), "{error}");

    let other = tempfile::tempdir().expect("a folder can be made");
    let plugin = compiled(other.path(), "unsigned velo_dpdk_v1[2] = {99, 8};").expect("it compiled before");
    let error = probe(&plugin);
    assert!(matches!(error, DpdkError::Plugin(PluginError::WrongAbi { found: 99, .. })), "{error}");
    assert!(error.to_string().contains("version 99"), "{error}");

    let libraries = tempfile::tempdir().expect("a folder can be made");
    let missing = "-Wl,--no-as-needed";
    let needed = compiled(libraries.path(), "int gone;").expect("it compiled before");
    let (c, so) = (libraries.path().join("needs.c"), libraries.path().join("needs.so"));
    fs::write(&c, "int needs;").expect("a folder of ours");
    let linked =
        Command::new("cc").args(["-shared", "-fPIC", missing, "-o"]).args([&so, &c, &needed]).status();
    assert!(linked.is_ok_and(|status| status.success()));
    fs::remove_file(&needed).expect("a folder of ours");
    let error = probe(&so).to_string();
    assert!(error.contains("plugin.so") && error.contains("install DPDK"), "{error}");
}

#[test]
fn devices_that_cannot_be_opened() {
    const TEST: &str = "devices_that_cannot_be_opened";
    match role().as_deref() {
        Some([kind]) if kind == "nobody serves" => {
            let device = "memif:client:/nonexistent/velo".parse().expect("a device");
            let options = DpdkOptions { huge_pages: HugePages::No, ..DpdkOptions::device(device) };
            let error = Dpdk::start(options.clone()).expect_err("nobody serves it").to_string();
            assert!(error.contains("/nonexistent/velo") && error.contains("first"), "{error}");
        }
        Some([kind]) if kind == "no such driver" => {
            let device = "net_velo0,iface=none".parse().expect("a device");
            let options = DpdkOptions { huge_pages: HugePages::No, ..DpdkOptions::device(device) };
            let error = Dpdk::start(options).expect_err("there is no such driver").to_string();
            assert!(error.contains("did not start") && error.contains("net_velo0"), "{error}");
        }
        Some([kind]) if kind == "no such interface" => {
            let device = "net_af_packet0,iface=velo-none".parse().expect("a device");
            let options = DpdkOptions { huge_pages: HugePages::No, ..DpdkOptions::device(device) };
            // EAL says what it did not find, and starts.
            let dpdk = Dpdk::start(options.clone()).expect("EAL starts");
            let error = dpdk.open(0).expect_err("there is no such interface").to_string();
            assert!(error.contains("velo-none") && error.contains("finding the device"), "{error}");
            assert!(matches!(dpdk.open(1), Err(DpdkError::DeviceMissing { index: 1, devices: 1 })));
            assert!(matches!(Dpdk::start(options), Err(DpdkError::StartedBefore)));
        }
        Some(other) => panic!("{other:?}"),
        None if dpdk_is_here("devices that cannot be opened") => {
            for kind in ["nobody serves", "no such driver", "no such interface"] {
                spawn(TEST, &[kind]).ends_well();
            }
        }
        None => {}
    }
}
