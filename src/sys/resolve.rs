//! getaddrinfo(3) with its error codes, which std hides and PgBouncer prints.

use std::ffi::{CStr, CString};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::ptr;

use nix::libc;

/// A failed lookup: the EAI code and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupError {
    pub code: i32,
    pub text: String,
}

/// Stream addresses of `host`, in the order the C library prefers; `None` is the wildcard, for listening. Blocks.
///
/// # Errors
/// The code and text of getaddrinfo.
pub fn lookup(host: Option<&str>, port: u16) -> Result<Vec<SocketAddr>, LookupError> {
    let error = |code| LookupError { code, text: text(code) };
    let host = host.map(CString::new).transpose().map_err(|_| error(libc::EAI_NONAME))?;
    let service = CString::new(port.to_string()).map_err(|_| error(libc::EAI_SERVICE))?;
    // SAFETY: addrinfo is plain data for which all zeroes is the documented "no hint".
    let mut hints: libc::addrinfo = unsafe { std::mem::zeroed() };
    hints.ai_flags = libc::AI_PASSIVE;
    hints.ai_socktype = libc::SOCK_STREAM;
    let mut list = ptr::null_mut();
    let host = host.as_ref().map_or(ptr::null(), |h| h.as_ptr());
    // SAFETY: the strings end with a zero and live through the call; `list` receives a list that we free below.
    let code = unsafe { libc::getaddrinfo(host, service.as_ptr(), &raw const hints, &raw mut list) };
    if code != 0 {
        return Err(error(code));
    }
    let mut found = Vec::new();
    let mut item = list;
    // SAFETY: a successful call returns a list that ends with a null pointer and is valid until it is freed.
    while let Some(info) = unsafe { item.as_ref() } {
        found.extend(address(info));
        item = info.ai_next;
    }
    // SAFETY: the list came from getaddrinfo and nothing refers to it any more.
    unsafe { libc::freeaddrinfo(list) };
    Ok(found)
}

/// The address that `host` spells out, if it is no name; an IPv6 one may have a zone.
#[must_use]
pub fn literal(host: &str, port: u16) -> Option<SocketAddr> {
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Some(SocketAddr::new(ip, port));
    }
    let (ip, zone) = host.split_once('%')?;
    let ip: Ipv6Addr = ip.parse().ok()?;
    let scope = zone.parse().ok().or_else(|| nix::net::if_::if_nametoindex(zone).ok())?;
    Some(SocketAddrV6::new(ip, port, 0, scope).into())
}

fn address(info: &libc::addrinfo) -> Option<SocketAddr> {
    let len = usize::try_from(info.ai_addrlen).ok()?;
    match info.ai_family {
        libc::AF_INET if len >= size_of::<libc::sockaddr_in>() && !info.ai_addr.is_null() => {
            // SAFETY: family and length say that this is a sockaddr_in.
            let addr = unsafe { ptr::read_unaligned(info.ai_addr.cast::<libc::sockaddr_in>()) };
            let ip = Ipv4Addr::from(u32::from_be(addr.sin_addr.s_addr));
            Some((ip, u16::from_be(addr.sin_port)).into())
        }
        libc::AF_INET6 if len >= size_of::<libc::sockaddr_in6>() && !info.ai_addr.is_null() => {
            // SAFETY: family and length say that this is a sockaddr_in6.
            let addr = unsafe { ptr::read_unaligned(info.ai_addr.cast::<libc::sockaddr_in6>()) };
            let ip = Ipv6Addr::from(addr.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, u16::from_be(addr.sin6_port), addr.sin6_flowinfo, addr.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn text(code: i32) -> String {
    // SAFETY: gai_strerror returns a constant string for every number.
    unsafe { CStr::from_ptr(libc::gai_strerror(code)) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals_are_no_names() {
        for (host, want) in [
            ("127.0.0.1", Some("127.0.0.1:5")),
            ("::1", Some("[::1]:5")),
            ("fe80::1%3", Some("[fe80::1%3]:5")),
            ("fe80::1%nosuch", None),
            ("db%3", None),
            ("db.example.com", None),
        ] {
            assert_eq!(literal(host, 5).map(|addr| addr.to_string()).as_deref(), want, "{host}");
        }
    }

    #[test]
    fn addresses_and_errors() {
        let list = |host| lookup(host, 6432).unwrap().iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(list(Some("127.0.0.1")), ["127.0.0.1:6432"]);
        assert_eq!(list(Some("::1")), ["[::1]:6432"]);
        assert!(list(None).contains(&"0.0.0.0:6432".to_owned()));
        let error = lookup(Some("nosuch.invalid"), 1).unwrap_err();
        // without a network the resolver may say "try again" instead
        assert!(matches!(error.code, libc::EAI_NONAME | libc::EAI_AGAIN), "{error:?}");
        assert!(!error.text.is_empty());
        assert_eq!(lookup(Some("a\0b"), 1).unwrap_err().text, "Name or service not known");
    }
}
