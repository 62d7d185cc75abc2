//! What to measure: checked against the model and the machine before anything is timed.

use crate::machine::available_bytes;
use crate::{Error, Result};
use quarrel_ir::BLOCK_TOKENS;
use quarrel_model::ModelSpec;

/// Prompt tokens that are fed in one step, as the engine does by default.
pub(crate) const STEP: usize = 512;
/// Steps of a batch, at most: enough for a median, few enough for many sizes.
const BATCH_STEPS: usize = 32;
/// What is measured where nothing is said.
const PROMPT: usize = 512;
const DECODE: usize = 128;
const DEPTHS: [usize; 2] = [0, 4096];
const BATCH: [usize; 6] = [1, 2, 4, 8, 16, 32];

/// What is wanted; `None` is the default as far as the model's context allows.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// Tokens of the prompt; 0 leaves it out.
    pub prompt: Option<usize>,
    /// New tokens; 0 leaves decoding out.
    pub decode: Option<usize>,
    /// Tokens before the new ones.
    pub depths: Option<Vec<usize>>,
    /// Numbers of sequences that decode together; none leaves batches out.
    pub batch: Option<Vec<usize>>,
    /// Tokens of each of them before the new ones.
    pub batch_depth: usize,
    /// Rounds.
    pub repeat: usize,
}

/// What is measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Tokens of the prompt.
    pub prompt: usize,
    /// New tokens.
    pub decode: usize,
    /// Tokens before the new ones, 0 first.
    pub depths: Vec<usize>,
    /// Numbers of sequences.
    pub batch: Vec<usize>,
    /// Tokens of each of them before the new ones.
    pub batch_depth: usize,
    /// Rounds; each runs every case once, so that a drift of the machine meets all of them.
    pub repeat: usize,
    /// Prompt tokens that are fed in one step.
    pub step: usize,
}

/// One measurement of a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Case {
    /// A prompt of so many tokens into an empty cache, with the logits of its last token.
    Prompt(usize),
    /// New tokens one by one, each the best of the last logits.
    Decode {
        /// Tokens in the cache before.
        depth: usize,
        /// New tokens.
        tokens: usize,
    },
    /// The same for several sequences in each step.
    Batch {
        /// How many.
        sequences: usize,
        /// Tokens of each in the cache before.
        depth: usize,
        /// New tokens of each.
        steps: usize,
    },
}

impl Case {
    /// Tokens that the speed counts.
    pub fn tokens(self) -> usize {
        match self {
            Case::Prompt(n) | Case::Decode { tokens: n, .. } => n,
            Case::Batch { sequences, steps, .. } => sequences * steps,
        }
    }

    /// How people call it.
    pub fn name(self) -> String {
        match self {
            Case::Prompt(n) => format!("prompt {n}"),
            Case::Decode { depth: 0, tokens } => format!("decode {tokens}"),
            Case::Decode { depth, tokens } => format!("decode {tokens} at {depth}"),
            Case::Batch { sequences, depth: 0, .. } => format!("batch {sequences}"),
            Case::Batch { sequences, depth, .. } => format!("batch {sequences} at {depth}"),
        }
    }

    /// Blocks of the cache.
    fn blocks(self) -> usize {
        match self {
            Case::Prompt(n) => n.div_ceil(BLOCK_TOKENS),
            Case::Decode { depth, tokens } => (depth + tokens).div_ceil(BLOCK_TOKENS),
            Case::Batch { sequences, depth, steps } => sequences * (depth + steps).div_ceil(BLOCK_TOKENS),
        }
    }
}

impl Work {
    /// Checks the wish against the model's context. Defaults shrink to it, and the notes say so; a number that was asked
    /// for is refused instead.
    ///
    /// # Errors
    /// What exceeds the context, or measures nothing.
    pub fn new(wish: &Wish, context: usize) -> Result<(Work, Vec<String>)> {
        let mut notes = Vec::new();
        let mut fit = |what: &str, asked: Option<usize>, default: usize| match asked {
            Some(n) if n > context => {
                Err(Error::Work(format!("--{what} {n} is more than the model's context of {context} tokens")))
            }
            Some(n) => Ok(n),
            None if default > context => {
                notes.push(format!(
                    "the model's context is {context} tokens, so {what} is {context} instead of {default}"
                ));
                Ok(context)
            }
            None => Ok(default),
        };
        let prompt = fit("prompt", wish.prompt, PROMPT)?;
        let decode = fit("decode", wish.decode, DECODE)?;
        let mut depths: Vec<usize> = Vec::new();
        for depth in wish.depths.as_deref().unwrap_or(&DEPTHS) {
            match (depth + decode > context, &wish.depths) {
                (false, _) => depths.push(*depth),
                (true, None) => notes.push(format!(
                    "the model's context is {context} tokens, so decoding at depth {depth} is left out"
                )),
                (true, Some(_)) => {
                    return Err(Error::Work(format!(
                        "--depth {depth} with --decode {decode} is more than the model's context of {context} tokens"
                    )));
                }
            }
        }
        if decode == 0 {
            depths.clear();
        } else {
            depths.push(0); // what `decode` is
        }
        let batch = wish.batch.as_deref().unwrap_or(&BATCH);
        let (depths, batch, batch_depth) = (ascending(&depths), ascending(batch), wish.batch_depth);
        if batch_depth + BATCH_STEPS > context && !batch.is_empty() && batch_depth > 0 {
            return Err(Error::Work(format!(
                "--batch-depth {batch_depth} and {BATCH_STEPS} new tokens are more than the model's context of {context} tokens"
            )));
        }
        let work = Work { prompt, decode, depths, batch, batch_depth, repeat: wish.repeat, step: STEP };
        if work.cases().is_empty() {
            let what = "nothing is left to measure: --prompt, --decode and --batch are all 0 or none";
            return Err(Error::Work(what.into()));
        }
        Ok((work, notes))
    }

