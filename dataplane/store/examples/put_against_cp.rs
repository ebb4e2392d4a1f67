//! Measures a put of one large file against `cp` of the same file, in turn, in the same directory.
//!
//! `cargo run --release -p velo-store --example put_against_cp -- [DIR] [MIB] [ROUNDS]`; the default is 4096 MiB in
//! `/dev/shm`, three rounds. Prints medians and their ratio, and the CPU time that each took: on a busy machine that
//! says more than the clock does.

use std::error::Error;
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use velo_object::{ObjectId, ObjectKind};
use velo_store::{Store, StoreOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let base = PathBuf::from(args.next().unwrap_or_else(|| "/dev/shm".into()));
    let mib: u64 = args.next().map_or(Ok(4096), |text| text.parse())?;
    let rounds: usize = args.next().map_or(Ok(3), |text| text.parse())?;
    let dir = tempfile::tempdir_in(base)?;
    let source = dir.path().join("source");
    make_noise(&source, mib)?;

    let (mut copies, mut puts) = (Vec::new(), Vec::new());
    let (mut copy_cpu, mut put_cpu) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let target = dir.path().join("copy");
        let (begun, (_, cpu)) = (Instant::now(), cpu_seconds()?);
        if !Command::new("cp").arg(&source).arg(&target).status()?.success() {
            return Err("cp failed".into());
        }
        copies.push(begun.elapsed().as_secs_f64());
        copy_cpu.push(cpu_seconds()?.1 - cpu);
        fs::remove_file(&target)?;

        let place = dir.path().join("store");
        let (store, _) = Store::open(StoreOptions::new(&place))?;
        let file = File::open(&source)?;
        let (begun, (cpu, _)) = (Instant::now(), cpu_seconds()?);
        let mut put = store.begin_put()?;
        let ingested = put.file(&file)?;
        put.commit(ObjectId { kind: ObjectKind::Blob, blob: ingested.blob }, None)?;
        puts.push(begun.elapsed().as_secs_f64());
        put_cpu.push(cpu_seconds()?.0 - cpu);
        store.close()?;
        drop(store);
        fs::remove_dir_all(&place)?;
    }
    let (copy, put) = (median(copies), median(puts));
    let gigabytes = (mib << 20) as f64 / 1e9;
    println!("cp  {copy:.3} s  {:.2} GB/s  {:.2} s of CPU", gigabytes / copy, median(copy_cpu));
    println!("put {put:.3} s  {:.2} GB/s  {:.2} s of CPU", gigabytes / put, median(put_cpu));
    println!("put is {:.2} times as fast as cp", copy / put);
    Ok(())
}

fn make_noise(path: &PathBuf, mib: u64) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    let mut block = vec![0; 1 << 20];
    let mut stream = blake3::Hasher::new().update(b"noise").finalize_xof();
    for _ in 0..mib {
        stream.fill(&mut block);
        file.write_all(&block)?;
    }
    Ok(())
}

/// User and system time of this process, and of its ended children, by `/proc/self/stat` (in 1/100 s).
fn cpu_seconds() -> Result<(f64, f64), Box<dyn Error>> {
    let text = fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields[at].parse::<f64>();
    Ok(((ticks(11)? + ticks(12)?) / 100.0, (ticks(13)? + ticks(14)?) / 100.0))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
