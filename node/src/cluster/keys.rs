//! Keys and certificates. All keys are Ed25519.
//!
//! A certificate says no more than "this key is a member's": the ID of its host, which is the key's hash. Names and
//! addresses are in the roster. It does not expire, so that hosts' clocks need not agree; removal ends it.

use super::wire::id::KeyId;
use super::wire::roster::{MAX_ROSTER, Roster, SignedRoster};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyUsagePurpose};
use ring::digest::{SHA256, digest};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use rustls::pki_types::{CertificateDer, ServerName};

/// What is signed of a roster begins so: no signature of one kind can pass for another.
const ROSTER: &[u8] = b"skein roster 1\0";
/// What comes before the 32 bytes of an Ed25519 key in its DER form.
const KEY_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];

/// What is wrong with a key, a certificate or a signature.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The kernel gives no random numbers.
    #[error("cannot make a key: no random numbers")]
    NoRandom,
    /// A private key cannot be read.
    #[error("the private key is damaged")]
    BadKey,
    /// A certificate cannot be read, or is of another kind.
    #[error("the certificate is damaged")]
    BadCertificate,
    /// A certificate could not be made.
    #[error("the certificate cannot be made")]
    Issue(#[from] rcgen::Error),
    /// A roster that the authority has not signed, or of another cluster.
    #[error("the roster is not signed by this cluster's authority")]
    BadRoster,
}

/// Random bytes.
///
/// # Errors
/// [`KeyError::NoRandom`]
pub fn random<const N: usize>() -> Result<[u8; N], KeyError> {
    let mut bytes = [0; N];
    SystemRandom::new().fill(&mut bytes).map_err(|_| KeyError::NoRandom)?;
    Ok(bytes)
}

/// SHA-256.
pub fn hash(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, bytes).as_ref());
    hash
}

/// The identity that goes with a public key.
pub fn id_of(public: &[u8; 32]) -> KeyId {
    let mut id = [0; 16];
    id.copy_from_slice(&hash(&[&KEY_PREFIX[..], public].concat())[..16]);
    KeyId(id)
}

/// The public key in a certificate, of which nothing is verified.
///
/// # Errors
/// [`KeyError::BadCertificate`]
pub fn public_key(certificate: &[u8]) -> Result<[u8; 32], KeyError> {
    let certificate = CertificateDer::from(certificate);
    let parsed = webpki::EndEntityCert::try_from(&certificate).map_err(|_| KeyError::BadCertificate)?;
    let key = parsed.subject_public_key_info();
    key.strip_prefix(&KEY_PREFIX[..]).and_then(|key| key.try_into().ok()).ok_or(KeyError::BadCertificate)
}

/// The name that TLS knows a host by.
pub fn tls_name(id: KeyId) -> ServerName<'static> {
    ServerName::try_from(dns_name(id)).expect("hexadecimal digits are a DNS name")
}

fn dns_name(id: KeyId) -> String {
    format!("{id}.skein")
}

/// Whether `signature` is that of the key's owner.
pub fn is_signed(public: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, public).verify(message, signature).is_ok()
}

/// A private key.
pub struct PrivateKey {
    pkcs8: Vec<u8>,
    pair: Ed25519KeyPair,
    public: [u8; 32],
}

impl std::fmt::Debug for PrivateKey {
    /// Shows nothing of the secret.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PrivateKey").field("id", &self.id()).finish_non_exhaustive()
    }
}

impl PrivateKey {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`KeyError::NoRandom`]
    pub fn generate() -> Result<Self, KeyError> {
        let document = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).map_err(|_| KeyError::NoRandom)?;
        Self::from_pkcs8(document.as_ref().to_vec())
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`KeyError::BadKey`]
    pub fn from_pkcs8(pkcs8: Vec<u8>) -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| KeyError::BadKey)?;
        let public = pair.public_key().as_ref().try_into().map_err(|_| KeyError::BadKey)?;
        Ok(Self { pkcs8, pair, public })
    }

    /// The form that is kept in a file.
    pub fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key.
    pub fn public(&self) -> &[u8; 32] {
        &self.public
    }

    /// The identity that goes with it.
    pub fn id(&self) -> KeyId {
        id_of(&self.public)
    }

    /// Signs.
    pub fn signature(&self, message: &[u8]) -> Vec<u8> {
        self.pair.sign(message).as_ref().to_vec()
    }
}

impl rcgen::PublicKeyData for PrivateKey {
    fn der_bytes(&self) -> &[u8] {
        &self.public
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

impl rcgen::SigningKey for PrivateKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        Ok(self.signature(message))
    }
}

