//! Measures Velo: `velo-benches AREA [--quick] [--json]`.
//!
//! Every figure is a row, compared with something measured in the same run on the same machine. A full run writes
//! `benches/results/AREA.md`; the exit status is 1 if a row misses its bar.
#![forbid(unsafe_code)]

mod chart;
mod fabrics;
mod kernels;
mod machine;
mod report;
mod timing;
mod tools;
mod transfer;

use clap::{Parser, ValueEnum};

use report::Report;

#[derive(Clone, Copy, ValueEnum)]
enum Area {
    /// Nodes on loopback moving real files, beside cp, nginx + curl, rsync, sendme and rqbit.
    Transfer,
    /// XOR, scans and checksums, beside memcpy and the limits of memory.
    Kernels,
    /// The packet fabric over every port beside iperf3 and the bare loop of the port; rings and pools.
    Fabrics,
    /// The RDMA fabric beside perftest, in a guest with soft-RoCE where this host has no device.
    Rdma,
}

/// Measures one area of Velo and compares each figure with something measured beside it.
#[derive(Parser)]
struct Arguments {
    /// What to measure.
    area: Area,
    /// Small sizes and few repetitions: ends within 60 seconds, decides nothing, writes no file.
    #[arg(long)]
    quick: bool,
    /// One JSON object a row instead of a table.
    #[arg(long)]
    json: bool,
    /// Only rows whose name contains this; writes no file.
    #[arg(long)]
    only: Option<String>,
}

/// `cargo run -p velo-benches` builds only this program: the one that is measured must be as new.
fn build_velo() -> anyhow::Result<()> {
    // A guest takes what its host has built.
    if ["VELO_EXECUTABLE", "VELO_RDMA_REQUIRED"].iter().any(|name| std::env::var_os(name).is_some()) {
        return Ok(());
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = std::process::Command::new(cargo);
    build.args(["build", "--release", "--quiet", "-p", "velo"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    anyhow::ensure!(build.status()?.success(), "velo does not build");
    Ok(())
}

fn main() -> anyhow::Result<()> {
    // Half of a measurement between two processes: it begins this program again.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.first().is_some_and(|first| first == fabrics::memif::ROLE) {
        fabrics::memif::run(&words[1..]);
        return Ok(());
    }
    let arguments = Arguments::parse();
    anyhow::ensure!(
        !cfg!(debug_assertions),
        "this is an unoptimised build: run `cargo run --release -p velo-benches -- …`"
    );
    let mut report = Report::new(arguments.json, arguments.only.clone());
    let area = match arguments.area {
        Area::Transfer => {
            build_velo()?;
            transfer::measure(&mut report, arguments.quick)?;
            "transfer"
        }
        Area::Kernels => {
            kernels::measure(&mut report, arguments.quick)?;
            "kernels"
        }
        Area::Fabrics => {
            fabrics::measure(&mut report, arguments.quick)?;
            "fabrics"
        }
        Area::Rdma => {
            build_velo()?;
            fabrics::rdma::measure(&mut report, arguments.quick)?;
            "rdma"
        }
    };
    if !arguments.quick && arguments.only.is_none() {
        report.write(area)?;
    }
    if !report.all_ok() {
        std::process::exit(1);
    }
    Ok(())
}
