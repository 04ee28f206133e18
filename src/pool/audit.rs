//! Verifies every count and list against the objects themselves, for tests.

use std::collections::BTreeMap;

use super::api::Collected;
use super::pool::Pool;
use super::slot::ServerState;
use super::{Pools, WaitCause, WaitFor};
use crate::id::PoolId;
use crate::time::Micros;

/// What the objects say a pool's numbers should be.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sums {
    by_state: [u32; ServerState::COUNT],
    connections: u32,
    close_needed: u32,
    waiting: u32,
    waiting_ready: u32,
    waiting_login: u32,
    replicating: u32,
    cancels_waiting: u32,
    cancels_sent: u32,
}

impl<S, R: Clone> Pools<S, R> {
    /// Panics, with a description, if any count or list is wrong. It looks at everything: for tests.
    pub fn check(&self) {
        let mut sums: BTreeMap<PoolId, Sums> = BTreeMap::new();
        self.check_servers(&mut sums);
        self.check_waiters(&mut sums);
        self.check_cancels(&mut sums);
        for (id, pool) in self.pools.iter() {
            assert_eq!(sums.remove(&id).unwrap_or_default(), self.counted(pool), "counts of {id:?}");
            assert!(pool.count(ServerState::New) <= 1, "{id:?} opens two connections");
            assert!(!pool.dying || (!pool.has_waiters() && pool.is_referred_to()), "{id:?} is dying for nobody");
            assert!(pool.reply.is_none() || pool.waiting_login.is_empty(), "{id:?} keeps a reply to itself");
            assert!(pool.idle == 0 || pool.waiting.is_empty() || self.is_held(id), "{id:?}: idle and waiting");
            assert!(pool.waiting_ready <= pool.ready, "{id:?}: more clients wait than there are");
        }
        assert!(sums.is_empty(), "objects of pools that are gone: {sums:?}");
        self.check_holders();
        self.check_causes();
    }

    /// Causes that were counted without a look at the clients are those of the clients.
    fn check_causes(&self) {
        let rows = self.wait_rows(Micros::ZERO);
        let mut total = 0;
        for waits in self.pool_waits(Micros::ZERO) {
            let pool = &self.pools[waits.pool];
            let (database, user) = (&self.entries[pool.db].database.name, &self.users[pool.user.0 as usize].name);
            for cause in WaitCause::ALL {
                let here = rows.iter().filter(|row| (&row.database, &row.user, row.cause) == (database, user, cause));
                assert_eq!(waits.causes[cause as usize] as usize, here.count(), "{cause:?} in {:?}", waits.pool);
            }
            total += waits.causes.iter().sum::<u32>() as usize;
        }
        assert_eq!(total, rows.len(), "every client in line has a cause");
    }

    fn counted(&self, pool: &Pool<R>) -> Sums {
        let mut by_state = [0; ServerState::COUNT];
        for state in ServerState::SHOWN {
            by_state[state as usize] = pool.count(state);
            let listed = if state == ServerState::Idle {
                pool.idle_lists().iter().map(|list| list.iter(&self.servers).count()).sum()
            } else {
                pool.list(state).iter(&self.servers).count()
            };
            assert_eq!(listed, pool.count(state) as usize, "length of the list {state:?}");
        }
        Sums {
            by_state,
            connections: pool.connections,
            close_needed: pool.close_needed,
            waiting: pool.waiting.len(),
            waiting_ready: pool.waiting_ready,
            waiting_login: pool.waiting_login.len(),
            replicating: pool.replicating.len(),
            cancels_waiting: pool.cancels_waiting.len(),
            cancels_sent: pool.cancels_sent,
        }
    }

