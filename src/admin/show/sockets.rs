//! SHOW CLIENTS, SERVERS, SOCKETS and ACTIVE_SOCKETS: four views of the same connections.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::rc::Rc;

use super::columns;
use super::row::{self, Fields};
use crate::admin::command::Topic;
use crate::admin::reply;
use crate::admin::snapshot::{FdRow, FdTask, Home, SocketRow, SocketState, shown_id};
use crate::config::CONSOLE_DATABASE;

/// Rows that are dealt with before others may have the processor: some ten microseconds, or a few times as much.
pub const AT_A_TIME: usize = 128;

/// What the shell does for these lists, which may have thousands of rows.
pub trait Shell {
    /// Unix seconds as `YYYY-MM-DD HH:MM:SS TZ` in local time.
    fn time(&self, unix_secs: i64) -> Rc<str>;
    /// Lets others have the processor if they wait for it.
    fn give_way(&self);
}

/// SHOW CLIENTS: those that are logged in, and cancel requests.
pub fn clients(out: &mut Vec<u8>, rows: &[Vec<SocketRow>], shell: &dyn Shell) {
    list(out, Topic::Clients, rows, shell, |row| {
        Some(match row.state {
            // what is not linked has nothing to be active with; PgBouncer 1.18 and before said active all the same
            SocketState::ClActive if row.link.is_none() => "idle",
            SocketState::ClActive => "active",
            SocketState::ClWaiting => "waiting",
            SocketState::ClActiveCancel => "active_cancel_req",
            SocketState::ClWaitingCancel => "waiting_cancel_req",
            _ => return None,
        })
    });
}

/// SHOW SERVERS.
pub fn servers(out: &mut Vec<u8>, rows: &[Vec<SocketRow>], shell: &dyn Shell) {
    let peers_too = |row: &SocketRow| {
        Some(match row.state {
            SocketState::SvActive if row.link.is_none() => "idle",
            SocketState::SvActive | SocketState::SvDraining => "active",
            SocketState::SvIdle => "idle",
            SocketState::SvUsed => "used",
            SocketState::SvTested => "tested",
            SocketState::SvLogin => "new",
            SocketState::SvActiveCancel => "active_cancel",
            SocketState::SvBeingCanceled => "being_canceled",
            _ => return None,
        })
    };
    list(out, Topic::Servers, rows, shell, peers_too);
}

/// SHOW SOCKETS: everything but cancel requests and what belongs to peers.
pub fn sockets(out: &mut Vec<u8>, rows: &[Vec<SocketRow>], shell: &dyn Shell) {
    list(out, Topic::Sockets, rows, shell, socket_state);
}

/// SHOW ACTIVE_SOCKETS: those of SHOW SOCKETS that hold data. The console client that asks holds its query; the shell says
/// so in its row.
pub fn active_sockets(out: &mut Vec<u8>, rows: &[Vec<SocketRow>], shell: &dyn Shell) {
    list(out, Topic::ActiveSockets, rows, shell, |row| socket_state(row).filter(|_| !row.buffers.is_empty()));
}

fn socket_state(row: &SocketRow) -> Option<&'static str> {
    if matches!(row.home, Home::PeerPool { .. }) {
        return None;
    }
    Some(match row.state {
        SocketState::ClActive => "cl_active",
        SocketState::ClWaiting => "cl_waiting",
        SocketState::ClLogin => "cl_login",
        SocketState::SvActive | SocketState::SvDraining => "sv_active",
        SocketState::SvIdle => "sv_idle",
        SocketState::SvUsed => "sv_used",
        SocketState::SvTested => "sv_tested",
        SocketState::SvLogin => "sv_login",
        _ => return None,
    })
}

