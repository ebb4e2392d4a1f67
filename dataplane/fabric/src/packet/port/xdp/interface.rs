//! What the kernel says of a network interface: by rtnetlink, and by the ioctls of ethtool what rtnetlink does not tell.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::packet::port::ether::Mac;
use crate::packet::port::ether::netlink::Netlink;

const GET_CHANNELS: u32 = 0x3c;
const GET_LINK_SETTINGS: u32 = 0x4c;
/// Interfaces whose speed is made up.
const WITHOUT_SPEED: [&str; 4] = ["veth", "tun", "dummy", "bridge"];

/// An Ethernet interface.
#[derive(Debug, Clone)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) mac: Option<Mac>,
    pub(super) mtu: usize,
    pub(super) is_up: bool,
    /// The XDP program that is attached to it.
    pub(super) program: Option<u32>,
    /// How many queues it receives by.
    pub(super) queues: u32,
    pub(super) rate_bytes_per_s: Option<u64>,
}

impl Interface {
    /// Looks up the interface called `name`.
    pub(super) fn find(name: &str) -> io::Result<Self> {
        let link = Netlink::open()?.link(name)?;
        let socket =
            rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        // An interface that does not say has one.
        let queues = channels(&socket, &link.name).unwrap_or(1).max(1);
        let has_speed = link.kind.as_deref().is_none_or(|kind| !WITHOUT_SPEED.contains(&kind));
        let rate_bytes_per_s =
            if has_speed { megabits_per_s(&socket, &link.name).ok().flatten() } else { None }
                .map(|megabits| u64::from(megabits) * 125_000);
        Ok(Self {
            index: link.index,
            mac: link.mac,
            mtu: link.mtu as usize,
            is_up: link.is_up,
            program: link.program,
            queues,
            rate_bytes_per_s,
        })
    }
}

/// `struct ethtool_channels`.
#[derive(Default)]
#[repr(C)]
struct Channels {
    command: u32,
    max: [u32; 4],
    receive: u32,
    transmit: u32,
    other: u32,
    combined: u32,
}

/// `struct ethtool_link_settings`, with room for the masks behind it.
#[repr(C)]
struct LinkSettings {
    command: u32,
    megabits_per_s: u32,
    not_of_interest: [u8; 6],
    eth_tp_mdix_ctrl: u8,
    mask_words: i8,
    rest: [u32; 8],
    masks: [u32; 3 * 127],
}

fn channels(socket: &OwnedFd, name: &str) -> io::Result<u32> {
    let mut channels = Channels { command: GET_CHANNELS, ..Channels::default() };
    // SAFETY: this command fills in the structure that it names.
    unsafe { ethtool(socket, name, &mut channels) }?;
    Ok(channels.receive + channels.combined)
}

fn megabits_per_s(socket: &OwnedFd, name: &str) -> io::Result<Option<u32>> {
    const UNKNOWN: u32 = u32::MAX;
    let mut settings = LinkSettings {
        command: GET_LINK_SETTINGS,
        megabits_per_s: 0,
        not_of_interest: [0; 6],
        eth_tp_mdix_ctrl: 0,
        mask_words: 0,
        rest: [0; 8],
        masks: [0; 3 * 127],
    };
    // SAFETY: this command fills in the structure that it names. Asked with no words it says (negated) how many its masks have; those
    // are three masks of at most 127 words, for which there is room.
    unsafe { ethtool(socket, name, &mut settings) }?;
    settings.command = GET_LINK_SETTINGS;
    settings.mask_words = settings.mask_words.saturating_neg();
    // SAFETY: as above.
    unsafe { ethtool(socket, name, &mut settings) }?;
    Ok(Some(settings.megabits_per_s).filter(|speed| *speed != UNKNOWN && *speed != 0))
}

/// # Safety
/// `request` must be the structure of the command that it begins with, and all that the kernel may write for it.
unsafe fn ethtool<T>(socket: &OwnedFd, name: &str, request: &mut T) -> io::Result<()> {
    // SAFETY: an `ifreq` is made of plain numbers.
    let mut ifreq: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= ifreq.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in ifreq.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    ifreq.ifr_ifru.ifru_data = (&raw mut *request).cast();
    // SAFETY: the name ends in a zero, and `request` lives through the call; the caller vouches for its shape.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut ifreq) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
