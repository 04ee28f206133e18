//! Answers of the console on their way to the client, a part at a time: a list of thousands of connections is megabytes, and
//! copying and sending them in one go would hold up everybody's queries for milliseconds.

use std::collections::VecDeque;

use crate::admin::reply::next_message;

/// About how many bytes are handed out at a time, which takes some ten microseconds.
const PART: usize = 64 << 10;

/// The answers that are not sent yet, in order.
#[derive(Debug, Default)]
pub struct Answers(VecDeque<Answer>);

#[derive(Debug)]
struct Answer {
    bytes: Vec<u8>,
    given: usize,
    /// The command was one that waits.
    waited: bool,
}

/// Whole messages of an answer.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<'a> {
    pub bytes: &'a [u8],
    /// The answer ends with it.
    pub last: bool,
    /// The command was one that waits.
    pub waited: bool,
}

impl Answers {
    pub fn push(&mut self, bytes: Vec<u8>, waited: bool) {
        self.0.push_back(Answer { bytes, given: 0, waited });
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Hands the next part to `take`.
    pub fn next(&mut self, take: impl FnOnce(Part<'_>)) {
        let Some(answer) = self.0.front_mut() else { return };
        let from = answer.given;
        answer.given += whole_messages(&answer.bytes[from..]);
        let last = answer.given == answer.bytes.len();
        take(Part { bytes: &answer.bytes[from..answer.given], last, waited: answer.waited });
        if last {
            self.0.pop_front();
        }
    }
}

/// The length of the messages that `bytes` begins with, as many as make a part; at least one.
fn whole_messages(bytes: &[u8]) -> usize {
    let mut rest = bytes;
    while bytes.len() - rest.len() < PART {
        if next_message(&mut rest).is_none() {
            return bytes.len();
        }
    }
    bytes.len() - rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::admin::reply::message;

    fn row(length: usize) -> Vec<u8> {
        let mut out = Vec::new();
        message(&mut out, b'D', |out| out.resize(out.len() + length, b'x'));
        out
    }

    fn parts(answers: &mut Answers) -> Vec<(usize, bool, bool)> {
        let mut seen = Vec::new();
        while !answers.is_empty() {
            answers.next(|part| seen.push((part.bytes.len(), part.last, part.waited)));
        }
        seen
    }

    #[test]
    fn answers_go_out_in_order_and_in_whole_messages() {
        let mut answers = Answers::default();
        answers.push(row(995).repeat(100), false);
        answers.push(row(5), true);
        answers.push(row(100_000), false);
        assert_eq!(
            parts(&mut answers),
            [(66_000, false, false), (34_000, true, false), (10, true, true), (100_005, true, false)]
        );
    }

    #[test]
    fn nothing_is_lost_or_doubled() {
        let whole: Vec<u8> = (0..3000).flat_map(row).collect();
        let mut answers = Answers::default();
        answers.push(whole.clone(), false);
        let mut sent = Vec::new();
        while !answers.is_empty() {
            answers.next(|part| sent.extend_from_slice(part.bytes));
        }
        assert_eq!(sent, whole);
    }
}
