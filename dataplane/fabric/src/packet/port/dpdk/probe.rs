//! Looks for what EAL and a device need before EAL is started: it exits or panics where something is missing.

#![allow(unsafe_code)]

use std::fs::{self, OpenOptions};
use std::io;
use std::mem;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::device::{Device, Role};
use super::error::DpdkError;
use super::options::{DpdkOptions, HugePages};

/// Free huge pages of every size, in MB.
pub(super) fn free_huge_mb() -> u64 {
    let Ok(sizes) = fs::read_dir("/sys/kernel/mm/hugepages") else { return 0 };
    let free = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        let page_kb: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages =
            |file| -> Option<u64> { fs::read_to_string(entry.path().join(file)).ok()?.trim().parse().ok() };
        // Those that somebody has mapped and not yet touched are free by name only.
        let free = pages("free_hugepages")?.saturating_sub(pages("resv_hugepages")?);
        Some(free * page_kb / 1024)
    };
    sizes.flatten().filter_map(free).sum()
}

/// Whether EAL is to have huge pages.
pub(super) fn huge_pages(options: &DpdkOptions) -> Result<bool, DpdkError> {
    let (wanted_mb, free_mb) = (options.memory_mb(), free_huge_mb());
    let needing = options.devices.iter().find(|device| device.needs_huge_pages());
    match (options.huge_pages, needing) {
        (HugePages::No, Some(device)) => Err(DpdkError::Option {
            option: "huge_pages",
            value: "no".into(),
            range: format!("yes or auto, as {device} works with them only"),
        }),
        (HugePages::No, None) => Ok(false),
        _ if free_mb >= wanted_mb => Ok(true),
        (HugePages::Auto, None) => Ok(false),
        _ => Err(DpdkError::NoHugePages { wanted_mb, free_mb }),
    }
}

/// The MTU of an interface of this network namespace (sysfs may show another's).
pub(super) fn interface_mtu(interface: &str) -> io::Result<u32> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, 0))?;
    // SAFETY: an ifreq of zeroes is a valid one.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, &from) in request.ifr_name.iter_mut().zip(interface.as_bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: SIOCGIFMTU reads the name and writes the number, both within the structure.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &mut request) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: that call has written this member.
    Ok(unsafe { request.ifr_ifru.ifru_mtu } as u32)
}

/// Whether the device is there and may be used. Removes a socket that a dead process left where this one makes its own.
pub(super) fn prerequisites(device: &Device) -> Result<(), DpdkError> {
    let lacks = |path: PathBuf, why, advice| {
        Err(DpdkError::Prerequisite { device: device.to_string(), path, why, advice })
    };
    if let Some(interface) = device.interface()
        && let Err(why) = interface_mtu(interface)
    {
        return lacks(interface.into(), why, "name an interface that `ip link` shows");
    }
    if let Some(socket) = device.makes_socket()
        && let Err(why) = remove_stale(socket)
    {
        return lacks(
            socket.clone(),
            why,
            "name a socket in a folder that velod may write, and that nobody serves",
        );
    }
    match device {
        Device::Pci { address } => pci(address).or_else(|(path, why, advice)| lacks(path, why, advice)),
        Device::Tap { .. } => {
            let path = PathBuf::from("/dev/net/tun");
            match OpenOptions::new().read(true).write(true).open(&path) {
                Ok(_) => Ok(()),
                Err(why) => lacks(path, why, "load the module tun, and let velod's user open it"),
            }
        }
        Device::VirtioUser { socket } => match UnixStream::connect(socket) {
            Ok(_) => Ok(()),
            Err(why) => lacks(socket.clone(), why, "start the vhost end of it first"),
        },
        // Not connected to: the server would take it for its client.
        Device::Memif { role: Role::Client, socket, .. } => match fs::metadata(socket) {
            Ok(_) => Ok(()),
            Err(why) => lacks(socket.clone(), why, "start the server's end of it first"),
        },
        _ => Ok(()),
    }
}

