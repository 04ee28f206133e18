//! Directories that judge passwords: binds, searches, and what the machine's LDAP configuration says about certificates.
//!
//! Every question is a task of its own on the supervisor's runtime; no more than a few are asked at once. How the
//! directory is to be asked is decided by `config::ldap`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, LdapResult, Scope as LdapScope, SearchEntry};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio::sync::Semaphore;

use crate::config::ldap::{How, Options, Scope, Search, Security, Text, Trust};
use crate::shared::Shared;
use crate::supervisor::Supervisor;
use crate::supervisor::dns::Asker;
use crate::supervisor::outside::{Question, answer};
use crate::sys::error_text;

/// Longest wait for one answer of a directory.
const TIMEOUT: Duration = Duration::from_secs(3);

/// Questions that are asked at the same time; the others wait.
const AT_ONCE: usize = 20;

/// The machine's LDAP configuration, where distributions put it.
const CONFIGURATIONS: [&str; 2] = ["/etc/ldap/ldap.conf", "/etc/openldap/ldap.conf"];

/// The system's certificates, for a machine without an LDAP configuration.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";

/// Attributes of no kind: the name of an entry is all that is wanted.
const NO_ATTRIBUTES: [&str; 1] = ["1.1"];

/// The turns of those who ask.
pub(super) struct Turns(Arc<Semaphore>);

impl Default for Turns {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(AT_ONCE)))
    }
}

impl Supervisor {
    /// Asks a directory, and answers with a message to the client's worker.
    pub(super) fn ask_directory(&mut self, question: Question, options: Option<Text>) {
        let (shared, asker) = (self.shared.clone(), self.resolver.asker());
        let turns = self.directory_turns.0.clone();
        tokio::spawn(async move {
            let judged = match turns.acquire().await {
                Ok(_turn) => {
                    let judged =
                        shared.guard.watch("a question to LDAP", judge(&shared, &question, options.as_ref(), asker));
                    judged.await.unwrap_or_else(|| Err("LDAP: no answer because of a bug".to_owned()))
                }
                Err(closed) => Err(closed.to_string()),
            };
            if let Err(why) = &judged {
                tracing::warn!("{why}");
            }
            answer(&shared, question.client, judged.is_ok());
        });
    }
}

/// Is it the user's password? If not, why, for the log.
async fn judge(
    shared: &Arc<Shared>,
    question: &Question,
    options: Option<&Text>,
    asker: Option<Asker>,
) -> Result<(), String> {
    let options = Options::parse(&options.ok_or("auth_ldap_options is null")?.0)?;
    let servers = servers(&options, asker).await?;
    let Ok(password) = std::str::from_utf8(&question.password) else {
        return Err(format!("password of \"{}\" is not valid UTF-8", question.user));
    };
    let dn = match &options.how {
        How::Between { prefix, suffix } => format!("{prefix}{}{suffix}", question.user),
        How::Search(search) => find(shared, &options, &servers, search, &question.user).await?,
    };
    let failed = |server: &str, why: &str| format!("LDAP login failed for user {dn} on server {server}: {why}");
    let (mut ldap, server) = connect(shared, &options, &servers).await.map_err(|no| no.line(failed))?;
    let bound = bind(&mut ldap, &dn, password).await;
    let _ = ldap.unbind().await;
    bound.map_err(|why| failed(&server, &why))
}

/// The servers to try, in this order.
async fn servers(options: &Options, asker: Option<Asker>) -> Result<Vec<(String, u16)>, String> {
    if !options.servers.is_empty() {
        return Ok(options.servers.iter().map(|server| (server.clone(), options.port)).collect());
    }
    let record = options.service_record().ok_or("no LDAP server is named, and ldapbasedn has no dc= to find one by")?;
    let found = match asker {
        Some(asker) => asker.services(&record).await,
        None => Vec::new(),
    };
    if found.is_empty() { Err(format!("no LDAP server is found in DNS: {record}")) } else { Ok(found) }
}

/// The directory's name for a user.
async fn find(
    shared: &Arc<Shared>,
    options: &Options,
    servers: &[(String, u16)],
    search: &Search,
    user: &str,
) -> Result<String, String> {
    let filter = search.filter(user)?;
    let failed = |server: &str, why: &str| {
        format!("could not search LDAP for filter \"{filter}\" on server \"{server}\": {why}")
    };
    let (mut ldap, server) = connect(shared, options, servers).await.map_err(|no| no.line(failed))?;
    bind(&mut ldap, &search.bind_dn, &search.bind_password).await.map_err(|why| {
        let dn = &search.bind_dn;
        format!("could not perform initial LDAP bind for ldapbinddn \"{dn}\" on server \"{server}\": {why}")
    })?;
    let scope = match search.scope {
        Scope::Base => LdapScope::Base,
        Scope::OneLevel => LdapScope::OneLevel,
        Scope::Subtree => LdapScope::Subtree,
    };
    let found = ldap.with_timeout(TIMEOUT).search(&search.base, scope, &filter, NO_ATTRIBUTES).await;
    let _ = ldap.unbind().await;
    let (entries, _) = found
        .map_err(|error| reason(&error))
        .and_then(|found| found.success().map_err(|error| reason(&error)))
        .map_err(|why| failed(&server, &why))?;
    // what is no entry refers to another directory
    let mut entries = entries.into_iter().filter(|entry| !entry.is_ref()).map(SearchEntry::construct);
    match (entries.next(), entries.next()) {
        (None, _) => Err(format!("LDAP user \"{user}\" does not exist")),
        (Some(entry), None) => Ok(entry.dn),
        (Some(_), Some(_)) => Err(format!("LDAP user \"{user}\" is not unique")),
    }
}

