//! TLS for both sides: what the settings come to as contexts, and one connection's records behind [`session::Session`].
//!
//! Contexts are built as a whole and replaced as a whole; connections keep those they began with. Sessions are never
//! resumed: a resumed one would not show its certificate anew.

#[cfg(test)]
mod flood_tests;
mod pem;
pub mod session;
mod text;
mod trust;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Once};

use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{DnsName, IpAddr, ServerName};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig, SupportedCipherSuite, SupportedProtocolVersion};

use crate::auth::certificate;
use crate::config::tls::{Curve, Policy, Refused};
use crate::config::{Settings, SslMode};
use crate::net::tls::session::Session;
use crate::net::tls::trust::Anchors;
use crate::net::tls::verify::{ClientVerifier, ServerVerifier};

/// The protocol that clients with ALPN have to offer.
const ALPN: &[u8] = b"postgresql";

/// What is said of a key that rustls cannot use, such as one for RSA-PSS alone.
const KEYS: &str = "it is none of RSA (2048 to 8192 bits), ECDSA (P-256, P-384, P-521) and Ed25519";

/// TLS 1.2 suites by OpenSSL's names.
const TLS12_SUITES: &[(&str, SupportedCipherSuite)] = {
    use aws_lc_rs::cipher_suite as suite;
    &[
        ("ECDHE-ECDSA-AES256-GCM-SHA384", suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
        ("ECDHE-RSA-AES256-GCM-SHA384", suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
        ("ECDHE-ECDSA-CHACHA20-POLY1305", suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
        ("ECDHE-RSA-CHACHA20-POLY1305", suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
        ("ECDHE-ECDSA-AES128-GCM-SHA256", suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
        ("ECDHE-RSA-AES128-GCM-SHA256", suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ]
};

/// TLS 1.3 suites by OpenSSL's names.
const TLS13_SUITES: &[(&str, SupportedCipherSuite)] = {
    use aws_lc_rs::cipher_suite as suite;
    &[
        ("TLS_AES_256_GCM_SHA384", suite::TLS13_AES_256_GCM_SHA384),
        ("TLS_CHACHA20_POLY1305_SHA256", suite::TLS13_CHACHA20_POLY1305_SHA256),
        ("TLS_AES_128_GCM_SHA256", suite::TLS13_AES_128_GCM_SHA256),
    ]
};

/// The library has what its random numbers come from.
static PREPARED: AtomicBool = AtomicBool::new(false);

/// Will a handshake not have to wait for [`Contexts::prepare`], or for what that does?
#[must_use]
pub fn is_prepared() -> bool {
    PREPARED.load(Ordering::Relaxed)
}

/// What TLS is in force: for the connections of clients and to servers.
#[derive(Debug, Default)]
pub struct Contexts {
    /// None: clients are not offered TLS.
    pub clients: Option<ForClients>,
    /// None: servers are not asked for TLS.
    pub servers: Option<ForServers>,
    /// The settings of which another text makes server connections stale.
    server_texts: [String; 6],
}

/// The context that clients are accepted with.
pub struct ForClients {
    config: Arc<ServerConfig>,
    pub mode: SslMode,
    /// Channel binding data of our certificate, if there can be any.
    end_point: Option<Arc<[u8]>>,
}

/// The context that servers are connected with.
pub struct ForServers {
    config: Arc<ClientConfig>,
    pub mode: SslMode,
}

impl std::fmt::Debug for ForClients {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ForClients({})", self.mode)
    }
}

impl std::fmt::Debug for ForServers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ForServers({})", self.mode)
    }
}

impl Contexts {
    /// Builds the contexts and reads all files that the settings name.
    ///
    /// # Errors
    /// The lines to log.
    pub fn build(settings: &Settings) -> Result<Self, Refused> {
        settings.check_client_tls()?;
        let clients = match settings.client_tls_sslmode {
            SslMode::Disable => None,
            mode => Some(ForClients::build(settings, mode)?),
        };
        let servers = match settings.server_tls_sslmode {
            SslMode::Disable => None,
            mode => Some(ForServers::build(settings, mode)?),
        };
        Ok(Self { clients, servers, server_texts: settings.server_tls_texts() })
    }

    /// Has the library gather what its random numbers come from, if TLS is certain to be used: that takes it some 50 ms once,
    /// which the first handshake would pay, and on a busy machine everybody who comes meanwhile.
    pub fn prepare(&self) {
        static BEGUN: Once = Once::new();
        let optional = |servers: &ForServers| matches!(servers.mode, SslMode::Allow | SslMode::Prefer);
        if self.clients.is_none() && self.servers.as_ref().is_none_or(optional) {
            return;
        }
        BEGUN.call_once(|| {
            let gather = || {
                let _ = aws_lc_rs::default_provider().secure_random.fill(&mut [0]);
                PREPARED.store(true, Ordering::Relaxed);
            };
            // without the thread the first handshake does it
            let _ = std::thread::Builder::new().name("randomness".to_owned()).spawn(gather);
        });
    }

    /// Are servers that were connected with `old` wrong for these contexts?
    #[must_use]
    pub fn outdates_servers_of(&self, old: &Self) -> bool {
        self.server_texts != old.server_texts
    }
}

impl ForClients {
    fn build(settings: &Settings, mode: SslMode) -> Result<Self, Refused> {
        let policy = settings.client_tls_policy()?;
        let provider = Arc::new(provider(&policy));
        let anchors = match settings.client_tls_ca_file.as_str() {
            "" => Anchors::system(),
            file => Anchors::read(file).map_err(setup_failed)?,
        };
        let must = matches!(mode, SslMode::VerifyCa | SslMode::VerifyFull);
        let (cert, key) = (&settings.client_tls_cert_file, &settings.client_tls_key_file);
        let key = certified_key(&provider, cert, key, &anchors)?;
        let verifier = ClientVerifier::new(anchors, &provider, must);
        let end_point = key.cert.first().and_then(|leaf| certificate::end_point(leaf)).map(Arc::from);
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions(&policy))
            .map_err(|error| setup_failed(error.to_string()))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.ignore_client_order = true;
        config.alpn_protocols = vec![ALPN.to_vec()];
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), mode, end_point })
    }

    /// Must clients use TLS?
    #[must_use]
    pub const fn is_required(&self) -> bool {
        matches!(self.mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }

    /// A session for a client. `received` is what it has said already, if it began without asking.
    ///
    /// # Errors
    /// The library refuses, in its words.
    pub fn accept(&self, received: Vec<u8>) -> Result<Box<Session>, String> {
        Session::accept(self.config.clone(), self.end_point.clone(), received).map_err(|error| text::of(&error))
    }
}

