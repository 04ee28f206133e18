//! Entries of the configuration: limits of clients, entries made by themselves, changes at a reload.

use super::*;

#[test]
fn s6_client_limits() {
    type Limit = (fn(&mut Config), &'static str);
    let limits: [Limit; 2] = [
        (|c| c.settings.max_db_client_connections = 1, "max_db_client_connections"),
        (|c| c.settings.max_user_client_connections = 1, "max_user_client_connections"),
    ];
    for (change, name) in limits {
        let mut bench = Bench::new(change);
        let db = bench.pools.find_database("db", bench.now).expect("it is configured");
        let first = bench.pools.attach(db, "ann", false, bench.now).expect("there is room");
        let why = Disconnect::fatal(format!("client connections exceeded ({name})"));
        assert_eq!(bench.pools.attach(db, "ann", false, bench.now), Err(why.clone()));
        let by_entry = name == "max_db_client_connections";
        assert_eq!(bench.pools.entry_has_room(db), if by_entry { Err(why.clone()) } else { Ok(()) });
        assert_eq!(bench.pools.user_has_room("ann"), if by_entry { Ok(()) } else { Err(why) });
        bench.pools.detach(first.pool, first.user, false, bench.now);
        assert!(bench.pools.attach(db, "ann", false, bench.now).is_ok());
        assert!(bench.pools.attach(db, "ann", true, bench.now).is_ok(), "exempt");
    }
}

#[test]
fn s1_an_auto_entry_sleeps_and_goes_after_autodb_idle_timeout() {
    let mut bench = Bench::new(|c| c.wildcard = Some("host=h".to_owned()));
    assert!(bench.pools.find_database("new", bench.now).is_some());
    assert!(matches!(&bench.actions()[..], [Action::Log(_, text)] if text == "registered new auto-database: new"));
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.database_rows().len(), 1, "it sleeps");
    assert_eq!(bench.pools.totals().databases, 1, "and is not counted");
    bench.tick_after(Micros::from_secs(3600));
    assert_eq!(bench.pools.names.len(), 2);
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.names.len(), 1);
}

#[test]
fn s1_whoever_asks_for_an_auto_entry_may_log_it_himself() {
    let mut bench = Bench::new(|c| c.wildcard = Some("host=h".to_owned()));
    assert_eq!(bench.pools.pause_db("new", bench.now), Ok(true));
    assert_eq!(bench.pools.take_registered().as_deref(), Some("registered new auto-database: new"));
    assert_eq!(bench.pools.pause_db("new", bench.now), Ok(true));
    assert_eq!(bench.pools.take_registered(), None);
    assert_eq!(bench.actions(), []);
}

#[test]
fn s1_the_wildcard_is_no_database() {
    let mut bench = Bench::new(|c| c.wildcard = Some("host=h".to_owned()));
    for _ in 0..2 {
        assert_eq!(bench.pools.find_database("*", bench.now), None);
        let no_such = Err("no such database: *".to_owned());
        assert_eq!(bench.pools.pause_db("*", bench.now), no_such.clone().map(|()| true));
        assert_eq!(bench.pools.disable_db(Some("*"), bench.now), no_such);
        assert_eq!(bench.pools.resume_db("*", bench.now), no_such);
    }
    assert_eq!((bench.actions(), bench.pools.names.len()), (Vec::new(), 1));
}

/// A bench with the auto entry "zz", to which `command` was done before it fell asleep.
fn asleep(command: impl FnOnce(&mut Bench)) -> Bench {
    let mut bench = Bench::new(|c| c.wildcard = Some("host=h".to_owned()));
    command(&mut bench);
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.database_rows().len(), 1, "it sleeps");
    bench
}

#[test]
fn console_s6_a_sleeping_entry_does_not_keep_the_process_from_suspending() {
    let mut bench = asleep(|bench| assert_eq!(bench.pools.pause_db("zz", bench.now), Ok(true)));
    assert!(!bench.pools.has_paused_entry());
    assert_eq!(bench.pools.suspend(bench.now), Ok(()));
    let mut bench = asleep(|bench| assert_eq!(bench.pools.kill(Some("zz"), bench.now), Ok(())));
    assert_eq!(bench.pools.suspend(bench.now), Ok(()));
    assert_eq!(bench.pools.resume_all(bench.now), Ok(()));
    // whoever asks for it finds it paused
    let pool = bench.attach("zz", "ann");
    bench.queue((client(1, 0), pool));
    assert_eq!(bench.launched(), None);
    assert_eq!(bench.pools.suspend(bench.now), Err("cannot suspend with paused databases".to_owned()));
}

#[test]
fn console_s6_a_pause_ends_although_the_entry_falls_asleep_under_way() {
    let mut bench = Bench::new(|c| c.wildcard = Some("host=h".to_owned()));
    let db = bench.pools.find_database("zz", bench.now).expect("it is made");
    let ann = bench.pools.attach(db, "ann", false, bench.now).expect("no limit is reached");
    let held = bench.linked(ann.pool, 1)[0];
    bench.release(held, 0);
    bench.pools.detach(ann.pool, ann.user, true, bench.now);
    assert_eq!(bench.pools.pause_db("zz", bench.now), Ok(false));
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.database_rows().len(), 1, "it sleeps");
    assert!(bench.pools.has_paused_entry() && bench.pools.paused_entries_drained());
}

