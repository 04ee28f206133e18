//! The value of `metrics_listen`: `address:port`, `[address]:port`, `*:port`, or the absolute path of a Unix socket.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use super::value::Value;

/// Where metrics are served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MetricsAddress {
    #[default]
    Nowhere,
    Tcp(SocketAddr),
    /// Every address of the machine.
    Everywhere(u16),
    Unix(PathBuf),
}

impl Value for MetricsAddress {
    const EXPECTED: &'static str = "address:port, *:port, or the absolute path of a socket";

    fn parse(text: &str) -> Option<Self> {
        if text.is_empty() {
            return Some(Self::Nowhere);
        }
        if text.starts_with('/') {
            return Some(Self::Unix(text.into()));
        }
        if let Some(port) = text.strip_prefix("*:") {
            return parse_port(port).map(Self::Everywhere);
        }
        let address: SocketAddr = text.parse().ok()?;
        (address.port() > 0).then_some(Self::Tcp(address))
    }

    fn print(&self) -> Option<String> {
        Some(match self {
            Self::Nowhere => String::new(),
            Self::Tcp(address) => address.to_string(),
            Self::Everywhere(port) => format!("*:{port}"),
            Self::Unix(path) => path.to_string_lossy().into_owned(),
        })
    }
}

impl MetricsAddress {
    /// The socket addresses to try, in this order; the first that can be listened at is enough.
    #[must_use]
    pub fn tcp(&self) -> Vec<SocketAddr> {
        match *self {
            Self::Nowhere | Self::Unix(_) => Vec::new(),
            Self::Tcp(address) => vec![address],
            // one socket takes both families; a machine may lack the new one
            Self::Everywhere(port) => {
                let any = |ip: IpAddr| SocketAddr::new(ip, port);
                vec![any(std::net::Ipv6Addr::UNSPECIFIED.into()), any(Ipv4Addr::UNSPECIFIED.into())]
            }
        }
    }
}

fn parse_port(text: &str) -> Option<u16> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|&port| digits && port > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_printed() {
        for (text, first) in [
            ("", None),
            ("127.0.0.1:9127", Some("127.0.0.1:9127")),
            ("[::1]:9127", Some("[::1]:9127")),
            ("*:9127", Some("[::]:9127")),
            ("/run/x/metrics.sock", None),
        ] {
            let address = MetricsAddress::parse(text).unwrap_or_else(|| panic!("{text} is an address"));
            assert_eq!(address.print().as_deref(), Some(text));
            assert_eq!(address.tcp().first().map(ToString::to_string).as_deref(), first, "{text}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for text in
            ["9127", "localhost:9127", "::1:9127x", "127.0.0.1:0", "*:0", "*:", "*:+1", "*:70000", "*", "a", "./x"]
        {
            assert_eq!(MetricsAddress::parse(text), None, "{text}");
        }
    }
}
