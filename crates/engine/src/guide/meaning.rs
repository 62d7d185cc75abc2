//! The seam for what another model makes of a sentence: texts and embeddings are not the engine's. It goes on with others while
//! the answer waits.

use super::check_field;
use crate::{Error, Result};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How like a sentence is to others, as cosines of their embeddings.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Likeness {
    /// To the sentence before; none for the first.
    pub adjacent: Option<f32>,
    /// To the prompt.
    pub prompt: f32,
}

/// A comparison under way.
pub trait Comparing: Send {
    /// What came out of it, once it is there. Never waits; is not asked again afterwards.
    fn poll(&mut self) -> Option<std::result::Result<Likeness, String>>;
}

/// Compares sentences of an answer, given as its tokens.
pub trait Meaning: Send + Sync {
    /// Begins to compare a sentence with the one before it, which is empty for the first, and with the prompt.
    fn compare(&self, before: &[u32], sentence: &[u32]) -> Box<dyn Comparing>;
}

/// When a sentence is drawn again for what it means.
#[derive(Clone)]
pub struct Meant {
    /// Who says.
    pub by: Arc<dyn Meaning>,
    /// Least cosine with the sentence before.
    pub adjacent: f32,
    /// Least cosine with the prompt.
    pub prompt: f32,
}

impl fmt::Debug for Meant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meant {{ adjacent: {}, prompt: {} }}", self.adjacent, self.prompt)
    }
}

impl PartialEq for Meant {
    fn eq(&self, other: &Meant) -> bool {
        let same = |m: &Meant| (m.adjacent, m.prompt);
        Arc::ptr_eq(&self.by, &other.by) && same(self) == same(other)
    }
}

impl Meant {
    pub(super) fn check(&self) -> Result<()> {
        for (field, least) in
            [("guidance.coherence.adjacent", self.adjacent), ("guidance.coherence.prompt", self.prompt)]
        {
            check_field(field, least.into(), (-1.0..=1.0).contains(&least), "-1 (off) to 1")?;
        }
        Ok(())
    }

    /// How far a sentence is from what it should be.
    pub(super) fn badness(&self, found: Likeness) -> f64 {
        let short = |least: f32, is: f32| f64::from(least - is).max(0.0);
        found.adjacent.map_or(0.0, |is| short(self.adjacent, is)) + short(self.prompt, found.prompt)
    }
}

/// A comparison that an answer waits for. Answers are forked before their first sentence, so a clone has none of its own.
#[derive(Clone)]
pub(super) struct Compared {
    of: Arc<Mutex<Box<dyn Comparing>>>,
    began: Instant,
}

impl fmt::Debug for Compared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compared")
    }
}

impl Compared {
    pub(super) fn begin(by: &dyn Meaning, before: &[u32], sentence: &[u32], step: usize) -> Result<Compared> {
        let compare = AssertUnwindSafe(|| by.compare(before, sentence));
        let of = catch_unwind(compare).map_err(|_| panicked(step))?;
        Ok(Compared { of: Arc::new(Mutex::new(of)), began: Instant::now() })
    }

    /// What came out, and how long it took.
    pub(super) fn poll(&self, step: usize) -> Option<Result<(Likeness, Duration)>> {
        let mut of = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        let found = match catch_unwind(AssertUnwindSafe(|| of.poll())) {
            Ok(found) => found?,
            Err(_) => return Some(Err(panicked(step))),
        };
        Some(match found {
            Ok(l) if l.prompt.is_finite() && l.adjacent.is_none_or(f32::is_finite) => {
                Ok((l, self.began.elapsed()))
            }
            Ok(_) => Err(Error::Guide { step, why: "a cosine of embeddings is no number".into() }),
            Err(why) => Err(Error::Guide { step, why }),
        })
    }
}

fn panicked(step: usize) -> Error {
    Error::Guide { step, why: "the comparison of sentences panicked, which is a bug".into() }
}
