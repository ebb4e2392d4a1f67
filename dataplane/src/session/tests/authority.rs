//! A cluster's authority for tests: issues identities with any validity.

use std::fs;
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PublicKeyData,
};
use ring::signature::Ed25519KeyPair;
use rustls_pki_types::PrivatePkcs8KeyDer;
use serde::Serialize;
use time::{Duration, OffsetDateTime};
use velo_config::Paths;
use velo_object::NodeId;

use crate::identity::{cluster_of, server_name};

/// Issues certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    signer: Ed25519KeyPair,
    pub(crate) certificate: rcgen::Certificate,
}

pub(crate) fn key() -> KeyPair {
    KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key")
}

pub(crate) fn node_of(key: &impl PublicKeyData) -> NodeId {
    NodeId::from_bytes(key.der_bytes().try_into().expect("an ed25519 key"))
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = key();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).expect("signed");
        let pkcs8 = key.serialize_der();
        let signer = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&pkcs8).expect("ed25519");
        Self { issuer: Issuer::new(params, key), signer, certificate }
    }

    pub(crate) fn cluster(&self) -> [u8; 32] {
        cluster_of(self.certificate.der()).expect("a certificate")
    }

    /// A certificate that began `begun_s` ago and ends `ends_s` from now.
    pub(crate) fn issue(&self, key: &impl PublicKeyData, begun_s: i64, ends_s: i64) -> rcgen::Certificate {
        let name = server_name(&node_of(key)).to_str().into_owned();
        let mut params = CertificateParams::new(vec![name]).expect("params");
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - Duration::seconds(begun_s);
        params.not_after = now + Duration::seconds(ends_s);
        params.signed_by(key, &self.issuer).expect("signed")
    }

    /// Writes the identity of a node below a data directory.
    pub(crate) fn write(&self, data_dir: &Path, key: &KeyPair, ends_s: i64) -> NodeId {
        let paths = Paths::new(data_dir.to_owned());
        fs::create_dir_all(paths.identity_dir()).expect("a folder");
        fs::write(paths.node_key(), key.serialize_pem()).expect("written");
        fs::write(paths.node_certificate(), self.issue(key, 60, ends_s).pem()).expect("written");
        fs::write(paths.ca_certificate(), self.certificate.pem()).expect("written");
        node_of(key)
    }

    /// `identity/revoked`, signed as velo-control does it.
    pub(crate) fn revoke(&self, nodes: &[NodeId]) -> Vec<u8> {
        use ring::signature::KeyPair as _;
        #[derive(Serialize)]
        struct List {
            cluster: [u8; 32],
            serial: u64,
            revoked: Vec<(NodeId, u64)>,
        }
        #[derive(Serialize)]
        struct Signed {
            signer: NodeId,
            body: Vec<u8>,
            signature: Vec<u8>,
        }
        let revoked = nodes.iter().map(|node| (*node, 1)).collect();
        let list = List { cluster: self.cluster(), serial: 1, revoked };
        let body = postcard::to_stdvec(&list).expect("plain data");
        let signature = self.signer.sign(&[b"velo/revoked/1\0", &body[..]].concat()).as_ref().to_vec();
        let signer = NodeId::from_bytes(self.signer.public_key().as_ref().try_into().expect("32 bytes"));
        postcard::to_stdvec(&Signed { signer, body, signature }).expect("plain data")
    }

    /// What a rustls client needs to show a certificate.
    pub(crate) fn chain(
        &self,
        key: &KeyPair,
        begun_s: i64,
        ends_s: i64,
    ) -> (Vec<rustls_pki_types::CertificateDer<'static>>, PrivatePkcs8KeyDer<'static>) {
        let own = self.issue(key, begun_s, ends_s);
        (
            vec![own.der().clone(), self.certificate.der().clone()],
            PrivatePkcs8KeyDer::from(key.serialize_der()),
        )
    }
}
