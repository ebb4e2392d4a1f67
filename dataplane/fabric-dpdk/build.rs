//! Compiles the C shim against the installed DPDK, where the feature `libdpdk` asks for it.

#[cfg(not(feature = "libdpdk"))]
fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}

#[cfg(feature = "libdpdk")]
fn main() {
    /// What the shim calls; every driver brings what else it needs.
    const LIBRARIES: [&str; 5] = ["rte_ethdev", "rte_mempool", "rte_mbuf", "rte_ring", "rte_eal"];

    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-changed=shim");
    let dpdk = pkg_config::Config::new().atleast_version("22.11").cargo_metadata(false).probe("libdpdk");
    let dpdk = match dpdk {
        Ok(dpdk) => dpdk,
        Err(why) => {
            println!(
                "cargo::error=the feature libdpdk needs DPDK 22.11 or later (Debian: libdpdk-dev): {why}"
            );
            return;
        }
    };
    let mut shim = cc::Build::new();
    shim.file("shim/control.c").file("shim/bursts.c").opt_level(3).flag("-include").flag("rte_config.h");
    if std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64") {
        // The least that libdpdk's inline functions are written for; pkg-config's crate drops it.
        shim.flag("-march=corei7");
    }
    for path in &dpdk.include_paths {
        shim.flag("-isystem").flag(path.display().to_string());
    }
    shim.compile("velo_dpdk_shim");
    for path in &dpdk.link_paths {
        println!("cargo::rustc-link-search=native={}", path.display());
    }
    for library in LIBRARIES {
        println!("cargo::rustc-link-lib=dylib={library}");
    }
}
