//! Certificates and keys from PEM files, as OpenSSL finds them: by any of its labels, behind a byte order mark too.
//!
//! Errors are texts for the log and never show what stands in a file: it may be a key.

use rustls::pki_types::pem::{Error, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use zeroize::Zeroizing;

use crate::auth::certificate;
use crate::sys::error_text;

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// All certificates of a file, at least one.
///
/// # Errors
/// Why there is none.
pub(super) fn read_certificates(file: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(file).map_err(|error| error_text(&error))?;
    let certificates = certificates(&pem)?;
    if certificates.is_empty() { Err("no start line".to_owned()) } else { Ok(certificates) }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    // only what is ASCII anyway is read of it
    let pem = String::from_utf8_lossy(without_mark(pem));
    let pem = pem.replace("X509 CERTIFICATE-----", "CERTIFICATE-----");
    let pem = pem.replace("TRUSTED CERTIFICATE-----", "CERTIFICATE-----");
    CertificateDer::pem_slice_iter(pem.as_bytes()).map(|der| whole(der.map_err(|error| problem(&error))?)).collect()
}

/// Behind a trusted certificate OpenSSL writes what it is good for, and what not: nothing that may be passed over.
fn whole(der: CertificateDer<'static>) -> Result<CertificateDer<'static>, &'static str> {
    if certificate::ends_early(&der) { Err("what certificates are trusted for is not supported") } else { Ok(der) }
}

/// The private key of a file.
///
/// # Errors
/// Why there is none.
pub(super) fn read_key(file: &str) -> Result<PrivateKeyDer<'static>, String> {
    let pem = std::fs::read(file).map(Zeroizing::new).map_err(|error| error_text(&error))?;
    key(&pem).map_err(str::to_owned)
}

fn key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, &'static str> {
    let encrypted = || pem.windows(9).any(|word| word == b"ENCRYPTED");
    PrivateKeyDer::from_pem_slice(without_mark(pem)).map_err(|error| match problem(&error) {
        _ if encrypted() => "it is encrypted, which is not supported",
        problem => problem,
    })
}

fn without_mark(pem: &[u8]) -> &[u8] {
    pem.strip_prefix(BYTE_ORDER_MARK).unwrap_or(pem)
}

/// In OpenSSL's words.
const fn problem(error: &Error) -> &'static str {
    match error {
        Error::NoItemsFound | Error::IllegalSectionStart { .. } => "no start line",
        Error::MissingSectionEnd { .. } => "bad end line",
        Error::Base64Decode(_) => "bad base64 decode",
        _ => "it cannot be read as PEM",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BODY: &str = "MAMCAQE=";

    fn section(label: &str, body: &str) -> String {
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    #[test]
    fn certificates_by_all_their_labels() {
        let labels = ["CERTIFICATE", "X509 CERTIFICATE", "TRUSTED CERTIFICATE"];
        let all: String = labels.iter().map(|label| section(label, BODY)).collect();
        let found = certificates(format!("\u{feff}{all}").as_bytes()).expect("they can be read");
        assert_eq!(found, vec![CertificateDer::from(b"0\x03\x02\x01\x01".to_vec()); 3]);
        // the same with an empty sequence behind it
        let trusted = certificates(section("TRUSTED CERTIFICATE", "MAMCAQEwAA==").as_bytes());
        assert_eq!(trusted.err(), Some("what certificates are trusted for is not supported"));
        assert_eq!(certificates(section("PRIVATE KEY", BODY).as_bytes()).map(|found| found.len()).ok(), Some(0));
    }

    #[test]
    fn errors_show_nothing_of_the_file() {
        let good = section("PRIVATE KEY", BODY);
        assert!(key(good.as_bytes()).is_ok());
        assert!(key(format!("\u{feff}{good}").as_bytes()).is_ok());
        for (pem, problem) in [
            (String::new(), "no start line"),
            (section("CERTIFICATE", BODY), "no start line"),
            (good.replace('\n', ""), "bad end line"),
            (good.replace("-----END", "END"), "bad end line"),
            (section("PRIVATE KEY", "!"), "bad base64 decode"),
            (section("ENCRYPTED PRIVATE KEY", BODY), "it is encrypted, which is not supported"),
        ] {
            assert_eq!(key(pem.as_bytes()).err(), Some(problem), "{pem}");
        }
    }
}
