//! What certificates say: the names in them, their public key, and the hash that channel binding takes of them.
//!
//! Whether a certificate is to be trusted is decided by the TLS layer before anything here is asked. Sources: RFC 5280,
//! RFC 5929 (`tls-server-end-point`).

use std::net::IpAddr;

use sha2::{Digest, Sha256, Sha384, Sha512};
use x509_parser::asn1_rs::Tag;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer;
use x509_parser::signature_algorithm::SignatureAlgorithm;
use x509_parser::x509::{AlgorithmIdentifier, AttributeTypeAndValue, X509Version};

use super::facts::Certificate;

/// The names in a certificate in DER; `None` if it cannot be read. It has none at all if an alternative name was made to
/// deceive: others would see only the beginning of one with a NUL in it, and RFC 5280 forbids those that are blank.
#[must_use]
pub fn names(der: &[u8]) -> Option<Certificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let mut names = Certificate::default();
    if let Some(alternatives) = certificate.subject_alternative_name().ok()? {
        for name in &alternatives.value.general_names {
            match name {
                GeneralName::DNSName(name) if deceives(name) => return Some(Certificate::default()),
                GeneralName::DNSName(name) if !name.is_empty() => names.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => names.ip_addresses.extend(address(bytes)),
                _ => {}
            }
        }
    }
    let common = certificate.subject().iter_common_name().next().and_then(text);
    names.common_name = common.filter(|name| !name.is_empty() && !name.contains('\0'));
    Some(names)
}

fn deceives(name: &str) -> bool {
    name.contains('\0') || (!name.is_empty() && name.trim().is_empty())
}

/// The text of an attribute. TeletexString is Latin-1 to all who write it, whatever its standard says.
fn text(attribute: &AttributeTypeAndValue<'_>) -> Option<String> {
    if attribute.attr_value().tag() == Tag::TeletexString {
        return Some(attribute.as_slice().iter().copied().map(char::from).collect());
    }
    attribute.as_str().ok().map(str::to_owned)
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

/// The channel binding data of type `tls-server-end-point` for a server's certificate. `None` if its signature algorithm
/// has no single hash, for then the type is not defined.
#[must_use]
pub fn end_point(der: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some(match signature_hash(&certificate.signature_algorithm)? {
        Hash::Sha256 => Sha256::digest(der).to_vec(),
        Hash::Sha384 => Sha384::digest(der).to_vec(),
        Hash::Sha512 => Sha512::digest(der).to_vec(),
    })
}

enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// MD5 and SHA-1 are replaced by SHA-256, as RFC 5929 has it.
fn signature_hash(algorithm: &AlgorithmIdentifier<'_>) -> Option<Hash> {
    let oid = algorithm.algorithm.to_id_string();
    match oid.as_str() {
        // RSA with MD5, SHA-1, SHA-256; ECDSA with SHA-1, SHA-256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2" => Some(Hash::Sha256),
        // RSA and ECDSA with SHA-384, then SHA-512
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        // RSA-PSS
        "1.2.840.113549.1.1.10" => match SignatureAlgorithm::try_from(algorithm).ok()? {
            SignatureAlgorithm::RSASSA_PSS(parameters) => match parameters.hash_algorithm_oid().to_id_string().as_str()
            {
                "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
                "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
                "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
                _ => None,
            },
            _ => None,
        },
        _ => None,
    }
}

/// Does something follow the certificate in `der`?
#[must_use]
pub fn ends_early(der: &[u8]) -> bool {
    element(der).is_some_and(|(_, rest)| !rest.is_empty())
}

/// The SubjectPublicKeyInfo of a certificate, in DER.
#[must_use]
pub fn public_key(der: &[u8]) -> Option<Vec<u8>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.public_key().raw.to_vec())
}

