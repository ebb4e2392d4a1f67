//! Wall time and processor time of what runs in other processes.

use std::fs;
use std::time::Instant;

/// What one run took.
#[derive(Debug, Clone, Copy, Default)]
pub struct Taken {
    /// Wall seconds.
    pub seconds: f64,
    /// Processor seconds, user and system, of all processes named and all children waited for.
    pub cpu_seconds: f64,
}

/// Runs `work` and says what it took; `pids` are processes (with all their threads) that work for it besides children.
pub fn timed(pids: &[i32], work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Taken> {
    let cpu = || pids.iter().map(|&pid| process_cpu_seconds(pid)).sum::<f64>() + own_cpu_seconds();
    let cpu_before = cpu();
    let began = Instant::now();
    work()?;
    let seconds = began.elapsed().as_secs_f64();
    Ok(Taken { seconds, cpu_seconds: cpu() - cpu_before })
}

fn stat_fields(pid: &str) -> Vec<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold spaces: fields are counted from after its closing bracket. utime is the 14th of all.
    let Some((_, rest)) = stat.rsplit_once(')') else { return Vec::new() };
    rest.split_whitespace().map(|field| field.parse().unwrap_or(0)).collect()
}

fn process_cpu_seconds(pid: i32) -> f64 {
    let fields = stat_fields(&pid.to_string());
    let ticks = |at: usize| fields.get(at).copied().unwrap_or(0);
    (ticks(11) + ticks(12)) as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// This process and its children that have been waited for.
fn own_cpu_seconds() -> f64 {
    let fields = stat_fields("self");
    let ticks: u64 = (11..15).map(|at| fields.get(at).copied().unwrap_or(0)).sum();
    ticks as f64 / rustix::param::clock_ticks_per_second() as f64
}

/// The median by wall time.
pub fn median(runs: &[Taken]) -> Taken {
    let mut sorted = runs.to_vec();
    sorted.sort_by(|a, b| a.seconds.total_cmp(&b.seconds));
    let mut cpu: Vec<f64> = runs.iter().map(|run| run.cpu_seconds).collect();
    cpu.sort_by(f64::total_cmp);
    Taken {
        seconds: sorted.get(runs.len() / 2).map_or(f64::NAN, |run| run.seconds),
        cpu_seconds: cpu.get(runs.len() / 2).copied().unwrap_or(f64::NAN),
    }
}
