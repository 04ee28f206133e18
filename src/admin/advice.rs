//! SHOW ADVICE: what was seen in the last hours, and what it says about the configuration.
//!
//! Pure: the shell looks at the pools every [`LOOK_EVERY`] and gives what it saw to [`Watch::look`]. What was seen is kept in
//! [`SLOTS`] spans of [`SLOT`], of [`MOST_POOLS`] pools in each; older ones are forgotten. [`Watch::advice`] turns it into
//! sentences. A rule speaks when its finding holds for one look in a hundred, and for several looks.

use std::collections::{BTreeMap, VecDeque};

use super::insight::Advice;
use crate::config::{Config, PoolMode};
use crate::pool::WaitCause;
use crate::time::Micros;

mod rules;
#[cfg(test)]
mod tests;

pub use rules::Facts;

/// Time between two looks.
pub const LOOK_EVERY: Micros = Micros::from_secs(2);

/// What is counted together.
const SLOT: Micros = Micros::from_secs(600);

/// Three hours.
const SLOTS: usize = 18;

/// Pools of a slot; later ones are not watched.
const MOST_POOLS: usize = 200;

/// A pool at the moment of a look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sight {
    pub database: String,
    pub user: String,
    /// Clients in line by cause, in the order of [`WaitCause::ALL`].
    pub causes: [u32; WaitCause::COUNT],
    /// 0 is unlimited.
    pub pool_size: u32,
    /// Servers that are linked to a client.
    pub busy: u32,
    pub pool_mode: PoolMode,
    /// How long the first client in line has been waiting.
    pub longest_wait: Micros,
}

/// A pool over many looks.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    looks: u32,
    /// Looks at which somebody waited for this cause.
    waiting: [u32; WaitCause::COUNT],
    most_waiting: u32,
    most_busy: u32,
    longest_wait: Micros,
    /// As it was last.
    pool_size: u32,
    pool_mode: PoolMode,
}

impl Seen {
    fn new(sight: &Sight) -> Self {
        Self {
            looks: 0,
            waiting: [0; WaitCause::COUNT],
            most_waiting: 0,
            most_busy: 0,
            longest_wait: Micros::ZERO,
            pool_size: sight.pool_size,
            pool_mode: sight.pool_mode,
        }
    }

    fn look(&mut self, sight: &Sight) {
        self.looks += 1;
        for (looks, &clients) in self.waiting.iter_mut().zip(&sight.causes) {
            *looks += u32::from(clients > 0);
        }
        self.most_waiting = self.most_waiting.max(sight.causes.iter().sum());
        self.most_busy = self.most_busy.max(sight.busy);
        self.longest_wait = self.longest_wait.max(sight.longest_wait);
        (self.pool_size, self.pool_mode) = (sight.pool_size, sight.pool_mode);
    }

    fn add(&mut self, later: &Self) {
        self.looks += later.looks;
        self.waiting.iter_mut().zip(&later.waiting).for_each(|(mine, theirs)| *mine += theirs);
        self.most_waiting = self.most_waiting.max(later.most_waiting);
        self.most_busy = self.most_busy.max(later.most_busy);
        self.longest_wait = self.longest_wait.max(later.longest_wait);
        (self.pool_size, self.pool_mode) = (later.pool_size, later.pool_mode);
    }
}

type Pools = BTreeMap<(String, String), Seen>;

#[derive(Debug)]
struct Slot {
    since: Micros,
    pools: Pools,
    most_clients: u64,
}

/// What was seen lately.
#[derive(Debug, Default)]
pub struct Watch {
    slots: VecDeque<Slot>,
    last: Option<Micros>,
}

impl Watch {
    /// Whether it is time to look again.
    #[must_use]
    pub fn is_due(&self, now: Micros) -> bool {
        self.last.is_none_or(|last| now.since(last) >= LOOK_EVERY)
    }

    /// A look: every pool, and the number of clients.
    pub fn look(&mut self, now: Micros, sights: &[Sight], clients: u64) {
        self.last = Some(now);
        if self.slots.back().is_none_or(|slot| now.since(slot.since) >= SLOT) {
            if self.slots.len() == SLOTS {
                self.slots.pop_front();
            }
            self.slots.push_back(Slot { since: now, pools: Pools::new(), most_clients: 0 });
        }
        let Some(slot) = self.slots.back_mut() else { return };
        slot.most_clients = slot.most_clients.max(clients);
        for sight in sights {
            let key = (sight.database.clone(), sight.user.clone());
            if slot.pools.len() < MOST_POOLS || slot.pools.contains_key(&key) {
                slot.pools.entry(key).or_insert_with(|| Seen::new(sight)).look(sight);
            }
        }
    }

    /// What to change, urgent things first. `facts` and `config` are those of this moment.
    #[must_use]
    pub fn advice(&self, now: Micros, config: &Config, facts: &Facts) -> Vec<Advice> {
        let mut pools = Pools::new();
        for (key, seen) in self.slots.iter().flat_map(|slot| &slot.pools) {
            match pools.get_mut(key) {
                Some(sum) => sum.add(seen),
                None => drop(pools.insert(key.clone(), seen.clone())),
            }
        }
        let span = self.slots.front().map(|slot| now.since(slot.since)).unwrap_or_default();
        let most_clients = self.slots.iter().map(|slot| slot.most_clients).max().unwrap_or(0);
        let mut advice = Vec::new();
        for ((database, user), seen) in &pools {
            rules::Pool { config, database, user, seen, span }.judge(&mut advice);
        }
        rules::process(&mut advice, config, facts, most_clients, span);
        rules::settings(&mut advice, config, facts);
        advice.sort_by_key(|advice| !advice.urgent);
        advice
    }
}
