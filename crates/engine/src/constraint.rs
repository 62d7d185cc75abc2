//! What an answer's tokens must obey beside the model: the seam for grammars, which know strings, into the sampler, which
//! knows ids. A constraint is a state that says which ids may come next and takes the one that came.

use crate::{Error, Result};
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

/// Which tokens may come next. The engine asks once for each token that it draws, and tells it each that it has drawn, in
/// order; what is only guessed ahead goes to forks that are dropped.
pub trait Constraint: Send + Sync {
    /// Sets the bits of the ids that may come next: bit `i % 32` of word `i / 32` is id `i`. All are 0 before; bits beyond
    /// the vocabulary mean nothing. `false` says that nothing is forbidden, whatever was written.
    ///
    /// # Errors
    /// It cannot say; the text goes to the caller of the request.
    fn mask(&mut self, allowed: &mut [u32]) -> std::result::Result<bool, String>;

    /// Takes a token that was drawn, an end-of-generation id included.
    ///
    /// # Errors
    /// The token is none that may come.
    fn accept(&mut self, id: u32) -> std::result::Result<(), String>;

    /// The same state once more: from here on each goes its own way.
    fn fork(&self) -> Box<dyn Constraint>;
}

/// A [`Constraint`] in a request. A clone is a fork; two are equal if one was cloned from the other and neither was used.
pub struct ConstraintBox {
    inner: Box<dyn Constraint>,
    /// Shared by clones, for the comparison.
    origin: Arc<()>,
    used: bool,
}

impl ConstraintBox {
    /// Wraps a constraint in its first state.
    pub fn new(constraint: impl Constraint + 'static) -> ConstraintBox {
        ConstraintBox { inner: Box::new(constraint), origin: Arc::new(()), used: false }
    }

    /// Fills `bits`, of `vocab` ids; false if nothing is forbidden. `step` names the token in errors.
    pub(crate) fn mask(&mut self, vocab: usize, bits: &mut Vec<u32>, step: usize) -> Result<bool> {
        bits.clear();
        bits.resize(vocab.div_ceil(32), 0);
        if !contained(step, || self.inner.mask(bits))? {
            return Ok(false);
        }
        if let Some(last) = bits.last_mut().filter(|_| !vocab.is_multiple_of(32)) {
            *last &= (1 << (vocab % 32)) - 1;
        }
        if bits.iter().all(|word| *word == 0) {
            return Err(Error::Constraint { step, why: "it allows no token at all".into() });
        }
        Ok(true)
    }

    pub(crate) fn accept(&mut self, id: u32, step: usize) -> Result<()> {
        self.used = true;
        contained(step, || self.inner.accept(id))
    }
}

/// What a fork that panicked gives.
struct Broken;

impl Constraint for Broken {
    fn mask(&mut self, _: &mut [u32]) -> std::result::Result<bool, String> {
        Err("it panicked, which is a bug".into())
    }

    fn accept(&mut self, _: u32) -> std::result::Result<(), String> {
        Err("it panicked, which is a bug".into())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Broken)
    }
}

/// A constraint that panics fails its own request, like one that says no.
fn contained<T>(step: usize, f: impl FnOnce() -> std::result::Result<T, String>) -> Result<T> {
    let outcome =
        catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|_| Err("it panicked, which is a bug".into()));
    outcome.map_err(|why| Error::Constraint { step, why })
}

impl Clone for ConstraintBox {
    fn clone(&self) -> ConstraintBox {
        let inner = catch_unwind(AssertUnwindSafe(|| self.inner.fork())).unwrap_or_else(|_| Box::new(Broken));
        ConstraintBox { inner, origin: self.origin.clone(), used: self.used }
    }
}

impl fmt::Debug for ConstraintBox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.used { "Constraint(used)" } else { "Constraint(new)" })
    }
}

impl PartialEq for ConstraintBox {
    fn eq(&self, other: &ConstraintBox) -> bool {
        Arc::ptr_eq(&self.origin, &other.origin) && !self.used && !other.used
    }
}
