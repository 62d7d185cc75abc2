//! Grammars of the text crate as constraints of the engine, which knows only token ids.

use quarrel_engine::{Constraint, ConstraintBox};
use quarrel_text::Guided;

struct Obeys(Guided);

impl Constraint for Obeys {
    fn mask(&mut self, allowed: &mut [u32]) -> Result<bool, String> {
        self.0.mask(allowed).map_err(|e| e.to_string())
    }

    fn accept(&mut self, id: u32) -> Result<(), String> {
        self.0.accept(id).map_err(|e| e.to_string())
    }

    fn fork(&self) -> Box<dyn Constraint> {
        Box::new(Obeys(self.0.clone()))
    }
}

/// What a request carries so that its answer obeys.
pub fn obey(guided: Guided) -> ConstraintBox {
    ConstraintBox::new(Obeys(guided))
}