/// Is it within its validity at `now`, in seconds since 1970?
///
/// # Errors
/// It is not, or cannot be read.
pub fn check_validity(der: &[u8], now: i64) -> Result<(), Invalid> {
    let (_, certificate) = X509Certificate::from_der(der).map_err(|_| Invalid::Unreadable)?;
    Validity::of(&certificate).check(now)
}

/// Seconds since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    not_before: i64,
    not_after: i64,
}

impl Validity {
    pub(super) fn of(certificate: &X509Certificate<'_>) -> Self {
        let validity = certificate.validity();
        Self { not_before: validity.not_before.timestamp(), not_after: validity.not_after.timestamp() }
    }

    pub(super) fn check(self, now: i64) -> Result<(), Invalid> {
        match now {
            _ if now < self.not_before => Err(Invalid::NotYet),
            _ if now > self.not_after => Err(Invalid::Expired),
            _ => Ok(()),
        }
    }
}

/// Why a certificate is worth nothing whoever issued it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Invalid {
    Unreadable,
    NotYet,
    Expired,
}

/// The parts of a certificate that show who issued it.
#[derive(Debug, PartialEq, Eq)]
pub struct Issued<'a> {
    /// The issuer's name in DER.
    pub issuer: &'a [u8],
    /// What is signed.
    pub signed: &'a [u8],
    /// Contents of the AlgorithmIdentifier.
    pub algorithm: &'a [u8],
    pub signature: &'a [u8],
}

/// Takes apart a certificate of a kind that path validation by the book has no place for although programs and tools in
/// the field make it and OpenSSL takes it: of version 1, without extensions, or one that may itself issue others.
/// `None` for all other ones.
#[must_use]
pub fn plainly_issued(der: &[u8]) -> Option<Issued<'_>> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    if certificate.version() != X509Version::V1 && !certificate.is_ca() {
        return None;
    }
    if certificate.extensions().iter().any(|extension| extension.critical && !is_known(&extension.oid.to_id_string())) {
        return None;
    }
    issued(der)
}

/// The same parts of any certificate.
#[must_use]
pub fn issued(der: &[u8]) -> Option<Issued<'_>> {
    let (whole, _) = element(der)?;
    let (_, rest) = element(whole)?;
    let (algorithm, _) = element(rest)?;
    Some(Issued {
        issuer: issuer_bytes(der)?,
        signed: &whole[..whole.len() - rest.len()],
        algorithm,
        signature: bits(&rest[rest.len() - element(rest)?.1.len()..])?,
    })
}

/// Was it issued by itself?
#[must_use]
pub fn is_self_issued(der: &[u8]) -> bool {
    X509Certificate::from_der(der).is_ok_and(|(_, certificate)| is_own_issuer(&certificate))
}

pub(super) fn is_own_issuer(certificate: &X509Certificate<'_>) -> bool {
    certificate.subject().as_raw() == certificate.issuer().as_raw()
}

/// May it, by the usages of its key if it names any, stand at the end of a path for `purpose`?
#[must_use]
pub fn is_usable(der: &[u8], purpose: Purpose) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(der) else { return false };
    let Ok(usage) = certificate.key_usage() else { return false };
    let fits = usage.is_none_or(|usage| {
        let agrees = usage.value.digital_signature() || usage.value.key_agreement();
        agrees || purpose == Purpose::Server && usage.value.key_encipherment()
    });
    fits && is_meant_for(&certificate, purpose)
}

/// OpenSSL takes "any purpose" for none of these.
pub(super) fn is_meant_for(certificate: &X509Certificate<'_>, purpose: Purpose) -> bool {
    let Ok(usage) = certificate.extended_key_usage() else { return false };
    usage.is_none_or(|usage| match purpose {
        Purpose::Server => usage.value.server_auth,
        Purpose::Client => usage.value.client_auth,
    })
}

/// The common name of a certificate if it counts as a host's: if it looks like one and no alternative name is a host's.
#[must_use]
pub fn common_host(der: &[u8]) -> Option<String> {
    let Certificate { common_name, dns_names, .. } = names(der)?;
    common_name.filter(|name| dns_names.is_empty() && is_like_a_host(name))
}

