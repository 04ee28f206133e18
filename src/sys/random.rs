//! Random bytes from the kernel, many at a time: one call serves many logins.

use zeroize::Zeroize as _;

/// Bytes fetched at once.
const SUPPLY: usize = 1024;

/// Bytes that nobody has had yet.
#[derive(Debug)]
pub struct Random {
    bytes: Box<[u8; SUPPLY]>,
    used: usize,
}

impl Default for Random {
    fn default() -> Self {
        Self { bytes: Box::new([0; SUPPLY]), used: SUPPLY }
    }
}

impl Random {
    /// The next bytes, which are forgotten here.
    ///
    /// # Errors
    /// The kernel has none.
    pub fn take<const N: usize>(&mut self) -> Result<[u8; N], getrandom::Error> {
        const { assert!(N <= SUPPLY) };
        if SUPPLY - self.used < N {
            getrandom::fill(&mut *self.bytes)?;
            self.used = 0;
        }
        let mut taken = [0; N];
        let place = &mut self.bytes[self.used..self.used + N];
        taken.copy_from_slice(place);
        place.zeroize();
        self.used += N;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn nothing_is_given_twice() {
        let mut random = Random::default();
        let taken: BTreeSet<[u8; 44]> = (0..1000).map(|_| random.take().expect("the kernel has some")).collect();
        assert_eq!(taken.len(), 1000);
        assert!(random.bytes[..random.used].iter().all(|&byte| byte == 0));
    }
}
