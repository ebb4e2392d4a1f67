//! Gossip over UDP: carries what [`Machine`] sends and hears, as a task.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use velo_object::NodeId;

use super::MAX_SEALED_OVERHEAD_BYTES;
use super::machine::{GossipEvent, GossipOptions, MAX_PACKET_BYTES, Machine};
use crate::now_ms;
use crate::signed::Signed;

/// Commands and events that may wait.
const QUEUE: usize = 1024;

enum Command {
    Announce(Vec<(NodeId, SocketAddr)>),
    Spread(Signed),
    SpreadRevoked(u64),
    Prove(Vec<NodeId>),
    Block(Vec<NodeId>),
    Leave(oneshot::Sender<()>),
}

/// A running gossip.
#[derive(Debug, Clone)]
pub struct Gossip {
    commands: mpsc::Sender<Command>,
}

impl Gossip {
    /// Starts gossip on a socket, as a task. Its events come out of the receiver.
    ///
    /// # Errors
    /// Where the system has no randomness.
    pub fn start(
        socket: UdpSocket,
        options: GossipOptions,
    ) -> Result<(Self, mpsc::Receiver<GossipEvent>), getrandom::Error> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed)?;
        let (commands, inbox) = mpsc::channel(QUEUE);
        let (events, outbox) = mpsc::channel(QUEUE);
        let task = Task { machine: Machine::new(options, seed), socket, events };
        tokio::spawn(task.run(inbox));
        Ok((Self { commands }, outbox))
    }

    /// Says hello to members whose gossip is (or was) there.
    pub async fn announce(&self, members: Vec<(NodeId, SocketAddr)>) {
        let _ = self.commands.send(Command::Announce(members)).await;
    }

    /// Spreads a record.
    pub async fn spread(&self, record: &Signed) {
        let _ = self.commands.send(Command::Spread(record.clone())).await;
    }

    /// Spreads that there is a list of revocations with this number.
    pub async fn spread_revoked(&self, serial: u64) {
        let _ = self.commands.send(Command::SpreadRevoked(serial)).await;
    }

    /// Tells it whose records have come by another way. Does not wait: who hears gossip may say it. What is lost where the queue is full,
    /// gossip learns from the next record.
    pub fn prove(&self, nodes: Vec<NodeId>) {
        let _ = self.commands.try_send(Command::Prove(nodes));
    }

    /// Hears these nodes no more.
    pub async fn block(&self, nodes: Vec<NodeId>) {
        let _ = self.commands.send(Command::Block(nodes)).await;
    }

    /// Tells the others that this node goes, and ends the task.
    pub async fn leave(&self) {
        let (done, left) = oneshot::channel();
        if self.commands.send(Command::Leave(done)).await.is_ok() {
            let _ = left.await;
        }
    }
}

