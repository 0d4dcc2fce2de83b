//! TLS between hosts: version 1.3 and nothing older, certificates on both sides, no resumption (a resumed session
//! would not look at the certificate again).

use super::keys::{self, PrivateKey};
use super::wire::id::KeyId;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig,
    SignatureScheme,
};
use std::collections::HashSet;
use std::sync::{Arc, PoisonError, RwLock};

/// What members speak with each other.
pub const BETWEEN_MEMBERS: &[u8] = b"skein/1";
/// What is spoken with a host that wants to become a member.
pub const JOINING: &[u8] = b"skein-join/1";
/// What the bearer's proof is derived from the connection by.
const EXPORTER: &[u8] = b"EXPERIMENTAL skein join";

/// Keys or certificates that TLS does not take.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// Of the library.
    #[error("the host's certificate cannot be used")]
    Config(#[from] Error),
    /// Of the cluster's certificate.
    #[error("the cluster's certificate cannot be used: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}

/// Hosts whose certificates are worth nothing any more.
#[derive(Debug, Default)]
pub struct Excluded(RwLock<HashSet<KeyId>>);

impl Excluded {
    /// Replaces the list.
    pub fn set(&self, hosts: &[KeyId]) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = hosts.iter().copied().collect();
    }

    /// Whether a host is on it.
    pub fn has(&self, host: KeyId) -> bool {
        self.0.read().unwrap_or_else(PoisonError::into_inner).contains(&host)
    }

    fn admit(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let public =
            keys::public_key(certificate).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if self.has(keys::id_of(&public)) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(())
    }
}

/// Looks at the list of the excluded after all else.
#[derive(Debug)]
struct Doorkeeper<V: ?Sized> {
    excluded: Arc<Excluded>,
    rest: Arc<V>,
}

impl ServerCertVerifier for Doorkeeper<WebPkiServerVerifier> {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.rest.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        self.excluded.admit(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rest.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rest.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rest.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Doorkeeper<dyn ClientCertVerifier> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Strangers need not be told whose certificates would do.
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.rest.verify_client_cert(end_entity, intermediates, now)?;
        self.excluded.admit(end_entity).map(|()| verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rest.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.rest.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.rest.supported_verify_schemes()
    }
}

/// Knows a cluster by the hash of its certificate, which it has from a token.
#[derive(Debug)]
struct Pinned {
    fingerprint: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let ca = intermediates.iter().find(|ca| keys::hash(ca) == self.fingerprint);
        let ca = ca.ok_or(Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        let rest = WebPkiServerVerifier::builder_with_provider(roots(ca)?, self.provider.clone())
            .build()
            .map_err(|_| Error::InvalidCertificate(CertificateError::UnknownIssuer))?;
        rest.verify_server_cert(end_entity, &[], server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, cert, dss, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

fn roots(ca: &CertificateDer<'_>) -> Result<Arc<RootCertStore>, Error> {
    let mut roots = RootCertStore::empty();
    roots.add(ca.clone().into_owned())?;
    Ok(Arc::new(roots))
}

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

/// A member's ways of speaking TLS.
#[derive(Debug)]
pub struct Setup {
    /// Accepts members.
    pub accept: Arc<ServerConfig>,
    /// Accepts those that have no certificate yet.
    pub accept_joining: Arc<ServerConfig>,
    /// Opens connections to members.
    pub connect: Arc<ClientConfig>,
}

impl Setup {
    /// For a host's key and certificate and its cluster's.
    ///
    /// # Errors
    /// [`TlsError`]
    pub fn new(key: &PrivateKey, certificate: &[u8], ca: &[u8], excluded: &Arc<Excluded>) -> Result<Self, TlsError> {
        let provider = provider();
        let secret = || PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.pkcs8().to_vec()));
        let certificate = CertificateDer::from(certificate.to_vec());
        let ca = CertificateDer::from(ca.to_vec());
        let clients: Arc<dyn ClientCertVerifier> =
            WebPkiClientVerifier::builder_with_provider(roots(&ca)?, provider.clone()).build()?;
        let servers = WebPkiServerVerifier::builder_with_provider(roots(&ca)?, provider.clone()).build()?;
        let server = || ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(VERSIONS);

        let mut accept = server()?
            .with_client_cert_verifier(Arc::new(Doorkeeper { excluded: excluded.clone(), rest: clients }))
            .with_single_cert(vec![certificate.clone()], secret())?;
        accept.alpn_protocols = vec![BETWEEN_MEMBERS.to_vec()];
        without_resumption(&mut accept);

        let mut accept_joining =
            server()?.with_no_client_auth().with_single_cert(vec![certificate.clone(), ca], secret())?;
        accept_joining.alpn_protocols = vec![JOINING.to_vec()];
        without_resumption(&mut accept_joining);

        let mut connect = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Doorkeeper { excluded: excluded.clone(), rest: servers }))
            .with_client_auth_cert(vec![certificate], secret())?;
        connect.alpn_protocols = vec![BETWEEN_MEMBERS.to_vec()];
        connect.resumption = rustls::client::Resumption::disabled();
        // Who listens on the way need not learn which host is meant.
        connect.enable_sni = false;
        connect.enable_secret_extraction = true;
        Ok(Self { accept: Arc::new(accept), accept_joining: Arc::new(accept_joining), connect: Arc::new(connect) })
    }
}

fn without_resumption(config: &mut ServerConfig) {
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.enable_secret_extraction = true;
}

/// How a host without a certificate opens a connection to the cluster that a token names.
///
/// # Errors
/// [`TlsError`]
pub fn joining(fingerprint: [u8; 32]) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = provider();
    let mut config = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(VERSIONS)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned { fingerprint, provider }))
        .with_no_client_auth();
    config.alpn_protocols = vec![JOINING.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// What a joining host signs to show that its key is its own: bound to the connection, so that nobody can pass it
/// on.
///
/// # Errors
/// If the handshake is not over.
pub fn join_challenge<Data>(connection: &rustls::ConnectionCommon<Data>) -> Result<Vec<u8>, Error> {
    let exported = connection.export_keying_material([0u8; 32], EXPORTER, None)?;
    Ok([&b"skein join 1\0"[..], &exported].concat())
}
