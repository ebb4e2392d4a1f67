//! Which cores there are and which of them a worker is pinned to: what this process may use, as hwloc (with the feature
//! `hwloc`) or `/sys` describes it.

use std::fs;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use velo_config::Pin;

/// Below this many allowed cores pinning does more harm than good: the other threads need room to move.
const CORES_FOR_PINNING: usize = 4;

/// One core as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Core {
    /// The kernel's number.
    pub(crate) cpu: usize,
    /// Its NUMA node, 0 where the machine does not say.
    pub(crate) numa: usize,
    /// Whether it is the second or later hyper-thread of a physical core.
    pub(crate) sibling: bool,
}

/// The cores that this process may use, best for a worker first: one of each physical core, core 0 and siblings last.
pub(crate) fn cores() -> Vec<Core> {
    let Ok(set) = sched_getaffinity(None) else {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        return (0..count).map(|cpu| Core { cpu, numa: 0, sibling: false }).collect();
    };
    let mut cores: Vec<_> =
        (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(describe_by_sysfs).collect();
    #[cfg(feature = "hwloc")]
    if let Some(described) = describe_by_hwloc(&cores) {
        cores = described;
    }
    order(&mut cores);
    cores
}

/// The same cores as hwloc sees them; none where it does not know them all.
#[cfg(feature = "hwloc")]
fn describe_by_hwloc(cores: &[Core]) -> Option<Vec<Core>> {
    use hwloc2::{ObjectType, Topology};
    let topology = Topology::new()?;
    let threads = topology.objects_with_type(&ObjectType::PU).ok()?;
    cores
        .iter()
        .map(|core| {
            let thread = threads.iter().find(|thread| thread.os_index() as usize == core.cpu)?;
            let numa = thread.nodeset().map_or(-1, |nodes| nodes.first());
            // The rank counts within the parent, which is the physical core.
            let sibling = thread.sibling_rank() > 0
                && thread.parent().is_some_and(|parent| matches!(parent.object_type(), ObjectType::Core));
            Some(Core { cpu: core.cpu, numa: usize::try_from(numa).unwrap_or(0), sibling })
        })
        .collect()
}

fn order(cores: &mut [Core]) {
    cores.sort_by_key(|core| (core.sibling, core.cpu == 0, core.numa, core.cpu));
}

fn describe_by_sysfs(cpu: usize) -> Core {
    let folder = format!("/sys/devices/system/cpu/cpu{cpu}");
    let siblings = fs::read_to_string(format!("{folder}/topology/thread_siblings_list")).unwrap_or_default();
    let first = siblings.split([',', '-']).next().and_then(|n| n.trim().parse::<usize>().ok());
    let numa = fs::read_dir(&folder).ok().and_then(|entries| {
        entries.flatten().find_map(|entry| entry.file_name().to_str()?.strip_prefix("node")?.parse().ok())
    });
    Core { cpu, numa: numa.unwrap_or(0), sibling: first.is_some_and(|first| first < cpu) }
}

/// How many workers a machine of so many cores gets: one for up to four, then one for each four, at most eight.
pub(crate) fn auto_workers(cores: usize) -> usize {
    (cores / 4).clamp(1, 8)
}

/// Which core each worker is pinned to, or why none is.
pub(crate) fn plan(pin: Pin, workers: usize, cores: &[Core]) -> Result<Vec<Core>, String> {
    match pin {
        Pin::Off => Err("pinning is off: `dataplane.pin` says so".into()),
        Pin::Auto if cores.len() < CORES_FOR_PINNING => Err(format!(
            "pinning is off: {} cores are allowed to this process and it needs {CORES_FOR_PINNING}; \
             set `dataplane.pin = \"on\"` to pin all the same",
            cores.len()
        )),
        _ if cores.is_empty() => Err("pinning is off: the system does not say which cores there are".into()),
        _ => Ok((0..workers).map(|worker| cores[worker % cores.len()]).collect()),
    }
}

/// Pins the calling thread.
pub(crate) fn pin_this_thread(core: Core) -> Result<(), String> {
    let mut set = CpuSet::new();
    set.set(core.cpu);
    sched_setaffinity(None, &set)
        .map_err(|error| format!("pinning is off: core {} is refused to this process ({error})", core.cpu))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn siblings_and_core_0_come_last() {
        let core = |cpu, sibling| Core { cpu, numa: 0, sibling };
        let mut cores = vec![core(0, false), core(1, true), core(2, false), core(3, true)];
        order(&mut cores);
        assert_eq!(cores.iter().map(|core| core.cpu).collect::<Vec<_>>(), [2, 0, 1, 3]);
    }

    /// Two sources of the same facts.
    #[cfg(feature = "hwloc")]
    #[test]
    fn hwloc_and_sysfs_agree() {
        let set = sched_getaffinity(None).expect("an affinity");
        let sysfs: Vec<_> =
            (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(describe_by_sysfs).collect();
        assert_eq!(describe_by_hwloc(&sysfs), Some(sysfs));
    }

    #[test]
    fn small_machines_are_not_pinned_unless_told_to() {
        let cores: Vec<_> = (0..3).map(|cpu| Core { cpu, numa: 0, sibling: false }).collect();
        assert!(plan(Pin::Auto, 1, &cores).is_err_and(|why| why.contains("3 cores")));
        assert_eq!(plan(Pin::On, 1, &cores).map(|cores| cores.len()), Ok(1));
        assert!(plan(Pin::Off, 1, &cores).is_err());
        assert!(plan(Pin::On, 1, &[]).is_err());
    }

    #[test]
    fn this_machine_has_cores_and_they_can_be_pinned_to() {
        let cores = cores();
        assert!(!cores.is_empty());
        std::thread::spawn(move || pin_this_thread(cores[0]))
            .join()
            .expect("no panic")
            .expect("an allowed core");
    }
}
