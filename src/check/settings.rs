//! Settings that do nothing, are there for old files only, or do something else than one may think.

use super::Judge;
use crate::config::PoolMode;

/// Settings that are accepted and change nothing here, and what to do instead.
const WITHOUT_EFFECT: [(&str, &str); 3] = [
    ("job_name", "it named a service of Windows: leave it out"),
    ("client_tls_dheparams", "DHE is not offered, ECDHE is: leave it out"),
    ("pkt_buf", "connections have no buffers of their own, and only values above 32768 count: leave it out"),
];

impl Judge<'_> {
    pub(super) fn settings(&mut self) {
        self.without_effect();
        self.listening();
        self.unreachable();
        self.processes();
        self.resetting();
        self.libraries();
    }

    fn without_effect(&mut self) {
        let s = &self.config().settings;
        for (key, remedy) in WITHOUT_EFFECT {
            if self.says(key) && (key != "pkt_buf" || s.pkt_buf <= 32 * 1024) {
                self.warn(self.at(key), format!("{key} has no effect"), remedy);
            }
        }
        for key in ["tcp_keepcnt", "tcp_keepidle", "tcp_keepintvl"] {
            if self.says(key) && !s.tcp_keepalive.is_on() {
                self.warn(self.at(key), format!("{key} has no effect with tcp_keepalive=0"), "set tcp_keepalive = 1");
            }
        }
        for key in ["syslog_facility", "syslog_ident"] {
            if self.says(key) && !s.syslog.is_on() {
                self.warn(self.at(key), format!("{key} has no effect with syslog=0"), "set syslog = 1");
            }
        }
        if s.syslog.is_on() && !(self.machine.facility_exists)(&s.syslog_facility) {
            let text = format!("there is no syslog facility \"{}\", and daemon counts", s.syslog_facility);
            self.warn(self.at("syslog_facility"), text, "write auth, authpriv, daemon, user or local0 to local7");
        }
        if self.says("conffile") {
            let text = "conffile sends the next reload to another file";
            self.warn(self.at("conffile"), text, "leave it out: the file given on the command line is read again");
        }
    }

    fn listening(&mut self) {
        let s = &self.config().settings;
        if s.listen_addr.trim().is_empty() && s.unix_socket_dir.is_empty() {
            let text = "there is nowhere to listen: listen_addr and unix_socket_dir are empty";
            self.error(self.at("listen_addr"), text, "set one of them, unless systemd passes sockets");
        }
        if !(1..=65535).contains(&s.listen_port) {
            let text = format!("listen_port={} is not a port number", s.listen_port);
            self.error(self.at("listen_port"), text, "write a number from 1 to 65535");
        }
    }

    /// A database without a host is at the Unix socket in our own directory.
    fn unreachable(&mut self) {
        if !self.config().settings.unix_socket_dir.is_empty() {
            return;
        }
        let entries = self.config().databases.values();
        let mut lost: Vec<&str> = entries.filter(|db| db.host.is_none()).map(|db| &*db.name).collect();
        if let Some(Ok(db)) = self.config().auto_database("*") {
            lost.extend(db.host.is_none().then_some("*"));
        }
        for name in lost {
            let text = format!("database \"{name}\" has no host, and unix_socket_dir is empty");
            self.error(self.at_database(name), text, "write host=: there is no Unix socket to reach it by");
        }
    }

    /// Several processes on one port, and who forwards cancel requests to whom.
    fn processes(&mut self) {
        let s = &self.config().settings;
        let peers = &self.config().peers;
        if s.so_reuseport.is_on() && s.peer_id == 0 {
            let text = "so_reuseport without peer_id: a cancel request that reaches another process is lost";
            self.warn(self.at("so_reuseport"), text, "give each process a peer_id, and list all of them in [peers]");
        }
        if s.peer_id != 0 && peers.is_empty() {
            self.warn(self.at("peer_id"), "peer_id is set and there are no [peers]", "list the other processes there");
        }
        if let Some(place) = self.survey.peers.values().next().filter(|_| s.peer_id == 0) {
            self.warn(place.clone(), "[peers] without peer_id: nobody is a peer of this process", "set peer_id");
        }
        if !(0..=i64::from(u16::MAX)).contains(&s.peer_id) {
            let text = format!("peer_id={} is out of range", s.peer_id);
            self.error(self.at("peer_id"), text, "write a number from 1 to 65535");
        }
    }

    fn resetting(&mut self) {
        let s = &self.config().settings;
        if s.server_reset_query_always.is_on() && s.pool_mode != PoolMode::Session {
            let text = "server_reset_query_always costs a round trip to the server for every transaction";
            let remedy = "leave it out: in transaction mode clients must not rely on the state of a server";
            self.warn(self.at("server_reset_query_always"), text, remedy);
        }
        if s.server_reset_query.is_empty() && s.pool_mode == PoolMode::Session {
            let text = "servers pass from client to client with everything the last one has set";
            self.warn(self.at("server_reset_query"), text, "set server_reset_query = DISCARD ALL");
        }
    }

    fn libraries(&mut self) {
        if let Some(missing) = (self.machine.missing_library)(self.config()) {
            let text = format!("auth_type=pam cannot be used: {missing}");
            self.error(self.at("auth_type"), text, "install the library");
        }
    }
}
