//! Blocks below the device: in ordinary memory, and on disk, where they survive the process.
//!
//! A block is named by the digest of its tokens, of all before them, and of the model, device and number type that made its
//! bytes; so whatever has the name has the bytes, and a run that finds it gives the same output as one that computes it.
//! The engine's thread only touches memory: files are written and read by a thread of the tier.

mod disk;

use crate::block_manager::Digest;
use crate::scheduler::Below;
use crate::{Error, Result};
pub use disk::DiskCache;
use disk::{Disk, Request};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, TrySendError, channel, sync_channel},
    },
    thread::JoinHandle,
    time::Duration,
};

/// A block's bytes.
pub(crate) type Bytes = Arc<[u8]>;

/// Memory through which blocks go to the disk and come from it, at least.
const STAGING: usize = 64 << 20;

/// Blocks in memory, the longest unused of which goes first.
#[derive(Debug, Default)]
pub(crate) struct Host {
    blocks: HashMap<Digest, (Bytes, u64)>,
    order: BTreeMap<u64, Digest>,
    next: u64,
    bytes: usize,
    limit: usize,
}

impl Host {
    fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        let (data, stamp) = self.blocks.get_mut(digest)?;
        self.order.remove(stamp);
        *stamp = self.next;
        self.order.insert(self.next, *digest);
        self.next += 1;
        Some(data.clone())
    }

    fn put(&mut self, digest: Digest, data: Bytes) {
        if data.len() > self.limit || self.get(&digest).is_some() {
            return;
        }
        while self.bytes + data.len() > self.limit {
            let Some((_, oldest)) = self.order.pop_first() else { return };
            if let Some((gone, _)) = self.blocks.remove(&oldest) {
                self.bytes -= gone.len();
            }
        }
        self.bytes += data.len();
        self.order.insert(self.next, digest);
        self.blocks.insert(digest, (data, self.next));
        self.next += 1;
    }
}

/// What became of a request's blocks on disk: they are in memory now, as far as they were good.
pub(crate) type Fetched = u64;

/// The tier of one engine.
pub(crate) struct Tier {
    host: Arc<Mutex<Host>>,
    /// Whether memory was asked for, and is not only there for the disk's sake.
    spills: bool,
    disk: Option<Arc<Disk>>,
    requests: Option<SyncSender<Request>>,
    /// Requests whose blocks have come.
    pub(crate) fetched: Receiver<Fetched>,
    thread: Option<JoinHandle<()>>,
}

/// Blocks that wait to be written; beyond this they are not.
const WRITES_MAX: usize = 256;

impl Tier {
    /// Opens the tier: `memory` bytes of blocks of `block_bytes`, and a directory.
    pub(crate) fn open(memory: usize, dir: Option<&DiskCache>, block_bytes: usize) -> Result<Tier> {
        if block_bytes == 0 {
            let why = "cannot move blocks of its cache; leave out host_cache and disk_cache".into();
            let device = "this device".into();
            return Err(Error::Device(Arc::new(quarrel_ir::Error::Device { device, why })));
        }
        let limit = if dir.is_some() { memory.max(STAGING).max(4 * block_bytes) } else { memory };
        let host = Arc::new(Mutex::new(Host { limit, ..Host::default() }));
        let (done, fetched) = channel();
        let disk = dir.map(|d| Disk::open(d, block_bytes).map(Arc::new)).transpose()?;
        let (mut requests, mut thread) = (None, None);
        if let Some(disk) = disk.clone() {
            let (sender, receiver) = sync_channel(WRITES_MAX);
            let host = host.clone();
            let work = move || disk.serve(&receiver, &host, &done);
            let started = std::thread::Builder::new().name("kv-store".into()).spawn(work);
            thread = Some(started.map_err(|e| Error::Thread(e.to_string()))?);
            requests = Some(sender);
        }
        Ok(Tier { host, spills: memory > 0, disk, requests, fetched, thread })
    }

    /// The tier as a scheduler sees it while it plans; `pays` says whether fetching a block is cheaper than computing it.
    pub(crate) fn view(&self, pays: bool) -> View<'_> {
        View { tier: self, host: lock(&self.host), pays }
    }

    /// Keeps a block.
    pub(crate) fn put(&self, digest: Digest, data: Bytes) {
        if let Some(requests) = self.requests.as_ref().filter(|_| !self.on_disk(&digest)) {
            match requests.try_send(Request::Write(digest, data.clone())) {
                Ok(()) | Err(TrySendError::Disconnected(_)) => {}
                // The disk cannot keep up; the block is computed again some day.
                Err(TrySendError::Full(_)) => self.disk.iter().for_each(|d| d.note_dropped()),
            }
        }
        lock(&self.host).put(digest, data);
    }

    /// Starts to fetch what a request needs of `digests` from the disk; `false` if there is nothing to fetch, or no way.
    pub(crate) fn fetch(&self, request: u64, digests: &[Digest]) -> bool {
        let Some(requests) = &self.requests else { return false };
        let host = lock(&self.host);
        let most = host.limit / 2 / self.disk.as_ref().map_or(1, |d| d.block_bytes());
        let at_hand = |d: &&Digest| host.blocks.contains_key(*d);
        let here = digests.iter().take_while(at_hand).count();
        let there: Vec<Digest> =
            digests[here..].iter().take_while(|d| self.on_disk(d)).take(most).copied().collect();
        drop(host);
        !there.is_empty() && requests.try_send(Request::Read(request, there)).is_ok()
    }

    fn on_disk(&self, digest: &Digest) -> bool {
        self.disk.as_ref().is_some_and(|d| d.has(digest))
    }

    /// Figures for the statistics: blocks and bytes in memory, on disk, and files that were damaged and writes that were
    /// left out.
    pub(crate) fn figures(&self) -> Figures {
        let host = lock(&self.host);
        let (host_blocks, host_bytes) = (host.blocks.len(), host.bytes);
        drop(host);
        let disk = self.disk.as_ref().map(|d| d.figures()).unwrap_or_default();
        Figures { host_blocks, host_bytes, ..disk }
    }
}

