//! Names of answers and requests: long enough that none comes twice.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

static KEYS: LazyLock<[RandomState; 2]> = LazyLock::new(|| [RandomState::new(), RandomState::new()]);
static NEXT: AtomicU64 = AtomicU64::new(0);

/// A new name: the prefix and 24 characters.
pub(crate) fn new(prefix: &str) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut id = prefix.to_owned();
    for key in KEYS.iter() {
        let mut n = key.hash_one(count);
        for _ in 0..12 {
            id.push(char::from(DIGITS[(n % 62) as usize]));
            n = n.rotate_right(5) / 3 + n % 62;
        }
    }
    id
}

/// A number that none can guess.
pub(crate) fn random() -> u64 {
    KEYS[0].hash_one(("number", NEXT.fetch_add(1, Ordering::Relaxed)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn none_comes_twice() {
        let ids: HashSet<_> = (0..20_000).map(|_| new("x-")).collect();
        assert_eq!(ids.len(), 20_000);
        assert!(ids.iter().all(|i| i.len() == 26 && i.starts_with("x-")));
    }
}
