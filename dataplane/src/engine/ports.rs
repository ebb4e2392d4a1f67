//! Ports of RDMA devices: what their workers drive is made here, at the start and anew when a device that failed is back.
//!
//! A link that went down and came up again, or a device that was taken away and made again, is used again after its rest. Nothing is
//! asked of it meanwhile but whether the kernel says that its port is up.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use velo_config::Fabric;
use velo_fabric::pool::{BUFFER_BYTES, Pool};
use velo_fabric::rdma::device::{
    Completions, Device, Place, Plugin, Purpose, Queue, is_active, locked_bytes,
};
use velo_fabric::rdma::{Rdma, RdmaOptions, limits};
use velo_fabric::supply::Threads;

use super::core::Engine;
use super::fatal::EndsWith;
use super::pairs::{PairTask, RdmaFabric};
use super::paths::{retry_at, was_good};
use super::start::DataPlaneOptions;
use super::task::{Task, TaskQueue};
use crate::carrier::Renewed;
use crate::fabrics::{OpenDevice, open_device};
use crate::numbers::PortFacts;
use crate::serve::StoreServe;
use crate::topology::{self, Core};
use crate::worker::Command;

/// How often it is looked whether a port that failed is up again.
const LOOK_US: u64 = 2_000_000;

/// A port of an RDMA device, with its worker.
pub(super) struct RdmaPort {
    /// Its index in the engine.
    pub(super) worker: usize,
    pub(super) place: Place,
    plugin: Plugin,
    /// None where it has failed: its removal may wait until nobody has it any more.
    pub(super) opened: Option<(Device, Arc<Queue>)>,
    /// Queue pairs that there are or are being made, and the most.
    pub(super) pairs: usize,
    pub(super) pairs_max: usize,
    /// How often it has failed lately, since when it is as it is, and when it may be opened again.
    failures: u32,
    since: u64,
    look_at: Option<u64>,
}

/// What the workers of all ports are made with.
pub(super) struct PortParts {
    pub(super) serve: Arc<StoreServe>,
    /// Where what is read comes.
    pub(super) pool: Pool,
    /// What each has for what peers ask for.
    pub(super) lent_bytes: u64,
    /// Threads that read that.
    pub(super) readers: usize,
    pub(super) cores: Vec<Core>,
    options: RdmaOptions,
    /// Queue pairs of one port at most, and what is locked when all ports have all of them.
    pairs_max: usize,
    locked_bytes: u64,
}

/// A port with what its worker drives.
pub(super) struct MadePort {
    pub(super) carrier: Rdma<Completions>,
    pub(super) words: String,
    pub(super) facts: PortFacts,
    plugin: Plugin,
    device: Device,
    queue: Arc<Queue>,
    pairs_max: usize,
}

/// What came of looking at a port that had failed.
pub(crate) struct PortDone {
    port: usize,
    /// Or why not; nothing where it is not up.
    made: Result<Box<MadePort>, Option<String>>,
}

impl fmt::Debug for PortDone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortDone").field("port", &self.port).finish_non_exhaustive()
    }
}

impl fmt::Debug for PortParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PortParts").finish_non_exhaustive()
    }
}

impl PortParts {
    pub(super) fn new(
        options: &DataPlaneOptions,
        (serve, pool): (&Arc<StoreServe>, &Pool),
        (lent_bytes, readers): (u64, usize),
        cores: &[Core],
        ports: usize,
        paths_max: usize,
    ) -> Self {
        let settings = &options.fabrics.settings.rdma;
        let pairs_max = paths_max.min(limits::PATHS);
        let pools_bytes = (pool.capacity() * BUFFER_BYTES) as u64 + lent_bytes;
        Self {
            serve: serve.clone(),
            pool: pool.clone(),
            lent_bytes,
            readers,
            cores: cores.to_vec(),
            options: RdmaOptions {
                stall_timeout: options.stall_timeout,
                lease: Duration::from_millis(settings.lease_ms),
                lent_max_bytes: settings.lent_per_peer.0,
            },
            pairs_max,
            locked_bytes: locked_bytes(ports, pools_bytes, pairs_max),
        }
    }

    /// Registers memory with a port and makes what its worker drives. What is lent lies near the device.
    pub(super) fn make(&self, port: OpenDevice) -> anyhow::Result<MadePort> {
        topology::near(port.numa, &self.cores, || {
            let OpenDevice { plugin, device, words, .. } = port;
            device.means_to_lock(self.locked_bytes);
            let lent = Pool::new(self.lent_bytes)?;
            let filled = device.register(&self.pool, Purpose::Filled)?;
            let tier = device.register(&lent, Purpose::Lent)?;
            let pairs_max = device.pairs_max().min(self.pairs_max);
            let completions = device.completions(pairs_max)?;
            let queue = completions.queue().clone();
            let supply = Threads::into_buffers(Arc::new(EndsWith(self.serve.clone())), lent, self.readers)?;
            let carrier = Rdma::new(completions, Box::new(supply), self.options)?;
            let facts = PortFacts {
                name: format!("{}:{}", device.place().device, device.place().port),
                rate_bytes_per_s: device.rate_bytes_per_s(),
                registered_bytes: filled.bytes + tier.bytes,
                registered_us: (filled.took + tier.took).as_micros() as u64,
            };
            let words = format!(
                "rdma {words}, {} MiB registered{} in {} ms",
                facts.registered_bytes >> 20,
                if filled.on_demand { " on demand" } else { "" },
                facts.registered_us / 1_000
            );
            Ok(MadePort { carrier, words, facts, plugin, device, queue, pairs_max })
        })
    }
}

