//! Which peers are taken: by their certificate, by the names in it, and by what they have signed with its key.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use super::trust::{Anchors, Shown};
use crate::auth::certificate::{self, Purpose};
use crate::config::SslMode;

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
        let (purpose, algorithms) = (Purpose::Client, self.algorithms());
        self.anchors.judge(&Shown { end_entity, intermediates, purpose, now, algorithms })?;
        Ok(ClientCertVerified::assertion())
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
        let (purpose, algorithms) = (Purpose::Server, self.algorithms);
        self.anchors.judge(&Shown { end_entity, intermediates, purpose, now, algorithms })?;
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
