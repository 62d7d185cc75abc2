//! The adapters of an engine, by name: which are loaded, who uses them, and what they take. Handles and the engine's thread
//! share the registry; only that thread calls the device.
//!
//! A name that is unloaded is gone at once: no request can choose it any more, and another adapter may take it. Requests
//! that have it keep it to their end; its memory is freed with the last of them.

use crate::block_manager::Digest;
use crate::{Error, Result};
use quarrel_ir::{Adapter, AdapterPart};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Longest name in bytes.
const NAME_MAX: usize = 128;

/// Bounds on what is loaded at once, adapters that are being freed included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdapterLimits {
    /// Adapters.
    pub count: usize,
    /// Bytes of all, as [`AdapterInfo::bytes`] counts them.
    pub bytes: usize,
}

impl Default for AdapterLimits {
    /// 64 adapters, 4 GiB: some 25 of rank 16 on every matrix of an 8B model.
    fn default() -> Self {
        AdapterLimits { count: 64, bytes: 4 << 30 }
    }
}

/// A loaded adapter, for lists.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterInfo {
    /// What requests call it.
    pub name: String,
    /// Where it came from.
    pub path: String,
    /// Smallest and largest rank.
    pub rank: (usize, usize),
    /// Matrices that it changes.
    pub targets: usize,
    /// Multiplies the scale that the file gives.
    pub scale: f32,
    /// Bytes of A and B as the device holds them, in f32.
    pub bytes: usize,
    /// Requests that wait or run with it now.
    pub uses: usize,
    /// Requests that were ever given it.
    pub requests: u64,
}

/// An adapter that is fitted to the model, on its way to the device.
pub(crate) struct NewAdapter {
    pub(crate) info: AdapterInfo,
    pub(crate) parts: Vec<AdapterPart>,
    /// Of everything that it changes.
    digest: Digest,
}

impl NewAdapter {
    pub(crate) fn new(
        name: &str,
        path: String,
        scale: f32,
        rank: (usize, usize),
        parts: Vec<AdapterPart>,
    ) -> NewAdapter {
        let bytes = 4 * parts.iter().map(|p| p.a.len() + p.b.len()).sum::<usize>();
        let (name, targets, digest) = (name.to_string(), parts.len(), digest(&parts));
        let info = AdapterInfo { name, path, rank, targets, scale, bytes, uses: 0, requests: 0 };
        NewAdapter { info, parts, digest }
    }
}

fn digest(parts: &[AdapterPart]) -> Digest {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for p in parts {
        let sizes = [u64::from(p.weight.0), p.part as u64, p.a.len() as u64, p.b.len() as u64];
        sizes.iter().for_each(|n| hash.update(n.to_le_bytes()));
        hash.update(p.scale.to_le_bytes());
        for values in [&p.a, &p.b] {
            bytes.clear();
            bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
            hash.update(&bytes);
        }
    }
    hash.finalize().into()
}

struct Entry {
    info: AdapterInfo,
    handle: Adapter,
    digest: Digest,
}

/// The registry.
pub(crate) struct Adapters {
    limits: AdapterLimits,
    by_name: BTreeMap<String, Entry>,
    /// Unloaded, but with requests at work.
    leaving: Vec<Entry>,
    /// For the device to free.
    free: Vec<Adapter>,
}

/// The registry, shared.
#[derive(Clone)]
pub(crate) struct Registry(Arc<Mutex<Adapters>>);

impl Registry {
    pub(crate) fn new(limits: AdapterLimits) -> Registry {
        let (by_name, leaving, free) = (BTreeMap::new(), Vec::new(), Vec::new());
        Registry(Arc::new(Mutex::new(Adapters { limits, by_name, leaving, free })))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Adapters> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter of this name for one more request.
    pub(crate) fn acquire(&self, name: &str) -> Result<Use> {
        let (handle, digest) = self.lock().acquire(name)?;
        Ok(Use { registry: self.clone(), handle, digest })
    }
}

/// A request's hold on an adapter.
pub(crate) struct Use {
    registry: Registry,
    pub(crate) handle: Adapter,
    digest: Digest,
}

impl Use {
    /// The digest before the first block of sequences that have it: keys and values are this adapter's, so no other one's
    /// sequences, nor those without, may share them; nor those of another load, whose number is a part of it.
    pub(crate) fn root(&self, model: &Digest) -> Digest {
        let hash = Sha256::new().chain_update(model).chain_update(self.digest);
        hash.chain_update(self.handle.0.to_le_bytes()).finalize().into()
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        self.registry.lock().release(self.handle);
    }
}

fn refused<T>(name: &str, why: impl Into<String>) -> Result<T> {
    Err(Error::Adapter { name: name.into(), why: why.into() })
}

impl Adapters {
    /// Whether an adapter may be loaded; asked before the device is.
    pub(crate) fn check_new(&self, info: &AdapterInfo) -> Result<()> {
        let name = &info.name;
        let allowed = |c: char| c.is_ascii_graphic();
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(allowed) {
            return refused(
                name,
                format!("the name must be 1 to {NAME_MAX} visible ASCII characters without spaces"),
            );
        }
        if self.by_name.contains_key(name) {
            return refused(name, "is loaded already; unload it first or choose another name");
        }
        let (count, bytes) = self.held();
        if count >= self.limits.count {
            return refused(
                name,
                format!("{} adapters are loaded, which is the limit; unload one", self.limits.count),
            );
        }
        let bytes = bytes.saturating_add(info.bytes);
        if bytes > self.limits.bytes {
            let why = format!(
                "needs {} bytes, which makes {bytes} with those that are loaded; the limit is {}: unload one",
                info.bytes, self.limits.bytes
            );
            return refused(name, why);
        }
        Ok(())
    }

