//! Statements that travel with the signature of the node (or the authority) that made them.
//!
//! The signature covers `DOMAIN ‖ 0 ‖ body`, so that a statement of one kind never passes for another. The body is kept as it came, so that a
//! node hands on what it received byte for byte.

use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use velo_object::NodeId;

/// A kind of statement.
pub trait Statement: Serialize + DeserializeOwned {
    /// Names the kind and its version; part of what is signed.
    const DOMAIN: &'static str;
}

/// Why a statement is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// The key is not an ed25519 key in PKCS#8.
    #[error("not an ed25519 key in PKCS#8")]
    Key,
    /// The signature does not belong to it.
    #[error("a statement came with a signature that is not that of {0}")]
    Signature(NodeId),
    /// The body is not what its kind asks for.
    #[error("a statement signed by {0} cannot be read")]
    Body(NodeId),
}

/// A key that signs.
pub struct Signer(Ed25519KeyPair);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Signer({})", self.public().short())
    }
}

impl Signer {
    /// Reads a PKCS#8 PEM.
    ///
    /// # Errors
    /// [`SignatureError::Key`].
    pub fn from_pem(pem: &[u8]) -> Result<Self, SignatureError> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem).map_err(|_| SignatureError::Key)?;
        let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der.secret_pkcs8_der());
        Ok(Self(pair.map_err(|_| SignatureError::Key)?))
    }

    /// The public key.
    pub fn public(&self) -> NodeId {
        let bytes = self.0.public_key().as_ref().try_into().expect("an ed25519 public key has 32 bytes");
        NodeId::from_bytes(bytes)
    }

    /// Signs a statement.
    pub fn sign<T: Statement>(&self, statement: &T) -> Signed {
        let body = postcard::to_stdvec(statement).expect("statements are plain data");
        let signature = self.0.sign(&message(T::DOMAIN, &body)).as_ref().to_vec();
        Signed { signer: self.public(), body, signature }
    }
}

fn message(domain: &str, body: &[u8]) -> Vec<u8> {
    [domain.as_bytes(), &[0], body].concat()
}

/// A statement with its signature; believed only through [`Signed::open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// Who is said to have signed.
    pub signer: NodeId,
    body: Vec<u8>,
    signature: Vec<u8>,
}

impl Signed {
    /// Checks the signature and reads the statement.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn open<T: Statement>(&self) -> Result<T, SignatureError> {
        UnparsedPublicKey::new(&ED25519, self.signer.as_bytes())
            .verify(&message(T::DOMAIN, &self.body), &self.signature)
            .map_err(|_| SignatureError::Signature(self.signer))?;
        match postcard::take_from_bytes(&self.body) {
            Ok((statement, [])) => Ok(statement),
            _ => Err(SignatureError::Body(self.signer)),
        }
    }

    /// The same, where only one signer will do.
    ///
    /// # Errors
    /// [`SignatureError`].
    pub fn open_by<T: Statement>(&self, signer: NodeId) -> Result<T, SignatureError> {
        if self.signer != signer {
            return Err(SignatureError::Signature(signer));
        }
        self.open()
    }

    /// The hash of the statement and its signature: equal only for equal ones.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.signer.as_bytes()).update(&self.signature).update(&self.body);
        *hasher.finalize().as_bytes()
    }

    /// Bytes of the body.
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A signer with a new key.
    pub(crate) fn signer() -> Signer {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
        Signer::from_pem(pair.serialize_pem().as_bytes()).expect("an ed25519 key")
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct One(u32);
    impl Statement for One {
        const DOMAIN: &'static str = "one";
    }
    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Two(u32);
    impl Statement for Two {
        const DOMAIN: &'static str = "two";
    }

    #[test]
    fn only_what_was_signed_opens() {
        let (signer, other) = (signer(), signer());
        let signed = signer.sign(&One(7));
        assert_eq!(signed.open::<One>(), Ok(One(7)));
        assert_eq!(signed.open_by::<One>(signer.public()), Ok(One(7)));
        assert!(signed.open::<Two>().is_err(), "another kind");
        assert!(signed.open_by::<One>(other.public()).is_err(), "another signer");
        assert!(Signed { signer: other.public(), ..signed.clone() }.open::<One>().is_err());
        assert!(Signed { body: vec![8], ..signed.clone() }.open::<One>().is_err());
        assert!(Signed { signature: vec![], ..signed }.open::<One>().is_err());
        assert!(Signer::from_pem(b"no key").is_err());
    }
}