/// Labels of letters, digits, hyphens and underscores, at least two.
fn is_like_a_host(name: &str) -> bool {
    let is_label = |label: &str| {
        let fits = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        !label.is_empty() && fits && !label.starts_with('-') && !label.ends_with('-')
    };
    name.contains('.') && name.split('.').all(is_label)
}

/// What a certificate is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Server,
    Client,
}

/// Critical extensions that are looked at: key usage, alternative names, basic constraints, extended key usage.
pub(super) fn is_known(oid: &str) -> bool {
    ["2.5.29.15", "2.5.29.17", "2.5.29.19", "2.5.29.37"].contains(&oid)
}

/// The issuer's name: fourth or, without a version, third element of what is signed.
fn issuer_bytes(der: &[u8]) -> Option<&[u8]> {
    let (whole, _) = element(der)?;
    let (signed, _) = element(whole)?;
    let mut rest = signed;
    if rest.first() == Some(&0xa0) {
        rest = element(rest)?.1;
    }
    rest = element(rest)?.1;
    rest = element(rest)?.1;
    let after = element(rest)?.1;
    Some(&rest[..rest.len() - after.len()])
}

/// The name of the subject in DER.
#[must_use]
pub fn subject(der: &[u8]) -> Option<Vec<u8>> {
    X509Certificate::from_der(der).ok().map(|(_, certificate)| certificate.subject().as_raw().to_vec())
}

/// Algorithm (contents of its AlgorithmIdentifier) and key bits of a SubjectPublicKeyInfo.
#[must_use]
pub fn key_parts(spki: &[u8]) -> Option<(&[u8], &[u8])> {
    let (whole, _) = element(spki)?;
    let (algorithm, rest) = element(whole)?;
    Some((algorithm, bits(rest)?))
}

/// The bytes of a BIT STRING without odd bits.
fn bits(der: &[u8]) -> Option<&[u8]> {
    match (der.first(), element(der)?.0) {
        (Some(0x03), [0, bytes @ ..]) => Some(bytes),
        _ => None,
    }
}

/// Contents of the first element, and what follows it.
fn element(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (&first, rest) = der.get(1..)?.split_first()?;
    let (len, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (digits, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (digits.iter().fold(0_usize, |len, &digit| (len << 8) | usize::from(digit)), rest)
        }
        _ => return None,
    };
    rest.split_at_checked(len)
}

#[cfg(test)]
mod tests {
    use super::super::issuer::Issuer;
    use super::*;

    #[test]
    fn elements() {
        assert_eq!(element(b"\x30\x02ab"), Some((b"ab".as_slice(), b"".as_slice())));
        assert_eq!(element(b"\x30\x81\x02abc"), Some((b"ab".as_slice(), b"c".as_slice())));
        assert_eq!(element(b"\x30\x82\x00\x01a"), Some((b"a".as_slice(), b"".as_slice())));
        for bad in
            [b"".as_slice(), b"\x30", b"\x30\x03ab", b"\x30\x80ab", b"\x30\x85\0\0\0\0\0", b"\x30\x84\xff\xff\xff\xffa"]
        {
            assert_eq!(element(bad), None, "{bad:?}");
        }
        assert_eq!(bits(b"\x03\x03\x00ab"), Some(b"ab".as_slice()));
        assert_eq!(bits(b"\x03\x03\x01ab"), None);
        assert_eq!(bits(b"\x03\x00"), None);
        assert_eq!(bits(b"\x04\x03\x00ab"), None);
    }