    /// Books what the device has taken in, after [`Adapters::check_new`].
    pub(crate) fn insert(&mut self, new: NewAdapter, handle: Adapter) {
        let NewAdapter { info, digest, .. } = new;
        self.by_name.insert(info.name.clone(), Entry { info, handle, digest });
    }

    fn acquire(&mut self, name: &str) -> Result<(Adapter, Digest)> {
        if let Some(entry) = self.by_name.get_mut(name) {
            entry.info.uses += 1;
            entry.info.requests += 1;
            return Ok((entry.handle, entry.digest));
        }
        let known: Vec<_> = self.by_name.keys().take(10).map(String::as_str).collect();
        let known =
            if known.is_empty() { "none is".into() } else { format!("loaded are {}", known.join(", ")) };
        refused(name, format!("is not loaded; {known}"))
    }

    fn release(&mut self, handle: Adapter) {
        if let Some(entry) = self.by_name.values_mut().find(|e| e.handle == handle) {
            entry.info.uses -= 1;
            return;
        }
        let Some(at) = self.leaving.iter().position(|e| e.handle == handle) else { return };
        self.leaving[at].info.uses -= 1;
        if self.leaving[at].info.uses == 0 {
            self.free.push(self.leaving.swap_remove(at).handle);
        }
    }

    /// Takes a name away; the answer is how many requests still have the adapter.
    pub(crate) fn unload(&mut self, name: &str) -> Result<usize> {
        let Some(entry) = self.by_name.remove(name) else { return refused(name, "is not loaded") };
        let uses = entry.info.uses;
        if uses == 0 {
            self.free.push(entry.handle);
        } else {
            self.leaving.push(entry);
        }
        Ok(uses)
    }

    /// What the device is to free now.
    pub(crate) fn take_free(&mut self) -> Vec<Adapter> {
        std::mem::take(&mut self.free)
    }

    /// Adapters and their bytes, those included that leave with their last request.
    pub(crate) fn held(&self) -> (usize, usize) {
        let all = || self.by_name.values().chain(&self.leaving);
        (all().count(), all().map(|e| e.info.bytes).sum())
    }