/// See [`Tier::figures`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Figures {
    pub(crate) host_blocks: usize,
    pub(crate) host_bytes: usize,
    pub(crate) disk_blocks: usize,
    pub(crate) disk_bytes: u64,
    pub(crate) damaged: u64,
    pub(crate) dropped: u64,
}

impl Drop for Tier {
    fn drop(&mut self) {
        // The thread writes what it was given and ends.
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(host: &Mutex<Host>) -> MutexGuard<'_, Host> {
    host.lock().unwrap_or_else(PoisonError::into_inner)
}

/// See [`Tier::view`].
pub(crate) struct View<'a> {
    tier: &'a Tier,
    host: MutexGuard<'a, Host>,
    pays: bool,
}

impl View<'_> {
    /// The bytes of a block that the scheduler wants loaded.
    pub(crate) fn get(&mut self, digest: &Digest) -> Option<Bytes> {
        self.host.get(digest)
    }
}

impl Below for View<'_> {
    fn has(&self, digest: &Digest) -> bool {
        self.pays && self.host.blocks.contains_key(digest)
    }

    fn wants(&self, digest: &Digest) -> bool {
        let kept = self.host.blocks.contains_key(digest);
        let for_disk = self.tier.disk.is_some() && !self.tier.on_disk(digest);
        for_disk || self.tier.spills && self.pays && !kept
    }

    fn persists(&self) -> bool {
        self.tier.disk.is_some()
    }
}

/// What moving a block costs, measured.
#[derive(Debug, Default)]
pub(crate) struct MoveCost {
    save: Option<f64>,
    load: Option<f64>,
}

impl MoveCost {
    pub(crate) fn saved(&mut self, elapsed: Duration) {
        average(&mut self.save, elapsed);
    }

    pub(crate) fn loaded(&mut self, elapsed: Duration) {
        average(&mut self.load, elapsed);
    }

    /// Whether keeping and fetching a block is cheaper than computing it, at so much a block; unknown counts as yes.
    pub(crate) fn pays(&self, compute: Duration) -> bool {
        self.save.unwrap_or(0.0) + self.load.unwrap_or(0.0) < compute.as_secs_f64()
    }
}

fn average(mean: &mut Option<f64>, elapsed: Duration) {
    let s = elapsed.as_secs_f64();
    *mean = Some(mean.map_or(s, |m| m + 0.1 * (s - m)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(i: u8) -> Digest {
        [i; 32]
    }

    fn block(i: u8) -> Bytes {
        vec![i; 100].into()
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_was_used_last() {
        let mut host = Host { limit: 350, ..Host::default() };
        (0..3).for_each(|i| host.put(digest(i), block(i)));
        assert!(host.get(&digest(0)).is_some());
        host.put(digest(3), block(3));
        assert_eq!((host.bytes, host.blocks.len(), host.order.len()), (300, 3, 3));
        assert!(host.get(&digest(1)).is_none(), "the longest unused");
        assert_eq!(host.get(&digest(0)).unwrap(), block(0));
        host.put(digest(9), vec![0; 400].into());
        assert_eq!(host.blocks.len(), 3, "one that never fits changes nothing");
    }

    #[test]
    fn spilling_goes_on_as_long_as_it_pays() {
        let tier = Tier::open(1000, None, 100).unwrap();
        assert!(tier.view(true).wants(&digest(1)) && !tier.view(false).wants(&digest(1)));
        assert!(!tier.view(true).persists());
        tier.put(digest(1), block(1));
        assert!(tier.view(true).has(&digest(1)) && !tier.view(true).wants(&digest(1)));
        assert!(!tier.fetch(1, &[digest(2)]), "there is no disk");
        let mut cost = MoveCost::default();
        assert!(cost.pays(Duration::from_nanos(1)));
        cost.saved(Duration::from_millis(1));
        cost.loaded(Duration::from_millis(2));
        assert!(cost.pays(Duration::from_millis(4)) && !cost.pays(Duration::from_millis(2)));
        assert!(Tier::open(1000, None, 0).is_err());
    }
}
