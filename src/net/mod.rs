//! Sockets: what we listen on, the one type for what is connected, and TLS on it.

pub mod listener;
pub mod stream;
pub mod tls;
