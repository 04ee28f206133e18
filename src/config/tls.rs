//! What the `*_tls_*` settings ask for: versions, cipher suites, curves, and which of them must stand together.
//!
//! The settings speak OpenSSL's language; the suites are the ones that the TLS library has. Whatever is asked for by name
//! and is not there is refused. A group (`HIGH`) means those of its members that there are, because a list of ciphers says
//! what is allowed, not what must be. Source: OpenSSL's ciphers(1), and PgBouncer's observed answers.

use super::{AuthType, Settings, SslMode};

/// A TLS 1.2 suite, and the words by which cipher lists select it.
struct Suite {
    name: &'static str,
    bits: u16,
    words: &'static [&'static str],
}

/// The TLS 1.2 suites that there are, in the order of preference.
const SUITES: &[Suite] = &[
    Suite {
        name: "ECDHE-ECDSA-AES256-GCM-SHA384",
        bits: 256,
        words: &["aECDSA", "ECDSA", "AES", "AES256", "AESGCM", "FIPS"],
    },
    Suite { name: "ECDHE-RSA-AES256-GCM-SHA384", bits: 256, words: &["aRSA", "AES", "AES256", "AESGCM", "FIPS"] },
    Suite { name: "ECDHE-ECDSA-CHACHA20-POLY1305", bits: 256, words: &["aECDSA", "ECDSA", "CHACHA20"] },
    Suite { name: "ECDHE-RSA-CHACHA20-POLY1305", bits: 256, words: &["aRSA", "CHACHA20"] },
    Suite {
        name: "ECDHE-ECDSA-AES128-GCM-SHA256",
        bits: 128,
        words: &["aECDSA", "ECDSA", "AES", "AES128", "AESGCM", "FIPS"],
    },
    Suite { name: "ECDHE-RSA-AES128-GCM-SHA256", bits: 128, words: &["aRSA", "AES", "AES128", "AESGCM", "FIPS"] },
];

/// Words that select every suite above.
const EVERY: &[&str] = &["ALL", "HIGH", "ECDH", "ECDHE", "EECDH", "kECDHE", "kEECDH", "TLSv1.2"];

/// Words of OpenSSL's that select none of the suites above: most often found behind `!`.
const NONE: &[&str] = &[
    "3DES",
    "ADH",
    "AECDH",
    "AESCCM",
    "AESCCM8",
    "ARIA",
    "ARIA128",
    "ARIA256",
    "ARIAGCM",
    "CAMELLIA",
    "CAMELLIA128",
    "CAMELLIA256",
    "CBC",
    "COMPLEMENTOFALL",
    "COMPLEMENTOFDEFAULT",
    // at the beginning of a list it is something else
    "DEFAULT",
    "DES",
    "DH",
    "DHE",
    "DSS",
    "EDH",
    "EXP",
    "EXPORT",
    "EXPORT40",
    "EXPORT56",
    "GOST",
    "GOST94",
    "GOST89MAC",
    "IDEA",
    "LOW",
    "MD5",
    "MEDIUM",
    "NULL",
    "PSK",
    "RC2",
    "RC4",
    "RSA",
    "SEED",
    "SHA",
    "SHA1",
    "SHA256",
    "SHA384",
    "SRP",
    "SSLv2",
    "SSLv3",
    "TLSv1",
    "TLSv1.0",
    "aDH",
    "aDSS",
    "aECDH",
    "aGOST",
    "aGOST01",
    "aNULL",
    "aPSK",
    "aSRP",
    "eNULL",
    "kDH",
    "kDHE",
    "kDHEPSK",
    "kDHd",
    "kDHr",
    "kECDH",
    "kECDHEPSK",
    "kEDH",
    "kGOST",
    "kPSK",
    "kRSA",
    "kRSAPSK",
    "kSRP",
];

/// The TLS 1.3 suites that there are, in the order of preference.
const TLS13_SUITES: &[&str] = &["TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256", "TLS_AES_128_GCM_SHA256"];

/// Curves by the names that OpenSSL takes for them.
const CURVES: &[(&str, Curve)] = &[
    ("prime256v1", Curve::P256),
    ("secp256r1", Curve::P256),
    ("P-256", Curve::P256),
    ("secp384r1", Curve::P384),
    ("P-384", Curve::P384),
    ("X25519", Curve::X25519),
];