/// A public key whose private one is elsewhere.
struct Foreign<'a>(&'a [u8; 32]);

impl rcgen::PublicKeyData for Foreign<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_ED25519
    }
}

/// A cluster's certificate authority: it makes members, and rosters.
#[derive(Debug)]
pub struct Authority {
    key: PrivateKey,
}

impl Authority {
    /// Makes a new one.
    ///
    /// # Errors
    /// [`KeyError::NoRandom`]
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self { key: PrivateKey::generate()? })
    }

    /// That of a private key.
    pub fn new(key: PrivateKey) -> Self {
        Self { key }
    }

    /// Its private key.
    pub fn key(&self) -> &PrivateKey {
        &self.key
    }

    fn params(&self) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        // Two clusters never have the same name, so a stranger's certificate is known as one.
        params.distinguished_name.push(DnType::CommonName, format!("skein {}", self.key.id()));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
    }

    /// Its own certificate.
    ///
    /// # Errors
    /// [`KeyError::Issue`]
    pub fn certificate(&self) -> Result<Vec<u8>, KeyError> {
        Ok(self.params().self_signed(&self.key)?.der().to_vec())
    }

    /// A certificate for a host's key.
    ///
    /// # Errors
    /// [`KeyError::Issue`]
    pub fn issue(&self, public: &[u8; 32]) -> Result<Vec<u8>, KeyError> {
        let id = id_of(public);
        let mut params = CertificateParams::new(vec![dns_name(id)])?;
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, id.to_string());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let issuer = Issuer::new(self.params(), &self.key);
        Ok(params.signed_by(&Foreign(public), &issuer)?.der().to_vec())
    }

    /// Signs a roster.
    pub fn seal(&self, roster: &Roster) -> SignedRoster {
        let bytes = postcard::to_stdvec(roster).expect("a roster can be written");
        let signature = self.key.signature(&[ROSTER, &bytes].concat());
        SignedRoster { bytes, signature }
    }
}

/// Reads a roster that the authority of public key `authority` has signed.
///
/// # Errors
/// [`KeyError::BadRoster`]
pub fn open_roster(signed: &SignedRoster, authority: &[u8; 32]) -> Result<Roster, KeyError> {
    if signed.bytes.len() > MAX_ROSTER || !is_signed(authority, &[ROSTER, &signed.bytes].concat(), &signed.signature) {
        return Err(KeyError::BadRoster);
    }
    match postcard::take_from_bytes::<Roster>(&signed.bytes) {
        Ok((roster, [])) if roster.is_bounded() && roster.cluster == id_of(authority) => Ok(roster),
        _ => Err(KeyError::BadRoster),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::wire::level::CpuLevel;

    #[test]
    fn a_certificate_says_whose_key_it_has() {
        let authority = Authority::generate().unwrap();
        let host = PrivateKey::generate().unwrap();
        let certificate = authority.issue(host.public()).unwrap();
        assert_eq!(public_key(&certificate).unwrap(), *host.public());
        assert_eq!(public_key(&authority.certificate().unwrap()).unwrap(), *authority.key().public());
        assert!(public_key(&certificate[..certificate.len() - 1]).is_err());
        let again = PrivateKey::from_pkcs8(host.pkcs8().to_vec()).unwrap();
        assert_eq!(again.id(), host.id());
        assert!(!format!("{host:?}").contains("pkcs8"));
    }

    #[test]
    fn a_roster_of_another_hand_is_refused() {
        let authority = Authority::generate().unwrap();
        let other = Authority::generate().unwrap();
        let roster = Roster {
            cluster: authority.key().id(),
            name: "c".parse().unwrap(),
            serial: 3,
            authority: KeyId([1; 16]),
            members: Vec::new(),
            removed: vec![KeyId([2; 16])],
            cpu_level: CpuLevel::Level(2),
        };
        let signed = authority.seal(&roster);
        assert_eq!(open_roster(&signed, authority.key().public()).unwrap(), roster);
        assert!(open_roster(&signed, other.key().public()).is_err());
        for at in 0..signed.bytes.len() {
            let mut changed = signed.clone();
            changed.bytes[at] ^= 1;
            assert!(open_roster(&changed, authority.key().public()).is_err());
        }
        // Of a cluster that is not the signer's.
        let foreign = other.seal(&roster);
        assert!(open_roster(&foreign, other.key().public()).is_err());
        // What the authority signed as something else is no roster.
        let bare = SignedRoster { bytes: signed.bytes.clone(), signature: authority.key().signature(&signed.bytes) };
        assert!(open_roster(&bare, authority.key().public()).is_err());
    }
}
