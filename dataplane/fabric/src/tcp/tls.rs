//! From a finished rustls handshake to the keys of a data stream: [`TlsKeys`].

use std::fmt;

use rustls::ConnectionTrafficSecrets;

/// Why a connection gives no keys for a data stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The handshake is not over, or rustls has something left to send.
    #[error("the handshake is not over: complete it and flush before taking the keys")]
    NotFinished,
    /// Application data came with the handshake. In this protocol the accepting side speaks first.
    #[error("the peer sent data before this side's greeting")]
    EarlyData,
    /// Not TLS 1.3.
    #[error("data streams need TLS 1.3")]
    Version,
    /// A cipher suite that data streams do not have.
    #[error("data streams do not have this cipher suite")]
    Suite,
    /// What rustls says.
    #[error("taking the keys of a data stream: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The keys of a TLS 1.3 connection after its handshake, with which a [`Tcp`](super::Tcp) seals and opens records itself.
#[derive(Debug)]
pub struct TlsKeys {
    pub(crate) client: bool,
    pub(crate) send: DirectionKeys,
    pub(crate) receive: DirectionKeys,
}

pub(crate) struct DirectionKeys {
    pub(crate) sequence: u64,
    pub(crate) secrets: ConnectionTrafficSecrets,
    /// What later keys of this direction are derived from.
    pub(crate) update_secret: [u8; 32],
}

impl fmt::Debug for DirectionKeys {
    /// Shows no secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectionKeys").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// Sets what [`TlsKeys::take`] needs on the side that accepts data streams.
pub fn prepare_server(config: &mut rustls::ServerConfig) {
    config.enable_secret_extraction = true;
    // A ticket would be a record that arrives after the client has taken its keys; data streams are not resumed.
    config.send_tls13_tickets = 0;
}

/// Sets what [`TlsKeys::take`] needs on the side that opens data streams.
pub fn prepare_client(config: &mut rustls::ClientConfig) {
    config.enable_secret_extraction = true;
}

impl TlsKeys {
    /// Takes the keys out of a connection whose handshake is over and flushed, and which has received nothing since
    /// (tokio-rustls: `stream.into_inner().1`, once `connect` or `accept` has returned and `flush` was awaited).
    /// Its configuration must have been through [`prepare_server`] or [`prepare_client`].
    ///
    /// # Errors
    /// [`TlsError`].
    pub fn take(mut connection: rustls::Connection) -> Result<Self, TlsError> {
        if connection.is_handshaking() || connection.wants_write() {
            return Err(TlsError::NotFinished);
        }
        if connection.protocol_version() != Some(rustls::ProtocolVersion::TLSv1_3) {
            return Err(TlsError::Version);
        }
        let state = connection.process_new_packets()?;
        if state.plaintext_bytes_to_read() > 0 {
            return Err(TlsError::EarlyData);
        }
        let client = matches!(connection, rustls::Connection::Client(_));
        let label = |from_client: bool| -> &'static [u8] {
            if from_client {
                b"EXPORTER-velo-data/1 client updates"
            } else {
                b"EXPORTER-velo-data/1 server updates"
            }
        };
        let send_updates = connection.export_keying_material([0; 32], label(client), None)?;
        let receive_updates = connection.export_keying_material([0; 32], label(!client), None)?;
        let secrets = connection.dangerous_extract_secrets()?;
        let keys = |(sequence, secrets), update_secret| DirectionKeys { sequence, secrets, update_secret };
        Ok(Self { client, send: keys(secrets.tx, send_updates), receive: keys(secrets.rx, receive_updates) })
    }
}
