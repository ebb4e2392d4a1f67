//! Starting DPDK and opening its devices.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use super::device::Device;
use super::error::DpdkError;
use super::log;
use super::options::DpdkOptions;
use super::plugin::Plugin;
use super::probe;
use super::queue::DpdkPort;
use super::table::{
    LinkAnswer, OFFLOAD_CHECKS, OFFLOAD_FILLS, PortAnswer, PortHandle, PortRequest, STAGES, STEERING_FLOW,
    STEERING_HASH, Statistics,
};
use crate::packet::port::ether::Mac;

/// DPDK, started. Clones are the same one.
#[derive(Clone)]
pub struct Dpdk(Arc<Running>);

struct Running {
    plugin: Plugin,
    options: DpdkOptions,
    huge: bool,
    opened: Box<[AtomicBool]>,
}

impl fmt::Debug for Dpdk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dpdk")
            .field("version", &self.version())
            .field("devices", &self.0.options.devices)
            .finish()
    }
}

/// How a device sorts what arrives into its queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Steering {
    /// One queue; or, of shared memory, what the peer puts into its queue of the same number.
    Paired,
    /// By flow rules: queue k gets the UDP port `udp_port + k`.
    Flow,
    /// By a hash over addresses and ports.
    Hash,
}

/// A device's link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Whether it is up.
    pub up: bool,
    /// Its rate, where the device knows one.
    pub rate_bytes_per_s: Option<u64>,
}

impl Dpdk {
    /// Whether the plugin and the library can be opened: DPDK's version. Starts nothing.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn probe(plugin: Option<&std::path::Path>) -> Result<String, DpdkError> {
        Ok(Plugin::open(plugin)?.version())
    }

    /// Looks for everything that DPDK and the devices need, and then starts EAL. Possible once in a process.
    ///
    /// # Errors
    /// What is missing, and what to do.
    pub fn start(options: DpdkOptions) -> Result<Self, DpdkError> {
        static STARTED: AtomicBool = AtomicBool::new(false);
        options.checked()?;
        let plugin = Plugin::open(options.plugin.as_deref())?;
        let huge = probe::huge_pages(&options)?;
        for device in &options.devices {
            probe::prerequisites(device)?;
        }
        if STARTED.swap(true, Ordering::SeqCst) {
            return Err(DpdkError::StartedBefore);
        }
        let arguments = options.eal_arguments(huge, &allowed_cpus());
        // EAL makes the thread that starts it its own (it moves it to other CPUs and remembers it): so it gets one.
        let words = arguments.clone();
        let started =
            thread::Builder::new().name("dpdk-start".into()).spawn(move || start_eal(plugin, &words));
        let code = match started.map(thread::JoinHandle::join) {
            Ok(Ok(code)) => code,
            Ok(Err(_)) => -libc::EINVAL,
            Err(error) => -error.raw_os_error().unwrap_or(libc::EAGAIN),
        };
        if code == -libc::ENOMEM && huge {
            // Somebody else was quicker.
            let (wanted_mb, free_mb) = (options.memory_mb(), probe::free_huge_mb());
            return Err(DpdkError::NoHugePages { wanted_mb, free_mb });
        }
        if code < 0 {
            let (why, arguments) = (io::Error::from_raw_os_error(-code), arguments.join(" "));
            return Err(DpdkError::Eal { why, arguments, log: log::last() });
        }
        let opened = options.devices.iter().map(|_| AtomicBool::new(false)).collect();
        Ok(Self(Arc::new(Running { plugin, options, huge, opened })))
    }

    /// DPDK's version.
    pub fn version(&self) -> String {
        self.0.plugin.version()
    }

    /// Whether its memory is in huge pages.
    pub fn huge_pages(&self) -> bool {
        self.0.huge
    }

    /// Configures and starts device number `index` of [`DpdkOptions::devices`], once, and gives its queues.
    ///
    /// # Errors
    /// What the device refused.
    pub fn open(&self, index: usize) -> Result<Vec<DpdkPort>, DpdkError> {
        let options = &self.0.options;
        let missing = || DpdkError::DeviceMissing { index, devices: options.devices.len() };
        let device = options.devices.get(index).ok_or_else(missing)?.clone();
        let failed =
            |stage, why| DpdkError::Device { device: device.to_string(), stage, why, log: log::last() };
        if self.0.opened[index].swap(true, Ordering::SeqCst) {
            return Err(failed("opening it", io::ErrorKind::AlreadyExists.into()));
        }
        let sizes = options.sizes(&device);
        let request = PortRequest {
            queues: sizes.queues,
            room_bytes: device.room_bytes(&sizes),
            // The MTU of an interface is its owner's, and shared memory has none.
            mtu: if matches!(device, Device::Pci { .. }) { sizes.frame_max_bytes - 14 } else { 0 },
            descriptors: sizes.descriptors,
            mbufs: options.mbufs(&sizes),
            udp_port_first: options.udp_port.map_or(0, u32::from),
            offload: u32::from(!options.checksums_in_software),
        };
        let name = CString::new(device.dpdk_name(index)).map_err(|_| missing())?;
        let mut answer = PortAnswer::default();
        let table = self.0.plugin.table;
        // SAFETY: EAL runs; a string and two structures of the table's version.
        let port = unsafe { (table.open)(name.as_ptr(), &request, &mut answer) };
        if port.is_null() {
            let stage = STAGES.get(answer.stage as usize).copied().unwrap_or("opening it");
            return Err(failed(stage, io::Error::from_raw_os_error(-answer.error)));
        }
        let frame_max_bytes = match &device {
            Device::Pci { .. } => u32::from(answer.mtu) + 14,
            Device::AfXdp { .. } => sizes.frame_max_bytes.min(answer.frame_max_bytes),
            _ => sizes.frame_max_bytes,
        };
        let frame_max_bytes = frame_max_bytes.min(sizes.frame_max_bytes) as usize;
        let opened = Arc::new(OpenedDevice { port, answer, device, frame_max_bytes, dpdk: self.clone() });
        (0..sizes.queues)
            .map(|queue| {
                // SAFETY: the port is open, and `opened` keeps it so.
                let handle = unsafe { (table.queue)(port, queue) };
                if handle.is_null() {
                    let why = io::ErrorKind::NotFound.into();
                    let device = opened.device.to_string();
                    return Err(DpdkError::Device {
                        device,
                        stage: "the number of queues",
                        why,
                        log: log::last(),
                    });
                }
                Ok(DpdkPort::new(table, handle, Arc::clone(&opened)))
            })
            .collect()
    }
}