struct Task {
    machine: Machine,
    socket: UdpSocket,
    events: mpsc::Sender<GossipEvent>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Command>) {
        let mut buffer = vec![0; MAX_PACKET_BYTES + MAX_SEALED_OVERHEAD_BYTES + 1];
        loop {
            let due = self.machine.poll_timeout();
            let sleep =
                tokio::time::sleep_until(due.unwrap_or(Instant::now() + Duration::from_secs(60)).into());
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => match received {
                    Ok((len, _)) => self.machine.handle_datagram(Instant::now(), now_ms(), &buffer[..len]),
                    // An ICMP error of an earlier send; the next probe finds out.
                    Err(error) => tracing::debug!(%error, "gossip socket"),
                },
                command = inbox.recv() => match command {
                    Some(Command::Leave(done)) => {
                        self.machine.leave(Instant::now());
                        self.flush().await;
                        let _ = done.send(());
                        return;
                    }
                    Some(command) => self.obey(command),
                    None => return,
                },
                () = sleep => self.machine.handle_timeout(Instant::now()),
            }
            self.flush().await;
        }
    }

    fn obey(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Announce(members) => self.machine.announce(now, members),
            Command::Spread(record) => self.machine.spread(now, &record),
            Command::SpreadRevoked(serial) => self.machine.spread_revoked(now, serial),
            Command::Prove(nodes) => nodes.into_iter().for_each(|node| self.machine.prove(node)),
            Command::Block(nodes) => self.machine.block(nodes),
            Command::Leave(_) => {}
        }
    }

    async fn flush(&mut self) {
        while let Some((to, sealed)) = self.machine.poll_transmit() {
            if let Err(error) = self.socket.send_to(&sealed, to).await {
                tracing::debug!(%error, %to, "gossip: sending");
            }
        }
        while let Some(event) = self.machine.poll_event() {
            match event {
                // Said once only.
                GossipEvent::Liveness(..) => drop(self.events.send(event).await),
                // A full queue loses nothing for good: anti-entropy brings it again.
                _ => drop(self.events.try_send(event)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::{GossipKey, Keyring, Liveness, MemberRecord};
    use super::*;
    use crate::signed::{Signer, tests::signer};

    struct Node {
        signer: Signer,
        gossip: Gossip,
        events: mpsc::Receiver<GossipEvent>,
        address: SocketAddr,
    }

    async fn node(authority: &Signer, epoch: u32) -> Node {
        let signer = signer();
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = socket.local_addr().expect("its address");
        let mut keyring = Keyring::default();
        let key =
            authority.sign(&GossipKey { cluster: [0; 32], epoch, revoked_serial: 0, key: [epoch as u8; 32] });
        assert!(keyring.merge(&key, &[0; 32], authority.public(), 0, 0));
        let options = GossipOptions {
            node: signer.public(),
            cluster: [0; 32],
            generation: 1,
            advertised: address,
            keyring: Arc::new(Mutex::new(keyring)),
        };
        let (gossip, events) = Gossip::start(socket, options).expect("started");
        Node { signer, gossip, events, address }
    }

    fn record(node: &Node, version: u64) -> Signed {
        node.signer.sign(&MemberRecord {
            cluster: [0; 32],
            version,
            name: "n".to_owned(),
            addresses: vec![node.address],
            gossip: node.address,
            zone: String::new(),
            free_bytes: 0,
            fabrics: vec![],
            software: String::new(),
            authority: false,
            left: false,
        })
    }

    async fn until(node: &mut Node, mut wanted: impl FnMut(&GossipEvent) -> bool) {
        let wait = async {
            while let Some(event) = node.events.recv().await {
                if wanted(&event) {
                    return;
                }
            }
            panic!("gossip ended");
        };
        tokio::time::timeout(Duration::from_secs(10), wait).await.expect("heard in time");
    }

    #[tokio::test]
    async fn members_find_each_other_hear_records_and_see_one_leave() {
        let authority = signer();
        let (mut a, mut b, c) =
            (node(&authority, 1).await, node(&authority, 1).await, node(&authority, 1).await);
        b.gossip.announce(vec![(a.signer.public(), a.address)]).await;
        c.gossip.announce(vec![(a.signer.public(), a.address)]).await;
        let c_node = c.signer.public();
        let up =
            |event: &GossipEvent| matches!(event, GossipEvent::Liveness(n, Liveness::Alive) if *n == c_node);
        until(&mut a, up).await;
        until(&mut b, up).await;
        c.gossip.spread(&record(&c, 7)).await;
        let known = |event: &GossipEvent| matches!(event, GossipEvent::Record(m) if m.node() == c_node && m.record.version == 7);
        until(&mut a, known).await;
        until(&mut b, known).await;
        c.gossip.leave().await;
        let down =
            |event: &GossipEvent| matches!(event, GossipEvent::Liveness(n, Liveness::Down) if *n == c_node);
        until(&mut a, down).await;
        until(&mut b, down).await;
    }

    #[tokio::test]
    async fn who_has_not_the_key_gets_no_answer() {
        let authority = signer();
        let mut a = node(&authority, 1).await;
        let stranger = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let outdated = node(&authority, 0).await;
        outdated.gossip.announce(vec![(a.signer.public(), a.address)]).await;
        until(&mut a, |event| matches!(event, GossipEvent::UnknownEpoch)).await;
        for datagram in
            [&b""[..], b"hello", &[0; 200], b"VG\x01\x00 and not much more than that, is it, or is it?...."]
        {
            stranger.send_to(datagram, a.address).await.expect("sent");
        }
        let mut buffer = [0; 2000];
        let answer = tokio::time::timeout(Duration::from_millis(500), stranger.recv_from(&mut buffer)).await;
        assert!(answer.is_err(), "answered");
    }
}
