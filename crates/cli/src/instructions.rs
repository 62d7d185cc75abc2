//! The processor's instructions to compute with: those of `--isa`, or the fastest as measured once on this machine.

use std::collections::BTreeMap;

use quarrel_bench::Chosen;
use quarrel_cpu::{Isa, tune};
use quarrel_hub::Config;

use crate::render;

/// What `--isa` takes: the name of something that this processor has.
pub(crate) fn parse(text: &str) -> Result<Isa, String> {
    among(text, &Isa::available())
}

fn among(text: &str, available: &[Isa]) -> Result<Isa, String> {
    available.iter().copied().find(|isa| isa.name() == text).ok_or_else(|| {
        let names: Vec<_> = available.iter().map(Isa::to_string).collect();
        format!("this processor has {}", names.join(", "))
    })
}

/// The instructions, and the scores that they were chosen by if they were not asked for. `fresh` measures again.
pub(crate) fn choose(asked: Option<Isa>, fresh: bool) -> (Isa, BTreeMap<String, f64>) {
    if let Some(isa) = asked {
        return (isa, BTreeMap::new());
    }
    let cache = Config::from_env().ok().map(|c| c.home);
    let (chosen, saved) = Chosen::new(cache.as_deref(), fresh, || {
        render::detail("measuring which instructions are the fastest here");
        let scores = tune::measure();
        quarrel_cpu::trim_heap(); // what it took would count as the program's
        scores
    });
    if let Err(e) = saved {
        render::detail(format!("{e}; the next run measures again"));
    }
    (chosen.isa(), chosen.scores)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_processor_has_can_be_asked_for() {
        for isa in Isa::available() {
            assert_eq!(parse(isa.name()), Ok(isa));
        }
        assert_eq!(among("avx512", &[Isa::PORTABLE]), Err("this processor has portable".into()));
        assert!(parse("").is_err());
    }
}
