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
use crate::sys::error_text;
use crate::sys::priority::stand_back;
use crate::time::Micros;
use crate::worker::authenticate::scram_iterations;

/// How long may be worked on them where others wait.
pub const BLINK: Micros = Micros::from_millis(20);

/// About as many are made.
const ITERATIONS_A_MICROSECOND: u64 = 4;

/// Makes those that `live` lacks, for so long at most: before it is in force.
pub fn make(live: &Live, patience: Micros, threads: usize) {
    if u64::from(scram_iterations(&live.config)) / ITERATIONS_A_MICROSECOND > patience.0 {
        return;
    }
    let (lacking, next, began) = (lacking(live), AtomicUsize::new(0), Clock::now());
    let work = || {
        while let Some((name, user)) = lacking.get(next.fetch_add(1, Ordering::Relaxed))
            && Clock::now().since(began) < patience
        {
            make_one(live, name, user, || true);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.min(lacking.len()) {
            scope.spawn(work);
        }
        work();
    });
}

/// Makes all that are left, while others go on. What was still to be made for the configuration before is given up, unless it is
/// the same.
pub fn make_in_background(shared: &Arc<Shared>, live: &Arc<Live>, before: Option<&Live>) {
    if before.is_some_and(|before| wants_the_same(before, live)) {
        return;
    }
    let mine = shared.derivations.fetch_add(1, Ordering::Relaxed) + 1;
    if lacking(live).is_empty() {
        return;
    }
    let (shared, live) = (shared.clone(), live.clone());
    let work = move || {
        // those who log in have work of the same kind
        stand_back();
        let counts = || shared.derivations.load(Ordering::Relaxed) == mine;
        shared.guard.run("the derivation of secrets ahead of logins", || {
            for (name, user) in lacking(&live).into_iter().take_while(|_| counts()) {
                make_one(&live, name, user, counts);
            }
        });
    };
    if let Err(error) = std::thread::Builder::new().name("verifiers".to_owned()).spawn(work) {
        tracing::warn!("no thread for verifiers, logins will make them: {}", error_text(&error));
    }
}

fn wants_the_same(before: &Live, now: &Live) -> bool {
    let settings = |live: &Live| (live.config.settings.auth_type, scram_iterations(&live.config));
    Arc::ptr_eq(&before.users, &now.users) && settings(before) == settings(now)
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

fn make_one(live: &Live, name: &str, user: &UserSecret, counts: impl Fn() -> bool) {
    let Secret::Plain(password) = &user.secret else { return };
    let (salt, iterations) = (decoy::salt(name, &live.decoy.key, SALT_BYTES), scram_iterations(&live.config));
    let keys = derive(password, &salt, iterations);
    let mut made = user.verifier.lock();
    if counts() {
        *made = Some(Arc::new(Verifier::derived(&keys, salt, iterations)));
    }
}