async fn bind(ldap: &mut Ldap, dn: &str, password: &str) -> Result<(), String> {
    let bound = ldap.with_timeout(TIMEOUT).simple_bind(dn, password).await;
    bound.and_then(LdapResult::success).map(|_| ()).map_err(|error| reason(&error))
}

/// Why there is no connection.
enum Unconnected {
    /// To this server, because of this.
    Server(String, String),
    /// In a line of its own.
    Line(String),
}

impl Unconnected {
    fn line(self, of: impl FnOnce(&str, &str) -> String) -> String {
        match self {
            Self::Server(server, why) => of(&server, &why),
            Self::Line(line) => line,
        }
    }
}

/// A connection to the first server that can be reached.
async fn connect(
    shared: &Arc<Shared>,
    options: &Options,
    servers: &[(String, u16)],
) -> Result<(Ldap, String), Unconnected> {
    let config = match options.security {
        Security::None => None,
        Security::Ldaps | Security::StartTls => Some(tls_config().map_err(Unconnected::Line)?),
    };
    let mut last = Unconnected::Line("no LDAP server is named".to_owned());
    for (server, port) in servers {
        match open(shared, options, server, *port, config.clone()).await {
            Ok(ldap) => return Ok((ldap, server.clone())),
            Err(unconnected) => last = unconnected,
        }
    }
    Err(last)
}

async fn open(
    shared: &Arc<Shared>,
    options: &Options,
    server: &str,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Ldap, Unconnected> {
    let start_tls = options.security == Security::StartTls;
    let mut settings = LdapConnSettings::new().set_conn_timeout(TIMEOUT).set_starttls(start_tls);
    if let Some(tls) = tls {
        settings = settings.set_config(tls);
    }
    let scheme = if options.security == Security::Ldaps { "ldaps" } else { "ldap" };
    let host = if server.contains(':') && !server.starts_with('[') { format!("[{server}]") } else { server.to_owned() };
    match LdapConnAsync::with_settings(settings, &format!("{scheme}://{host}:{port}")).await {
        Ok((connection, ldap)) => {
            let shared = shared.clone();
            tokio::spawn(async move {
                if let Some(Err(error)) = shared.guard.watch("an LDAP connection", connection.drive()).await {
                    tracing::debug!("LDAP connection: {error}");
                }
            });
            Ok(ldap)
        }
        Err(error) if start_tls && !unreachable(&error) => {
            let why = reason(&error);
            let line = format!("could not start LDAP TLS session: {why}, server: {server}, port: {port}");
            Err(Unconnected::Line(line))
        }
        Err(error) => {
            let why = format!("Can't contact LDAP server, port {port}: {}", reason(&error));
            Err(Unconnected::Server(server.to_owned(), why))
        }
    }
}

fn unreachable(error: &LdapError) -> bool {
    use std::io::ErrorKind;
    match error {
        LdapError::Io { source } => {
            !matches!(source.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::InvalidInput)
        }
        LdapError::Timeout { .. } => true,
        _ => false,
    }
}

/// What went wrong, in few words.
fn reason(error: &LdapError) -> String {
    match error {
        LdapError::LdapResult { result } => {
            let words = match result.rc {
                4 => "Size limit exceeded",
                13 => "Confidentiality required",
                32 => "No such object",
                34 => "Invalid DN syntax",
                48 => "Inappropriate authentication",
                49 => "Invalid credentials",
                50 => "Insufficient access",
                51 => "Server is busy",
                53 => "Server is unwilling to perform",
                code => return format!("result {code} {}", result.text).trim_end().to_owned(),
            };
            if result.text.is_empty() { words.to_owned() } else { format!("{words} ({})", result.text) }
        }
        LdapError::Io { source } => error_text(source),
        LdapError::Timeout { .. } => "timed out".to_owned(),
        LdapError::FilterParsing => "Bad search filter".to_owned(),
        other => other.to_string(),
    }
}

/// What the machine trusts, read anew for each login as libldap does at each start of a program.
fn trust() -> Trust {
    let mut trust = Trust::default();
    let own = std::env::var("LDAPCONF").ok();
    for path in CONFIGURATIONS.into_iter().chain(own.as_deref()) {
        if let Ok(text) = std::fs::read_to_string(path) {
            trust.read(&text);
        }
    }
    for name in ["TLS_CACERT", "TLS_CACERTDIR", "TLS_REQCERT"] {
        if let Ok(value) = std::env::var(format!("LDAP{name}")) {
            trust.set(name, &value);
        }
    }
    trust
}

fn tls_config() -> Result<Arc<ClientConfig>, String> {
    let trust = trust();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let config = if trust.verify {
        builder.with_root_certificates(roots(&trust)?).with_no_client_auth()
    } else {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))).with_no_client_auth()
    };
    Ok(Arc::new(config))
}

fn roots(trust: &Trust) -> Result<RootCertStore, String> {
    let mut files: Vec<PathBuf> = trust.ca_file.iter().map(PathBuf::from).collect();
    if let Some(dir) = &trust.ca_dir {
        let listed = std::fs::read_dir(dir).map_err(|error| format!("{dir}: {}", error_text(&error)))?;
        files.extend(listed.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| path.is_file()));
    }
    if files.is_empty() {
        files.push(SYSTEM_BUNDLE.into());
    }
    let mut roots = RootCertStore::empty();
    for path in files {
        roots.add_parsable_certificates(certificates(&path)?);
    }
    Ok(roots)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let pem = std::fs::read(path).map_err(|error| format!("{}: {}", path.display(), error_text(&error)))?;
    Ok(CertificateDer::pem_slice_iter(&pem).filter_map(Result::ok).collect())
}

/// `TLS_REQCERT never`: whoever answers is believed, as the machine's owner wants it.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let schemes = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