impl ForServers {
    fn build(settings: &Settings, mode: SslMode) -> Result<Self, Refused> {
        let policy = settings.server_tls_policy()?;
        let provider = Arc::new(provider(&policy));
        let anchors = match settings.server_tls_ca_file.as_str() {
            "" => Anchors::system(),
            file => Anchors::read(file).map_err(setup_failed)?,
        };
        let (cert, key) = (&settings.server_tls_cert_file, &settings.server_tls_key_file);
        let key = match (cert.as_str(), key.as_str()) {
            ("", "") => None,
            _ => Some(certified_key(&provider, cert, key, &anchors)?),
        };
        let verifier = ServerVerifier::new(anchors, &provider, mode);
        let builder = ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions(&policy))
            .map_err(|error| setup_failed(error.to_string()))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match key {
            None => builder.with_no_client_auth(),
            Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
        };
        config.resumption = rustls::client::Resumption::disabled();
        config.enable_sni = mode == SslMode::VerifyFull;
        Ok(Self { config: Arc::new(config), mode })
    }

    /// Must servers use TLS?
    #[must_use]
    pub const fn is_required(&self) -> bool {
        matches!(self.mode, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }

    /// A session with the server at `host`, a name or an address.
    ///
    /// # Errors
    /// The library refuses, in its words.
    pub fn connect(&self, host: &str) -> Result<Box<Session>, String> {
        let name = match (host.parse::<std::net::IpAddr>(), self.mode) {
            (Ok(ip), _) => ServerName::IpAddress(ip.into()),
            (Err(_), SslMode::VerifyFull) => {
                let name = DnsName::try_from(host.to_owned());
                ServerName::DnsName(name.map_err(|_| format!("\"{host}\" cannot be a name in a certificate"))?)
            }
            // the name is neither sent nor checked
            (Err(_), _) => ServerName::IpAddress(IpAddr::from(std::net::IpAddr::from([0, 0, 0, 0]))),
        };
        Session::connect(self.config.clone(), name).map_err(|error| text::of(&error))
    }
}

