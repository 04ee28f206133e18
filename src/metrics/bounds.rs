//! Bounds on the number of label values, so that nobody can fill a time series database by inventing names.
//!
//! Pools keep their own series as long as they exist, first come, first served: a counter must not come and go. The others
//! are added up under [`OTHER`]. Clients are gauges: the most numerous have their own series.

use std::collections::{BTreeMap, BTreeSet};

use super::picture::{Clients, PoolFigures};
use crate::stats::ends::OTHER;

/// Pairs of database and user with series of their own.
pub const MOST_POOLS: usize = 200;

/// Values of `application_name` with series of their own.
pub const MOST_APPLICATIONS: usize = 100;

/// The pairs of database and user that have series of their own.
#[derive(Clone, Debug, Default)]
pub struct Admitted(BTreeSet<(String, String)>);

impl Admitted {
    /// Puts the pools that came too late together into one.
    pub fn bound(&mut self, pools: Vec<PoolFigures>) -> Vec<PoolFigures> {
        let pair = |pool: &PoolFigures| (pool.row.database.clone(), pool.row.user.clone());
        let now: BTreeSet<_> = pools.iter().map(pair).collect();
        self.0.retain(|pair| now.contains(pair));
        for pair in now {
            if self.0.len() >= MOST_POOLS {
                break;
            }
            self.0.insert(pair);
        }
        let (mut own, rest): (Vec<_>, Vec<_>) = pools.into_iter().partition(|pool| self.0.contains(&pair(pool)));
        own.extend(together(rest));
        own
    }
}

/// Puts clients together that have no series of their own.
#[must_use]
pub fn bound_clients(clients: Clients) -> Clients {
    let pairs = most_numerous(MOST_POOLS, clients.iter().map(|(c, &n)| ((c.database.clone(), c.user.clone()), n)));
    let names = most_numerous(MOST_APPLICATIONS, clients.iter().map(|(c, &n)| (c.application_name.clone(), n)));
    let mut bounded = Clients::new();
    for (mut client, count) in clients {
        let pair = (client.database, client.user);
        (client.database, client.user) =
            if pairs.contains(&pair) { pair } else { (OTHER.to_owned(), OTHER.to_owned()) };
        if !names.contains(&client.application_name) {
            OTHER.clone_into(&mut client.application_name);
        }
        *bounded.entry(client).or_default() += count;
    }
    bounded
}

/// The keys with the largest sums.
fn most_numerous<K: Ord>(most: usize, counts: impl Iterator<Item = (K, u64)>) -> BTreeSet<K> {
    let mut sums: BTreeMap<K, u64> = BTreeMap::new();
    for (key, count) in counts {
        *sums.entry(key).or_default() += count;
    }
    let mut sums: Vec<_> = sums.into_iter().collect();
    // stable: equal ones stay in the order of their names
    sums.sort_by_key(|&(_, sum)| std::cmp::Reverse(sum));
    sums.into_iter().take(most).map(|(key, _)| key).collect()
}

/// One pool that stands for several. Its maxwait is the longest of theirs.
fn together(pools: Vec<PoolFigures>) -> Option<PoolFigures> {
    let mut pools = pools.into_iter();
    let mut first = pools.next()?;
    OTHER.clone_into(&mut first.row.database);
    OTHER.clone_into(&mut first.row.user);
    Some(pools.fold(first, |mut sum, pool| {
        let (a, b) = (&mut sum.row, &pool.row);
        a.cl_active += b.cl_active;
        a.cl_waiting += b.cl_waiting;
        a.cl_active_cancel_req += b.cl_active_cancel_req;
        a.cl_waiting_cancel_req += b.cl_waiting_cancel_req;
        a.sv_active += b.sv_active;
        a.sv_active_cancel += b.sv_active_cancel;
        a.sv_being_canceled += b.sv_being_canceled;
        a.sv_idle += b.sv_idle;
        a.sv_used += b.sv_used;
        a.sv_tested += b.sv_tested;
        a.sv_login += b.sv_login;
        a.maxwait = a.maxwait.max(b.maxwait);
        sum.causes.iter_mut().zip(pool.causes).for_each(|(mine, theirs)| *mine += theirs);
        sum.pool_size = sum.pool_size.saturating_add(pool.pool_size);
        if let Some(times) = &pool.times {
            **sum.times.get_or_insert_default() += &**times;
        }
        sum
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::snapshot::PoolRow;
    use crate::metrics::picture::Client;

    fn pool(database: &str) -> PoolFigures {
        let row = PoolRow { database: database.to_owned(), user: "u".to_owned(), cl_active: 1, ..PoolRow::default() };
        PoolFigures { row, ..PoolFigures::default() }
    }

    fn names(pools: &[PoolFigures]) -> BTreeSet<&str> {
        pools.iter().map(|pool| &*pool.row.database).collect()
    }

    #[test]
    fn pools_keep_their_series_while_they_exist() {
        let mut admitted = Admitted::default();
        let first: Vec<_> = (100..100 + MOST_POOLS).map(|n| pool(&format!("db{n}"))).collect();
        assert_eq!(admitted.bound(first.clone()).len(), MOST_POOLS);
        // two that come first by name, but later
        let more: Vec<_> = [pool("a"), pool("b")].into_iter().chain(first.clone()).collect();
        let bounded = admitted.bound(more.clone());
        assert_eq!(bounded.len(), MOST_POOLS + 1);
        assert!(names(&bounded).contains("db100") && !names(&bounded).contains("a"));
        let other = bounded.last().expect("some");
        assert_eq!((&*other.row.database, &*other.row.user, other.row.cl_active), (OTHER, OTHER, 2));
        // room for one
        let bounded = admitted.bound(more[..MOST_POOLS + 1].to_vec());
        assert!(names(&bounded).contains("a") && !names(&bounded).contains("b"));
    }

    #[test]
    fn one_pool_too_many_is_not_told_from_several() {
        let mut admitted = Admitted::default();
        let pools: Vec<_> = (0..=MOST_POOLS).map(|n| pool(&format!("db{n:04}"))).collect();
        let bounded = admitted.bound(pools);
        assert_eq!(bounded.last().map(|pool| &*pool.row.database), Some(OTHER));
    }

    #[test]
    fn the_most_numerous_clients_are_told_apart() {
        let client = |database: &str, name: String| Client {
            database: database.to_owned(),
            user: "u".to_owned(),
            application_name: name,
            state: "active",
        };
        let mut clients: Clients = (0..300).map(|n| (client("db", format!("app{n:03}")), 1)).collect();
        clients.insert(client("db", "zebra".to_owned()), 7);
        clients.extend((0..MOST_POOLS).map(|n| (client(&format!("x{n:03}"), "zebra".to_owned()), 1)));
        let bounded = bound_clients(clients);
        assert_eq!(bounded.values().sum::<u64>(), 307 + MOST_POOLS as u64);
        assert_eq!(bounded.get(&client("db", "zebra".to_owned())), Some(&7));
        assert_eq!(bounded.get(&client("db", OTHER.to_owned())), Some(&201));
        let last = Client { user: OTHER.to_owned(), ..client(OTHER, "zebra".to_owned()) };
        assert_eq!(bounded.get(&last), Some(&1));
    }
}
