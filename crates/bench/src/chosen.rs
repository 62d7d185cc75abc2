//! The instructions that are the fastest on this processor, measured once and kept in a file of the user's cache.

use crate::machine::cpu_name;
use crate::{Result, kept};
use quarrel_cpu::{Isa, tune};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;

/// The file's name in the cache directory.
const FILE: &str = "instructions.json";

/// The choice for a processor. All but `isa`, `scores` and `measured` is its fingerprint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// What the processor calls itself.
    cpu: String,
    /// What there was to choose from.
    available: Vec<String>,
    /// Whose kernels were measured.
    version: String,
    /// The choice.
    isa: String,
    /// Products in 1e9 per second by instructions; see [`tune::measure`].
    pub scores: BTreeMap<String, f64>,
    /// When: seconds since 1970.
    measured: u64,
}

impl Chosen {
    /// The choice from the cache directory if it was made for this processor and program, else (or with `fresh`) made now
    /// with the scores of `measure` and saved. A file that cannot be read is as none; the second value tells why one could
    /// not be written, which costs the next run the measurement and is no error.
    pub fn new(
        cache: Option<&Path>,
        fresh: bool,
        measure: impl FnOnce() -> Vec<(Isa, f64)>,
    ) -> (Chosen, Result<()>) {
        let available: Vec<String> = Isa::available().iter().map(Isa::to_string).collect();
        let mut now = Chosen {
            cpu: cpu_name(),
            available,
            version: env!("CARGO_PKG_VERSION").into(),
            isa: Isa::detect().to_string(),
            scores: BTreeMap::new(),
            measured: 0,
        };
        let path = cache.map(|c| c.join(FILE));
        let mut known: Vec<Chosen> = path.as_deref().map(kept::read).unwrap_or_default();
        let same = |k: &Chosen| {
            (&k.cpu, &k.available, &k.version) == (&now.cpu, &now.available, &now.version)
                && Isa::named(&k.isa).is_some()
        };
        if let Some(found) = known.iter().find(|k| !fresh && same(k)) {
            return (found.clone(), Ok(()));
        }
        known.retain(|k| !same(k));
        let scores = measure();
        now.isa = tune::pick(&scores).to_string();
        now.scores =
            scores.into_iter().map(|(isa, s)| (isa.to_string(), (s * 10.0).round() / 10.0)).collect();
        now.measured = kept::now();
        known.push(now.clone());
        (now, path.map_or(Ok(()), |p| kept::save(&p, &known)))
    }

    /// The choice.
    pub fn isa(&self) -> Isa {
        Isa::named(&self.isa).unwrap_or_else(Isa::detect) // `new` gives none that is not there
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn a_choice_is_kept_for_its_processor_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Some(dir.path());
        let portable = || vec![(Isa::PORTABLE, 2.0)];
        let never = || panic!("must not measure");
        let (first, saved) = Chosen::new(cache, false, portable);
        saved.unwrap();
        assert_eq!((first.isa(), first.scores["portable"]), (Isa::PORTABLE, 2.0));
        assert_eq!(Chosen::new(cache, false, never).0, first);
        let scores = |c: &Chosen| c.scores["portable"];
        assert_eq!(scores(&Chosen::new(cache, true, || vec![(Isa::PORTABLE, 3.0)]).0), 3.0);
        assert_eq!(scores(&Chosen::new(cache, false, never).0), 3.0, "the newer replaces the older");

        // Another processor, other kernels, a choice that is not there, or no list at all: measured again.
        let path = dir.path().join(FILE);
        let text = fs::read_to_string(&path).unwrap();
        let with = |key: &str| {
            let mut v: serde_json::Value = serde_json::from_str(&text).unwrap();
            v[0][key] = "other".into();
            v.to_string()
        };
        for stale in [with("cpu"), with("version"), with("isa"), "{\"cpu\":1".into()] {
            fs::write(&path, &stale).unwrap();
            assert_eq!(scores(&Chosen::new(cache, false, || vec![(Isa::PORTABLE, 4.0)]).0), 4.0, "{stale}");
        }
    }

    #[test]
    fn a_cache_that_cannot_be_written_is_told_and_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let (chosen, saved) = Chosen::new(Some(&file), false, || vec![(Isa::PORTABLE, 1.0)]);
        assert_eq!(chosen.isa(), Isa::PORTABLE);
        assert!(saved.unwrap_err().to_string().contains(FILE));
        assert!(Chosen::new(None, false, Vec::new).1.is_ok());
    }
}
