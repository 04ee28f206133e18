//! Bodies of the fuzz targets: what must hold whatever the bytes are.
//!
//! Used from two places: `fuzz_targets/any.rs` under libFuzzer, and `tests/fuzz.rs` with the compiler that builds
//! everything else, which replays and mutates the corpus. A body panics where something does not hold.

mod auth;
mod bytes;
mod config;
mod console;
mod relay;
mod tls;
mod wire;

/// A target.
#[derive(Clone, Copy)]
pub struct Target {
    /// As in `FUZZ_TARGET`, and the name of its directory in `fuzz/corpus`.
    pub name: &'static str,
    pub body: fn(&[u8]),
}

const fn target(name: &'static str, body: fn(&[u8])) -> Target {
    Target { name, body }
}

/// All targets.
pub const TARGETS: [Target; 18] = [
    target("auth_query", auth::auth_query),
    target("cancel_key", wire::cancel_key),
    target("certificate", auth::certificate),
    target("connstr", config::connstr),
    target("console", console::console),
    target("console_extended", console::extended),
    target("handover", console::handover),
    target("hba", config::hba),
    target("ident", config::ident),
    target("ini", config::ini),
    target("login", auth::login),
    target("relay", relay::relay),
    target("scan", wire::scan),
    target("scram_client", auth::scram_client),
    target("scram_server", auth::scram_server),
    target("startup", wire::startup),
    target("tls", tls::tls),
    target("userlist", config::userlist),
];

/// The target with this name.
#[must_use]
pub fn named(name: &str) -> Option<Target> {
    TARGETS.into_iter().find(|target| target.name == name)
}
