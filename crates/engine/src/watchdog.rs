//! Notices a step that does not end, from a thread of its own: whoever waits is told, instead of waiting for ever.

use crate::Error;
use crate::handle::Shared;
use std::{
    sync::{
        Arc, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

/// The engine's sign of life.
#[derive(Debug)]
pub(crate) struct Pulse {
    epoch: Instant,
    /// Milliseconds after the epoch at which the step began, plus 1; 0 between steps.
    began: AtomicU64,
    stuck: AtomicBool,
    over: AtomicBool,
}

impl Default for Pulse {
    fn default() -> Pulse {
        let (began, stuck, over) = Default::default();
        Pulse { epoch: Instant::now(), began, stuck, over }
    }
}

impl Pulse {
    pub(crate) fn begin(&self) {
        self.began.store(self.epoch.elapsed().as_millis() as u64 + 1, Ordering::Release);
    }

    /// Says whether the step had been given up.
    pub(crate) fn end(&self) -> bool {
        self.began.store(0, Ordering::Release);
        self.stuck.swap(false, Ordering::AcqRel)
    }

    /// Whether the engine hangs.
    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck.load(Ordering::Acquire)
    }
}

/// The thread.
pub(crate) struct Watchdog {
    pulse: Arc<Pulse>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches steps that take longer than `limit`.
    pub(crate) fn start(shared: Arc<Shared>, limit: Duration) -> std::io::Result<Watchdog> {
        let pulse = shared.pulse.clone();
        let nap = (limit / 4).clamp(Duration::from_millis(5), Duration::from_secs(1));
        let thread = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
            while !shared.pulse.over.load(Ordering::Acquire) {
                std::thread::park_timeout(nap);
                look(&shared, limit);
            }
        })?;
        Ok(Watchdog { pulse, thread: Some(thread) })
    }
}

fn look(shared: &Shared, limit: Duration) {
    let pulse = &shared.pulse;
    let began = pulse.began.load(Ordering::Acquire);
    let running = (pulse.epoch.elapsed().as_millis() as u64 + 1).saturating_sub(began);
    if began == 0 || u128::from(running) < limit.as_millis() || pulse.is_stuck() {
        return;
    }
    *shared.down.lock().unwrap_or_else(PoisonError::into_inner) =
        Some(Error::Stuck(Duration::from_millis(running)));
    pulse.stuck.store(true, Ordering::Release);
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.pulse.over.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It has nothing to say.
            let _ = thread.join();
        }
    }
}
