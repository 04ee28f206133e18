//! The one lock: pool decisions and parked server connections.
//!
//! Under it run only pure calls and moves. Whoever takes the lock carries the actions that the pools ordered out of it and
//! obeys them afterwards.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::disconnect::Disconnect;
use crate::id::{ClientRef, DbId, PoolId, ServerId};
use crate::pool::{Action, Attached, Pools};
use crate::primitives::{Os, Primitives};
use crate::shared::{LoginReply, PoolShared};
use crate::time::Micros;
use crate::worker::replication::Dedicated;
use crate::worker::server::Server;

pub type ServerPools = Pools<Box<Server>, Arc<LoginReply>>;
pub type ServerAction = Action<Box<Server>>;

/// What the lock guards.
pub struct Broker {
    pub pools: ServerPools,
    shared: HashMap<PoolId, Arc<PoolShared>>,
    workers: usize,
    /// What the servers of replication clients are to be told; their workers enter it before they ask for one.
    pub replicating: BTreeMap<ClientRef, Dedicated>,
}

impl Broker {
    #[must_use]
    pub fn new(pools: ServerPools, workers: usize) -> Self {
        Self { pools, shared: HashMap::new(), workers, replicating: BTreeMap::new() }
    }

    /// The shared side of a pool, made when it is first asked for.
    pub fn shared(&mut self, pool: PoolId) -> Option<Arc<PoolShared>> {
        if let Some(shared) = self.shared.get(&pool) {
            return Some(shared.clone());
        }
        let info = self.pools.describe(pool)?;
        let made = Arc::new(PoolShared::new(pool, &info, self.workers));
        self.shared.insert(pool, made.clone());
        Some(made)
    }

    /// Counts a client that has proved who it is, and finds its pool.
    ///
    /// # Errors
    /// Those of [`Pools::attach`].
    pub fn attach(
        &mut self,
        db: DbId,
        login_user: &str,
        limits_exempt: bool,
        now: Micros,
    ) -> Result<(Attached, Arc<PoolShared>), Disconnect> {
        let attached = self.pools.attach(db, login_user, limits_exempt, now)?;
        let Some(shared) = self.shared(attached.pool) else {
            self.pools.detach(attached.pool, attached.user, false, now);
            return Err(Disconnect::fatal("database removed"));
        };
        Ok((attached, shared))
    }

    /// Remembers what the server of a client is to be told, if it replicates; whether it does.
    pub fn replicates(&mut self, client: ClientRef, dedicated: Option<Dedicated>) -> bool {
        let replicates = dedicated.is_some();
        if let Some(dedicated) = dedicated {
            self.replicating.insert(client, dedicated);
        }
        replicates
    }

    /// Makes a connection whose startup packet is due a replication client's, if it is such a client's turn.
    pub fn tie(&mut self, server: ServerId) -> Option<Dedicated> {
        let client = self.pools.tie(server)?;
        self.replicating.get(&client).cloned()
    }

    /// Forgets the shared side of pools that are gone.
    pub fn sweep(&mut self) {
        let pools = &self.pools;
        self.shared.retain(|&pool, _| pools.describe(pool).is_some());
    }

    /// The shared sides of all pools that anybody has used.
    pub fn all_shared(&self) -> impl Iterator<Item = &Arc<PoolShared>> {
        self.shared.values()
    }
}

/// Something that orders what is to be done outside of its lock.
pub trait Decides: Send + 'static {
    type Order;

    /// The oldest order that has not been carried out of the lock.
    fn next_order(&mut self) -> Option<Self::Order>;
}

impl Decides for Broker {
    type Order = ServerAction;

    #[inline]
    fn next_order(&mut self) -> Option<ServerAction> {
        self.pools.next_action()
    }
}

/// Runs `call` under the lock and leaves in `actions` what the pools ordered.
#[inline]
pub fn locked<T>(broker: &Mutex<Broker>, actions: &mut Vec<ServerAction>, call: impl FnOnce(&mut Broker) -> T) -> T {
    decide::<Os, _, _>(broker, actions, call)
}

/// [`locked`], whatever the lock is made of.
#[inline]
pub fn decide<P: Primitives, D: Decides, T>(
    lock: &P::Mutex<D>,
    orders: &mut Vec<D::Order>,
    call: impl FnOnce(&mut D) -> T,
) -> T {
    let mut decider = P::lock(lock);
    let done = call(&mut decider);
    while let Some(order) = decider.next_order() {
        orders.push(order);
    }
    done
}
