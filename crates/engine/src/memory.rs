//! Sizes under a memory budget: what is given up, and in which order, until a model fits. Arithmetic only; what a size costs
//! is told by the caller, who knows the device.

use crate::{EngineConfig, Error, Result};
use quarrel_ir::BLOCK_TOKENS;
use std::fmt;

/// Bytes that an engine needs, all of its context in use.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Need {
    /// Weights, packed or mapped.
    pub weights: usize,
    /// KV cache.
    pub kv: usize,
    /// Activations, logits and what threads need.
    pub working: usize,
    /// The program itself and the tokenizer.
    pub program: usize,
}

impl Need {
    /// All of it.
    pub fn total(&self) -> usize {
        self.weights.saturating_add(self.kv).saturating_add(self.working).saturating_add(self.program)
    }
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}: weights {}, KV cache {}, working memory {}, program and tokenizer {}",
            Mb(self.total()),
            Mb(self.weights),
            Mb(self.kv),
            Mb(self.working),
            Mb(self.program)
        )
    }
}

/// Bytes as people read them.
pub(crate) struct Mb(pub(crate) usize);

impl fmt::Display for Mb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} MB", self.0 as f64 / 1e6)
    }
}

/// Sizes that fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitted<K> {
    /// The engine's sizes.
    pub config: EngineConfig,
    /// The number type of the cache.
    pub kv: K,
    /// What they need.
    pub need: Need,
}

/// Fewest rows of a step to which a budget may cut: below, prompts would read the weights too often.
const STEP_TOKENS_MIN: usize = 64;

/// Shortest context to which a budget may cut one that nobody asked for.
pub const CONTEXT_MIN: usize = 512;

/// Least bytes of copies of states to which a budget may cut before there are none.
const SNAPSHOT_BYTES_MIN: usize = 1 << 20;

/// Makes an engine fit into `budget` bytes, giving up in this order: copies of states, by halves; sequences that run at once and rows of a step, by
/// halves; then precision of the cache, which is the first of `kv` and may become a later, smaller one; then context, down
/// to [`CONTEXT_MIN`] unless it is `fixed`. `need` tells what sizes cost. Where `config.kv_blocks` is given, it follows the
/// context and the sequences. The error has the numbers, and the least that would fit.
pub fn fit<K: Copy>(
    config: &EngineConfig,
    kv: &[K],
    fixed: bool,
    budget: usize,
    need: impl Fn(&EngineConfig, K) -> Result<Need>,
) -> Result<Fitted<K>> {
    let Some(&first) = kv.first() else {
        return Err(Error::Config { field: "kv", value: 0, least: 1, why: "a type of the cache" });
    };
    let asked = need(config, first)?;
    let mut config = config.clone();
    let fits = |config: &EngineConfig, kv| -> Result<Option<Fitted<K>>> {
        let need = need(config, kv)?;
        Ok((need.total() <= budget).then(|| Fitted { config: config.clone(), kv, need }))
    };
    loop {
        if let Some(fitted) = fits(&config, first)? {
            return Ok(fitted);
        }
        if !fewer(&mut config) {
            break;
        }
    }
    let mut last = first;
    for &kv in &kv[1..] {
        last = kv;
        if let Some(fitted) = fits(&config, kv)? {
            return Ok(fitted);
        }
    }
    let shortest = if fixed { config.context } else { config.context.min(CONTEXT_MIN) };
    let with = |context: usize| {
        let mut config = config.clone();
        set_context(&mut config, context);
        config
    };
    let least = need(&with(shortest), last)?.total();
    if least > budget {
        return Err(Error::Budget { need: asked, context: config.context, budget, least, shortest });
    }
    // The longest that fits, in whole blocks; memory grows with the context.
    let (mut low, mut high) = (shortest / BLOCK_TOKENS, config.context / BLOCK_TOKENS);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(&with(middle * BLOCK_TOKENS), last)?.is_some() { low = middle } else { high = middle - 1 }
    }
    let config = with((low * BLOCK_TOKENS).max(shortest));
    let need = need(&config, last)?;
    Ok(Fitted { config, kv: last, need })
}

/// One step less of what costs speed only; false if there is no less.
fn fewer(config: &mut EngineConfig) -> bool {
    if config.states && config.snapshot_bytes > 0 {
        let half = config.snapshot_bytes / 2;
        config.snapshot_bytes = if half < SNAPSHOT_BYTES_MIN { 0 } else { half };
    } else if config.max_running > 1 {
        config.max_running /= 2;
    } else if config.step_tokens / 2 >= STEP_TOKENS_MIN && !config.whole {
        config.step_tokens /= 2;
    } else {
        return false;
    }
    config.step_outputs = config.step_outputs.min(config.step_tokens / 4).max(config.max_running);
    set_context(config, config.context);
    true
}

