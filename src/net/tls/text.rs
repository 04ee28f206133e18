//! Errors of the TLS library in words that log watchers know from OpenSSL.

use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// What follows `TLS handshake error: handshake failed: `.
pub(super) fn of(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => format!("certificate verify failed: {}", certificate(why)),
        Error::NoCertificatesPresented => "peer did not return a certificate".to_owned(),
        Error::NoApplicationProtocol => "no application protocol".to_owned(),
        Error::AlertReceived(alert) => format!("tlsv1 alert {}", alert_name(*alert)),
        Error::PeerIncompatible(why) => incompatible(why),
        other => other.to_string(),
    }
}

fn certificate(why: &CertificateError) -> String {
    match why {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate has expired".to_owned(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not yet valid".to_owned()
        }
        CertificateError::UnknownIssuer => "unable to get local issuer certificate".to_owned(),
        CertificateError::BadSignature => "certificate signature failure".to_owned(),
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "unsuitable certificate purpose".to_owned()
        }
        CertificateError::NotValidForNameContext { expected, .. } => {
            format!("name \"{}\" not present in server certificate", expected.to_str())
        }
        CertificateError::Other(why) => why.to_string(),
        other => other.to_string(),
    }
}

fn incompatible(why: &PeerIncompatible) -> String {
    match why {
        PeerIncompatible::Tls12NotOffered
        | PeerIncompatible::Tls12NotOfferedOrEnabled
        | PeerIncompatible::ServerDoesNotSupportTls12Or13
        | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        | PeerIncompatible::SupportedVersionsExtensionRequired
        // clients of TLS 1.1 and before do not send it, and it is looked for first
        | PeerIncompatible::SignatureAlgorithmsExtensionRequired => "unsupported protocol".to_owned(),
        PeerIncompatible::NoCipherSuitesInCommon => "no shared cipher".to_owned(),
        PeerIncompatible::NoKxGroupsInCommon => "no suitable key share".to_owned(),
        PeerIncompatible::NoSignatureSchemesInCommon => "no suitable signature algorithm".to_owned(),
        other => format!("peer is incompatible: {other:?}"),
    }
}

/// `UnknownCA` to `unknown ca`.
fn alert_name(alert: AlertDescription) -> String {
    let mut words = String::new();
    let mut after_small = false;
    for letter in format!("{alert:?}").chars() {
        if letter.is_ascii_uppercase() && after_small {
            words.push(' ');
        }
        after_small = letter.is_ascii_lowercase();
        words.push(letter.to_ascii_lowercase());
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_openssl() {
        for (error, want) in [
            (Error::AlertReceived(AlertDescription::UnknownCA), "tlsv1 alert unknown ca"),
            (Error::AlertReceived(AlertDescription::NoApplicationProtocol), "tlsv1 alert no application protocol"),
            (
                Error::InvalidCertificate(CertificateError::Expired),
                "certificate verify failed: certificate has expired",
            ),
            (Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered), "unsupported protocol"),
            (Error::NoCertificatesPresented, "peer did not return a certificate"),
            (Error::NoApplicationProtocol, "no application protocol"),
        ] {
            assert_eq!(of(&error), want);
        }
    }
}