    /// The measurements of a round, in order.
    pub fn cases(&self) -> Vec<Case> {
        let steps = if self.decode == 0 { BATCH_STEPS } else { self.decode.min(BATCH_STEPS) };
        let prompt = (self.prompt > 0).then_some(Case::Prompt(self.prompt));
        let decode = self.depths.iter().map(|d| Case::Decode { depth: *d, tokens: self.decode });
        let depth = self.batch_depth;
        let batch = self.batch.iter().map(|n| Case::Batch { sequences: *n, depth, steps });
        prompt.into_iter().chain(decode).chain(batch).collect()
    }

    /// Blocks of the cache that the largest case needs.
    pub(crate) fn kv_blocks(&self) -> usize {
        self.cases().into_iter().map(Case::blocks).max().unwrap_or(1)
    }

    /// Most sequences in a step.
    pub(crate) fn sequences(&self) -> usize {
        self.batch.iter().copied().max().unwrap_or(1).max(1)
    }

    /// Rows of the largest step.
    pub(crate) fn rows(&self) -> usize {
        self.step.min(self.kv_blocks() * BLOCK_TOKENS).max(self.sequences())
    }

    /// Refuses what the machine's free memory cannot hold beside the weights.
    ///
    /// # Errors
    /// With the numbers.
    pub fn check_memory(&self, spec: &ModelSpec, weight_bytes: u64, kv_element_bytes: usize) -> Result<()> {
        let kv = (self.kv_blocks() * BLOCK_TOKENS) as u64 * spec.kv_bytes_per_token(kv_element_bytes) as u64;
        let widest = u64::from(spec.dim + 2 * spec.ff + 4 * spec.heads * spec.head_dim);
        let rows = self.rows() as u64 * widest * 4 + self.sequences() as u64 * u64::from(spec.vocab) * 4;
        let gb = |bytes: u64| bytes as f64 / 1e9;
        match available_bytes() {
            Some(free) if weight_bytes + kv + rows > free => Err(Error::Work(format!(
                "{:.1} GB of weights, {:.1} GB of cache and {:.1} GB for the step do not fit the {:.1} GB that are free; \
                 choose a lesser --depth, --batch or --prompt",
                gb(weight_bytes),
                gb(kv),
                gb(rows),
                gb(free)
            ))),
            _ => Ok(()),
        }
    }
}

fn ascending(values: &[usize]) -> Vec<usize> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.dedup();
    values
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish { repeat: 3, ..Wish::default() }
    }

    #[test]
    fn the_default_is_the_issue_s_list() {
        let (work, notes) = Work::new(&wish(), 8192).unwrap();
        let names: Vec<_> = work.cases().into_iter().map(Case::name).collect();
        let batch = ["batch 1", "batch 2", "batch 4", "batch 8", "batch 16", "batch 32"];
        assert_eq!(names, [&["prompt 512", "decode 128", "decode 128 at 4096"][..], &batch].concat());
        assert_eq!((notes.len(), work.kv_blocks(), work.rows()), (0, (4096 + 128) / 16, 512));
    }

    #[test]
    fn defaults_shrink_to_the_context_and_wishes_are_refused() {
        let (work, notes) = Work::new(&wish(), 256).unwrap();
        assert_eq!((work.prompt, work.decode, &work.depths[..]), (256, 128, &[0][..]));
        assert_eq!(notes.len(), 2);
        for bad in [
            Wish { prompt: Some(257), ..wish() },
            Wish { decode: Some(300), ..wish() },
            Wish { depths: Some(vec![0, 200]), ..wish() },
            Wish { prompt: Some(0), decode: Some(0), batch: Some(vec![]), ..wish() },
        ] {
            assert!(matches!(Work::new(&bad, 256), Err(Error::Work(_))), "{bad:?}");
        }
    }

    #[test]
    fn parts_are_left_out_and_lists_are_put_in_order() {
        let some =
            Wish { decode: Some(16), depths: Some(vec![64, 32, 64]), batch: Some(vec![4, 1]), ..wish() };
        let (work, _) = Work::new(&some, 512).unwrap();
        assert_eq!((work.depths, work.batch), (vec![0, 32, 64], vec![1, 4]));
        let (work, _) = Work::new(&Wish { prompt: Some(0), decode: Some(0), ..wish() }, 512).unwrap();
        assert!(work.cases().iter().all(|c| matches!(c, Case::Batch { .. })));
        assert_eq!(work.cases()[5].tokens(), 32 * 32);
    }
}