fn set_context(config: &mut EngineConfig, context: usize) {
    config.context = context;
    if config.whole {
        config.step_tokens = context.max(config.max_running + 1);
    }
    // Together they fill it no more than each alone.
    config.kv_blocks =
        config.kv_blocks.map(|_| context.div_ceil(BLOCK_TOKENS).saturating_mul(config.max_running));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 1000 for weights, 1 per token of context and byte of its type, 1 per row of a step, 10 per sequence.
    fn cost(config: &EngineConfig, kv: usize) -> Result<Need> {
        let tokens = config.kv_blocks.map_or(config.context, |b| b * BLOCK_TOKENS);
        Ok(Need {
            weights: 1000,
            kv: tokens * kv,
            working: config.step_tokens + 10 * config.max_running,
            program: 0,
        })
    }

    fn config(context: usize) -> EngineConfig {
        EngineConfig { max_running: 4, step_tokens: 256, step_outputs: 64, ..EngineConfig::new(context) }
    }

    #[test]
    fn a_budget_is_met_by_giving_up_speed_then_precision_then_context() {
        // budget, fixed context: running, step rows, type of the cache, context
        for (budget, fixed, want) in [
            (100_000, false, (4, 256, 4, 4096)),
            (1000 + 4 * 4096 + 256 + 40, true, (4, 256, 4, 4096)),
            (1000 + 4 * 4096 + 256 + 39, false, (2, 256, 4, 4096)),
            (1000 + 4 * 4096 + 128 + 10, false, (1, 128, 4, 4096)),
            (1000 + 4 * 4096, true, (1, 64, 2, 4096)),
            (1000 + 2 * 4096 + 74, true, (1, 64, 2, 4096)),
            (1000 + 2 * 4096 + 73, false, (1, 64, 2, 4080)),
            (1000 + 2 * 512 + 74, false, (1, 64, 2, 512)),
        ] {
            let f = fit(&config(4096), &[4, 2], fixed, budget, cost).unwrap();
            assert_eq!(
                (f.config.max_running, f.config.step_tokens, f.kv, f.config.context),
                want,
                "{budget}"
            );
            assert!(f.need.total() <= budget && f.config.check().is_ok(), "{budget}");
        }
    }

    #[test]
    fn what_cannot_fit_is_refused_with_the_numbers() {
        for (context, fixed, budget, want) in [
            (4096, true, 1000, 1000 + 2 * 4096 + 74),
            (4096, false, 2097, 1000 + 1024 + 74),
            (100, false, 0, 1274),
        ] {
            let error = fit(&config(context), &[4, 2], fixed, budget, cost).unwrap_err();
            let Error::Budget { need, least, .. } = &error else { panic!("{error}") };
            assert_eq!((*least, need.weights, need.kv), (want, 1000, context * 4));
            assert!(error.to_string().contains("weights"), "{error}");
        }
    }

    #[test]
    fn copies_of_states_go_first() {
        let with_copies = |c: &EngineConfig, kv| {
            let need = cost(c, kv)?;
            Ok(Need { working: need.working + c.snapshots(1 << 20) * (1 << 20), ..need })
        };
        let asked = EngineConfig { states: true, snapshot_bytes: 12 << 20, ..config(4096) };
        let least = 1000 + 4 * 4096 + 256 + 40;
        for (budget, bytes, running) in [
            (least + (12 << 20), 12 << 20, 4),
            (least + (11 << 20), 6 << 20, 4),
            (least + (3 << 20), 3 << 20, 4),
            (least + (1 << 20), 3 << 19, 4),
            (least, 0, 4),
            (least - 1, 0, 2),
        ] {
            let f = fit(&asked, &[4, 2], false, budget, with_copies).unwrap();
            assert_eq!((f.config.snapshot_bytes, f.config.max_running), (bytes, running), "{budget}");
        }
        assert_eq!(EngineConfig { prefix_cache: false, ..asked.clone() }.snapshots(1 << 20), 0);
        assert_eq!((asked.snapshots(1), asked.snapshots(0), asked.snapshots(5 << 20)), (256, 0, 2));
    }

    #[test]
    fn sequences_with_caches_of_their_own_give_them_up() {
        let asked = EngineConfig { kv_blocks: Some(4 * 256), ..config(4096) };
        let f = fit(&asked, &[4], false, 40_000, cost).unwrap();
        assert_eq!((f.config.max_running, f.config.kv_blocks), (2, Some(512)));
    }

    #[test]
    fn a_context_beyond_all_memory_is_no_overflow() {
        let huge = |c: &EngineConfig, kv: usize| {
            Ok(Need { weights: 10, kv: c.context.saturating_mul(kv), ..Need::default() })
        };
        let asked = config(usize::MAX);
        assert!(fit(&asked, &[4], true, 1 << 40, huge).is_err());
        assert!(fit(&asked, &[4], false, 1 << 40, huge).unwrap().config.context <= 1 << 38);
    }
}