#[test]
fn s1_commands_wake_a_sleeping_entry() {
    let mut bench = asleep(|bench| assert_eq!(bench.pools.disable_db(Some("zz"), bench.now), Ok(())));
    assert_eq!(bench.pools.enable_db(Some("zz"), bench.now), Ok(()));
    assert_eq!(bench.pools.database_rows().len(), 2);
    bench.tick_after(SECOND);
    assert_eq!(bench.pools.resume_db("zz", bench.now), Err("database zz is not paused".to_owned()));
    assert_eq!((bench.pools.database_rows().len(), bench.pools.totals().databases), (2, 2));
}

#[test]
fn auth_s3_an_entry_keeps_the_global_auth_user() {
    fn with(user: &str, wildcard: &str) -> impl FnOnce(&mut Config) {
        move |c: &mut Config| {
            c.settings.auth_user = Some(user.to_owned());
            c.wildcard = Some(wildcard.to_owned());
            c.databases.insert("own".to_owned(), Database { auth_user: Some("o".to_owned()), ..Database::new("own") });
        }
    }
    let mut bench = Bench::new(with("a", "host=h"));
    let now = bench.now;
    let [db, auto, own] = ["db", "auto", "own"].map(|name| bench.pools.find_database(name, now));
    let asked = |bench: &mut Bench| {
        let users = [db, auto, own, None].map(|entry| bench.pools.auth_user(entry).expect("there is one"));
        users.map(|user| user.to_string()).join(" ")
    };
    assert_eq!([db, auto, own, None].map(|entry| bench.pools.has_auth_user(entry)), [false, false, true, false]);
    assert_eq!(asked(&mut bench), "a a o a");
    assert_eq!([db, auto, own, None].map(|entry| bench.pools.has_auth_user(entry)), [true; 4]);
    bench.pools.configure(config(with("b", "host=h")), now);
    assert_eq!(asked(&mut bench), "a a o a");
    bench.pools.forget_auth_users();
    assert_eq!(asked(&mut bench), "b a o a");
    bench.pools.configure(config(with("c", "host=i")), now);
    assert_eq!(asked(&mut bench), "b c o a");
}

#[test]
fn s1_a_pool_user_is_the_forced_user() {
    let mut bench = Bench::new(|c| c.databases.get_mut("db").expect("it is there").user = Some("forced".to_owned()));
    let (ann, bob) = (bench.attach("db", "ann"), bench.attach("db", "bob"));
    assert_eq!(ann, bob);
    let info = bench.pools.describe(ann).expect("it exists");
    assert_eq!((&*info.user, info.forced), ("forced", true));
}

#[test]
fn reload_s3_3_a_changed_address_replaces_servers_and_forgets_the_reply() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 1)[0];
    let moved = |c: &mut Config| c.databases.get_mut("db").expect("it is there").port = 1;
    bench.pools.configure(config(moved), bench.now);
    assert!(bench.pools.close_needed(held.0));
    assert_eq!(bench.pools.login_reply(pool), None);
    let Checkout::Queued(_) = bench.ask((client(1, 0), pool), WaitFor::LoginReply) else { panic!("no reply") };
    assert!(bench.launched().is_some());
    assert_eq!(bench.release(held, 0), close(held.1, "close_needed"));
}

#[test]
fn reload_s3_3_a_dropped_entry_sends_everybody_away() {
    let mut bench = Bench::new(|_| {});
    let pool = bench.attach("db", "ann");
    let held = bench.linked(pool, 2);
    let ticket = bench.queue((client(1, 0), pool));
    bench.release(held[0], 0);
    bench.pools.configure(config(|c| c.databases.clear()), bench.now);
    let why = Disconnect::fatal("database removed");
    assert_eq!(bench.pools.collect(ticket), Collected::Refused(why.clone()));
    let actions = bench.actions();
    assert!(actions.iter().any(|action| matches!(action, Action::Close { conn, .. } if *conn == held[0].1)));
    assert!(actions.iter().any(|action| matches!(action, Action::Evict { server, .. } if *server == held[1].0)));
    assert!(actions.contains(&Action::CloseClients { pool, why }));
    assert_eq!(bench.release(held[1], 0), close(held[1].1, "database removed"));
}

#[test]
fn pooling_s4_4_servers_at_a_lost_address_are_replaced() {
    let host = |db: &mut Database, host: &str| db.host = Some(host.to_owned());
    let mut bench = Bench::new(|c| {
        host(c.databases.get_mut("db").expect("it is there"), "name");
        c.databases.insert("list".to_owned(), Database { host: Some("name,name".to_owned()), ..Database::new("list") });
    });
    let mut servers = Vec::new();
    for entry in ["db", "list"] {
        let pool = bench.attach(entry, "ann");
        servers.extend(bench.linked(pool, 2).into_iter().map(|held| held.0));
    }
    for (server, n) in servers.iter().zip([1, 2, 1, 2]) {
        bench.pools.located(*server, Address::Tcp(([10, 0, 0, n], 5432).into()));
    }
    bench.pools.addresses_gone("other", &[[10, 0, 0, 1].into()]);
    bench.pools.addresses_gone("name", &[[10, 0, 0, 1].into()]);
    let tagged: Vec<bool> = servers.iter().map(|&server| bench.pools.close_needed(server)).collect();
    assert_eq!(tagged, [true, false, false, false]);
}
