//! Certificates that are trusted, and paths to them.
//!
//! Paths are validated by the library, which goes by the book but looks at nothing in a trusted certificate besides its name, its
//! key and its constraints on names; what OpenSSL asks more is asked here. What OpenSSL, and with it every program in the field,
//! takes besides is taken here as well: a certificate that is its own issuer and itself among the trusted ones; and one of
//! version 1, or that may issue others, if it has a plain path.

use std::fmt;
use std::sync::{Arc, OnceLock};

use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use rustls::{CertificateError, Error, OtherError};
use webpki::{EndEntityCert, KeyUsage, RequiredEkuNotFoundContext, VerifiedPath, anchor_from_trusted_cert};

use super::pem::read_certificates;
use crate::auth::certificate::{self, Invalid, Issued, Purpose};
use crate::auth::issuer::Issuer;

/// Where systems keep the certificates that they trust.
const BUNDLES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Most certificates between the end of a path and a trusted one. OpenSSL is asked for six by all who follow libtls.
const LONGEST_PATH: usize = 6;

/// Certificates that are trusted.
pub(super) struct Anchors {
    /// The system's are read when they are first asked for: mostly never.
    trusted: OnceLock<Trusted>,
}

#[derive(Default)]
struct Trusted {
    certificates: Vec<CertificateDer<'static>>,
    /// Those of them that may issue others.
    issuers: Vec<CertificateDer<'static>>,
    /// Those whose own issuer is not there: paths end with them.
    roots: Vec<(CertificateDer<'static>, Issuer)>,
    /// The same, as the library wants them.
    anchors: Vec<TrustAnchor<'static>>,
    /// The other issuers: what their issuers are not good for, they are not either.
    between: Vec<CertificateDer<'static>>,
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
        let now = seconds(UnixTime::now());
        let mut chain: Vec<CertificateDer<'static>> = Vec::new();
        let known = self.trusted.get().map_or(&[][..], |trusted| &trusted.issuers);
        loop {
            let last = chain.last().map_or(leaf.as_ref(), AsRef::as_ref);
            let Some(issued) = certificate::issued(last).filter(|_| !certificate::is_self_issued(last)) else { break };
            let fits =
                |issuer: &&CertificateDer<'_>| has_issued(issuer, &issued, algorithms) && !chain.contains(issuer);
            let is_valid = |issuer: &&CertificateDer<'_>| certificate::check_validity(issuer, now).is_ok();
            let issuer = known.iter().filter(fits).find(is_valid).or_else(|| known.iter().find(fits));
            let Some(issuer) = issuer.cloned() else { break };
            chain.push(issuer);
        }
        chain
    }

    /// Is there a path to one of them?
    ///
    /// # Errors
    /// Why not.
    pub(super) fn judge(&self, shown: &Shown<'_>) -> Result<(), Error> {
        self.trusted().judge(shown)
    }

    fn trusted(&self) -> &Trusted {
        self.trusted.get_or_init(|| {
            let named = std::env::var("SSL_CERT_FILE").ok();
            let found = named.iter().map(String::as_str).chain(BUNDLES.iter().copied());
            Trusted::new(found.map(read_certificates).find_map(Result::ok).unwrap_or_default())
        })
    }
}

/// A certificate that is to be judged, with those that its owner has sent besides.
pub(super) struct Shown<'a> {
    pub end_entity: &'a CertificateDer<'a>,
    pub intermediates: &'a [CertificateDer<'a>],
    pub purpose: Purpose,
    pub now: UnixTime,
    pub algorithms: WebPkiSupportedAlgorithms,
}

impl Shown<'_> {
    fn is_valid(&self, der: &[u8]) -> bool {
        certificate::check_validity(der, seconds(self.now)).is_ok()
    }

    /// One of each name: among many of the same a path could be sought for long.
    fn sent(&self) -> Vec<CertificateDer<'_>> {
        let mut names = Vec::new();
        let fresh = |der: &&CertificateDer<'_>| {
            certificate::subject(der).is_some_and(|name| {
                let fresh = !names.contains(&name);
                names.push(name);
                fresh
            })
        };
        self.intermediates.iter().filter(fresh).take(LONGEST_PATH).cloned().collect()
    }
}

impl Trusted {
    fn new(certificates: Vec<CertificateDer<'static>>) -> Self {
        let mut trusted = Self::default();
        let read = |der: &CertificateDer<'static>| Some((der.clone(), Issuer::read(der)?));
        let issuers = || certificates.iter().filter_map(read).filter(|(_, issuer)| issuer.may_issue());
        let subjects: Vec<_> = issuers().map(|(der, _)| certificate::subject(&der)).collect();
        for (der, issuer) in issuers() {
            trusted.issuers.push(der.clone());
            let issued_by = certificate::issued(&der).map(|issued| issued.issuer.to_vec());
            if !issuer.is_self_issued() && subjects.contains(&issued_by) {
                trusted.between.push(der);
            } else if let Ok(anchor) = anchor_from_trusted_cert(&der).map(|anchor| anchor.to_owned()) {
                trusted.anchors.push(anchor);
                trusted.roots.push((der, issuer));
            }
        }
        Self { certificates, ..trusted }
    }

