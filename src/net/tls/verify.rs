//! Which certificates are trusted.
//!
//! Paths are validated by the library, which goes by the book. What OpenSSL, and with it every program in the field, takes
//! besides is taken here as well: a certificate that is itself among the trusted ones; one of version 1, or one that may
//! issue others, if a trusted one signed it; and host names in the common name.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, WebPkiClientVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};

use super::pem::read_certificates;
use crate::auth::certificate::{self, Invalid, Purpose};
use crate::config::SslMode;

/// Where systems keep the certificates that they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Certificates that are trusted to issue others.
pub(super) struct Anchors {
    /// The system's are read when they are first asked for: mostly never.
    trusted: OnceLock<Trusted>,
}

struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    store: Arc<RootCertStore>,
}

impl Anchors {
    /// Those of a file.
    ///
    /// # Errors
    /// It cannot be read, or holds none.
    pub(super) fn read(file: &str) -> Result<Self, String> {
        let certificates = read_certificates(file).map_err(|why| match why.as_str() {
            "no start line" => "failed to load CA: no certificate or crl found".to_owned(),
            _ => format!("failed to load CA: {why}"),
        })?;
        let trusted = Trusted::new(certificates);
        let (usable, all) = (trusted.store.len(), trusted.certificates.len());
        if usable == 0 {
            return Err(format!("failed to load CA: no usable certificate in \"{file}\""));
        }
        if usable < all {
            tracing::warn!("{} of {all} certificates in \"{file}\" cannot be used", all - usable);
        }
        Ok(Self { trusted: OnceLock::from(trusted) })
    }

    /// The system's, or those of the file that the environment names instead.
    pub(super) const fn system() -> Self {
        Self { trusted: OnceLock::new() }
    }

    fn trusted(&self) -> &Trusted {
        self.trusted.get_or_init(|| {
            let named = std::env::var("SSL_CERT_FILE").ok();
            let found = named.iter().map(String::as_str).chain(BUNDLES.iter().copied());
            Trusted::new(found.map(read_certificates).find_map(Result::ok).unwrap_or_default())
        })
    }
}

impl Trusted {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut store = RootCertStore::empty();
        let _ = store.add_parsable_certificates(certificates.iter().cloned());
        Self { certificates, store: Arc::new(store) }
    }

    /// Is it trusted for itself, or plainly issued by a trusted one?
    fn trusts(
        &self,
        end_entity: &[u8],
        purpose: Purpose,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> bool {
        self.certificates.iter().any(|trusted| trusted.as_ref() == end_entity)
            && certificate::check_validity(end_entity, seconds(now)).is_ok()
            || self.issued(end_entity, purpose, now, algorithms)
    }

    fn issued(
        &self,
        end_entity: &[u8],
        purpose: Purpose,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> bool {
        let Some(issued) = certificate::plainly_issued(end_entity, purpose) else { return false };
        let signed_with = |spki: &[u8]| {
            let Some((key_algorithm, key)) = certificate::key_parts(spki) else { return false };
            algorithms.all.iter().any(|algorithm| {
                algorithm.signature_alg_id().as_ref() == issued.algorithm
                    && algorithm.public_key_alg_id().as_ref() == key_algorithm
                    && algorithm.verify_signature(key, issued.signed, issued.signature).is_ok()
            })
        };
        let valid = |der: &[u8]| certificate::check_validity(der, seconds(now)).is_ok();
        valid(end_entity)
            && self.certificates.iter().any(|trusted| {
                certificate::subject(trusted).as_deref() == Some(issued.issuer)
                    && valid(trusted)
                    && certificate::public_key(trusted).is_some_and(|spki| signed_with(&spki))
            })
    }
}

fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// Judges the certificates of clients.
pub(super) struct ClientVerifier {
    anchors: Anchors,
    provider: Arc<CryptoProvider>,
    mandatory: bool,
}

impl ClientVerifier {
    pub(super) fn new(anchors: Anchors, provider: &Arc<CryptoProvider>, mandatory: bool) -> Self {
        Self { anchors, provider: provider.clone(), mandatory }
    }

    fn algorithms(&self) -> WebPkiSupportedAlgorithms {
        self.provider.signature_verification_algorithms
    }

    fn by_the_book(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let store = self.anchors.trusted().store.clone();
        let unknown = || Error::InvalidCertificate(CertificateError::UnknownIssuer);
        let verifier = WebPkiClientVerifier::builder_with_provider(store, self.provider.clone()).build();
        verifier.map_err(|_| unknown())?.verify_client_cert(end_entity, intermediates, now)
    }
}

impl fmt::Debug for ClientVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClientVerifier")
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    /// None: clients send the certificate they have, as they do to PgBouncer.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.by_the_book(end_entity, intermediates, now).or_else(|error| {
            let trusted = self.anchors.trusted().trusts(end_entity, Purpose::Client, now, self.algorithms());
            if trusted { Ok(ClientCertVerified::assertion()) } else { Err(plainer(error, end_entity, now)) }
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, cert, dss, self.algorithms())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, cert, dss, self.algorithms())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms().supported_schemes()
    }
}

