//! Which certificates are trusted.
//!
//! Paths are validated by the library, which goes by the book. What OpenSSL, and with it every program in the field, takes
//! besides is taken here as well: a certificate that is itself among the trusted ones; one of version 1, or one that may
//! issue others, if a trusted one signed it; and host names in the common name.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, TrustAnchor, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, SignatureScheme};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath, anchor_from_trusted_cert};

use super::pem::read_certificates;
use crate::auth::certificate::{self, Invalid, Issued, Purpose};
use crate::config::SslMode;

/// Where systems keep the certificates that they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Certificates that are trusted.
pub(super) struct Anchors {
    /// The system's are read when they are first asked for: mostly never.
    trusted: OnceLock<Trusted>,
}

struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    /// Those of them that may issue others, as far as they can be read.
    issuers: Vec<CertificateDer<'static>>,
    /// The same, as the library wants them.
    anchors: Vec<TrustAnchor<'static>>,
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
        let all = certificates.len();
        let usable = certificates.into_iter().filter(|der| anchor_from_trusted_cert(der).is_ok()).collect();
        let trusted = Trusted::new(usable);
        match trusted.certificates.len() {
            0 => return Err(format!("failed to load CA: no usable certificate in \"{file}\"")),
            usable if usable < all => {
                tracing::warn!("{} of {all} certificates in \"{file}\" cannot be used", all - usable);
            }
            _ => {}
        }
        Ok(Self { trusted: OnceLock::from(trusted) })
    }

    /// The system's, or those of the file that the environment names instead.
    pub(super) const fn system() -> Self {
        Self { trusted: OnceLock::new() }
    }

    /// The issuers of a certificate as far as a file of ours has them, up to the one that is its own. The system's are not
    /// looked through.
    pub(super) fn issuers_of(
        &self,
        leaf: &CertificateDer<'_>,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Vec<CertificateDer<'static>> {
        let mut chain: Vec<CertificateDer<'static>> = Vec::new();
        let known = self.trusted.get().map_or(&[][..], |trusted| &trusted.issuers);
        loop {
            let last = chain.last().map_or(leaf.as_ref(), AsRef::as_ref);
            let Some(issued) = certificate::issued(last).filter(|_| !certificate::is_self_issued(last)) else { break };
            let issuer = known.iter().find(|issuer| has_issued(issuer, &issued, algorithms) && !chain.contains(issuer));
            let Some(issuer) = issuer.cloned() else { break };
            chain.push(issuer);
        }
        chain
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
        let may_issue = certificates.iter().filter(|der| certificate::may_issue(der));
        let anchor =
            |der: &CertificateDer<'static>| Some((der.clone(), anchor_from_trusted_cert(der).ok()?.to_owned()));
        let (issuers, anchors) = may_issue.filter_map(anchor).unzip();
        Self { certificates, issuers, anchors }
    }

    /// Is it good for `purpose`, and is there a path to it?
    fn judge(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), Error> {
        if !certificate::is_usable(end_entity, purpose) {
            return Err(CertificateError::InvalidPurpose.into());
        }
        self.by_the_book(end_entity, intermediates, purpose, now, algorithms).or_else(|error| {
            let trusted = self.trusts(end_entity, purpose, now, algorithms);
            if trusted { Ok(()) } else { Err(plainer(error.into(), end_entity, now)) }
        })
    }

    fn by_the_book(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        purpose: Purpose,
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), BadPath> {
        let usage = match purpose {
            Purpose::Client => KeyUsage::client_auth(),
            Purpose::Server => KeyUsage::server_auth(),
        };
        let sound = |path: &VerifiedPath<'_>| self.is_sound(path, end_entity, now);
        EndEntityCert::try_from(end_entity)
            .and_then(|leaf| {
                let (algorithms, anchors) = (algorithms.all, &self.anchors);
                leaf.verify_for_usage(algorithms, anchors, intermediates, now, usage, None, Some(&sound)).map(drop)
            })
            .map_err(BadPath)
    }

    /// What the library does not ask of those who issue: all that it looks at in an anchor is its name and its key.
    fn is_sound(&self, path: &VerifiedPath<'_>, end_entity: &[u8], now: UnixTime) -> Result<(), webpki::Error> {
        let at = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let root = at.and_then(|at| self.issuers.get(at)).ok_or(webpki::Error::UnknownIssuer)?;
        let between: Vec<_> = path.intermediate_certificates().map(webpki::Cert::der).collect();
        let counted = between.iter().filter(|der| !certificate::is_self_issued(der)).count();
        let issuers = || between.iter().map(AsRef::as_ref).chain([root.as_ref()]);
        match certificate::check_validity(root, seconds(now)) {
            Err(Invalid::NotYet) => return Err(webpki::Error::CertNotValidYet { time: now, not_before: now }),
            Err(_) => return Err(webpki::Error::CertExpired { time: now, not_after: now }),
            Ok(()) => {}
        }
        if certificate::longest_path(root).is_some_and(|longest| counted > longest) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        if !between.iter().all(|der| certificate::may_issue(der)) {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
        if !issuers().all(|issuer| certificate::vouches_for_common_name(issuer, end_entity)) {
            return Err(webpki::Error::NameConstraintViolation);
        }
        Ok(())
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
        let valid = |der: &[u8]| certificate::check_validity(der, seconds(now)).is_ok();
        valid(end_entity)
            && self.issuers.iter().any(|trusted| {
                valid(trusted)
                    && certificate::vouches_for_common_name(trusted, end_entity)
                    && has_issued(trusted, &issued, algorithms)
            })
    }
}

/// By name and signature.
fn has_issued(issuer: &[u8], issued: &Issued<'_>, algorithms: WebPkiSupportedAlgorithms) -> bool {
    let signed_with = |spki: &[u8]| {
        let Some((key_algorithm, key)) = certificate::key_parts(spki) else { return false };
        algorithms.all.iter().any(|algorithm| {
            algorithm.signature_alg_id().as_ref() == issued.algorithm
                && algorithm.public_key_alg_id().as_ref() == key_algorithm
                && algorithm.verify_signature(key, issued.signed, issued.signature).is_ok()
        })
    };
    certificate::subject(issuer).as_deref() == Some(issued.issuer)
        && certificate::public_key(issuer).is_some_and(|spki| signed_with(&spki))
}

/// Why no path is a good one, from the library that rustls has it from.
struct BadPath(webpki::Error);

impl From<BadPath> for Error {
    fn from(BadPath(error): BadPath) -> Self {
        use webpki::Error as Bad;
        let why = match error {
            Bad::BadDer | Bad::BadDerTime | Bad::TrailingData(_) => CertificateError::BadEncoding,
            Bad::CertExpired { .. } | Bad::InvalidCertValidity => CertificateError::Expired,
            Bad::CertNotValidYet { .. } => CertificateError::NotValidYet,
            Bad::InvalidSignatureForPublicKey => CertificateError::BadSignature,
            Bad::RequiredEkuNotFoundContext(_) | Bad::EmptyEkuExtension => CertificateError::InvalidPurpose,
            Bad::EndEntityUsedAsCa => CertificateError::Other(Odd("invalid CA certificate").into()),
            Bad::PathLenConstraintViolated => CertificateError::Other(Odd("path length constraint exceeded").into()),
            Bad::NameConstraintViolation => CertificateError::Other(Odd("permitted subtree violation").into()),
            _ => CertificateError::UnknownIssuer,
        };
        why.into()
    }
}

/// A reason in OpenSSL's words that rustls has no name for.
#[derive(Debug)]
struct Odd(&'static str);

impl fmt::Display for Odd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for Odd {}

impl From<Odd> for OtherError {
    fn from(odd: Odd) -> Self {
        Self(Arc::new(odd))
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
        let trusted = self.anchors.trusted();
        trusted.judge(end_entity, intermediates, Purpose::Client, now, self.algorithms())?;
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
        let trusted = self.anchors.trusted();
        trusted.judge(end_entity, intermediates, Purpose::Server, now, self.algorithms)?;
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
    match certificate::check_validity(end_entity, seconds(now)) {
        Err(Invalid::Expired) => CertificateError::Expired.into(),
        Err(Invalid::NotYet) => CertificateError::NotValidYet.into(),
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
