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

/// Which core each worker is pinned to, or why none is. A worker whose device has a NUMA node gets a core of that node, if one is free.
pub(crate) fn plan(pin: Pin, workers: &[Option<usize>], cores: &[Core]) -> Result<Vec<Core>, String> {
    match pin {
        Pin::Off => Err("pinning is off: `dataplane.pin` says so".into()),
        Pin::Auto if cores.len() < CORES_FOR_PINNING => Err(format!(
            "pinning is off: {} cores are allowed to this process and it needs {CORES_FOR_PINNING}; \
             set `dataplane.pin = \"on\"` to pin all the same",
            cores.len()
        )),
        _ if cores.is_empty() => Err("pinning is off: the system does not say which cores there are".into()),
        _ => {
            let mut free = Vec::new();
            let pick = |numa: &Option<usize>| {
                if free.is_empty() {
                    free = cores.to_vec();
                }
                let near = |core: &Core| numa.is_none_or(|numa| core.numa == numa);
                free.remove(free.iter().position(near).unwrap_or(0))
            };
            Ok(workers.iter().map(pick).collect())
        }
    }
}

/// Does something on the cores of one NUMA node: threads that it starts stay there, and what they touch first lies there.
pub(crate) fn near<T>(numa: Option<usize>, cores: &[Core], work: impl FnOnce() -> T) -> T {
    let mut set = CpuSet::new();
    cores.iter().filter(|core| numa.is_none_or(|numa| core.numa == numa)).for_each(|core| set.set(core.cpu));
    let before = sched_getaffinity(None).ok().filter(|_| set.count() > 0 && set.count() < cores.len() as u32);
    let moved = before.filter(|_| sched_setaffinity(None, &set).is_ok());
    let done = work();
    if let Some(before) = moved {
        // It was allowed before, so it is again.
        let _ = sched_setaffinity(None, &before);
    }
    done
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
        assert!(plan(Pin::Auto, &[None], &cores).is_err_and(|why| why.contains("3 cores")));
        assert_eq!(plan(Pin::On, &[None], &cores).map(|cores| cores.len()), Ok(1));
        assert!(plan(Pin::Off, &[None], &cores).is_err());
        assert!(plan(Pin::On, &[None], &[]).is_err());
    }

    #[test]
    fn workers_are_near_their_devices() {
        let cores: Vec<_> = (0..6).map(|cpu| Core { cpu, numa: cpu / 3, sibling: false }).collect();
        let planned = |workers: &[Option<usize>]| -> Vec<usize> {
            plan(Pin::On, workers, &cores).expect("cores").iter().map(|core| core.cpu).collect()
        };
        assert_eq!(planned(&[None, Some(1), Some(1), None]), [0, 3, 4, 1]);
        assert_eq!(planned(&[Some(1); 4]), [3, 4, 5, 0], "more than there are cores near");
        assert_eq!(planned(&[None; 8]), [0, 1, 2, 3, 4, 5, 0, 1], "more than there are cores");
        assert_eq!(planned(&[Some(7)]), [0], "no core is near");
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