impl RdmaPort {
    /// The port, and its worker's part of it.
    pub(super) fn new(worker: usize, made: MadePort) -> (Self, Renewed) {
        let MadePort { carrier, words, facts, plugin, device, queue, pairs_max } = made;
        let place = device.place().clone();
        let opened = Some((device, queue));
        let (pairs, failures, since, look_at) = (0, 0, 0, None);
        let port = Self { worker, place, plugin, opened, pairs, pairs_max, failures, since, look_at };
        (port, Renewed { carrier: Box::new(carrier), words, facts })
    }
}

/// Looks at a port that had failed; on a thread that may block.
pub(super) fn renew(port: usize, plugin: Plugin, place: &Place, parts: &PortParts) -> PortDone {
    let made = if is_active(place) {
        let opened = open_device(plugin, place).map_err(anyhow::Error::msg);
        opened.and_then(|port| parts.make(port)).map(Box::new).map_err(|error| Some(error.to_string()))
    } else {
        Err(None)
    };
    PortDone { port, made }
}

impl RdmaFabric {
    /// A worker's port is of no use. Gives its name and how many are left, the first time.
    pub(super) fn port_failed(&mut self, tasks: &TaskQueue, worker: usize) -> Option<(String, usize)> {
        let port = self.ports.iter_mut().find(|port| port.worker == worker)?;
        let (device, queue) = port.opened.take()?;
        tasks.push(Task::Pairs(PairTask::Close(device, queue)));
        let name = port.place.to_string();
        Some((name, self.ports.iter().filter(|port| port.opened.is_some()).count()))
    }
}

impl Engine {
    /// A worker's port is of no further use: the others carry on without it.
    pub(super) fn port_failed(&mut self, worker: usize, fabric: Fabric, error: &str) {
        let failed = match &mut self.rdma {
            Some(rdma) if fabric == Fabric::Rdma => rdma.port_failed(&self.pair_tasks, worker),
            _ => self
                .packets
                .iter_mut()
                .find(|own| own.kind.fabric() == fabric)
                .and_then(|own| own.port_failed(worker)),
        };
        let advice = match fabric {
            Fabric::Rdma => "it is used again when it is back; look at its device",
            _ => "look at its device, then start velo again",
        };
        if let Some((name, left)) = failed {
            self.shared.metrics.note(format!(
                "{fabric} at {name} has failed ({error}) and is not used any more ({left} of its ports are left): {advice}",
            ));
        }
    }

    /// Nothing of a port that has failed is in use any more: it may be opened again after its rest.
    pub(super) fn port_spent(&mut self, now: u64, worker: usize) {
        let mut ports = self.rdma.iter_mut().flat_map(|rdma| &mut rdma.ports);
        let Some(port) = ports.find(|port| port.worker == worker) else { return };
        if was_good(now, port.since) {
            port.failures = 0;
        }
        port.failures = port.failures.saturating_add(1);
        port.look_at = Some(retry_at(now, port.failures));
    }

    /// Has it looked whether ports that failed are back.
    pub(super) fn look_after_ports(&mut self, now: u64) {
        let Some(rdma) = &mut self.rdma else { return };
        for (at, port) in rdma.ports.iter_mut().enumerate() {
            if port.look_at.take_if(|look_at| now >= *look_at).is_some() {
                let (plugin, place, parts) = (port.plugin, port.place.clone(), rdma.parts.clone());
                self.pair_tasks.push(Task::Renew { port: at, plugin, place, parts });
            }
        }
    }

    /// It was looked at a port.
    pub(super) fn port_done(&mut self, now: u64, done: PortDone) {
        let Some(port) = self.rdma.as_mut().and_then(|rdma| rdma.ports.get_mut(done.port)) else { return };
        match done.made {
            Ok(made) => {
                let (worker, pairs, failures) = (port.worker, port.pairs, port.failures);
                let (new, renewed) = RdmaPort::new(worker, *made);
                *port = RdmaPort { pairs, failures, since: now, ..new };
                let note = format!("rdma at {} is back and is used again", port.place);
                self.workers[worker].send(Command::Renew(Box::new(renewed)));
                self.shared.metrics.note(note);
                // Whoever was left for want of it.
                self.peers.values_mut().for_each(|peer| peer.fabrics.may_try_again(now, Fabric::Rdma));
            }
            Err(None) => port.look_at = Some(now + LOOK_US),
            Err(Some(why)) => {
                port.failures = port.failures.saturating_add(1);
                port.look_at = Some(retry_at(now, port.failures));
                let note = format!("rdma at {} is up again but cannot be used: {why}", port.place);
                self.shared.metrics.note(note);
            }
        }
    }
}