/// An elliptic curve for the key exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Curve {
    P256,
    P384,
    X25519,
}

/// How connections of one side are encrypted. Suites are named as OpenSSL names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    pub tls12: bool,
    pub tls13: bool,
    /// In the order of preference.
    pub tls12_suites: Vec<&'static str>,
    /// In the order of preference.
    pub tls13_suites: Vec<&'static str>,
    /// The only one, if there is a choice.
    pub curve: Option<Curve>,
}

/// Why settings cannot be served: lines for the log, as errors.
pub type Refused = Vec<String>;

/// The settings of one side.
struct Texts<'a> {
    side: &'static str,
    protocols: &'a str,
    ciphers: &'a str,
    tls13_ciphers: &'a str,
    dheparams: &'a str,
    ecdhcurve: &'a str,
}

impl Settings {
    /// Do the settings of clients' connections stand together?
    ///
    /// # Errors
    /// The lines to log.
    pub fn check_client_tls(&self) -> Result<(), Refused> {
        let lacks_ca = self.client_tls_ca_file.is_empty();
        let text = match (self.client_tls_sslmode, self.auth_type) {
            (SslMode::Disable, AuthType::Cert) => "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL",
            (SslMode::Disable, _) => return Ok(()),
            _ if self.client_tls_key_file.is_empty() || self.client_tls_cert_file.is_empty() => {
                "To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set."
            }
            (SslMode::VerifyFull, AuthType::Cert) if lacks_ca => "auth_type=cert requires client_tls_ca_file",
            (SslMode::VerifyFull, _) if lacks_ca => "client_tls_sslmode requires client_tls_ca_file",
            (SslMode::VerifyFull, _) => return Ok(()),
            (_, AuthType::Cert) => "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL",
            _ => return Ok(()),
        };
        Err(vec![text.to_owned()])
    }

    /// How clients' connections are encrypted.
    ///
    /// # Errors
    /// The lines to log.
    pub fn client_tls_policy(&self) -> Result<Policy, Refused> {
        policy(&Texts {
            side: "client_tls",
            protocols: &self.client_tls_protocols,
            ciphers: &self.client_tls_ciphers,
            tls13_ciphers: self.client_tls13_ciphers.as_deref().unwrap_or_default(),
            dheparams: &self.client_tls_dheparams,
            ecdhcurve: &self.client_tls_ecdhcurve,
        })
    }

    /// How connections to servers are encrypted.
    ///
    /// # Errors
    /// The lines to log.
    pub fn server_tls_policy(&self) -> Result<Policy, Refused> {
        policy(&Texts {
            side: "server_tls",
            protocols: &self.server_tls_protocols,
            ciphers: &self.server_tls_ciphers,
            tls13_ciphers: self.server_tls13_ciphers.as_deref().unwrap_or_default(),
            dheparams: "",
            ecdhcurve: "",
        })
    }

    /// The settings whose text decides how a server connection is encrypted: another text means other connections.
    #[must_use]
    pub fn server_tls_texts(&self) -> [String; 6] {
        [
            self.server_tls_sslmode.to_string(),
            self.server_tls_protocols.clone(),
            self.server_tls_ciphers.clone(),
            self.server_tls_ca_file.clone(),
            self.server_tls_cert_file.clone(),
            self.server_tls_key_file.clone(),
        ]
    }
}

fn policy(texts: &Texts<'_>) -> Result<Policy, Refused> {
    let side = texts.side;
    let refused = |what: &str, value: &str, why: Option<String>| {
        let mut lines = vec![format!("invalid {side}_{what}: {value}")];
        lines.extend(why);
        lines
    };
    let (tls12, tls13) = versions(texts.protocols).map_err(|why| refused("protocols", texts.protocols, why))?;
    let tls12_suites = ciphers(texts.ciphers).map_err(|why| refused("ciphers", texts.ciphers, Some(why)))?;
    if !["", "auto", "none"].iter().any(|known| texts.dheparams.eq_ignore_ascii_case(known)) {
        return Err(refused("dheparams", texts.dheparams, None));
    }
    let curve = curve(texts.ecdhcurve).map_err(|why| refused("ecdhecurve", texts.ecdhcurve, Some(why)))?;
    let tls13_suites = tls13_ciphers(texts.tls13_ciphers)
        .map_err(|why| vec!["TLS setup failed: failed to set the TLSv1.3 cipher suites".to_owned(), why])?;
    Ok(Policy { tls12, tls13, tls12_suites, tls13_suites, curve })
}