/// The rows of SHOW FDS for these sockets, in their published order: those that log in, then pool by pool without the
/// console's. Sockets that carry cancel requests are not handed over, nor those with TLS or linked to one with TLS.
#[must_use]
pub fn fds_of(rows: &[Vec<SocketRow>], shell: &dyn Shell) -> Vec<FdRow> {
    let at_console =
        |row: &SocketRow| matches!(&row.home, Home::Pool { database, .. } if &**database == CONSOLE_DATABASE);
    let with_tls = paced(rows, shell).filter(|row| !row.tls.is_empty());
    let encrypted: BTreeSet<_> = with_tls.flat_map(|row| [Some(row.ptr), row.link]).flatten().collect();
    let shown = in_order(rows, shell, Logins::First, |row| {
        (socket_state(row).is_some() && !at_console(row) && !encrypted.contains(&row.ptr)).then_some(())
    });
    let fd_of_row = |row: &SocketRow| row.handover.as_ref().and_then(|extra| Some((row.ptr, extra.fd?)));
    let fds: BTreeMap<_, _> = paced(rows, shell).filter_map(fd_of_row).collect();
    let fd_of = |ptr| fds.get(&ptr).copied();
    let shown = give_way_between(shown, shell);
    shown.filter_map(|(row, ())| fd_row(row, fd_of)).collect()
}

fn fd_row(row: &SocketRow, fd_of: impl Fn(u64) -> Option<i32>) -> Option<FdRow> {
    let extra = row.handover.as_deref()?;
    Some(FdRow {
        fd: extra.fd?,
        task: if row.state.is_client() { FdTask::Client } else { FdTask::Server },
        user: row.user.as_deref().map(str::to_owned),
        database: match &row.home {
            Home::Pool { database, .. } => Some(database.to_string()),
            Home::PeerPool { .. } | Home::None => None,
        },
        addr: row.addr.to_string(),
        port: row.port,
        cancel: extra.cancel,
        link: row.link.and_then(fd_of).unwrap_or(0),
        client_encoding: extra.client_encoding.clone(),
        std_strings: extra.std_strings.clone(),
        datestyle: extra.datestyle.clone(),
        timezone: extra.timezone.clone(),
        password: extra.password.clone(),
        scram_client_key: extra.scram_keys.as_ref().map(|(client, _)| client.clone()),
        scram_server_key: extra.scram_keys.as_ref().map(|(_, server)| server.clone()),
    })
}

/// Lets others have the processor between rows now and then.
pub fn give_way_between<T>(rows: impl Iterator<Item = T>, shell: &dyn Shell) -> impl Iterator<Item = T> {
    rows.enumerate().map(|(index, row)| {
        if index % AT_A_TIME == AT_A_TIME - 1 {
            shell.give_way();
        }
        row
    })
}

fn paced<'a>(rows: &'a [Vec<SocketRow>], shell: &dyn Shell) -> impl Iterator<Item = &'a SocketRow> {
    give_way_between(rows.iter().flatten(), shell)
}

/// Where clients that are logging in are listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Logins {
    First,
    Last,
}

/// Whether it comes behind or before the others because of its login, its pool, its list.
type Rank<'a> = (bool, &'a Home, SocketState);

/// The rows that `pick` wants, by pool, list and id, with what it made of them. A connection that changed hands while the
/// rows were gathered may be there twice; the first row counts. Trees, for sorting thousands at once would take too long.
fn in_order<'a, T>(
    rows: &'a [Vec<SocketRow>],
    shell: &dyn Shell,
    logins: Logins,
    pick: impl Fn(&SocketRow) -> Option<T>,
) -> impl Iterator<Item = (&'a SocketRow, T)> {
    let mut seen = HashSet::with_capacity(rows.iter().map(Vec::len).sum());
    let mut lists: BTreeMap<Rank<'a>, BTreeMap<u64, (&'a SocketRow, T)>> = BTreeMap::new();
    for row in paced(rows, shell).filter(|row| seen.insert(row.id)) {
        let Some(picked) = pick(row) else { continue };
        let apart = (row.state == SocketState::ClLogin) == (logins == Logins::Last);
        lists.entry((apart, &row.home, row.state)).or_default().insert(row.id, (row, picked));
    }
    lists.into_values().flat_map(BTreeMap::into_values)
}

/// The rows that have a `state` word in this topic, by pool and list; clients that are logging in come last.
fn list(
    out: &mut Vec<u8>,
    topic: Topic,
    rows: &[Vec<SocketRow>],
    shell: &dyn Shell,
    state: impl Fn(&SocketRow) -> Option<&'static str>,
) {
    let shown = in_order(rows, shell, Logins::Last, state);
    row::description(out, topic);
    let with_buffers = matches!(topic, Topic::Sockets | Topic::ActiveSockets);
    for (socket, state) in give_way_between(shown, shell) {
        row::data(out, columns::of(topic).len(), |fields| {
            identity(fields, socket, state);
            activity(fields, socket, shell);
            if with_buffers {
                buffers(fields, socket);
            }
        });
    }
    reply::complete(out, "SHOW");
}

