//! The sampling chain from outside: against its definitions (`model`), against transformers and llama.cpp (`oracle`), its
//! properties, the distribution that it draws, what it says of rows that are none, and that it allocates nothing.

mod allocation;
mod chain;
mod draw;
mod model;
mod oracle;

use quarrel_engine::{LogitSampler, Sampling, Trace};

/// Draws one token and says how.
fn explained(s: &Sampling, prompt: &[u32], row: &[f32]) -> Trace {
    let mut sampler = LogitSampler::new(s.clone(), prompt, row.len()).unwrap().explained(row.len() as u32);
    *sampler.next(&mut row.to_vec()).unwrap().trace.unwrap()
}

/// The distribution that a token was drawn from, by id.
fn distribution(trace: &Trace, vocab: usize) -> Vec<f64> {
    let mut p = vec![0.0; vocab];
    trace.candidates.iter().for_each(|c| p[c.id as usize] = c.p);
    p
}