/// Whether TLS 1.2 and 1.3 are among the versions of a list. TLS 1.0 and 1.1 are bits of their own: a group means those of
/// its versions that there are, while one that is asked for by name is refused. A list that begins with a removal removes
/// from all.
fn versions(text: &str) -> Result<(bool, bool), Option<String>> {
    const OLD: u8 = 1 | 2;
    const TLS12: u8 = 4;
    const TLS13: u8 = 8;
    const ALL: u8 = OLD | TLS12 | TLS13;
    let (mut set, mut named) = (0, 0);
    let words = if text.is_empty() { "secure" } else { text };
    for word in words.split([',', ':']).map(str::trim) {
        let (remove, word) = word.strip_prefix('!').map_or((false, word), |word| (true, word));
        let bits = match word.to_ascii_lowercase().as_str() {
            "all" | "tlsv1" => ALL,
            "default" | "secure" => TLS12 | TLS13,
            "tlsv1.0" => 1,
            "tlsv1.1" => 2,
            "tlsv1.2" => TLS12,
            "tlsv1.3" => TLS13,
            _ => return Err(None),
        };
        if remove {
            set = if set == 0 { ALL & !bits } else { set & !bits };
            named &= !bits;
        } else {
            set |= bits;
            named |= if bits & !OLD == 0 { bits } else { 0 };
        }
    }
    if named != 0 {
        return Err(Some("TLS 1.0 and 1.1 are not supported by this build; tlsv1.2 and tlsv1.3 are".to_owned()));
    }
    match (set & TLS12 != 0, set & TLS13 != 0) {
        (false, false) => Err(Some("it leaves none of the versions of this build: tlsv1.2, tlsv1.3".to_owned())),
        some => Ok(some),
    }
}

fn tls13_ciphers(text: &str) -> Result<Vec<&'static str>, String> {
    if text.is_empty() {
        return Ok(TLS13_SUITES.to_vec());
    }
    let mut suites = Vec::new();
    for name in text.split(':').map(str::trim).filter(|name| !name.is_empty()) {
        let known = TLS13_SUITES.iter().find(|known| known.eq_ignore_ascii_case(name));
        let Some(known) = known else {
            return Err(format!(
                "\"{name}\" is not among the TLS 1.3 suites of this build: {}",
                TLS13_SUITES.join(":")
            ));
        };
        if !suites.contains(known) {
            suites.push(*known);
        }
    }
    if suites.is_empty() {
        return Err(format!("it names none of the TLS 1.3 suites of this build: {}", TLS13_SUITES.join(":")));
    }
    Ok(suites)
}

fn curve(text: &str) -> Result<Option<Curve>, String> {
    // every suite here needs a curve: `none` can only mean that no single one is asked for
    if ["", "auto", "none"].iter().any(|known| text.eq_ignore_ascii_case(known)) {
        return Ok(None);
    }
    let known = CURVES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
    known.map(|(_, curve)| Some(*curve)).ok_or_else(|| {
        let names = CURVES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        format!("the curves of this build are {names}")
    })
}

