//! Bytes to PostgreSQL protocol 3 and back. No sockets: callers bring the bytes.

pub mod encode;
pub mod fields;
pub mod scan;
pub mod startup;
pub mod tag;