/// Removes a socket that nobody listens at. Its folder must be there.
fn remove_stale(socket: &Path) -> io::Result<()> {
    match fs::symlink_metadata(socket) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::metadata(
                socket.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new(".")),
            )?;
            Ok(())
        }
        Err(error) => Err(error),
        Ok(found) if !found.file_type().is_socket() => Err(io::ErrorKind::AlreadyExists.into()),
        Ok(_) => match UnixStream::connect(socket) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(socket),
            Err(error) => Err(error),
            Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        },
    }
}

type Lack = (PathBuf, io::Error, &'static str);

fn pci(address: &str) -> Result<(), Lack> {
    let path = Path::new("/sys/bus/pci/devices").join(address);
    if let Err(why) = fs::metadata(&path) {
        return Err((path, why, "name a device that `lspci -D` shows"));
    }
    let driver = fs::read_link(path.join("driver")).ok();
    let driver = driver.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
    match driver {
        // These stay with the kernel, and DPDK works beside it.
        Some("mlx4_core" | "mlx5_core" | "gve" | "mana") => Ok(()),
        Some("vfio-pci") => {
            let group = fs::read_link(path.join("iommu_group")).ok();
            let Some(group) = group.as_deref().and_then(Path::file_name).map(Path::new) else {
                return Ok(());
            };
            let plain = Path::new("/dev/vfio").join(group);
            let mut unprotected = std::ffi::OsString::from("noiommu-");
            unprotected.push(group);
            let file = if plain.exists() { plain } else { Path::new("/dev/vfio").join(unprotected) };
            match OpenOptions::new().read(true).write(true).open(&file) {
                // One that another process has says so here.
                Ok(_) => Ok(()),
                Err(why) => Err((file, why, "let velod's user open it, and end whoever has it")),
            }
        }
        Some("uio_pci_generic" | "igb_uio") => Ok(()),
        _ => {
            let why = io::Error::other(format!("bound to {}", driver.unwrap_or("no driver")));
            Err((
                path.join("driver"),
                why,
                "bind the device to vfio-pci (dpdk-devbind.py --bind=vfio-pci ADDRESS)",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_dead_socket_is_removed_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let device = |path: &Path| format!("memif:server:{}", path.display()).parse::<Device>().unwrap();
        prerequisites(&device(&path)).unwrap();
        let listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(prerequisites(&device(&path)), Err(DpdkError::Prerequisite { .. })));
        assert!(path.exists());
        drop(listener);
        prerequisites(&device(&path)).unwrap();
        assert!(!path.exists());
        fs::write(&path, "not a socket").unwrap();
        assert!(matches!(prerequisites(&device(&path)), Err(DpdkError::Prerequisite { .. })));
        assert!(path.exists());
        assert!(prerequisites(&device(&dir.path().join("none/s"))).is_err());
    }

    #[test]
    fn what_a_device_lacks_is_said() {
        for (device, word) in [
            ("0000:ff:1f.7", "lspci"),
            ("af_packet:velo-none", "ip link"),
            ("af_xdp:velo-none", "ip link"),
            ("virtio_user:/nonexistent/v", "vhost"),
        ] {
            let error = prerequisites(&device.parse().unwrap()).unwrap_err().to_string();
            assert!(error.contains(word) && error.starts_with(device), "{error}");
        }
    }

    #[test]
    fn huge_pages_are_asked_for_in_vain() {
        let device: Device = "memif:client:/tmp/m".parse().unwrap();
        let lacking = free_huge_mb() + 1;
        let options = |huge_pages, device: &Device| DpdkOptions {
            huge_pages,
            memory_mb: Some(lacking),
            ..DpdkOptions::device(device.clone())
        };
        assert!(!huge_pages(&options(HugePages::Auto, &device)).unwrap());
        assert!(!huge_pages(&options(HugePages::No, &device)).unwrap());
        let error = huge_pages(&options(HugePages::Yes, &device)).unwrap_err().to_string();
        assert!(error.contains("vm.nr_hugepages"), "{error}");
        let needing = "virtio_user:/tmp/v".parse().unwrap();
        let error = huge_pages(&options(HugePages::Auto, &needing)).unwrap_err().to_string();
        assert!(error.contains("vm.nr_hugepages"), "{error}");
        let error = huge_pages(&options(HugePages::No, &needing)).unwrap_err().to_string();
        assert!(error.contains("virtio_user:/tmp/v works with them only"), "{error}");
    }
}