/// A list in OpenSSL's syntax: `!` removes for good, `-` removes, `+` moves to the end, `a+b` is both.
fn ciphers(text: &str) -> Result<Vec<&'static str>, String> {
    let all = || SUITES.iter().map(|suite| suite.name).collect();
    if ["", "default", "secure", "normal", "fast"].iter().any(|known| text.eq_ignore_ascii_case(known)) {
        return Ok(all());
    }
    let mut chosen: Vec<usize> = Vec::new();
    let mut killed = [false; SUITES.len()];
    let rest = text.strip_prefix("DEFAULT");
    if rest.is_some() {
        chosen.extend(0..SUITES.len());
    }
    // a command ends the word before it
    let text = rest.unwrap_or(text).replace('@', ":@");
    for item in text.split([':', ',', ' ', ';']).filter(|item| !item.is_empty()) {
        if let Some(command) = item.strip_prefix('@') {
            order(command, &mut chosen)?;
            continue;
        }
        let (operator, words) = match item.split_at_checked(1) {
            Some((operator @ ("!" | "-" | "+"), words)) => (operator, words),
            _ => ("", item),
        };
        let meant = selected(words, !operator.is_empty())?;
        match operator {
            "" => chosen.extend(
                (0..SUITES.len())
                    .filter(|i| meant[*i] && !killed[*i])
                    .filter(|i| !chosen.contains(i))
                    .collect::<Vec<_>>(),
            ),
            "+" => chosen.sort_by_key(|i| meant[*i]),
            _ => chosen.retain(|i| !meant[*i]),
        }
        if operator == "!" {
            (0..SUITES.len()).for_each(|i| killed[i] |= meant[i]);
        }
    }
    if chosen.is_empty() {
        return Err(format!("it leaves none of the suites of this build: {}", all().join(":")));
    }
    Ok(chosen.into_iter().map(|i| SUITES[i].name).collect())
}

fn order(command: &str, chosen: &mut [usize]) -> Result<(), String> {
    match command.split_once('=') {
        None if command == "STRENGTH" => {
            chosen.sort_by_key(|i| std::cmp::Reverse(SUITES[*i].bits));
            Ok(())
        }
        // what the suites, curves and certificates of this build come to is level 2
        Some(("SECLEVEL", "0" | "1" | "2")) => Ok(()),
        _ => Err(format!("\"@{command}\" is not supported by this build")),
    }
}

