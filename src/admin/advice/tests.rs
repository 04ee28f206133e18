//! What is said, and when nothing is.

use super::*;
use crate::config::Database;

fn sight(change: impl FnOnce(&mut Sight)) -> Sight {
    let mut sight = Sight {
        database: "db".to_owned(),
        user: "u".to_owned(),
        causes: [0; WaitCause::COUNT],
        pool_size: 20,
        busy: 10,
        pool_mode: PoolMode::Transaction,
        longest_wait: Micros::ZERO,
    };
    change(&mut sight);
    sight
}

fn config(change: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    config.settings.auth_type = crate::config::AuthType::ScramSha256;
    config.databases.insert("db".to_owned(), Database::new("db"));
    change(&mut config);
    config
}

/// A watch that saw the same thing again and again, and the time after it.
fn watched(looks: u32, sight: &Sight, clients: u64) -> (Watch, Micros) {
    let (mut watch, mut now) = (Watch::default(), Micros::from_secs(100));
    for _ in 0..looks {
        assert!(watch.is_due(now));
        watch.look(now, std::slice::from_ref(sight), clients);
        assert!(!watch.is_due(now));
        now = now + LOOK_EVERY;
    }
    (watch, now)
}

fn said(advice: &[Advice]) -> Vec<(bool, &str)> {
    advice.iter().map(|advice| (advice.urgent, advice.setting)).collect()
}

#[test]
fn nothing_is_said_of_what_works() {
    let (watch, now) = watched(2000, &sight(|_| {}), 50);
    assert_eq!(watch.advice(now, &config(|_| {}), &Facts::default()), []);
    assert_eq!(Watch::default().advice(now, &config(|_| {}), &Facts::default()), []);
}

#[test]
fn a_full_pool_asks_for_its_size() {
    let full = sight(|sight| {
        sight.causes[WaitCause::PoolFull as usize] = 12;
        sight.longest_wait = Micros::from_millis(3200);
    });
    let (watch, now) = watched(1800, &full, 50);
    let advice = watch.advice(now, &config(|_| {}), &Facts::default());
    assert_eq!(said(&advice), [(true, "default_pool_size")]);
    let text = "In 100 % of the last 60 minutes up to 12 clients waited, for up to 3.2 s because all servers of the pool \
                were in use (pool_size). Raise it above 20 if PostgreSQL has room for more connections; if not, look for \
                long transactions with SHOW LATENCY.";
    assert_eq!((advice[0].text.as_str(), advice[0].database.as_deref()), (text, Some("db")));
    let own = config(|config| config.databases.get_mut("db").expect("it is there").pool_size = Some(20));
    assert_eq!(said(&watch.advice(now, &own, &Facts::default())), [(true, "pool_size")]);
    let session = Sight { pool_mode: PoolMode::Session, ..full };
    let (watch, now) = watched(10, &session, 50);
    assert_eq!(said(&watch.advice(now, &config(|_| {}), &Facts::default())), [(true, "pool_mode")]);
}

#[test]
fn a_moment_is_not_worth_a_word() {
    let full = sight(|sight| sight.causes[WaitCause::PoolFull as usize] = 1);
    let (watch, now) = watched(2, &full, 0);
    assert_eq!(watch.advice(now, &config(|_| {}), &Facts::default()), []);
    let (mut watch, mut now) = watched(1000, &sight(|_| {}), 0);
    for _ in 0..9 {
        watch.look(now, std::slice::from_ref(&full), 0);
        now = now + LOOK_EVERY;
    }
    assert_eq!(watch.advice(now, &config(|_| {}), &Facts::default()), []);
}

