//! The thread pool: N - 1 workers and the caller run one closure together, meeting at barriers inside it.
//!
//! A step is one parallel region, so its cost is a barrier per dependency and not a wake-up per op. Between steps the
//! workers spin for a moment and then sleep, so that an idle process uses no processor time.

use std::any::Any;
use std::cell::UnsafeCell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a worker looks for the next step before it sleeps.
const IDLE_SPIN: Duration = Duration::from_micros(80);
/// Rounds of a spin before the thread offers its processor to others: about 20 microseconds.
const SPINS: u32 = 600;

/// A value on cache lines of its own, so that threads that write neighbours do not disturb each other.
#[repr(align(128))]
struct Alone<T>(T);

type Job = *const (dyn Fn(&Team) + Sync);

struct Shared {
    threads: u32,
    /// Counts the jobs; a worker runs one when it changes.
    epoch: Alone<AtomicU32>,
    job: UnsafeCell<Option<Job>>,
    /// Workers that have not finished the job.
    pending: Alone<AtomicUsize>,
    arrived: Alone<AtomicU32>,
    generation: Alone<AtomicU32>,
    poisoned: AtomicBool,
    message: Mutex<Option<String>>,
    stop: AtomicBool,
    sleepers: AtomicU32,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only by the caller while no worker reads it: before `epoch` is raised and after `pending` is 0.
unsafe impl Sync for Shared {}
// SAFETY: the pointer in `job` is to a `Sync` closure that outlives the job.
unsafe impl Send for Shared {}

/// The payload with which a thread leaves a barrier that another thread's panic has broken.
struct Broken;

/// A thread's place in the parallel region.
pub(crate) struct Team<'a> {
    /// This thread, from 0 (the caller).
    pub(crate) index: usize,
    /// Threads in the region.
    pub(crate) threads: usize,
    shared: &'a Shared,
}

impl Team<'_> {
    /// Waits until every thread of the region is here; what they wrote before is visible after.
    pub(crate) fn barrier(&self) {
        let s = self.shared;
        if s.threads == 1 {
            return;
        }
        let generation = s.generation.0.load(Relaxed);
        if s.arrived.0.fetch_add(1, AcqRel) + 1 == s.threads {
            s.arrived.0.store(0, Relaxed);
            s.generation.0.store(generation.wrapping_add(1), Release);
            return;
        }
        let mut spins = 0;
        while s.generation.0.load(Acquire) == generation {
            if s.poisoned.load(Relaxed) {
                // Not a panic of its own: no message, no backtrace.
                resume_unwind(Box::new(Broken));
            }
            relax(&mut spins);
        }
    }

    /// This thread's part of `0..n`: contiguous, sizes differ by at most one.
    pub(crate) fn share(&self, n: usize) -> Range<usize> {
        n * self.index / self.threads..n * (self.index + 1) / self.threads
    }
}

/// One round of waiting: pause at first, then let other threads run.
fn relax(spins: &mut u32) {
    if *spins < SPINS {
        *spins += 1;
        std::hint::spin_loop();
    } else {
        std::thread::yield_now();
    }
}

/// The threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

