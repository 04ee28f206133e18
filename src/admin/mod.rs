//! The admin console as a pure translator: query bytes to [`command::Command`], a picture of the daemon to wire bytes.
//!
//! Nothing here runs a command. The shell parses a query with the rights of its connection, does what the command says,
//! and answers with [`show`] or [`reply`]; [`extended`] gives the same answers to clients of the extended protocol. The
//! shapes are those of PgBouncer 1.25.2: exporters choose their way of reading by the number of columns, so one column more
//! breaks them.

pub mod advice;
pub mod binary;
pub mod command;
pub mod extended;
pub mod grammar;
pub mod handover;
pub mod insight;
pub mod probe;
pub mod refusal;
pub mod reply;
pub mod show;
pub mod snapshot;
