//! Verifiers of users with plain passwords, made before they are wanted. The first login of each would otherwise take
//! milliseconds longer than a stranger's, who has none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::auth::decoy;
use crate::auth::scram::{SALT_BYTES, Verifier, derive};
use crate::auth::secret::Secret;
use crate::clock::Clock;
use crate::config::AuthType;
use crate::shared::{Live, Shared, UserSecret};
use crate::time::Micros;
use crate::worker::authenticate::scram_iterations;

/// How long may be worked on them where others wait.
pub const BLINK: Micros = Micros::from_millis(20);

/// Makes those that `live` lacks, for so long at most: before it is in force.
pub fn make(live: &Live, patience: Micros, threads: usize) {
    let (lacking, next, began) = (lacking(live), AtomicUsize::new(0), Clock::now());
    let work = || {
        while let Some((name, user)) = lacking.get(next.fetch_add(1, Ordering::Relaxed))
            && Clock::now().since(began) < patience
        {
            make_one(live, name, user);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(lacking.len()) {
            scope.spawn(work);
        }
        work();
    });
}

/// Makes all that are left, while others go on.
pub fn make_in_background(shared: &Arc<Shared>, live: &Arc<Live>) {
    if lacking(live).is_empty() {
        return;
    }
    let (shared, live) = (shared.clone(), live.clone());
    tokio::task::spawn_blocking(move || {
        shared.guard.run("the derivation of secrets ahead of logins", || {
            lacking(&live).into_iter().for_each(|(name, user)| make_one(&live, name, user));
        })
    });
}

/// Users whose next login by SCRAM would have to wait for a derivation.
fn lacking(live: &Live) -> Vec<(&str, &UserSecret)> {
    if !matches!(live.config.settings.auth_type, AuthType::ScramSha256 | AuthType::Hba) {
        return Vec::new();
    }
    let iterations = scram_iterations(&live.config);
    let lacks = |name: &str, user: &UserSecret| {
        let made = user.verifier.lock();
        !made.as_ref().is_some_and(|made| made.is_current(name, iterations, &live.decoy.key))
    };
    let users = live.users.iter().map(|(name, user)| (name.as_str(), &**user));
    users.filter(|(name, user)| matches!(user.secret, Secret::Plain(_)) && lacks(name, user)).collect()
}

fn make_one(live: &Live, name: &str, user: &UserSecret) {
    let Secret::Plain(password) = &user.secret else { return };
    let (salt, iterations) = (decoy::salt(name, &live.decoy.key, SALT_BYTES), scram_iterations(&live.config));
    let keys = derive(password, &salt, iterations);
    *user.verifier.lock() = Some(Arc::new(Verifier::derived(&keys, salt, iterations)));
}
