//! Who is in the middle of a TCP handshake with a port of this machine.
//!
//! The kernel lists connections in `/proc/net/tcp` and `tcp6`: local address and port, remote ones, state, all hexadecimal.

use std::collections::BTreeSet;
use std::fs;

/// The state of a connection whose peer has not yet said what makes the kernel hand it out.
const SYN_RECV: &str = "03";

/// The far ends, as the kernel writes them, of handshakes with `port`. Where the lists cannot be read there are none.
#[must_use]
pub fn under_way(port: u16) -> BTreeSet<String> {
    let lists = ["/proc/net/tcp", "/proc/net/tcp6"];
    lists.iter().filter_map(|list| fs::read_to_string(list).ok()).flat_map(|text| far_ends(&text, port)).collect()
}

fn far_ends(text: &str, port: u16) -> Vec<String> {
    let port = format!("{port:04X}");
    let far_end = |line: &str| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, remote, state) = (fields.next()?, fields.next()?, fields.next()?);
        (local.rsplit(':').next() == Some(port.as_str()) && state == SYN_RECV).then(|| remote.to_owned())
    };
    text.lines().skip(1).filter_map(far_end).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handshakes_are_found_by_port_and_state() {
        let text = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
                    0: 0100007F:1920 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1 1 0\n   \
                    1: 0100007F:1921 0100007F:C350 03 00000000:00000000 01:00000064 00000000     0        0 0 1 0\n   \
                    2: 0100007F:1920 0100007F:C351 01 00000000:00000000 00:00000000 00000000     0        0 2 1 0\n";
        assert_eq!(far_ends(text, 0x1921), ["0100007F:C350"]);
        assert!(far_ends(text, 0x1920).is_empty());
        assert!(far_ends("", 1).is_empty());
    }
}
