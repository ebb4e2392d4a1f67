//! Who may take part: newcomers with a token, certificates that renew themselves, and nodes that are shut out.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use velo_object::NodeId;
use velo_socket::join::{JOIN_VERSION, JoinRequest, Joined, MAX_JOIN_BYTES, Token};

use crate::authority::{self, Authority, AuthorityError, CERTIFICATE_LIFETIME, Tokens};
use crate::identity::{Identity, validity_ms};
use crate::membership::GossipKey;
use crate::node::{Control, lock};
use crate::now_ms;
use crate::rpc::{Ask, News, Reply};
use crate::sync::CALL_TIMEOUT;

/// The longest life of a token.
const MAX_TOKEN_LIFE: Duration = Duration::from_secs(366 * 24 * 3600);
/// Members that a newcomer is told of.
const MOST_SEEDS: usize = 16;

/// What a revocation did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoking {
    /// Number of the list.
    pub serial: u64,
    /// Members that have confirmed it.
    pub told: Vec<NodeId>,
    /// Members that have not.
    pub silent: Vec<NodeId>,
}

impl Control {
    fn own_authority(&self) -> Result<&(Authority, Tokens), AuthorityError> {
        let elsewhere = || {
            let roster = self.roster();
            let names: Vec<String> = roster
                .iter()
                .filter(|entry| entry.member.record.authority)
                .map(|entry| format!("{} ({})", entry.member.record.name, entry.member.node().short()))
                .collect();
            match names.as_slice() {
                [] => AuthorityError::Absent(self.setup.data_dir.clone()),
                names => AuthorityError::Refused(format!(
                    "the cluster's authority is not on this node: run this on {}",
                    names.join(" or ")
                )),
            }
        };
        self.authority.as_ref().ok_or_else(elsewhere)
    }

