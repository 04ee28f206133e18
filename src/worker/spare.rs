//! Buffers for the input of waiting clients, used again and again: a client that queues costs no allocation.

/// Most buffers kept for the next ones who wait.
const MOST: usize = 64;

/// Larger ones are given back to the system.
const LARGEST_BYTES: usize = 4 * 1024;

/// What a client holds input in. Boxed, for an idle client has none and should not pay for it.
pub(super) type Buffer = Box<Vec<u8>>;

/// A worker's empty buffers.
#[derive(Default)]
pub(super) struct Spare(Vec<Buffer>);

impl Spare {
    /// A buffer with `bytes` in it.
    pub(super) fn filled(&mut self, bytes: &[u8]) -> Buffer {
        let mut buffer = self.0.pop().unwrap_or_default();
        buffer.extend_from_slice(bytes);
        buffer
    }

    /// Takes back a buffer that is no longer needed.
    pub(super) fn take_back(&mut self, mut buffer: Buffer) {
        if self.0.len() < MOST && buffer.capacity() <= LARGEST_BYTES {
            buffer.clear();
            self.0.push(buffer);
        }
    }
}