/// Judges the certificates of servers.
pub(super) struct ServerVerifier {
    anchors: Anchors,
    algorithms: WebPkiSupportedAlgorithms,
    mode: SslMode,
}

impl ServerVerifier {
    pub(super) fn new(anchors: Anchors, provider: &CryptoProvider, mode: SslMode) -> Self {
        Self { anchors, algorithms: provider.signature_verification_algorithms, mode }
    }

    fn by_the_book(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        let store = &self.anchors.trusted().store;
        verify_server_cert_signed_by_trust_anchor(&parsed, store, intermediates, now, self.algorithms.all)
    }
}

impl fmt::Debug for ServerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServerVerifier({})", self.mode)
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !matches!(self.mode, SslMode::VerifyCa | SslMode::VerifyFull) {
            return Ok(ServerCertVerified::assertion());
        }
        if let Err(error) = self.by_the_book(end_entity, intermediates, now)
            && !self.anchors.trusted().trusts(end_entity, Purpose::Server, now, self.algorithms)
        {
            return Err(plainer(error, end_entity, now));
        }
        let named = || certificate::names(end_entity).is_some_and(|names| names.is_for(&server_name.to_str()));
        if self.mode == SslMode::VerifyFull && !named() {
            let expected = server_name.to_owned();
            return Err(CertificateError::NotValidForNameContext { expected, presented: Vec::new() }.into());
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12(message, cert, dss, self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13(message, cert, dss, self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The plainest reason: that a certificate is of an odd kind matters less than that it has expired.
fn plainer(error: Error, end_entity: &[u8], now: UnixTime) -> Error {
    match (certificate::check_validity(end_entity, seconds(now)), &error) {
        (Err(Invalid::Expired), _) => CertificateError::Expired.into(),
        (Err(Invalid::NotYet), _) => CertificateError::NotValidYet.into(),
        (_, Error::InvalidCertificate(CertificateError::Other(_))) => CertificateError::UnknownIssuer.into(),
        _ => error,
    }
}

/// The key, of certificates of all versions.
fn key_of(cert: &[u8]) -> Result<SubjectPublicKeyInfoDer<'static>, Error> {
    let key = certificate::public_key(cert).ok_or(CertificateError::BadEncoding)?;
    Ok(SubjectPublicKeyInfoDer::from(key))
}

fn verify_tls13(
    message: &[u8],
    cert: &[u8],
    dss: &DigitallySignedStruct,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    verify_tls13_signature_with_raw_key(message, &key_of(cert)?, dss, &algorithms)
}

fn verify_tls12(
    message: &[u8],
    cert: &[u8],
    dss: &DigitallySignedStruct,
    algorithms: WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = key_of(cert)?;
    let (key_algorithm, key) = certificate::key_parts(&spki).ok_or(CertificateError::BadEncoding)?;
    let of_scheme = algorithms.mapping.iter().filter(|(scheme, _)| *scheme == dss.scheme);
    let fits = of_scheme.flat_map(|(_, candidates)| candidates.iter()).any(|algorithm| {
        algorithm.public_key_alg_id().as_ref() == key_algorithm
            && algorithm.verify_signature(key, message, dss.signature()).is_ok()
    });
    if fits { Ok(HandshakeSignatureValid::assertion()) } else { Err(CertificateError::BadSignature.into()) }
}
