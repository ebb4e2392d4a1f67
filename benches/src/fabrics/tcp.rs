//! The fabric that packets are held against: `tcp`, plain, one stream.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_object::NodeId;

use super::region::Region;
use super::sockets::Side;

/// The serving side at `a`, the reading side at `b`, and the path between them (1 on both).
pub(super) fn pair(region: &Arc<Region>, a: Side<'_>, b: Side<'_>) -> anyhow::Result<(Tcp, Tcp)> {
    let listener = b.run(|| TcpListener::bind((b.ip, 0)))?;
    let address = listener.local_addr()?;
    let dialled = a.run(|| TcpStream::connect(address))?;
    let accepted = listener.accept()?.0;
    let fabric = |stream: TcpStream, peer: u8| {
        stream.set_nonblocking(true)?;
        let mut fabric = Tcp::new(TcpOptions::default(), region.clone())?;
        fabric.add_path(TcpPath { id: 1, peer: NodeId::from_bytes([peer; 32]), stream, tls: None })?;
        Ok::<_, anyhow::Error>(fabric)
    };
    Ok((fabric(dialled, 1)?, fabric(accepted, 2)?))
}
