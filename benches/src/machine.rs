//! Which machine a figure was measured on.

use std::fs;

fn field(file: &str, key: &str) -> String {
    fs::read_to_string(file)
        .unwrap_or_default()
        .lines()
        .find_map(|line| {
            line.strip_prefix(key).map(|rest| rest.trim_start_matches([':', '\t', ' ']).trim().to_owned())
        })
        .unwrap_or_else(|| "unknown".to_owned())
}

/// Memory that a program could have now.
pub fn available_bytes() -> u64 {
    let available = field("/proc/meminfo", "MemAvailable");
    available.trim_end_matches(" kB").parse::<u64>().map_or(0, |kib| kib << 10)
}

/// One line: processor, cores, memory, kernel.
pub fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let flags = field("/proc/cpuinfo", "flags");
    let level = if flags.contains("avx512vl") {
        "AVX-512"
    } else if flags.contains("avx2") {
        "AVX2"
    } else {
        "no AVX2"
    };
    let memory_gib = field("/proc/meminfo", "MemTotal")
        .trim_end_matches(" kB")
        .parse::<u64>()
        .map_or_else(|_| "unknown".to_owned(), |kib| format!("{} GiB", (kib + (1 << 19)) >> 20));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let virtual_machine = if flags.contains("hypervisor") { ", a virtual machine" } else { "" };
    format!(
        "{}, {level}, {cores} cores, {memory_gib}, Linux {}{virtual_machine}",
        field("/proc/cpuinfo", "model name"),
        kernel.trim()
    )
}

/// Today's date in UTC, `YYYY-MM-DD` (Howard Hinnant's `civil_from_days`).
pub fn today() -> String {
    let seconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |elapsed| elapsed.as_secs());
    let days = (seconds / 86_400) as i64 + 719_468;
    let era = days / 146_097;
    let day_of_era = days - era * 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = if month < 10 {
        (era * 400 + year_of_era, month + 3)
    } else {
        (era * 400 + year_of_era + 1, month - 9)
    };
    format!("{year:04}-{month:02}-{day:02}")
}
