//! A report against an earlier one of the same machine, model and work: what became slower beyond the noise of both.

use crate::report::{ModelInfo, Report, Speed};
use crate::stats::Spread;
use crate::{Error, Machine, Result};
use std::path::Path;

/// A change of less than this is never a regression, however quiet both runs were.
const LEAST: f64 = 0.05;

/// What a comparison found.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Figures that both reports have.
    pub compared: usize,
    /// One line for each that became worse.
    pub regressions: Vec<String>,
    /// What the baseline has and this run did not measure.
    pub missing: Vec<String>,
}

/// Reads a baseline.
///
/// # Errors
/// When it cannot be read or is no report.
pub fn read(path: &Path) -> Result<Report> {
    let bytes =
        std::fs::read(path).map_err(|source| Error::File { what: "read", path: path.into(), source })?;
    let bad = |e: serde_json::Error| Error::Baseline { path: path.into(), why: e.to_string() };
    serde_json::from_slice(&bytes).map_err(bad)
}

/// Refuses a baseline of another machine or model.
///
/// # Errors
/// With what differs.
pub fn comparable(baseline: &Report, machine: &Machine, model: &ModelInfo) -> Result<()> {
    if let Some((what, theirs, ours)) = baseline.machine.difference(machine) {
        return Err(Error::Different(format!("its {what} is {theirs}, and here it is {ours}")));
    }
    let (a, b) = (&baseline.model, model);
    // Not the name: the same weights may have moved.
    let same = [
        ("architecture", a.architecture == b.architecture),
        ("number of parameters", a.parameters == b.parameters),
        ("weights' types", a.types == b.types),
    ];
    match same.iter().find(|s| !s.1) {
        Some((what, _)) => {
            Err(Error::Different(format!("it is of {}, whose {what} is not that of {}", a.name, b.name)))
        }
        None => Ok(()),
    }
}

/// A figure and which way is better.
struct Figure {
    name: String,
    unit: &'static str,
    spread: Spread,
    more_is_better: bool,
}

fn figures(r: &Report) -> Vec<Figure> {
    let speed =
        |name: String, s: &Speed| Figure { name, unit: "tokens/s", spread: s.spread(), more_is_better: true };
    let mut all: Vec<Figure> =
        r.prompt.iter().map(|s| speed(format!("prompt of {} tokens", s.tokens), s)).collect();
    for d in &r.decode_at {
        all.push(speed(format!("decode of {} at depth {}", d.speed.tokens, d.depth), &d.speed));
    }
    for b in &r.batch {
        let steps = b.speed.tokens / b.sequences.max(1);
        all.push(speed(format!("batch of {} with {steps} steps", b.sequences), &b.speed));
    }
    let mut less = |name: &str, unit, spread| {
        all.push(Figure { name: name.into(), unit, spread, more_is_better: false });
    };
    if let Some(l) = &r.latency {
        less(&format!("first token after {}", l.prompt_tokens), "ms", l.ttft_ms);
    }
    if let Some(s) = &r.startup {
        less("start-up", "s", Spread { median: s.seconds, min: s.min, max: s.max });
    }
    if let Some(m) = &r.memory {
        let mb = m.peak_rss_bytes as f64 / 1e6;
        less("peak memory", "MB", Spread { median: mb, min: mb, max: mb });
    }
    all
}

/// Compares what both reports have. A figure is worse if its median is, by more than 5% and by more than half of the range of
/// both runs together.
///
/// # Errors
/// When the two have nothing in common.
pub fn compare(baseline: &Report, now: &Report) -> Result<Verdict> {
    let new = figures(now);
    let (mut compared, mut regressions, mut missing) = (0, Vec::new(), Vec::new());
    for old in figures(baseline) {
        let Some(new) = new.iter().find(|n| n.name == old.name) else {
            missing.push(old.name);
            continue;
        };
        compared += 1;
        let (a, b) = (old.spread.median, new.spread.median);
        let worse = if old.more_is_better { a - b } else { b - a } / a.abs().max(1e-9);
        let allowed = LEAST.max(old.spread.half_width() + new.spread.half_width());
        if worse > allowed {
            regressions.push(format!(
                "{}: {b:.1} {unit}, the baseline has {a:.1}: {:.1}% worse, and the noise of both is {:.1}%",
                old.name,
                100.0 * worse,
                100.0 * allowed,
                unit = old.unit
            ));
        }
    }
    if compared == 0 {
        let what =
            "it has no figure of the same work: give --prompt, --decode, --depth and --batch as it was made";
        return Err(Error::Different(what.into()));
    }
    Ok(Verdict { compared, regressions, missing })
}