/// A device that is open. Closed with the last of its ports.
pub struct OpenedDevice {
    port: *mut PortHandle,
    answer: PortAnswer,
    device: Device,
    frame_max_bytes: usize,
    dpdk: Dpdk,
}

// SAFETY: the plugin's functions of a port may be called from any thread at any time; only queues have one owner.
unsafe impl Send for OpenedDevice {}
// SAFETY: as above.
unsafe impl Sync for OpenedDevice {}

impl fmt::Debug for OpenedDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenedDevice").field("device", &self.device).field("answer", &self.answer).finish()
    }
}

impl OpenedDevice {
    /// What it was configured as.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its hardware address.
    pub fn mac(&self) -> Mac {
        Mac(self.answer.mac)
    }

    /// The largest frame.
    pub fn frame_max_bytes(&self) -> usize {
        self.frame_max_bytes
    }

    /// Whether it fills in checksums of what departs.
    pub fn fills_checksums(&self) -> bool {
        self.answer.offloads & OFFLOAD_FILLS != 0
    }

    /// Whether it looks at the checksums of what arrives.
    pub fn looks_at_checksums(&self) -> bool {
        self.answer.offloads & OFFLOAD_CHECKS != 0
    }

    /// How it sorts what arrives into queues.
    pub fn steering(&self) -> Steering {
        match self.answer.steering {
            STEERING_FLOW => Steering::Flow,
            STEERING_HASH => Steering::Hash,
            _ => Steering::Paired,
        }
    }

    /// Its NUMA node, where it has one.
    pub fn numa_node(&self) -> Option<u32> {
        u32::try_from(self.answer.numa_node).ok()
    }

    /// Its link, now.
    pub fn link(&self) -> Link {
        let mut answer = LinkAnswer::default();
        // SAFETY: the port is open.
        unsafe { (self.table().link)(self.port, &mut answer) };
        // Virtual devices name a rate that means nothing.
        let known = matches!(self.device, Device::Pci { .. }) && answer.megabits_per_s != 0;
        let rate_bytes_per_s = known.then(|| u64::from(answer.megabits_per_s) * 1_000_000 / 8);
        Link { up: answer.up != 0, rate_bytes_per_s }
    }

    /// Its own counters.
    pub fn statistics(&self) -> Statistics {
        let mut answer = Statistics::default();
        // SAFETY: the port is open.
        unsafe { (self.table().statistics)(self.port, &mut answer) };
        answer
    }

    fn table(&self) -> &'static super::table::Table {
        self.dpdk.0.plugin.table
    }
}

impl Drop for OpenedDevice {
    fn drop(&mut self) {
        // SAFETY: made by `open`; every queue's owner holds this value, and has given its mbufs back.
        unsafe { (self.table().close)(self.port) };
    }
}

fn start_eal(plugin: Plugin, words: &[String]) -> i32 {
    let Ok(words) = words.iter().map(|word| CString::new(word.as_str())).collect::<Result<Vec<_>, _>>()
    else {
        return -libc::EINVAL;
    };
    let pointers: Vec<*const c_char> = words.iter().map(|word| word.as_ptr()).collect();
    // SAFETY: `pointers` has as many strings as are named, and the log's function is one of this library.
    let code = unsafe { (plugin.table.start)(pointers.len() as i32, pointers.as_ptr(), log::take) };
    // EAL keeps pointers to its arguments (the file prefix is one). It is started once in a process.
    std::mem::forget(words);
    code
}

/// The CPUs that this thread may run on, as EAL writes sets: `0,1,5`.
fn allowed_cpus() -> String {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return "0".into() };
    let cpus = (0..rustix::thread::CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu));
    cpus.map(|cpu| cpu.to_string()).collect::<Vec<_>>().join(",")
}
