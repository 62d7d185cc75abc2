//! The way of events from the engine's thread to the one who asked, whether that is a thread that waits or an async task.

use crate::events::Event;
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{Receiver, Sender, channel},
    },
    task::Waker,
};

/// Whom to wake when an event has come.
#[derive(Default)]
pub(crate) struct Bell(Mutex<Option<Waker>>);

impl Bell {
    /// The next event wakes this one.
    pub(crate) fn set(&self, waker: &Waker) {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !slot.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *slot = Some(waker.clone());
        }
    }

    fn ring(&self) {
        // Taken out first: waking may run code of the one who waits.
        let waker = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// The engine's end.
pub(crate) struct Outbox {
    /// `None` while it is dropped: whoever is woken must find the channel closed.
    events: Option<Sender<Event>>,
    bell: Arc<Bell>,
}

impl Outbox {
    /// Both ends. The channel needs no bound of its own: `max_tokens` and the context bound it.
    pub(crate) fn new() -> (Outbox, Receiver<Event>, Arc<Bell>) {
        let (events, receiver) = channel();
        let bell = Arc::<Bell>::default();
        (Outbox { events: Some(events), bell: bell.clone() }, receiver, bell)
    }

    /// Sends an event; one that nobody waits for is dropped.
    pub(crate) fn send(&self, event: Event) {
        if let Some(events) = &self.events {
            let _ = events.send(event);
            self.bell.ring();
        }
    }
}

impl Drop for Outbox {
    fn drop(&mut self) {
        self.events = None;
        self.bell.ring();
    }
}
