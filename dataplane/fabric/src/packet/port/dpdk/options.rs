//! How DPDK is started, and the arguments to EAL that come of it.

use std::path::PathBuf;

use super::device::{Device, Sizes};
use super::error::DpdkError;
use super::probe::interface_mtu;
use super::table::BURST;

/// The room of an mbuf, at most: 16 bits less its headroom.
pub const FRAME_MAX_BYTES: usize = 65_407;
/// The least frame that a device is opened for: what carries IPv6's least MTU.
pub const FRAME_MIN_BYTES: usize = 1_294;
/// Queues of one device, at most.
pub const QUEUES_MAX: usize = 64;
/// Descriptors of one queue and direction, at most.
pub const DESCRIPTORS_MAX: usize = 4_096;
/// Devices of one process, at most.
pub const DEVICES_MAX: usize = 16;

/// What a ring of shared memory is sized to: what a core's own caches hold of it pays more than room for bursts.
const RING_BYTES: usize = 2 << 20;
/// EAL's and the drivers' own memory.
const OVERHEAD_BYTES: u64 = 48 << 20;
/// What an mbuf has beside its room: header, headroom, mempool's own.
const MBUF_OVERHEAD_BYTES: u64 = 128 + 128 + 128;

/// Where DPDK's memory comes from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum HugePages {
    /// Huge pages where enough are free, otherwise without, if the devices work without.
    #[default]
    Auto,
    /// Huge pages, or an error.
    Yes,
    /// Without: for memif, vhost, af_packet and tap, also where there is no root.
    No,
}

/// How DPDK is started. The default has no device.
#[derive(Debug, Clone, Default)]
pub struct DpdkOptions {
    /// The plugin; `None` for the one that VELO_DPDK_PLUGIN names or that lies beside the executable.
    pub plugin: Option<PathBuf>,
    /// The devices. [`Dpdk::open`](super::Dpdk::open) names them by their place here.
    pub devices: Vec<Device>,
    /// Queues of each device, each a port with a worker; 0 is 1.
    pub queues: usize,
    /// The largest frame, from the destination's address to the end of the payload; at most what the device carries. `None` for the
    /// interface's MTU, 9014 of a PCI device, and [`FRAME_MAX_BYTES`] of shared memory.
    pub frame_max_bytes: Option<usize>,
    /// Descriptors of a queue in each direction, a power of two. `None` chooses by the size of frames.
    pub descriptors: Option<usize>,
    /// The UDP port of queue 0; queue 1 has the next. Where the device has flow rules, it sorts by them.
    pub udp_port: Option<u16>,
    /// Where memory comes from.
    pub huge_pages: HugePages,
    /// EAL's memory in MB. `None` for what the devices need.
    pub memory_mb: Option<u64>,
    /// EAL's name for what it makes. `None` for one of this process alone.
    pub file_prefix: Option<String>,
    /// Leaves the checksums of UDP and IPv4 to software also where the device has them.
    pub checksums_in_software: bool,
    /// More arguments to EAL, in its own words.
    pub arguments: Vec<String>,
}

impl DpdkOptions {
    /// One device, and everything else as it comes.
    pub fn device(device: Device) -> Self {
        Self { devices: vec![device], ..Self::default() }
    }

    pub(super) fn checked(&self) -> Result<(), DpdkError> {
        let within = |option, value: usize, range: std::ops::RangeInclusive<usize>| {
            if range.contains(&value) {
                return Ok(());
            }
            let range = format!("between {} and {}", range.start(), range.end());
            Err(DpdkError::Option { option, value: value.to_string(), range })
        };
        within("the number of devices", self.devices.len(), 1..=DEVICES_MAX)?;
        within("the number of queues", self.queues(), 1..=QUEUES_MAX)?;
        if let Some(bytes) = self.frame_max_bytes {
            within("the largest frame in bytes", bytes, FRAME_MIN_BYTES..=FRAME_MAX_BYTES)?;
        }
        if let Some(descriptors) = self.descriptors {
            within("the number of descriptors", descriptors, 16..=DESCRIPTORS_MAX)?;
            if !descriptors.is_power_of_two() {
                let (value, range) = (descriptors.to_string(), "a power of two".into());
                return Err(DpdkError::Option { option: "the number of descriptors", value, range });
            }
        }
        if let Some(port) = self.udp_port {
            within("the last UDP port", usize::from(port) + self.queues() - 1, 1..=65_535)?;
        }
        let zero = |text: &&String| text.contains('\0');
        if let Some(text) = self.arguments.iter().chain(&self.file_prefix).find(zero) {
            let range = "text without a zero byte".into();
            return Err(DpdkError::Option { option: "an argument", value: format!("{text:?}"), range });
        }
        Ok(())
    }

    pub(super) fn queues(&self) -> usize {
        self.queues.max(1)
    }

    /// The room of an mbuf for `device`.
    pub(super) fn frame_max_bytes(&self, device: &Device) -> usize {
        let wanted = self.frame_max_bytes;
        match (device, device.interface()) {
            (_, Some(interface)) => {
                let carries = interface_mtu(interface).unwrap_or(1_500) as usize + 14;
                // A slot of the kernel's ring, headers and all, is 32 KiB at most here.
                wanted.map_or(carries, |wanted| wanted.min(carries)).clamp(FRAME_MIN_BYTES, 32_000)
            }
            (Device::Pci { .. }, _) => wanted.unwrap_or(9_014),
            (Device::Tap { .. }, _) => wanted.unwrap_or(1_514),
            _ => wanted.unwrap_or(FRAME_MAX_BYTES),
        }
    }