fn identity(fields: &mut Fields<'_>, row: &SocketRow, state: &str) {
    let database = match &row.home {
        Home::Pool { database, .. } => database,
        Home::PeerPool { .. } | Home::None => "(nodb)",
    };
    fields.text(if row.state.is_client() { "C" } else { "S" });
    fields.text(row.user.as_deref().unwrap_or("(nouser)")).text(database).text(row.replication.show()).text(state);
    fields.display(row.addr).int4(row.port).display(row.local_addr).int4(row.local_port);
}

fn activity(fields: &mut Fields<'_>, row: &SocketRow, shell: &dyn Shell) {
    fields.text(&shell.time(row.connect_time)).text(&shell.time(row.request_time));
    fields.int4(row.wait.secs()).int4(row.wait.0 % 1_000_000).flag(row.close_needed);
    fields.display(format_args!("{:#x}", row.ptr));
    match row.link {
        Some(ptr) => fields.display(format_args!("{ptr:#x}")),
        None => fields.text(""),
    };
    fields.int4(row.remote_pid).text(&row.tls).text(&row.application_name);
    fields.int4(row.prepared_statements).int4(shown_id(row.id));
}

fn buffers(fields: &mut Fields<'_>, row: &SocketRow) {
    let at = &row.buffers;
    fields.int4(at.recv_pos).int4(at.pkt_pos).int4(at.pkt_remain).int4(at.send_pos).int4(0);
    fields.int4(at.recv_pos.saturating_sub(at.pkt_pos)).int4(at.pkt_pos.saturating_sub(at.send_pos));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::show::tests::{Value, rows, texts};
    use crate::admin::snapshot::{Address, Buffers};
    use crate::time::Micros;
    use crate::wire::startup::Replication;

    fn pool(database: &str) -> Home {
        Home::Pool { database: database.into(), user: "app".into() }
    }

    fn socket(home: Home, state: SocketState) -> SocketRow {
        SocketRow {
            home,
            state,
            user: Some("app".into()),
            replication: Replication::None,
            addr: Address::Tcp([127, 0, 0, 1].into()),
            port: 51602,
            local_addr: Address::Tcp([127, 0, 0, 1].into()),
            local_port: 6432,
            connect_time: 21,
            request_time: 22,
            wait: Micros(971_982),
            close_needed: false,
            ptr: 0x55fe_300c_7430,
            link: Some(0x55fe_300f_bf48),
            remote_pid: 0,
            tls: String::new(),
            application_name: "app1".to_owned(),
            prepared_statements: 0,
            id: 24,
            buffers: Buffers::default(),
            handover: None,
        }
    }

    #[derive(Default)]
    struct Times {
        gave_way: std::cell::Cell<usize>,
    }

    impl Shell for Times {
        fn time(&self, seconds: i64) -> Rc<str> {
            format!("2026-05-08 12:00:{seconds} UTC").into()
        }

        fn give_way(&self) {
            self.gave_way.set(self.gave_way.get() + 1);
        }
    }

    fn show(view: fn(&mut Vec<u8>, &[Vec<SocketRow>], &dyn Shell), sockets: &[SocketRow]) -> Vec<Vec<Value>> {
        let mut out = Vec::new();
        let sockets: Vec<_> =
            sockets.iter().zip(0..).map(|(row, id)| SocketRow { id: row.id + id, ..row.clone() }).collect();
        view(&mut out, &[sockets], &Times::default());
        rows(&out)
    }

    /// Database and state of each row.
    fn order(view: fn(&mut Vec<u8>, &[Vec<SocketRow>], &dyn Shell), sockets: &[SocketRow]) -> String {
        let word = |row: &[Value], at: usize| row[at].clone().expect("not NULL");
        show(view, sockets).iter().map(|row| format!("{}/{} ", word(row, 2), word(row, 4))).collect()
    }

    #[test]
    fn a_long_list_gives_way() {
        let times = Times::default();
        let count = 10 * AT_A_TIME;
        let all: Vec<_> =
            (0..count as u64).map(|id| SocketRow { id, ..socket(pool("p0"), SocketState::ClActive) }).collect();
        clients(&mut Vec::new(), &[all.clone(), all], &times);
        assert_eq!(times.gave_way.get(), 30, "20 times for what there is, 10 times for what is shown");
    }

    #[test]
    fn who_was_listed_twice_is_shown_as_he_was_first() {
        let idle = SocketRow { link: None, ..socket(pool("p0"), SocketState::SvIdle) };
        let mut out = Vec::new();
        servers(&mut out, &[vec![socket(pool("p0"), SocketState::SvActive)], vec![idle]], &Times::default());
        let shown = rows(&out);
        assert_eq!((shown.len(), shown[0][4].as_deref()), (1, Some("active")));
    }

    /// The row published for SHOW CLIENTS, and the longer one of SHOW ACTIVE_SOCKETS.
    #[test]
    fn a_client_in_full() {
        let mut client = socket(pool("p0"), SocketState::ClActive);
        let published = "C|app|p0|none|active|127.0.0.1|51602|127.0.0.1|6432|2026-05-08 12:00:21 UTC|\
                         2026-05-08 12:00:22 UTC|0|971982|0|0x55fe300c7430|0x55fe300fbf48|0||app1|0|24";
        assert_eq!(show(clients, std::slice::from_ref(&client)), [texts(published)]);
        client.state = SocketState::ClWaiting;
        client.buffers = Buffers::holding(14);
        let published = published.replace("active", "cl_waiting") + "|14|0|0|0|0|14|0";
        assert_eq!(show(active_sockets, std::slice::from_ref(&client)), [texts(&published)]);
        client.buffers = Buffers { recv_pos: 30, pkt_pos: 20, pkt_remain: 7, send_pos: 5 };
        let moved = published.replace("|14|0|0|0|0|14|0", "|30|20|7|5|0|10|15");
        assert_eq!(show(sockets, &[client]), [texts(&moved)]);
    }

    #[test]
    fn what_is_unknown_has_a_word() {
        let mut client = socket(Home::None, SocketState::ClLogin);
        client.user = None;
        client.link = None;
        client.wait = Micros(u64::MAX);
        client.close_needed = true;
        let row = &show(sockets, &[client])[0];
        let expected = texts("C|(nouser)|(nodb)|none|cl_login");
        assert_eq!(row[..5], expected[..]);
        assert_eq!(row[11..16], texts("2147483647|551615|1|0x55fe300c7430|"));
    }

    #[test]
    fn rows_come_by_pool_and_list() {
        use SocketState::{
            ClActive, ClActiveCancel, ClLogin, ClWaiting, ClWaitingCancel, SvActive, SvActiveCancel, SvBeingCanceled,
            SvIdle, SvLogin, SvTested, SvUsed,
        };
        let states = [
            SvBeingCanceled,
            SvActiveCancel,
            SvLogin,
            SvTested,
            SvUsed,
            SvIdle,
            SvActive,
            ClWaitingCancel,
            ClActiveCancel,
            ClWaiting,
            ClActive,
        ];
        let mut all = vec![socket(Home::None, ClLogin), socket(pool("a"), ClLogin)];
        all.extend([SvActiveCancel, ClActiveCancel, SvLogin].map(|state| socket(Home::PeerPool { peer_id: 1 }, state)));
        all.extend(states.map(|state| socket(pool("b"), state)));
        all.push(socket(pool("a"), ClActive));
        all.push(SocketRow { link: None, ..socket(pool("a"), SvActive) });
        all.push(SocketRow { link: None, ..socket(pool("a"), ClActive) });
        assert_eq!(
            order(clients, &all),
            "a/active a/idle b/active b/waiting b/active_cancel_req b/waiting_cancel_req (nodb)/active_cancel_req "
        );
        assert_eq!(
            order(servers, &all),
            "a/idle b/active b/idle b/used b/tested b/new b/active_cancel b/being_canceled (nodb)/new \
             (nodb)/active_cancel "
        );
        assert_eq!(
            order(sockets, &all),
            "a/cl_active a/cl_active a/sv_active b/cl_active b/cl_waiting b/sv_active b/sv_idle b/sv_used b/sv_tested \
             b/sv_login a/cl_login (nodb)/cl_login "
        );
        assert_eq!(order(active_sockets, &all), "");
    }
}
