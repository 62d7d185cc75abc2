//! Ids and secrets: letters and digits from the system's random source.

use crate::{Error, Result};

const BASE62: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// `count` characters, each of the 62 equally likely.
pub(crate) fn random(prefix: &str, count: usize) -> Result<String> {
    let mut out = String::with_capacity(prefix.len() + count);
    out.push_str(prefix);
    let mut bytes = [0u8; 64];
    while out.len() < prefix.len() + count {
        getrandom::fill(&mut bytes).map_err(Error::Random)?;
        // 248 is the largest multiple of 62 in a byte: taking the rest of a larger byte would favour some characters.
        let fair = bytes.iter().filter(|b| **b < 248).map(|b| char::from(BASE62[usize::from(b % 62)]));
        out.extend(fair.take(prefix.len() + count - out.len()));
    }
    Ok(out)
}

/// An id of 24 random characters (143 bits) behind its prefix.
pub(crate) fn id(prefix: &str) -> Result<String> {
    random(prefix, 24)
}

/// A new id for [`crate::Store::put_response`]; a stream needs it before there is anything to store.
pub fn new_response_id() -> Result<String> {
    id("resp_")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn shape_and_spread() {
        let ids: BTreeSet<String> = (0..2000).map(|_| id("conv_").unwrap()).collect();
        assert_eq!(ids.len(), 2000);
        let mut seen = BTreeSet::new();
        for id in &ids {
            assert_eq!(id.len(), 29);
            assert!(id.strip_prefix("conv_").unwrap().bytes().all(|b| BASE62.contains(&b)), "{id}");
            seen.extend(id.as_bytes()[5..].iter().copied());
        }
        assert_eq!(seen.len(), 62, "every character occurs among 48,000");
        assert_eq!(random("qk_", 43).unwrap().len(), 46);
    }
}
