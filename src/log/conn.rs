//! Whose connection a line is about: the one value from which the prefix of a text line and the fields of a JSON line are
//! made.

use std::fmt;
use std::sync::Arc;

use super::json;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// A connection as log lines name it. `{}` is PgBouncer's prefix, with the blank behind it; `{:#}` members of a JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conn {
    pub side: Side,
    /// The opaque number by which SHOW names it too.
    pub ptr: u64,
    /// A peer, instead of database and user.
    pub peer_id: Option<u16>,
    pub database: Option<Arc<str>>,
    pub user: Option<Arc<str>>,
    /// Without brackets; `unix` for Unix sockets.
    pub addr: String,
    pub port: u16,
    /// Address and port as the prefix has them.
    pub shown: String,
}

impl fmt::Display for Conn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if f.alternate() {
            return self.members(f);
        }
        let side = match self.side {
            Side::Client => 'C',
            Side::Server => 'S',
        };
        match self.peer_id {
            Some(peer_id) => write!(f, "{side}-{:#x}: peer-{peer_id}@{} ", self.ptr, self.shown),
            None => {
                let database = self.database.as_deref().unwrap_or("(nodb)");
                let user = self.user.as_deref().unwrap_or("(nouser)");
                write!(f, "{side}-{:#x}: {database}/{user}@{} ", self.ptr, self.shown)
            }
        }
    }
}

impl Conn {
    fn members(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let side = match self.side {
            Side::Client => "client",
            Side::Server => "server",
        };
        write!(f, ",\"side\":\"{side}\",\"id\":\"{:#x}\"", self.ptr)?;
        if let Some(peer_id) = self.peer_id {
            write!(f, ",\"peer_id\":{peer_id}")?;
        }
        for (name, value) in [("database", self.database.as_deref()), ("user", self.user.as_deref())] {
            if let Some(value) = value {
                write!(f, ",\"{name}\":{}", json::Text(value))?;
            }
        }
        write!(f, ",\"addr\":{},\"port\":{}", json::Text(&self.addr), self.port)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conn() -> Conn {
        Conn {
            side: Side::Client,
            ptr: 0x10,
            peer_id: None,
            database: Some("d".into()),
            user: None,
            addr: "::1".to_owned(),
            port: 5,
            shown: "[::1]:5".to_owned(),
        }
    }

    #[test]
    fn prefix_and_members() {
        assert_eq!(conn().to_string(), "C-0x10: d/(nouser)@[::1]:5 ");
        let members = r#","side":"client","id":"0x10","database":"d","addr":"::1","port":5"#;
        assert_eq!(format!("{:#}", conn()), members);
        let peer = Conn { side: Side::Server, peer_id: Some(3), database: None, ..conn() };
        assert_eq!(peer.to_string(), "S-0x10: peer-3@[::1]:5 ");
        assert_eq!(format!("{peer:#}"), r#","side":"server","id":"0x10","peer_id":3,"addr":"::1","port":5"#);
    }
}