    fn check_servers(&self, sums: &mut BTreeMap<PoolId, Sums>) {
        for (id, server) in self.servers.iter() {
            let sum = sums.entry(server.pool).or_default();
            sum.by_state[server.state as usize] += 1;
            sum.connections += 1;
            sum.close_needed += u32::from(server.close_needed);
            assert_eq!(server.conn.is_some(), server.state.is_parked(), "{id:?} in {:?}", server.state);
            assert!(server.doomed.is_none() || !server.state.is_parked(), "{id:?} is parked and doomed");
            if let Some(ticket) = server.tied {
                let waiter = self.waiters.get(ticket);
                assert!(waiter.is_some_and(|waiter| waiter.tied == Some(id)), "client tied to {id:?}");
                assert!(server.replication && server.state == ServerState::New, "{id:?} is tied");
            }
            if let Some(ticket) = server.slot {
                let slot = self.waiters.get(ticket).map(|waiter| &waiter.slot);
                assert!(matches!(slot, Some(Collected::Granted(grant)) if grant.server == id), "slot of {id:?}");
            }
            assert_eq!(server.carries.is_some(), server.state == ServerState::ActiveCancel, "carrier {id:?}");
            let aims = |sent: bool| {
                let aimed = self.cancels.iter().filter(|(_, cancel)| cancel.target == Some(id));
                aimed.filter(|(_, cancel)| cancel.carrier.is_some() == sent).count()
            };
            if !self.cancels.is_empty() || server.cancels_in_flight + server.cancels_unsent > 0 {
                assert_eq!(server.cancels_in_flight as usize, aims(true), "cancels on their way to {id:?}");
                assert_eq!(server.cancels_unsent as usize, aims(false), "cancels waiting for {id:?}");
            }
            let rests = server.state == ServerState::BeingCanceled;
            assert!(!rests || server.cancels_in_flight > 0, "{id:?} rests for nothing");
        }
    }

    fn check_waiters(&self, sums: &mut BTreeMap<PoolId, Sums>) {
        for (id, waiter) in self.waiters.iter() {
            match &waiter.slot {
                Collected::Waiting => {
                    let sum = sums.entry(waiter.want.pool).or_default();
                    let (replicates, logs_in) = (waiter.want.replication, waiter.want.kind == WaitFor::LoginReply);
                    sum.waiting += u32::from(!replicates && !logs_in);
                    sum.waiting_ready += u32::from(waiter.want.kind == WaitFor::Query);
                    sum.waiting_login += u32::from(!replicates && logs_in);
                    sum.replicating += u32::from(replicates);
                    let tied = waiter.tied.map(|server| self.servers.get(server).and_then(|server| server.tied));
                    assert!(tied.is_none_or(|back| back == Some(id)), "server tied to {id:?}");
                }
                Collected::Granted(grant) => {
                    let server = self.servers.get(grant.server).expect("a granted server exists");
                    assert_eq!((server.slot, server.state), (Some(id), ServerState::Active), "slot of {id:?}");
                }
                Collected::LoginReady(_) | Collected::Refused(_) => {}
            }
        }
    }

    fn check_cancels(&self, sums: &mut BTreeMap<PoolId, Sums>) {
        for (id, cancel) in self.cancels.iter() {
            let sum = sums.entry(cancel.pool).or_default();
            sum.cancels_sent += u32::from(cancel.carrier.is_some());
            sum.cancels_waiting += u32::from(cancel.carrier.is_none());
            if let Some(carrier) = cancel.carrier {
                assert_eq!(self.servers.get(carrier).and_then(|server| server.carries), Some(id), "carrier of {id:?}");
            }
            assert_eq!(self.cancel_ids.get(&cancel.client) == Some(&id), !cancel.abandoned, "name of {id:?}");
        }
    }

    fn check_holders(&self) {
        let mut users = vec![(0, 0, 0); self.users.len()];
        let mut connections = 0;
        for (db, entry) in self.entries.iter() {
            let pools = self.pools.iter().filter(|(_, pool)| pool.db == db);
            let (mut total, mut attached, mut dying) = (0, 0, 0);
            for (_, pool) in pools {
                total += pool.connections;
                attached += pool.attached;
                dying += u32::from(pool.dying);
                let user = &mut users[pool.user.0 as usize];
                user.0 += pool.connections;
                user.1 += usize::from(!pool.dying);
            }
            connections += if entry.is_peer() { 0 } else { total as usize };
            let said = (entry.connections, entry.clients, entry.dying_pools);
            assert_eq!(said, (total, attached, dying), "connections, clients, dying pools of {db:?}");
        }
        for (_, server) in self.servers.iter().filter(|(_, server)| server.doomed.is_some()) {
            users[self.pools[server.pool].user.0 as usize].2 += 1;
        }
        for (user, &(connections, pools, evicting)) in self.users.iter().zip(&users) {
            let said = (user.connections, user.pools.len(), user.evicting);
            assert_eq!(said, (connections, pools, evicting), "user {}", user.name);
        }
        let evicting: u32 = self.entries.iter().map(|(_, entry)| entry.evicting).sum();
        assert_eq!(evicting, users.iter().map(|user| user.2).sum::<u32>(), "evictions of entries and users");
        assert_eq!(self.connections, connections, "connections in all");
    }
}
