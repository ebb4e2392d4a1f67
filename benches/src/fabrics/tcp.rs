//! The fabric that packets are held against: `tcp`, plain, one stream on loopback.

use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use velo_fabric::tcp::{Tcp, TcpOptions, TcpPath};
use velo_object::NodeId;

use super::region::Region;

/// The serving side, the reading side, and the path between them (1 on both).
pub(super) fn pair(region: &Arc<Region>) -> anyhow::Result<(Tcp, Tcp)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let dialled = TcpStream::connect(listener.local_addr()?)?;
    let accepted = listener.accept()?.0;
    let fabric = |stream: TcpStream, peer: u8| {
        stream.set_nonblocking(true)?;
        let mut fabric = Tcp::new(TcpOptions::default(), region.clone())?;
        fabric.add_path(TcpPath { id: 1, peer: NodeId::from_bytes([peer; 32]), stream, tls: None })?;
        Ok::<_, anyhow::Error>(fabric)
    };
    Ok((fabric(dialled, 1)?, fabric(accepted, 2)?))
}
