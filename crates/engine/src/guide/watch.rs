//! The seam for what refuses tokens after the fact, such as banned strings: they are text, which the engine does not know, and
//! a token is only known to begin one when the others have come.

use crate::{Error, Result};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// What a [`Watch`] says of the answer so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All but the last `hold` tokens are safe, whatever follows, and whichever of those are taken back before.
    Pass {
        /// Tokens that may still be refused.
        hold: usize,
        /// Whether a sentence ends here.
        sentence: bool,
    },
    /// The last tokens, this one included, did not happen; the first of them must not come in its place again.
    Refuse {
        /// How many: 1 or more.
        tokens: usize,
    },
}

/// Looks at the tokens of an answer as they are drawn. The engine tells it each in order, and takes those back that it or
/// something else refuses; never more than [`super::HOLD_MAX`] of them.
pub trait Watch: Send + Sync {
    /// Takes a token that was drawn; end-of-generation ids that end the answer do not come here.
    ///
    /// # Errors
    /// It cannot say; the text goes to the caller of the request.
    fn push(&mut self, id: u32) -> std::result::Result<Verdict, String>;

    /// What would be said if nothing followed: with `Pass` the answer ends. After `Refuse` it goes on.
    ///
    /// # Errors
    /// As [`Watch::push`].
    fn finish(&mut self) -> std::result::Result<Verdict, String>;

    /// The last `tokens` tokens did not happen.
    fn take_back(&mut self, tokens: usize);

    /// The same state once more: from here on each goes its own way.
    fn fork(&self) -> Box<dyn Watch>;
}

/// A [`Watch`] in a request. A clone is a fork; two are equal if one was cloned from the other and neither was used.
pub struct WatchBox {
    /// `None` after a panic.
    inner: Option<Box<dyn Watch>>,
    /// Shared by clones, for the comparison.
    origin: Arc<()>,
    used: bool,
}

impl WatchBox {
    /// Wraps a watch in its first state.
    pub fn new(watch: impl Watch + 'static) -> WatchBox {
        WatchBox { inner: Some(Box::new(watch)), origin: Arc::new(()), used: false }
    }

    pub(super) fn push(&mut self, id: u32, step: usize) -> Result<Verdict> {
        self.used = true;
        self.contained(step, |w| w.push(id))
    }

    pub(super) fn finish(&mut self, step: usize) -> Result<Verdict> {
        self.contained(step, |w| w.finish())
    }

    pub(super) fn take_back(&mut self, tokens: usize, step: usize) -> Result<()> {
        self.contained(step, |w| {
            w.take_back(tokens);
            Ok(())
        })
    }

    /// A watch that panics fails its own request, like one that says no.
    fn contained<T>(
        &mut self,
        step: usize,
        f: impl FnOnce(&mut dyn Watch) -> std::result::Result<T, String>,
    ) -> Result<T> {
        let bug = || Err("the watch panicked, which is a bug".into());
        let outcome = match &mut self.inner {
            Some(w) => catch_unwind(AssertUnwindSafe(|| f(&mut **w))).unwrap_or_else(|_| bug()),
            None => bug(),
        };
        if outcome.is_err() {
            self.inner = None;
        }
        outcome.map_err(|why| Error::Guide { step, why })
    }
}

impl Clone for WatchBox {
    fn clone(&self) -> WatchBox {
        let fork = |w: &dyn Watch| catch_unwind(AssertUnwindSafe(|| w.fork())).ok();
        WatchBox { inner: self.inner.as_deref().and_then(fork), origin: self.origin.clone(), used: self.used }
    }
}

impl fmt::Debug for WatchBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.used { "Watch(used)" } else { "Watch(new)" })
    }
}

impl PartialEq for WatchBox {
    fn eq(&self, other: &WatchBox) -> bool {
        Arc::ptr_eq(&self.origin, &other.origin) && !self.used && !other.used
    }
}
