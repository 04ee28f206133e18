//! Sockets: what we listen on, and the one type for what is connected.

pub mod listener;
pub mod stream;
