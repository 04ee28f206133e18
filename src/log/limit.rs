//! Bursts of one kind of line: how many are written in a second, and what is said about the rest.
//!
//! A kind is a place in the program that logs. Time is an argument.

use std::collections::HashMap;
use std::hash::Hash;

/// Counts the lines of each kind `K`.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    kinds: HashMap<K, Kind>,
}

#[derive(Debug)]
struct Kind {
    second: i64,
    written: u32,
    held: Option<Repeated>,
}

/// Lines that were not written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Repeated {
    pub times: u64,
    /// The level of the last one.
    pub word: &'static str,
    /// The last one.
    pub text: String,
}

impl<K: Hash + Eq> Limiter<K> {
    pub(super) fn new() -> Self {
        Self { kinds: HashMap::new() }
    }

    /// May a line of this kind be written in this second, when at most `limit` may? Before it belongs the answer's line, if
    /// any. `text` is asked for only when the line is held back.
    pub(super) fn admit(
        &mut self,
        kind: K,
        second: i64,
        limit: u32,
        word: &'static str,
        text: impl FnOnce() -> String,
    ) -> (bool, Option<Repeated>) {
        let kind = self.kinds.entry(kind).or_insert(Kind { second, written: 0, held: None });
        let before = if kind.second == second { None } else { kind.held.take() };
        if kind.second != second {
            (kind.second, kind.written) = (second, 0);
        }
        if kind.written < limit {
            kind.written += 1;
            return (true, before);
        }
        let times = kind.held.take().map_or(1, |held| held.times + 1);
        kind.held = Some(Repeated { times, word, text: text() });
        (false, before)
    }

    /// What was held back in the seconds before this one.
    pub(super) fn due(&mut self, second: i64) -> Vec<Repeated> {
        let over = self.kinds.values_mut().filter(|kind| kind.second != second);
        over.filter_map(|kind| kind.held.take()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_much_in_a_second_is_counted() {
        let mut limiter = Limiter::new();
        let mut line =
            |kind: u8, second, n: u32| limiter.admit(kind, second, 2, "LOG", || format!("kind {kind} line {n}"));
        for n in 0..5 {
            assert_eq!(line(1, 100, n), (n < 2, None));
        }
        // other kinds are not concerned
        assert_eq!(line(2, 100, 0), (true, None));
        let held = Repeated { times: 3, word: "LOG", text: "kind 1 line 4".to_owned() };
        assert_eq!(line(1, 101, 5), (true, Some(held)));
        assert_eq!(line(1, 101, 6), (true, None));
        assert_eq!(line(1, 101, 7), (false, None));
        assert_eq!(limiter.due(101), []);
        assert_eq!(limiter.due(102), [Repeated { times: 1, word: "LOG", text: "kind 1 line 7".to_owned() }]);
        assert_eq!(limiter.due(103), []);
    }
}
