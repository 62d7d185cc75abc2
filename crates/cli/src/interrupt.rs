//! Ctrl-C. While an answer is made it asks for a stop, which keeps what is there; at any other time, or a second time, it
//! ends the program.

use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};

static ANSWERING: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// Takes over Ctrl-C. Once per process.
pub(crate) fn install() -> Result<()> {
    ctrlc::set_handler(|| {
        let again = STOP.swap(true, Ordering::AcqRel);
        if again || !ANSWERING.load(Ordering::Acquire) {
            crate::render::clear_bar();
            std::process::exit(130);
        }
    })
    .context("cannot listen for Ctrl-C")
}

/// Whether a stop has been asked for, for those who cannot hold [`Answering`].
pub(crate) fn stopped() -> bool {
    STOP.load(Ordering::Acquire)
}

/// While this lives Ctrl-C asks for a stop.
pub(crate) struct Answering(());

impl Answering {
    pub(crate) fn begin() -> Answering {
        STOP.store(false, Ordering::Release);
        ANSWERING.store(true, Ordering::Release);
        Answering(())
    }

    /// Whether a stop has been asked for.
    pub(crate) fn stopped(&self) -> bool {
        stopped()
    }
}

impl Drop for Answering {
    fn drop(&mut self) {
        ANSWERING.store(false, Ordering::Release);
        STOP.store(false, Ordering::Release);
    }
}
