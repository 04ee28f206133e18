//! The two protocol sides and what passes between them. No sockets, no pools, no clock.

pub mod cancel;
pub mod downstream;
pub mod handover;
pub mod link;
pub mod out;
pub mod outstanding;
pub mod prepared;
mod queue;
pub mod side;
pub mod upstream;
pub mod vars;