    pub(super) fn descriptors(&self, frame_max_bytes: usize) -> usize {
        let fitting = (RING_BYTES / frame_max_bytes.next_multiple_of(64)).next_power_of_two();
        self.descriptors.unwrap_or(fitting.clamp(32, 1_024))
    }

    pub(super) fn sizes(&self, device: &Device) -> Sizes {
        let frame_max_bytes = self.frame_max_bytes(device);
        Sizes {
            queues: self.queues() as u32,
            frame_max_bytes: frame_max_bytes as u32,
            descriptors: self.descriptors(frame_max_bytes) as u32,
        }
    }

    /// Mbufs of each queue: all descriptors of both directions, what a worker and its mempool's cache hold, and as much again as one
    /// burst on its way.
    pub(super) fn mbufs(&self, sizes: &Sizes) -> u32 {
        2 * sizes.descriptors + 8 * BURST as u32
    }

    /// EAL's memory.
    pub(super) fn memory_mb(&self) -> u64 {
        let of_device = |device: &Device| {
            let sizes = self.sizes(device);
            let room = u64::from(device.room_bytes(&sizes).next_multiple_of(64)) + MBUF_OVERHEAD_BYTES;
            u64::from(self.mbufs(&sizes)) * room * u64::from(sizes.queues)
        };
        let needed = self.devices.iter().map(of_device).sum::<u64>() + OVERHEAD_BYTES;
        self.memory_mb.unwrap_or(needed.div_ceil(1 << 20))
    }

    /// EAL's arguments. `cpus` is where its own threads may run.
    pub(super) fn eal_arguments(&self, huge: bool, cpus: &str) -> Vec<String> {
        let prefix = self.file_prefix.clone().unwrap_or_else(|| format!("velo-{}", std::process::id()));
        // One logical core over all CPUs: neither the calling thread nor any that is spawned later gets pinned.
        let mut arguments: Vec<String> =
            ["velo", "--lcores", &format!("0@({cpus})"), "--file-prefix", &prefix, "--no-telemetry"]
                .map(String::from)
                .into();
        arguments.extend(["-m".into(), self.memory_mb().to_string()]);
        // The first leaves no files; the second cannot be had with it, and the third does the same for it.
        let memory: &[&str] = if huge { &["--in-memory"] } else { &["--no-huge", "--no-shconf"] };
        arguments.extend(memory.iter().map(|&word| word.into()));
        if self.devices.iter().any(Device::single_file) {
            arguments.push("--single-file-segments".into());
        }
        if !self.devices.iter().any(|device| matches!(device, Device::Pci { .. })) {
            arguments.extend(["--no-pci".into(), "--iova-mode=va".into()]);
        }
        for (index, device) in self.devices.iter().enumerate() {
            arguments.extend(device.arguments(index, &self.sizes(device)));
        }
        arguments.extend(self.arguments.iter().cloned());
        arguments
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memif() -> DpdkOptions {
        DpdkOptions::device("memif:client:/tmp/m".parse().unwrap())
    }

    #[test]
    fn arguments_name_the_device_and_pin_nothing() {
        let options = DpdkOptions { frame_max_bytes: Some(9_000), file_prefix: Some("x".into()), ..memif() };
        let arguments = options.eal_arguments(false, "0-1").join(" ");
        assert!(
            arguments.starts_with("velo --lcores 0@(0-1) --file-prefix x --no-telemetry -m "),
            "{arguments}"
        );
        assert!(arguments.contains("--no-huge") && !arguments.contains("--in-memory"), "{arguments}");
        let device = "--vdev net_memif0,role=client,socket=/tmp/m,socket-abstract=no,bsize=9024,rsize=8";
        assert!(arguments.ends_with(device), "{arguments}");
        assert!(options.eal_arguments(true, "0").join(" ").contains("--in-memory"));
    }

    #[test]
    fn a_pci_device_is_the_only_one_that_is_taken() {
        let arguments =
            DpdkOptions::device("0000:17:00.0".parse().unwrap()).eal_arguments(true, "0").join(" ");
        assert!(arguments.ends_with("-a 0000:17:00.0") && !arguments.contains("--no-pci"), "{arguments}");
    }

    #[test]
    fn options_without_sense_are_refused_by_name() {
        let refused = |options: DpdkOptions| options.checked().unwrap_err().to_string();
        assert!(refused(DpdkOptions::default()).contains("number of devices"));
        assert!(refused(DpdkOptions { frame_max_bytes: Some(70_000), ..memif() }).contains("largest frame"));
        assert!(refused(DpdkOptions { descriptors: Some(100), ..memif() }).contains("power of two"));
        assert!(refused(DpdkOptions { queues: 65, ..memif() }).contains("queues"));
        assert!(refused(DpdkOptions { udp_port: Some(65_535), queues: 2, ..memif() }).contains("UDP port"));
        assert!(refused(DpdkOptions { arguments: vec!["a\0b".into()], ..memif() }).contains("argument"));
        memif().checked().unwrap();
    }

    #[test]
    fn memory_holds_every_mbuf() {
        let options = DpdkOptions { frame_max_bytes: Some(64_000), queues: 2, ..memif() };
        let sizes = options.sizes(&options.devices[0]);
        let mbufs = u64::from(options.mbufs(&sizes)) * 2 * 64_384;
        assert!(options.memory_mb() << 20 > mbufs);
    }
}