fn setup_failed(why: String) -> Refused {
    vec![format!("TLS setup failed: {why}")]
}

fn versions(policy: &Policy) -> Vec<&'static SupportedProtocolVersion> {
    let mut versions = Vec::new();
    if policy.tls13 {
        versions.push(&TLS13);
    }
    if policy.tls12 {
        versions.push(&TLS12);
    }
    versions
}

fn provider(policy: &Policy) -> CryptoProvider {
    let find = |known: &[(&str, SupportedCipherSuite)], name: &str| {
        known.iter().find(|(known, _)| *known == name).map(|(_, suite)| *suite)
    };
    let mut cipher_suites = Vec::new();
    if policy.tls13 {
        cipher_suites.extend(policy.tls13_suites.iter().filter_map(|name| find(TLS13_SUITES, name)));
    }
    if policy.tls12 {
        cipher_suites.extend(policy.tls12_suites.iter().filter_map(|name| find(TLS12_SUITES, name)));
    }
    let kx_groups = match policy.curve {
        None => aws_lc_rs::DEFAULT_KX_GROUPS.to_vec(),
        Some(Curve::P256) => vec![aws_lc_rs::kx_group::SECP256R1],
        Some(Curve::P384) => vec![aws_lc_rs::kx_group::SECP384R1],
        Some(Curve::X25519) => vec![aws_lc_rs::kx_group::X25519],
    };
    CryptoProvider { cipher_suites, kx_groups, ..aws_lc_rs::default_provider() }
}

/// A certificate with its chain and the private key that belongs to it. A file that holds the certificate alone is made up for
/// by those that are trusted, as OpenSSL does it.
fn certified_key(
    provider: &CryptoProvider,
    cert_file: &str,
    key_file: &str,
    anchors: &Anchors,
) -> Result<CertifiedKey, Refused> {
    let unusable = |why: &str| setup_failed(format!("failed to load certificate file \"{cert_file}\": {why}"));
    let mut chain = pem::read_certificates(cert_file).map_err(|why| unusable(&why))?;
    if chain.iter().any(|der| certificate::public_key(der).is_none()) {
        return Err(unusable("wrong tag"));
    }
    if let [leaf] = &chain[..] {
        let issuers = anchors.issuers_of(leaf, provider.signature_verification_algorithms);
        chain.extend(issuers);
    }
    let failed = |why: String| setup_failed(format!("failed to load private key file \"{key_file}\": {why}"));
    let key = pem::read_key(key_file).map_err(failed)?;
    let key = provider.key_provider.load_private_key(key).map_err(|_| failed(KEYS.to_owned()))?;
    let ours = key.public_key().map(|key| key.as_ref().to_vec());
    let certified = chain.first().and_then(|leaf| certificate::public_key(leaf));
    if ours.is_some() && ours != certified {
        return Err(setup_failed("private/public key mismatch".to_owned()));
    }
    Ok(CertifiedKey::new(chain, key))
}

/// The name of a suite as OpenSSL has it.
pub(crate) fn suite_name(suite: SupportedCipherSuite) -> &'static str {
    let known = TLS13_SUITES.iter().chain(TLS12_SUITES);
    known.into_iter().find(|(_, known)| known.suite() == suite.suite()).map_or("unknown", |(name, _)| name)
}