    fn judge(&self, shown: &Shown<'_>) -> Result<(), Error> {
        if !certificate::is_usable(shown.end_entity, shown.purpose) {
            return Err(plainer(CertificateError::InvalidPurpose.into(), shown));
        }
        let sent = shown.sent();
        self.by_the_book(shown, &sent).or_else(|error| {
            let trusted = self.trusts(shown) || self.has_plain_path(shown, &sent);
            if trusted { Ok(()) } else { Err(plainer(error.into(), shown)) }
        })
    }

    fn by_the_book(&self, shown: &Shown<'_>, sent: &[CertificateDer<'_>]) -> Result<(), BadPath> {
        let usage = key_usage(shown.purpose);
        let between: Vec<_> = self.between.iter().chain(sent).cloned().collect();
        let host = certificate::common_host(shown.end_entity);
        let sound = |path: &VerifiedPath<'_>| self.is_sound(path, shown, host.as_deref());
        EndEntityCert::try_from(shown.end_entity)
            .and_then(|leaf| {
                let (algorithms, anchors) = (shown.algorithms.all, &self.anchors);
                leaf.verify_for_usage(algorithms, anchors, &between, shown.now, usage, None, Some(&sound)).map(drop)
            })
            .map_err(BadPath)
    }

    /// What the library does not ask of those who issue: all that it looks at in an anchor is its name and its key. `host` is
    /// what the certificate at the end calls itself, if it has no better names.
    fn is_sound(&self, path: &VerifiedPath<'_>, shown: &Shown<'_>, host: Option<&str>) -> Result<(), webpki::Error> {
        let now = shown.now;
        let at = self.anchors.iter().position(|anchor| std::ptr::eq(anchor, path.anchor()));
        let (_, root) = at.and_then(|at| self.roots.get(at)).ok_or(webpki::Error::UnknownIssuer)?;
        let between: Option<Vec<_>> = path.intermediate_certificates().map(|cert| Issuer::read(&cert.der())).collect();
        let between = between.ok_or(webpki::Error::BadDer)?;
        match root.check_validity(seconds(now)) {
            Err(Invalid::NotYet) => return Err(webpki::Error::CertNotValidYet { time: now, not_before: now }),
            Err(_) => return Err(webpki::Error::CertExpired { time: now, not_after: now }),
            Ok(()) => {}
        }
        if !root.allows(between.iter().filter(|issuer| !issuer.is_self_issued()).count()) {
            return Err(webpki::Error::PathLenConstraintViolated);
        }
        if !root.is_understood() {
            return Err(webpki::Error::UnsupportedCriticalExtension);
        }
        if !root.is_for(shown.purpose) {
            let context = RequiredEkuNotFoundContext { required: key_usage(shown.purpose), present: Vec::new() };
            return Err(webpki::Error::RequiredEkuNotFoundContext(context));
        }
        if !between.iter().all(Issuer::may_issue) {
            return Err(webpki::Error::EndEntityUsedAsCa);
        }
        if host.is_some_and(|host| !between.iter().chain([root]).all(|issuer| issuer.vouches_for(host))) {
            return Err(webpki::Error::NameConstraintViolation);
        }
        Ok(())
    }

    /// Is it its own issuer, and trusted for itself?
    fn trusts(&self, shown: &Shown<'_>) -> bool {
        let end_entity = shown.end_entity.as_ref();
        self.certificates.iter().any(|trusted| trusted.as_ref() == end_entity)
            && certificate::is_self_issued(end_entity)
            && shown.is_valid(end_entity)
    }

    /// Is it of a kind that has no place in the book, with a path to a trusted one on which no names are constrained?
    fn has_plain_path(&self, shown: &Shown<'_>, sent: &[CertificateDer<'_>]) -> bool {
        let Some(mut issued) = certificate::plainly_issued(shown.end_entity) else { return false };
        if !shown.is_valid(shown.end_entity) {
            return false;
        }
        for depth in 0..=LONGEST_PATH {
            let mut known = self.issuers.iter().chain(sent);
            let issuer = known.find(|der| has_issued(der, &issued, shown.algorithms) && shown.is_valid(der));
            let Some(issuer) = issuer.filter(|der| issues_plainly(der, shown.purpose, depth)) else { return false };
            if self.roots.iter().any(|(root, _)| root == issuer) {
                return true;
            }
            let Some(next) = certificate::issued(issuer) else { return false };
            issued = next;
        }
        false
    }
}

/// May it issue others for `purpose`, so many away from the end of the path, without constraints on anything?
fn issues_plainly(der: &[u8], purpose: Purpose, depth: usize) -> bool {
    Issuer::read(der)
        .is_some_and(|issuer| issuer.may_issue() && issuer.is_for(purpose) && issuer.allows(depth) && issuer.is_plain())
}

const fn key_usage(purpose: Purpose) -> KeyUsage {
    match purpose {
        Purpose::Client => KeyUsage::client_auth(),
        Purpose::Server => KeyUsage::server_auth(),
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
            Bad::UnsupportedCriticalExtension => CertificateError::Other(Odd("unhandled critical extension").into()),
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

pub(super) fn seconds(now: UnixTime) -> i64 {
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// The plainest reason: that a certificate is of an odd kind matters less than that it has expired.
fn plainer(error: Error, shown: &Shown<'_>) -> Error {
    match certificate::check_validity(shown.end_entity, seconds(shown.now)) {
        Err(Invalid::Expired) => CertificateError::Expired.into(),
        Err(Invalid::NotYet) => CertificateError::NotValidYet.into(),
        _ => error,
    }
}