impl Pool {
    /// Starts `threads - 1` workers; 0 counts as 1.
    pub(crate) fn new(threads: usize) -> std::io::Result<Pool> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            threads: threads as u32,
            epoch: Alone(AtomicU32::new(0)),
            job: UnsafeCell::new(None),
            pending: Alone(AtomicUsize::new(0)),
            arrived: Alone(AtomicU32::new(0)),
            generation: Alone(AtomicU32::new(0)),
            poisoned: AtomicBool::new(false),
            message: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleepers: AtomicU32::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Pool { shared, workers: Vec::with_capacity(threads - 1) };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let worker = std::thread::Builder::new()
                .name(format!("quarrel-cpu-{index}"))
                .spawn(move || work(&shared, index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads that run a job, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.shared.threads as usize
    }

    /// Runs `f` once on every thread and waits for all. If any panics, the others leave at their next barrier and the
    /// message of the first panic is the error; the pool can be used again.
    pub(crate) fn run(&mut self, f: &(dyn Fn(&Team) + Sync)) -> Result<(), String> {
        let s = &*self.shared;
        // SAFETY: only the lifetime changes; this call does not return before every worker is done with the closure.
        let job: Job = unsafe { std::mem::transmute::<&(dyn Fn(&Team) + Sync), Job>(f) };
        // SAFETY: no worker reads `job` now: the last run waited for `pending` to be 0.
        unsafe { *s.job.get() = Some(job) };
        s.pending.0.store(self.workers.len(), Relaxed);
        s.epoch.0.fetch_add(1, SeqCst);
        if s.sleepers.load(SeqCst) > 0 {
            let _guard = s.sleep.lock().unwrap_or_else(PoisonError::into_inner);
            s.wake.notify_all();
        }
        join(s, 0, f);
        let mut spins = 0;
        while s.pending.0.load(Acquire) != 0 {
            relax(&mut spins);
        }
        if s.poisoned.swap(false, Relaxed) {
            s.arrived.0.store(0, Relaxed);
            let message = s.message.lock().unwrap_or_else(PoisonError::into_inner).take();
            return Err(message.unwrap_or_else(|| "a worker panicked".into()));
        }
        Ok(())
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        self.shared.epoch.0.fetch_add(1, SeqCst);
        drop(self.shared.sleep.lock().unwrap_or_else(PoisonError::into_inner));
        self.shared.wake.notify_all();
        for w in self.workers.drain(..) {
            // A worker catches every panic, so there is nothing to report.
            let _ = w.join();
        }
    }
}

/// Runs the job as thread `index` and notes a panic.
fn join(s: &Shared, index: usize, f: &(dyn Fn(&Team) + Sync)) {
    let team = Team { index, threads: s.threads as usize, shared: s };
    if let Err(payload) = catch_unwind(AssertUnwindSafe(|| f(&team)))
        && !payload.is::<Broken>()
    {
        let mut message = s.message.lock().unwrap_or_else(PoisonError::into_inner);
        message.get_or_insert_with(|| panic_text(&*payload));
        s.poisoned.store(true, SeqCst);
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload
        .downcast_ref::<&str>()
        .map(|s| (*s).to_string())
        .or_else(|| payload.downcast_ref::<String>().cloned());
    text.unwrap_or_else(|| "panic without a message".into())
}

fn work(s: &Shared, index: usize) {
    let mut seen = 0;
    loop {
        wait_for_job(s, seen);
        seen = seen.wrapping_add(1);
        if s.stop.load(SeqCst) {
            return;
        }
        // SAFETY: `epoch` was raised after `job` was written, and the caller waits for `pending` before it changes it.
        if let Some(job) = unsafe { *s.job.get() } {
            // SAFETY: the caller keeps the closure alive until `pending` is 0.
            join(s, index, unsafe { &*job });
        }
        s.pending.0.fetch_sub(1, Release);
    }
}

fn wait_for_job(s: &Shared, seen: u32) {
    let start = Instant::now();
    while start.elapsed() < IDLE_SPIN {
        for _ in 0..16 {
            if s.epoch.0.load(Acquire) != seen {
                return;
            }
            std::hint::spin_loop();
        }
    }
    let mut guard = s.sleep.lock().unwrap_or_else(PoisonError::into_inner);
    s.sleepers.fetch_add(1, SeqCst);
    while s.epoch.0.load(SeqCst) == seen {
        guard = s.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
    }
    s.sleepers.fetch_sub(1, SeqCst);
}

/// Processors that this process may use, counting the hardware threads of one core once where the system tells.
pub(crate) fn physical_cores() -> usize {
    let logical = std::thread::available_parallelism().map_or(1, |n| n.get());
    let allowed = std::fs::read_to_string("/proc/self/status").ok().and_then(|s| {
        let line = s.lines().find_map(|l| l.strip_prefix("Cpus_allowed_list:"))?.trim().to_string();
        parse_list(&line)
    });
    let cores = allowed.map(|cpus| {
        let mut cores: Vec<String> = cpus
            .iter()
            .filter_map(|c| {
                let path = format!("/sys/devices/system/cpu/cpu{c}/topology/thread_siblings_list");
                std::fs::read_to_string(path).ok()
            })
            .collect();
        cores.sort();
        cores.dedup();
        cores.len()
    });
    match cores {
        Some(n) if n > 0 => n.min(logical),
        _ => logical,
    }
}

/// Reads a list such as `0-3,8`.
fn parse_list(list: &str) -> Option<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in list.split(',') {
        let (a, b) = part.split_once('-').unwrap_or((part, part));
        let (a, b): (usize, usize) = (a.parse().ok()?, b.parse().ok()?);
        cpus.extend(a..=b.min(a.saturating_add(4096)));
    }
    Some(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_meets_at_every_barrier() {
        for threads in 1..=4 {
            let mut pool = Pool::new(threads).unwrap();
            let counter = AtomicUsize::new(0);
            for round in 0..20 {
                pool.run(&|team| {
                    for step in 0..50 {
                        let before = round * 50 * threads + step * threads;
                        assert!(counter.load(SeqCst) >= before);
                        counter.fetch_add(1, SeqCst);
                        team.barrier();
                        assert!(counter.load(SeqCst) >= before + threads);
                        team.barrier();
                    }
                })
                .unwrap();
            }
            assert_eq!(counter.load(SeqCst), 20 * 50 * threads);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        for culprit in 0..3 {
            let mut pool = Pool::new(3).unwrap();
            let err = pool.run(&|team| {
                team.barrier();
                if team.index == culprit {
                    panic!("thread {culprit} fell");
                }
                team.barrier();
            });
            assert_eq!(err.unwrap_err(), format!("thread {culprit} fell"));
            let sum = AtomicUsize::new(0);
            pool.run(&|team| {
                team.barrier();
                sum.fetch_add(team.index, SeqCst);
                team.barrier();
                assert_eq!(sum.load(SeqCst), 3);
            })
            .unwrap();
        }
    }

    #[test]
    fn shares_cover_the_range_once() {
        let mut pool = Pool::new(3).unwrap();
        for n in [0, 1, 2, 3, 7, 100] {
            let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run(&|team| team.share(n).for_each(|i| _ = hits[i].fetch_add(1, Relaxed))).unwrap();
            assert!(hits.iter().all(|h| h.load(Relaxed) == 1));
        }
    }

    #[test]
    fn sleeping_workers_wake_for_the_next_job() {
        let mut pool = Pool::new(2).unwrap();
        let runs = AtomicUsize::new(0);
        for _ in 0..3 {
            // The workers count as sleepers only once they are about to wait, so no clock is needed.
            while pool.shared.sleepers.load(SeqCst) == 0 {
                std::thread::yield_now();
            }
            pool.run(&|_| _ = runs.fetch_add(1, SeqCst)).unwrap();
        }
        assert_eq!(runs.load(SeqCst), 6);
    }

    #[test]
    fn processor_lists_are_read() {
        assert_eq!(parse_list("0-2,5"), Some(vec![0, 1, 2, 5]));
        assert_eq!(parse_list("x"), None);
        assert!(physical_cores() >= 1);
    }
}