    /// Makes a token.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(crate) fn make_token(&self, uses: u32, life: Duration) -> Result<Token, AuthorityError> {
        let (authority, tokens) = self.own_authority()?;
        if life > MAX_TOKEN_LIFE {
            return Err(AuthorityError::Refused("a token lives a year at most".to_owned()));
        }
        let mut secret = [0; 16];
        getrandom::fill(&mut secret).map_err(|error| AuthorityError::Malformed {
            what: "the system's randomness".to_owned(),
            why: error.to_string(),
        })?;
        let now = now_ms();
        let expires_s = (now / 1000).saturating_add(life.as_secs());
        tokens.add(&secret, uses, expires_s.saturating_mul(1000), now)?;
        Ok(Token { cluster: authority.cluster(), secret, expires_s })
    }

    /// Answers somebody without a certificate: a token gets one, everything else gets a refusal.
    pub(crate) async fn answer_stranger(
        self: &Arc<Self>,
        address: SocketAddr,
        payload: &[u8],
    ) -> Result<Vec<u8>, String> {
        let request: JoinRequest = match postcard::take_from_bytes(payload) {
            Ok((request, [])) if payload.len() <= MAX_JOIN_BYTES => request,
            _ => return Err("this is no request to join".to_owned()),
        };
        if request.version != JOIN_VERSION {
            return Err(format!(
                "this node speaks version {JOIN_VERSION} of joining, not {}",
                request.version
            ));
        }
        let control = Arc::clone(self);
        let joined = tokio::task::spawn_blocking(move || control.admit(&request)).await;
        let (node, joined) = match joined {
            Ok(joined) => joined.map_err(|error| error.to_string())?,
            Err(error) => return Err(error.to_string()),
        };
        self.metrics.joins.inc();
        tracing::info!(node = %node.short(), %address, "a node has joined");
        postcard::to_stdvec(&joined).map_err(|error| error.to_string())
    }

    fn admit(&self, request: &JoinRequest) -> Result<(NodeId, Joined), AuthorityError> {
        let Some((authority, tokens)) = &self.authority else {
            return Err(AuthorityError::Refused(
                "the cluster's authority is not on this node: join at the node where the token was made"
                    .to_owned(),
            ));
        };
        // The certificate is made first, so that no use is lost to a request that cannot be read; it leaves only after the use is on the disk.
        let (node, certificate) = authority.issue(&request.request, CERTIFICATE_LIFETIME)?;
        if self.revoked(&node) {
            return Err(AuthorityError::Refused("this key is revoked: join with a new one".to_owned()));
        }
        tokens.take(&request.secret, node, now_ms())?;
        let mut members = self.members();
        members.retain(|member| member.node != node);
        // This node first: it is the one that the newcomer can surely reach.
        members.sort_by_key(|member| member.node != self.node);
        members.truncate(MOST_SEEDS);
        let authority = authority.certificate().to_vec();
        Ok((node, Joined { certificate: certificate.to_vec(), authority, members }))
    }

    /// Shuts a node out: signs the list, tells everybody, and gives all others a new gossip key.
    ///
    /// # Errors
    /// [`AuthorityError`].
    pub(crate) async fn revoke(&self, node: NodeId) -> Result<Revoking, AuthorityError> {
        let (authority, _) = self.own_authority()?;
        if node == self.node {
            return Err(AuthorityError::Refused("the authority's own node cannot be revoked".to_owned()));
        }
        let failed = |why: String| AuthorityError::Malformed { what: "the revocation".to_owned(), why };
        // One at a time, from the number of the list to the key: two lists with one number would leave the members divided for ever.
        let one = self.revoking.lock().await;
        let list = self.revocations().with(node, now_ms())?;
        let epoch = lock(&self.keyring).epoch().unwrap_or(0).saturating_add(1);
        let key = GossipKey::generate(self.cluster, epoch, list.serial)
            .map_err(|error| failed(error.to_string()))?;
        let (list, key) = (authority.signer().sign(&list), authority.signer().sign(&key));
        // The list before the key, here and at all others: nobody hands the new key to a node of which he does not know yet that it is out.
        if !self.take_revoked(&one, &list).await.map_err(failed)? {
            return Err(failed("this node knows a later list already; try again".to_owned()));
        }
        if !self.take_key(&one, &key).await.map_err(failed)? {
            return Err(failed("this node knows a later gossip key already; try again".to_owned()));
        }
        let serial = self.revocations().serial();
        drop(one);
        let (told, silent) = self.tell_all(vec![News::Revoked(list), News::GossipKey(key)]).await;
        Ok(Revoking { serial, told, silent })
    }

    /// Renews this node's certificate when two thirds of its life are over, for as long as the node runs.
    pub(crate) async fn renewal_loop(self: Arc<Self>) {
        loop {
            let identity = self.identity.load_full();
            self.metrics
                .certificate_expiry
                .set(i64::try_from(identity.expires_ms / 1000).unwrap_or(i64::MAX));
            let wait = identity.renew_at_ms().saturating_sub(now_ms());
            if wait > 0 {
                tokio::time::sleep(Duration::from_millis(wait.min(3_600_000))).await;
                continue;
            }
            match self.renew().await {
                Ok(()) => tracing::info!("this node's certificate is a new one"),
                Err(error) => {
                    let left_s = identity.expires_ms.saturating_sub(now_ms()) / 1000;
                    tracing::warn!(
                        error,
                        left_s,
                        "the certificate was not renewed; trying again in a minute"
                    );
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
            }
        }
    }

    /// Gets a new certificate for the same key, from the authority here or on another node.
    pub(crate) async fn renew(&self) -> Result<(), String> {
        let key = authority::read(&self.files.node_key()).map_err(|error| error.to_string())?;
        let request =
            authority::request(&String::from_utf8_lossy(&key)).map_err(|error| error.to_string())?;
        let certificate = match &self.authority {
            Some((authority, _)) => {
                let issued = authority.issue(&request, CERTIFICATE_LIFETIME);
                issued.map_err(|error| error.to_string())?.1.to_vec()
            }
            None => self.ask_for_certificate(request).await?,
        };
        let path = self.files.node_certificate();
        self.check_certificate(&path, &certificate).map_err(|error| error.to_string())?;
        authority::replace(&path, authority::pem(&certificate).as_bytes(), 0o644)
            .map_err(|error| error.to_string())?;
        let identity = Identity::load(&self.setup.data_dir).map_err(|error| error.to_string())?;
        self.identity.store(Arc::new(identity));
        self.velod.reload_identity().await.map_err(|error| error.to_string())
    }

    async fn ask_for_certificate(&self, request: Vec<u8>) -> Result<Vec<u8>, String> {
        let nodes: Vec<NodeId> = {
            let roster = self.roster();
            roster.iter().filter(|e| e.member.record.authority).map(|e| e.member.node()).collect()
        };
        let mut last = "no member says that the cluster's authority is on it".to_owned();
        for node in nodes {
            match self.ask(node, &Ask::Renew { request: request.clone() }, CALL_TIMEOUT).await {
                Ok(Reply::Certificate(certificate)) => return Ok(certificate),
                Ok(_) => last = format!("node {} answered something else", node.short()),
                Err(error) => last = error.to_string(),
            }
        }
        Err(last)
    }

    /// A certificate from elsewhere must be of this node, by this cluster's authority, and good for longer than the present one.
    fn check_certificate(&self, path: &Path, der: &[u8]) -> Result<(), AuthorityError> {
        let identity = self.identity.load();
        let refused =
            |why: &str| AuthorityError::Refused(format!("the certificate that came is not used: {why}"));
        if authority::public_key(der)? != self.node {
            return Err(refused("it is of another key"));
        }
        if !authority::signed_by(der, &identity.authority_certificate) {
            return Err(refused("the cluster's authority has not signed it"));
        }
        if validity_ms(path, der)?.1 <= now_ms() {
            return Err(refused("it has expired"));
        }
        Ok(())
    }
}