    #[test]
    fn damaged_certificates_never_panic() {
        let good = include_bytes!("testdata/leaf.der");
        assert!(names(good).is_some());
        let mut state = 88_172_645_463_325_252_u64;
        let mut below = move |limit: usize| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            usize::try_from(state >> 33).unwrap_or(0) % limit
        };
        for _ in 0..20_000 {
            let mut bytes = good.to_vec();
            for _ in 0..=below(4) {
                let at = below(bytes.len().max(2)).min(bytes.len() - 1);
                match below(3) {
                    0 => bytes[at] = u8::try_from(below(256)).unwrap_or(0),
                    1 if bytes.len() > 1 => drop(bytes.remove(at)),
                    _ => bytes.truncate(at.max(1)),
                }
            }
            let _ = (names(&bytes), end_point(&bytes), public_key(&bytes), subject(&bytes), check_validity(&bytes, 0));
            let _ = (Issuer::read(&bytes), is_usable(&bytes, Purpose::Server), common_host(&bytes));
            let _ = (plainly_issued(&bytes), key_parts(&bytes));
        }
    }

    #[test]
    fn what_certificates_say() {
        let leaf = include_bytes!("testdata/leaf.der");
        let names = names(leaf).expect("readable");
        assert_eq!(names.common_name.as_deref(), Some("alice"));
        assert!(names.is_for("db.example") && names.is_for("x.wild.example") && names.is_for("192.0.2.1"));
        assert!(!names.is_for("bob"));
        assert_eq!(end_point(leaf), Some(Sha256::digest(leaf).to_vec()));
        assert_eq!(end_point(include_bytes!("testdata/sha512.der")).map(|hash| hash.len()), Some(64));
        assert_eq!(end_point(include_bytes!("testdata/ed25519.der")), None);
        assert_eq!(end_point(include_bytes!("testdata/pss384.der")).map(|hash| hash.len()), Some(48));
        let spki = public_key(leaf).expect("has a key");
        assert!(key_parts(&spki).is_some());
        assert_eq!(check_validity(leaf, 0), Err(Invalid::NotYet));
        assert_eq!(check_validity(leaf, i64::from(u32::MAX) * 10), Err(Invalid::Expired));
        assert_eq!(check_validity(b"", 0), Err(Invalid::Unreadable));
        assert_eq!(plainly_issued(leaf), None);
    }

    /// The certificate with `from` in its names replaced by `to`: what it says is read before anybody asks who signed it.
    fn with(from: &[u8], to: &[u8]) -> Certificate {
        let mut der = include_bytes!("testdata/leaf.der").to_vec();
        let at = der.windows(from.len()).rposition(|bytes| bytes == from).expect("is there");
        der[at..at + from.len()].copy_from_slice(to);
        names(&der).expect("readable")
    }

    #[test]
    fn common_names_in_teletex() {
        let names = with(b"\x0c\x05alice", b"\x14\x05al\xefce");
        assert_eq!(names.common_name.as_deref(), Some("al\u{ef}ce"));
        assert_eq!(with(b"\x0c\x05alice", b"\x0c\x05al\0ce").common_name, None);
    }

    #[test]
    fn names_made_to_deceive() {
        assert!(with(b"db.example", b"dx.example").is_for("alice"));
        for name in [b"db\0example", b"          "] {
            assert_eq!(with(b"db.example", name), Certificate::default(), "{name:?}");
        }
    }

    #[test]
    fn common_names_that_count_as_hosts() {
        for (name, like) in
            [("a.b", true), ("alice", false), ("a b.c", false), ("a..b", false), ("-a.b", false), ("a_b.c", true)]
        {
            assert_eq!(is_like_a_host(name), like, "{name}");
        }
    }

    #[test]
    fn version_1_is_taken_apart() {
        let der = include_bytes!("testdata/version1.der");
        let issued = plainly_issued(der).expect("version 1");
        let (_, certificate) = X509Certificate::from_der(der).expect("readable");
        assert_eq!(issued.issuer, certificate.issuer().as_raw());
        assert_eq!(issued.signed, certificate.tbs_certificate.as_ref());
        assert_eq!(issued.signature, &*certificate.signature_value.data);
        assert_eq!(subject(der).as_deref(), Some(certificate.subject().as_raw()));
    }
}
