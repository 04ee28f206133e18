//! How long the scanner takes to find the messages of what was read.

use divan::{Bencher, black_box, counter::BytesCount};
use pgusher::wire::encode;
use pgusher::wire::scan::Scanner;

fn main() {
    divan::main();
}

/// `max_packet_size` as it comes.
const LIMIT: u32 = i32::MAX as u32;
/// About what one read brings.
const READ_BYTES: usize = 64 * 1024;

/// So many messages with a body of `body` bytes as fit into one read.
fn rows(body: usize) -> Vec<u8> {
    let mut all = Vec::new();
    while all.len() + body + 5 <= READ_BYTES {
        encode::message(&mut all, b'D', |out| out.resize(out.len() + body, 0));
    }
    all
}

fn messages(input: &[u8], scanner: &mut Scanner) -> usize {
    let (mut pos, mut found) = (0, 0);
    while let Ok(Some(item)) = scanner.next(input, &mut pos, LIMIT) {
        black_box(item);
        found += 1;
    }
    found
}

/// One query: what a client mostly sends.
#[divan::bench]
fn one_query(bencher: Bencher<'_, '_>) {
    let mut input = Vec::new();
    encode::query(&mut input, b"SELECT abalance FROM pgbench_accounts WHERE aid = 4711");
    bencher.bench_local(|| messages(black_box(&input), &mut Scanner::default()));
}

/// A whole read of rows, by the bytes of a row.
#[divan::bench(args = [20, 100, 1000])]
fn read_of_rows(bencher: Bencher<'_, '_>, body: usize) {
    let input = rows(body);
    bencher.counter(BytesCount::of_slice(&input)).bench_local(|| messages(black_box(&input), &mut Scanner::default()));
}

/// The same rows in pieces that cut headers and bodies.
#[divan::bench(args = [100, 1000])]
fn rows_cut_into_pieces(bencher: Bencher<'_, '_>, piece: usize) {
    let input = rows(100);
    bencher.counter(BytesCount::of_slice(&input)).bench_local(|| {
        let mut scanner = Scanner::default();
        black_box(&input).chunks(piece).map(|piece| messages(piece, &mut scanner)).sum::<usize>()
    });
}
