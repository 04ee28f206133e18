//! Whether a load balancer should send clients here.

use crate::broker::Broker;
use crate::pool::{PauseMode, ShutdownMode};

/// Clients are accepted and served.
///
/// # Errors
/// Why they are not.
pub fn readiness(broker: &Broker) -> Result<(), &'static str> {
    match (broker.pools.shutdown_mode(), broker.pools.pause_mode()) {
        (ShutdownMode::WaitForServers | ShutdownMode::WaitForClients, _) => Err("shutting down"),
        (ShutdownMode::None, PauseMode::Paused) => Err("paused"),
        (ShutdownMode::None, PauseMode::Suspended) => Err("suspended"),
        (ShutdownMode::None, PauseMode::None) => Ok(()),
    }
}
