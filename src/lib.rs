//! pgusher: a PostgreSQL connection pooler on every core, a drop-in for PgBouncer.
//!
//! The modules, in the order of their dependencies: words, the pure core, the shell. The core has no socket, clock, lock,
//! thread or randomness; the shell has no policy. See `ARCHITECTURE.md`.

// words
pub mod disconnect;
pub mod id;
pub mod time;

// the pure core
pub mod admin;
pub mod auth;
pub mod check;
pub mod config;
pub mod metrics;
pub mod pool;
pub mod relay;
pub mod stats;
pub mod wire;

// the shell
pub mod boot;
pub mod broker;
pub mod cli;
pub mod clock;
pub mod guard;
pub mod helpers;
pub mod http;
pub mod inspect;
pub mod log;
pub mod net;
pub mod primitives;
pub mod shared;
pub mod supervisor;
pub mod sys;
pub mod takeover;
pub mod worker;
