//! TLS between nodes: raw ed25519 keys at both ends (RFC 7250) and nothing else. Owns rustls' configuration; knows no
//! roll: that a key is proved does not mean that it may do anything.
//! Invariant: a handshake that ends well proves the peer's key, and a dialler accepts the key it dialled alone.

use std::sync::Arc;

use pollen_common::identity::{NodeKey, SecretKey};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{AlwaysResolvesClientRawPublicKeys, Resumption};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::AlwaysResolvesServerRawPublicKeys;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, PeerIncompatible, ServerConfig,
    SignatureScheme,
};

/// What both ends speak above QUIC.
pub const ALPN: &[u8] = b"pln/1";
/// TLS wants a name to dial; nobody looks at it.
pub const SERVER_NAME: &str = "pln";

/// SubjectPublicKeyInfo of an ed25519 key up to the key itself (RFC 8410).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// PKCS #8 of an ed25519 key up to its seed (RFC 8410).
const PKCS8_PREFIX: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// What makes configurations for this node's connections.
#[derive(Debug, Clone)]
pub struct Tls {
    provider: Arc<CryptoProvider>,
    identity: Arc<CertifiedKey>,
}

impl Tls {
    /// For the node with `secret`.
    ///
    /// # Errors
    /// If the provider refuses the key, which no ed25519 seed makes it do.
    pub fn new(secret: &SecretKey) -> Result<Self, Error> {
        let mut provider = aws_lc_rs::default_provider();
        // AES-128 first: 3 % faster than AES-256 here, and both ends are ours.
        provider.cipher_suites = vec![
            aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
            aws_lc_rs::cipher_suite::TLS13_AES_256_GCM_SHA384,
            aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        let pkcs8 = PrivatePkcs8KeyDer::from([PKCS8_PREFIX.as_slice(), secret.seed().as_slice()].concat());
        let key = provider.key_provider.load_private_key(pkcs8.into())?;
        let spki = CertificateDer::from([SPKI_PREFIX.as_slice(), &secret.public().0].concat());
        Ok(Self { provider: Arc::new(provider), identity: Arc::new(CertifiedKey::new(vec![spki], key)) })
    }

    /// For accepting: any key, proved.
    ///
    /// # Errors
    /// If rustls finds the configuration inconsistent.
    pub fn server(&self) -> Result<ServerConfig, Error> {
        let mut config = ServerConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(Arc::new(RawKeys::of(&self.provider, None)))
            .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(self.identity.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would not prove the key again.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    /// For dialling `peer` and nobody else.
    ///
    /// # Errors
    /// If rustls finds the configuration inconsistent.
    pub fn client(&self, peer: NodeKey) -> Result<ClientConfig, Error> {
        let mut config = ClientConfig::builder_with_provider(self.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(RawKeys::of(&self.provider, Some(peer))))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(self.identity.clone())));
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.resumption = Resumption::disabled();
        Ok(config)
    }
}

/// The key that a finished connection has proved.
#[must_use]
pub fn peer_key(connection: &quinn::Connection) -> Option<NodeKey> {
    let identity = connection.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    identity.first().and_then(|spki| key_of(spki))
}

fn key_of(spki: &[u8]) -> Option<NodeKey> {
    NodeKey::try_from(spki.strip_prefix(&SPKI_PREFIX)?).ok()
}

/// Accepts raw ed25519 keys: one, or any.
#[derive(Debug)]
struct RawKeys {
    expected: Option<NodeKey>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl RawKeys {
    fn of(provider: &CryptoProvider, expected: Option<NodeKey>) -> Self {
        Self { expected, algorithms: provider.signature_verification_algorithms }
    }

    fn check(&self, spki: &[u8]) -> Result<(), Error> {
        let key = key_of(spki).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        match self.expected {
            Some(expected) if expected != key => {
                Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure))
            }
            _ => Ok(()),
        }
    }

    fn check_signature(
        &self,
        message: &[u8],
        spki: &[u8],
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let spki = SubjectPublicKeyInfoDer::from(spki);
        verify_tls13_signature_with_raw_key(message, &spki, signature, &self.algorithms)
    }
}

fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::PeerIncompatible(PeerIncompatible::Tls13RequiredForQuic))
}

/// What both ends demand of a signature, which rustls asks for through two traits.
macro_rules! signed_by_raw_keys_alone {
    () => {
        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            no_tls12()
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            self.check_signature(message, cert, dss)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl ServerCertVerifier for RawKeys {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(end_entity).map(|()| ServerCertVerified::assertion())
    }

    signed_by_raw_keys_alone!();
}

impl ClientCertVerifier for RawKeys {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(end_entity).map(|()| ClientCertVerified::assertion())
    }

    signed_by_raw_keys_alone!();
}
