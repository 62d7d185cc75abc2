//! How a token was drawn, for a person: the token, what each stage left, what was punished, and the candidates as bars.

use std::fmt::Write as _;

use quarrel_engine::{StageTrace, Trace};
use quarrel_runtime::token_text;
use quarrel_text::Tokenizer;

/// The longest bar.
const BAR: f64 = 30.0;
/// Columns of a token's text.
const TEXT: usize = 16;

/// A token's text in quotation marks, of a bounded width.
fn quoted(tokenizer: &Tokenizer, id: u32) -> String {
    let text: String = token_text(tokenizer, id).escape_debug().collect();
    match text.chars().count() > TEXT {
        true => format!("\"{}…\"", text.chars().take(TEXT - 1).collect::<String>()),
        false => format!("\"{text}\""),
    }
}

fn percent(p: f64) -> String {
    match 100.0 * p {
        p if p > 0.0 && p < 0.05 => "<0.1%".into(),
        p => format!("{p:.1}%"),
    }
}

/// What a stage says of itself.
fn note(s: &StageTrace) -> String {
    match (s.name, s.value) {
        ("xtc", Some(v)) => if v == 0.0 { "did not act" } else { "acted" }.into(),
        ("mirostat", Some(v)) => format!("at most {v:.2} bits"),
        (_, Some(v)) => format!("T = {v:.3}"),
        (_, None) => String::new(),
    }
}

/// Some lines, and an empty one.
pub(crate) fn view(tokenizer: &Tokenizer, trace: &Trace) -> String {
    let draw = &trace.draw;
    let chosen = quoted(tokenizer, draw.id);
    let mut out = format!("{:>5}  {chosen}", trace.step);
    let how = match draw.uniform {
        Some(u) => format!("drawn with {}, random number {u:.4}", percent(draw.p)),
        None => "the best".into(),
    };
    // Writing to a string cannot fail.
    let mut line = |text: String| _ = writeln!(out, "{text}");
    line(format!(
        "  {how}; the model gave it {}, at an entropy of {:.2} nats",
        percent(f64::from(draw.logprob).exp()),
        trace.entropy
    ));
    for e in trace.edits.iter().filter(|e| e.changed > 0) {
        let shown = e.largest.iter().take(4);
        let changes: Vec<_> =
            shown.map(|c| format!("{} {:+.2}", quoted(tokenizer, c.id), c.to - c.from)).collect();
        let more = if e.changed > changes.len() { ", …" } else { "" };
        line(format!("       {:<12} {:>7} changed  {}{more}", e.stage.name(), e.changed, changes.join(", ")));
    }
    for s in &trace.stages {
        let row = format!(
            "       {:<12} {:>7} left  {:>6} of the mass  entropy {:>5.2}  {}",
            s.name,
            s.tokens,
            percent(s.mass),
            s.entropy,
            note(s)
        );
        line(row.trim_end().into());
    }
    let width = trace.candidates.iter().map(|c| quoted(tokenizer, c.id).chars().count()).max().unwrap_or(0);
    for c in &trace.candidates {
        let bar = "█".repeat((c.p * BAR).round() as usize);
        let text = quoted(tokenizer, c.id);
        let pad = " ".repeat(width - text.chars().count());
        let mark = if c.id == draw.id { '▶' } else { ' ' };
        let from = percent(f64::from(c.logprob).exp());
        line(
            format!("     {mark} {text}{pad}  {:>6} (model {from:>6})  {bar}", percent(c.p))
                .trim_end()
                .into(),
        );
    }
    out.push('\n');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_short() {
        assert_eq!(
            [percent(1.0), percent(0.1234), percent(1e-5), percent(0.0)],
            ["100.0%", "12.3%", "<0.1%", "0.0%"]
        );
    }
}
