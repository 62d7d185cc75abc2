//! What guessing tokens ahead gains on kinds of text: each request is answered with it and without, in turn, and the answers
//! are compared, for they must be equal.

use crate::stats::Spread;
use crate::{Error, Result};
use quarrel_engine::{Event, Handle, Request, RequestStats, Speculate};
use serde::Serialize;

/// A request answered both ways.
#[derive(Debug, Clone, Copy)]
pub struct Pair {
    /// Tokens per second after the first, without guesses and with them.
    pub plain: f64,
    /// See [`Self::plain`].
    pub guessed: f64,
    /// Tokens of the answer.
    pub tokens: usize,
    /// Guesses that were computed.
    pub drafted: u64,
    /// Guesses that came true.
    pub accepted: u64,
}

/// A kind of text and a kind of guess.
#[derive(Debug, Clone, Serialize)]
pub struct Gain {
    /// The kind of text.
    pub text: String,
    /// What guessed.
    pub speculate: String,
    /// Tokens per second without guesses.
    pub plain: Spread,
    /// Tokens per second with them.
    pub guessed: Spread,
    /// How many times faster each request was.
    pub ratio: Spread,
    /// Tokens of all answers.
    pub tokens: usize,
    /// Guesses that were computed.
    pub drafted: u64,
    /// Guesses that came true.
    pub accepted: u64,
}

/// Answers a request with `mode` and without; `plain_first` says in which order.
///
/// # Errors
/// What the engine refuses; and answers that differ.
pub fn pair(handle: &Handle, request: &Request, mode: Speculate, plain_first: bool) -> Result<Pair> {
    let modes = if plain_first { [Speculate::Off, mode] } else { [mode, Speculate::Off] };
    let mut runs = Vec::new();
    for speculate in modes {
        runs.push(run(handle, Request { speculate, ..request.clone() })?);
    }
    if !plain_first {
        runs.reverse();
    }
    let [(plain, a), (guessed, b)] = &runs[..] else { return Err(Error::Work("no answer".into())) };
    if plain != guessed {
        let at = plain.iter().zip(guessed).take_while(|(a, b)| a == b).count();
        return Err(Error::Work(format!("with guesses ({}) the answer differs at token {at}", mode.name())));
    }
    let speed =
        |s: &RequestStats| s.completion_tokens.saturating_sub(1) as f64 / s.decode.as_secs_f64().max(1e-9);
    Ok(Pair {
        plain: speed(a),
        guessed: speed(b),
        tokens: plain.len(),
        drafted: b.drafted_tokens,
        accepted: b.accepted_tokens,
    })
}

fn run(handle: &Handle, request: Request) -> Result<(Vec<u32>, RequestStats)> {
    let mut tokens = Vec::new();
    for event in handle.submit(request)? {
        match event {
            Event::Token { id, .. } => tokens.push(id),
            Event::Done { stats, .. } => return Ok((tokens, stats)),
            Event::Failed(e) => return Err(e.into()),
            _ => {}
        }
    }
    Err(Error::Work("the engine ended without an answer".into()))
}

impl Gain {
    /// Of all pairs of a text; `None` without any.
    pub fn of(text: &str, mode: Speculate, pairs: &[Pair]) -> Option<Gain> {
        let spread = |f: &dyn Fn(&Pair) -> f64| Spread::of(&pairs.iter().map(f).collect::<Vec<_>>());
        Some(Gain {
            text: text.into(),
            speculate: mode.name().into(),
            plain: spread(&|p| p.plain)?,
            guessed: spread(&|p| p.guessed)?,
            ratio: spread(&|p| p.guessed / p.plain)?,
            tokens: pairs.iter().map(|p| p.tokens).sum(),
            drafted: pairs.iter().map(|p| p.drafted).sum(),
            accepted: pairs.iter().map(|p| p.accepted).sum(),
        })
    }
}

/// The gains as a table.
pub fn table(gains: &[Gain]) -> String {
    let mut out = format!(
        "{:<10} {:<8} {:>9} {:>9} {:>6} {:>12} {:>7} {:>8} {:>9}\n",
        "TEXT", "GUESSES", "PLAIN/S", "GUESSED/S", "RATIO", "MIN..MAX", "TOKENS", "GUESSED", "CAME TRUE"
    );
    for g in gains {
        let range = format!("{:.2}..{:.2}", g.ratio.min, g.ratio.max);
        let share = 100.0 * g.accepted as f64 / (g.drafted.max(1)) as f64;
        out += &format!(
            "{:<10} {:<8} {:>9.1} {:>9.1} {:>6.2} {range:>12} {:>7} {:>8} {:>8.0}%\n",
            g.text, g.speculate, g.plain.median, g.guessed.median, g.ratio.median, g.tokens, g.drafted, share
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gain_is_the_median_of_the_ratios() {
        let p = |plain, guessed| Pair { plain, guessed, tokens: 10, drafted: 8, accepted: 4 };
        let g =
            Gain::of("repeat", Speculate::Lookup, &[p(100.0, 200.0), p(100.0, 90.0), p(50.0, 75.0)]).unwrap();
        assert_eq!((g.ratio.median, g.tokens, g.drafted), (1.5, 30, 24));
        let t = table(&[g]);
        assert!(t.lines().nth(1).unwrap().contains("1.50"), "{t}");
        assert!(t.contains("50%"), "{t}");
        assert!(Gain::of("x", Speculate::Off, &[]).is_none());
    }
}