    /// What is loaded, by name.
    pub(crate) fn list(&self) -> Vec<AdapterInfo> {
        self.by_name.values().map(|e| e.info.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use quarrel_ir::WeightId;
    use std::collections::HashMap;

    fn new(name: &str, floats: usize) -> NewAdapter {
        let part =
            AdapterPart { weight: WeightId(0), part: 0, a: vec![0.5; floats], b: Vec::new(), scale: 1.0 };
        NewAdapter::new(name, "a.gguf".into(), 1.0, (8, 8), vec![part])
    }

    fn registry(count: usize, floats: usize) -> Registry {
        Registry::new(AdapterLimits { count, bytes: 4 * floats })
    }

    impl Registry {
        fn insert(&self, name: &str, floats: usize, handle: u32) {
            self.lock().insert(new(name, floats), Adapter(handle));
        }

        fn refuses(&self, name: &str, floats: usize) -> Option<String> {
            self.lock().check_new(&new(name, floats).info).err().map(|e| e.to_string())
        }
    }

    #[test]
    fn names_and_bounds_are_checked() {
        let all = registry(2, 100);
        let long = "x".repeat(129);
        for name in ["", "a b", "ä", "tab\t", &long] {
            let e = all.refuses(name, 1).unwrap();
            assert!(e.contains("visible ASCII"), "{e}");
        }
        assert_eq!(all.refuses("org/poems-v1.2", 100), None);
        all.insert("a", 60, 0);
        for (name, floats, why) in [
            ("a", 1, "is loaded already"),
            ("b", 41, "164 bytes, which makes 404"),
            ("b", 1000, "limit is 400"),
        ] {
            let e = all.refuses(name, floats).unwrap();
            assert!(e.contains(why), "{e}");
        }
        all.insert("b", 40, 1);
        assert!(all.refuses("c", 0).unwrap().contains("2 adapters are loaded"));
        assert_eq!(all.lock().held(), (2, 400));
    }

    #[test]
    fn an_unknown_name_is_refused_with_those_that_are_known() {
        let all = registry(9, 9);
        let refused = |name| all.acquire(name).err().unwrap().to_string();
        assert!(refused("a").contains("adapter \"a\": is not loaded; none is"));
        all.insert("b", 1, 7);
        assert!(refused("a").contains("loaded are b"));
        assert!(all.lock().unload("a").is_err());
    }

    #[test]
    fn what_is_in_use_leaves_with_its_last_request_and_its_name_is_free_at_once() {
        let all = registry(2, 100);
        all.insert("a", 50, 0);
        let (first, second) = (all.acquire("a").unwrap(), all.acquire("a").unwrap());
        let listed = all.lock().list().remove(0);
        assert_eq!((first.handle, listed.uses, listed.requests), (Adapter(0), 2, 2));
        assert_eq!(all.lock().unload("a").unwrap(), 2);
        assert!(all.lock().list().is_empty() && all.acquire("a").is_err());
        // It still counts.
        assert!(all.refuses("a", 51).is_some());
        assert_eq!(all.refuses("a", 50), None);
        all.insert("a", 50, 1);
        let third = all.acquire("a").unwrap();
        assert_eq!(third.handle, Adapter(1));
        drop(first);
        assert_eq!(all.lock().take_free(), []);
        drop(second);
        assert_eq!(all.lock().take_free(), [Adapter(0)]);
        drop(third);
        assert_eq!(all.lock().unload("a").unwrap(), 0);
        assert_eq!(all.lock().take_free(), [Adapter(1)]);
        assert_eq!(all.lock().held(), (0, 0));
    }

    #[test]
    fn roots_differ_by_model_content_and_load() {
        let all = registry(9, 900);
        all.insert("a", 10, 0);
        all.insert("same", 10, 1);
        all.insert("other", 11, 2);
        let mut roots: Vec<Digest> = vec![[0; 32], [1; 32]];
        for name in ["a", "same", "other"] {
            roots.extend([[0; 32], [1; 32]].map(|model| all.acquire(name).unwrap().root(&model)));
        }
        // Another process's adapter may have the number of one here.
        let elsewhere = registry(9, 900);
        elsewhere.insert("a", 11, 0);
        roots.push(elsewhere.acquire("a").unwrap().root(&[0; 32]));
        let again = all.acquire("a").unwrap().root(&[0; 32]);
        assert_eq!(roots.iter().filter(|r| **r == again).count(), 1);
        roots.sort();
        roots.dedup();
        assert_eq!(roots.len(), 9);
    }

    proptest! {
        /// Whatever the order, an adapter is freed once, after its last use, and counts never go wrong.
        #[test]
        fn every_adapter_is_freed_once_and_never_in_use(ops in prop::collection::vec((0u8..4, 0usize..3), 1..80)) {
            let all = registry(5, 1000);
            let names = ["a", "b", "c"];
            let (mut next, mut held, mut freed) = (0, Vec::<Use>::new(), Vec::<Adapter>::new());
            let mut loaded: HashMap<&str, Adapter> = HashMap::new();
            for (op, n) in ops {
                let name = names[n];
                match op {
                    0 => if all.refuses(name, 10).is_none() {
                        all.insert(name, 10, next);
                        loaded.insert(name, Adapter(next));
                        next += 1;
                    },
                    1 => match all.acquire(name) {
                        Ok(a) => { prop_assert_eq!(Some(&a.handle), loaded.get(name)); held.push(a) }
                        Err(_) => prop_assert!(!loaded.contains_key(name)),
                    },
                    2 => if !held.is_empty() {
                        drop(held.swap_remove(n % held.len()));
                    },
                    _ => {
                        let uses = all.lock().unload(name);
                        if let Ok(uses) = uses {
                            let a = loaded.remove(name).expect("only what is loaded can be unloaded");
                            prop_assert_eq!(uses, held.iter().filter(|h| h.handle == a).count());
                        }
                    }
                }
                freed.extend(all.lock().take_free());
                prop_assert!(held.iter().all(|h| !freed.contains(&h.handle)));
                let listed: usize = all.lock().list().iter().map(|i| i.uses).sum();
                prop_assert!(listed <= held.len());
            }
            held.clear();
            for name in names {
                let _ = all.lock().unload(name); // not all are loaded
            }
            freed.extend(all.lock().take_free());
            freed.sort();
            prop_assert_eq!(freed, (0..next).map(Adapter).collect::<Vec<_>>());
        }
    }
}