/// The suites that `a+b+c` means. `lenient` for what is taken away: it need not be there.
fn selected(words: &str, lenient: bool) -> Result<[bool; SUITES.len()], String> {
    let mut meant = [true; SUITES.len()];
    for word in words.split('+') {
        let single = SUITES.iter().position(|suite| suite.name == word);
        let known = single.is_some()
            || EVERY.contains(&word)
            || NONE.contains(&word)
            // those have a list of their own
            || TLS13_SUITES.contains(&word)
            || SUITES.iter().any(|suite| suite.words.contains(&word));
        if !known && !lenient {
            let names: Vec<_> = SUITES.iter().map(|suite| suite.name).collect();
            return Err(format!("\"{word}\" is not among the suites of this build: {}", names.join(":")));
        }
        for (i, suite) in SUITES.iter().enumerate() {
            meant[i] &= single == Some(i) || EVERY.contains(&word) || suite.words.contains(&word);
        }
    }
    Ok(meant)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(suites: &[&str]) -> String {
        let short = |name: &&str| name.replace("ECDHE-", "").replace("-GCM-SHA384", "").replace("-GCM-SHA256", "");
        suites
            .iter()
            .map(short)
            .collect::<Vec<_>>()
            .join(" ")
            .replace("-CHACHA20-POLY1305", "-CC")
            .replace("ECDSA", "E")
            .replace("RSA", "R")
    }

    #[test]
    fn cipher_lists() {
        const ALL: &str = "E-AES256 R-AES256 E-CC R-CC E-AES128 R-AES128";
        for (text, want) in [
            ("default", ALL),
            ("SECURE", ALL),
            ("fast", ALL),
            ("", ALL),
            ("ALL", ALL),
            ("HIGH:MEDIUM:+3DES:!aNULL", ALL),
            ("DEFAULT:@SECLEVEL=2", ALL),
            ("DEFAULT@SECLEVEL=1", ALL),
            ("DEFAULT:!CHACHA20:!aRSA", "E-AES256 E-AES128"),
            ("AES128:DEFAULT", "E-AES128 R-AES128"),
            ("ECDH+AESGCM:DH+AESGCM:ECDH+AES256:DH+AES256:!aNULL:!MD5:!DSS", "E-AES256 R-AES256 E-AES128 R-AES128"),
            ("HIGH:!AES128@STRENGTH", "E-AES256 R-AES256 E-CC R-CC"),
            ("TLS_AES_256_GCM_SHA384:ECDHE-RSA-AES128-GCM-SHA256", "R-AES128"),
            ("ECDHE-RSA-AES128-GCM-SHA256", "R-AES128"),
            ("ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES256-GCM-SHA384", "R-AES128 R-AES256"),
            ("AES128,AES256", "E-AES128 R-AES128 E-AES256 R-AES256"),
            ("AES128 AES256 @STRENGTH", "E-AES256 R-AES256 E-AES128 R-AES128"),
            ("ECDHE+aRSA+AESGCM", "R-AES256 R-AES128"),
            ("HIGH:!aECDSA:!CHACHA20", "R-AES256 R-AES128"),
            ("HIGH:!AES:AES256", "E-CC R-CC"),
            ("HIGH:-AES:AES256", "E-CC R-CC E-AES256 R-AES256"),
            ("HIGH:+AES256", "E-CC R-CC E-AES128 R-AES128 E-AES256 R-AES256"),
            ("HIGH:!DHE-RSA-AES256-SHA", ALL),
        ] {
            assert_eq!(ciphers(text).map(|suites| short(&suites)), Ok(want.to_owned()), "{text}");
        }
        for text in [
            "foo",
            "AES256-SHA",
            "DHE-RSA-AES256-GCM-SHA384",
            "kRSA",
            "HIGH:!ECDHE",
            "HIGH:!ECDH",
            "DHE:SHA:DEFAULT",
            "!HIGH",
            "@STRENGTH",
            "HIGH:@SECLEVEL=5",
            "high",
            "TLS_AES_256_GCM_SHA384",
        ] {
            assert!(ciphers(text).is_err(), "{text}");
        }
    }

    #[test]
    fn versions_of_the_protocol() {
        for (text, want) in [
            ("", Some((true, true))),
            ("secure", Some((true, true))),
            ("Default", Some((true, true))),
            ("tlsv1.2", Some((true, false))),
            ("TLSv1.3", Some((false, true))),
            ("tlsv1.2,tlsv1.3", Some((true, true))),
            ("tlsv1.2:tlsv1.3", Some((true, true))),
            ("secure:!tlsv1.3", Some((true, false))),
            ("all:!tlsv1.0:!tlsv1.1", Some((true, true))),
            ("!tlsv1.0,!tlsv1.1,!tlsv1.2", Some((false, true))),
            ("all", Some((true, true))),
            ("tlsv1", Some((true, true))),
            ("!tlsv1.3", Some((true, false))),
            ("!tlsv1.2", Some((false, true))),
            ("All,!TLSv1.3", Some((true, false))),
            ("tlsv1.3,!secure,tlsv1.2", Some((true, false))),
            ("tlsv1.0,!tlsv1.0,tlsv1.2", Some((true, false))),
            ("!secure", None),
            ("!all", None),
            ("!tlsv1.2,!tlsv1.3,!tlsv1.0", None),
            ("tlsv1.0", None),
            ("all,tlsv1.0", None),
            ("tlsv1.1,tlsv1.2", None),
            ("secure,!tlsv1.2,!tlsv1.3", None),
            ("legacy", None),
            ("tlsv1.2,", None),
            ("sslv3", None),
        ] {
            assert_eq!(versions(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_which_setting_and_why() {
        for (key, value, lines) in [
            ("client_tls_protocols", "x", vec!["invalid client_tls_protocols: x"]),
            (
                "server_tls_protocols",
                "tlsv1.0",
                vec![
                    "invalid server_tls_protocols: tlsv1.0",
                    "TLS 1.0 and 1.1 are not supported by this build; tlsv1.2 and tlsv1.3 are",
                ],
            ),
            (
                "client_tls_protocols",
                "!secure",
                vec![
                    "invalid client_tls_protocols: !secure",
                    "it leaves none of the versions of this build: tlsv1.2, tlsv1.3",
                ],
            ),
            ("client_tls_dheparams", "legacy", vec!["invalid client_tls_dheparams: legacy"]),
            (
                "client_tls_ecdhcurve",
                "secp521r1",
                vec![
                    "invalid client_tls_ecdhecurve: secp521r1",
                    "the curves of this build are prime256v1, secp256r1, P-256, secp384r1, P-384, X25519",
                ],
            ),
            (
                "server_tls13_ciphers",
                "TLS_AES_128_CCM_SHA256",
                vec![
                    "TLS setup failed: failed to set the TLSv1.3 cipher suites",
                    "\"TLS_AES_128_CCM_SHA256\" is not among the TLS 1.3 suites of this build: \
                     TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256:TLS_AES_128_GCM_SHA256",
                ],
            ),
            (
                "client_tls_ciphers",
                "AES256-SHA",
                vec![
                    "invalid client_tls_ciphers: AES256-SHA",
                    "\"AES256-SHA\" is not among the suites of this build: ECDHE-ECDSA-AES256-GCM-SHA384:\
                     ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305:\
                     ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256",
                ],
            ),
        ] {
            let mut settings = Settings::default();
            settings.set(key, value).expect("valid");
            let side =
                if key.starts_with("client") { settings.client_tls_policy() } else { settings.server_tls_policy() };
            assert_eq!(side.err(), Some(lines.into_iter().map(str::to_owned).collect()), "{key}={value}");
        }
    }

    #[test]
    fn names_of_curves_and_suites() {
        let mut settings = Settings::default();
        let policy = settings.client_tls_policy().expect("valid");
        assert_eq!((policy.tls12, policy.tls13, policy.curve), (true, true, None));
        assert_eq!((policy.tls12_suites.len(), policy.tls13_suites.len()), (6, 3));
        for none in ["none", "NONE", "Auto", ""] {
            settings.set("client_tls_ecdhcurve", none).expect("valid");
            assert_eq!(settings.client_tls_policy().map(|policy| policy.curve), Ok(None), "{none}");
        }
        settings.set("client_tls_ecdhcurve", "P-384").expect("valid");
        settings.set("client_tls_dheparams", "NONE").expect("valid");
        settings.set("client_tls13_ciphers", "tls_aes_128_gcm_sha256:TLS_AES_256_GCM_SHA384").expect("valid");
        let policy = settings.client_tls_policy().expect("valid");
        assert_eq!(policy.curve, Some(Curve::P384));
        assert_eq!(policy.tls13_suites, ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384"]);
    }

    #[test]
    fn what_must_stand_together() {
        let files = [("client_tls_key_file", "k"), ("client_tls_cert_file", "c")];
        let no_files =
            "To allow TLS connections from clients, client_tls_key_file and client_tls_cert_file must be set.";
        let not_full = "auth_type=cert requires client_tls_sslmode=SSLMODE_VERIFY_FULL";
        for (more, want) in [
            (&[("client_tls_sslmode", "disable")][..], None),
            (&[("client_tls_sslmode", "require")], None),
            (&[("client_tls_sslmode", "require"), ("client_tls_key_file", "")], Some(no_files)),
            (&[("client_tls_sslmode", "allow"), ("client_tls_cert_file", "")], Some(no_files)),
            (&[("client_tls_sslmode", "verify-ca")], None),
            (&[("client_tls_sslmode", "verify-full")], Some("client_tls_sslmode requires client_tls_ca_file")),
            (&[("client_tls_sslmode", "verify-full"), ("client_tls_ca_file", "a")], None),
            (
                &[("client_tls_sslmode", "verify-full"), ("auth_type", "cert")],
                Some("auth_type=cert requires client_tls_ca_file"),
            ),
            (
                &[("client_tls_sslmode", "verify-ca"), ("auth_type", "cert"), ("client_tls_ca_file", "a")],
                Some(not_full),
            ),
            (&[("client_tls_sslmode", "disable"), ("auth_type", "cert")], Some(not_full)),
            (&[("client_tls_sslmode", "verify-full"), ("auth_type", "cert"), ("client_tls_ca_file", "a")], None),
        ] {
            let mut settings = Settings::default();
            for (key, value) in files.iter().chain(more) {
                settings.set(key, value).expect("valid");
            }
            let refused = settings.check_client_tls().err();
            assert_eq!(refused, want.map(|line| vec![line.to_owned()]), "{more:?}");
        }
    }
}