#[test]
fn every_cause_that_can_be_helped_has_its_setting() {
    for (cause, setting) in [
        (WaitCause::DatabaseLimit, Some((true, "max_db_connections"))),
        (WaitCause::UserLimit, Some((true, "max_user_connections"))),
        (WaitCause::LoginFailing, Some((true, "server_login_retry"))),
        (WaitCause::ServerLogin, Some((false, "min_pool_size"))),
        (WaitCause::ServerCheck, Some((false, "server_check_delay"))),
        (WaitCause::Paused, None),
        (WaitCause::DatabasePaused, None),
        (WaitCause::Suspended, None),
    ] {
        let (watch, now) = watched(10, &sight(|sight| sight.causes[cause as usize] = 1), 0);
        let advice = watch.advice(now, &config(|_| {}), &Facts::default());
        assert_eq!(said(&advice), setting.into_iter().collect::<Vec<_>>(), "{cause:?}");
    }
}

#[test]
fn a_pool_that_is_hardly_used_is_too_large_after_a_while() {
    let idle = sight(|sight| sight.busy = 3);
    let (watch, now) = watched(2000, &idle, 0);
    let advice = watch.advice(now, &config(|_| {}), &Facts::default());
    assert_eq!(said(&advice), [(false, "default_pool_size")]);
    let (watch, now) = watched(100, &idle, 0);
    assert_eq!(watch.advice(now, &config(|_| {}), &Facts::default()), []);
}

#[test]
fn what_was_seen_is_forgotten_after_hours() {
    let full = sight(|sight| sight.causes[WaitCause::PoolFull as usize] = 1);
    let (mut watch, mut now) = watched(100, &full, 0);
    for _ in 0..SLOTS {
        now = now + SLOT;
        watch.look(now, &[sight(|_| {})], 0);
    }
    assert_eq!(watch.slots.len(), SLOTS);
    assert_eq!(watch.advice(now, &config(|_| {}), &Facts::default()), []);
}

#[test]
fn so_many_pools_are_watched_and_no_more() {
    let mut watch = Watch::default();
    let sights: Vec<_> = (0..MOST_POOLS + 5).map(|n| sight(|sight| sight.database = n.to_string())).collect();
    watch.look(Micros::ZERO, &sights, 0);
    watch.look(LOOK_EVERY, &sights, 0);
    let pools = &watch.slots[0].pools;
    assert_eq!((pools.len(), pools.values().all(|seen| seen.looks == 2)), (MOST_POOLS, true));
}

#[test]
fn clients_that_were_turned_away_ask_for_room() {
    let (watch, now) = watched(10, &sight(|_| {}), 95);
    let advice = watch.advice(now, &config(|_| {}), &Facts::default());
    assert_eq!(said(&advice), [(true, "max_client_conn")]);
    let mut facts = Facts { max_fds: Some(50), ..Facts::default() };
    facts.ends.client_closed("no more connections allowed (max_client_conn)");
    facts.ends.client_closed("query_wait_timeout");
    let advice = Watch::default().advice(now, &config(|_| {}), &facts);
    let want = [(true, "max_client_conn"), (true, "query_wait_timeout"), (true, "max_client_conn")];
    assert_eq!(said(&advice), want);
    assert!(advice[0].text.contains("1 clients were turned away"), "{}", advice[0].text);
}

#[test]
fn settings_that_contradict_each_other() {
    let config = config(|config| {
        let settings = &mut config.settings;
        settings.max_db_connections = 5;
        settings.min_pool_size = 30;
        settings.query_wait_timeout = Micros::ZERO;
        settings.pool_mode = PoolMode::Transaction;
        settings.max_prepared_statements = 0;
        settings.auth_type = crate::config::AuthType::Trust;
        settings.listen_addr = "127.0.0.1, 10.0.0.1".to_owned();
    });
    let advice = Watch::default().advice(Micros::ZERO, &config, &Facts::default());
    let want = [
        (true, "auth_type"),
        (false, "max_db_connections"),
        (false, "min_pool_size"),
        (false, "query_wait_timeout"),
        (false, "max_prepared_statements"),
    ];
    assert_eq!(said(&advice), want);
}
