//! A report against an earlier one of the same machine, model and work: what became slower beyond the noise of both.

use crate::report::{ModelInfo, Report, Speed};
use crate::stats::Spread;
use crate::work::{Case, Work};
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

/// Refuses a baseline none of whose speeds this work measures.
///
/// # Errors
/// With what the baseline has.
pub fn same_work(baseline: &Report, work: &Work) -> Result<()> {
    let planned: Vec<String> = work.cases().into_iter().map(figure_name).collect();
    let theirs: Vec<String> = speeds(baseline).into_iter().map(|s| figure_name(s.0)).collect();
    match theirs.iter().any(|t| planned.contains(t)) {
        true => Ok(()),
        false => Err(Error::Different(format!(
            "it has no speed of the same work: give --prompt, --decode, --depth and --batch as it was made ({})",
            theirs.join(", ")
        ))),
    }
}

/// The speeds of a report and what they are of.
fn speeds(r: &Report) -> Vec<(Case, &Speed)> {
    let prompt = r.prompt.iter().map(|s| (Case::Prompt(s.tokens), s));
    let decode = r.decode_at.iter().map(|d| {
        let tokens = d.speed.tokens;
        (Case::Decode { depth: d.depth, tokens }, &d.speed)
    });
    let batch = r.batch.iter().map(|b| {
        let steps = b.speed.tokens / b.sequences.max(1);
        (Case::Batch { sequences: b.sequences, depth: b.depth, steps }, &b.speed)
    });
    prompt.chain(decode).chain(batch).collect()
}

/// The name of a case with all that it is of.
fn figure_name(case: Case) -> String {
    match case {
        Case::Prompt(tokens) => format!("prompt of {tokens} tokens"),
        Case::Decode { depth, tokens } => format!("decode of {tokens} at depth {depth}"),
        Case::Batch { sequences, depth, steps } => {
            format!("batch of {sequences} with {steps} steps at depth {depth}")
        }
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
    let speed = |(case, s): (Case, &Speed)| Figure {
        name: figure_name(case),
        unit: "tokens/s",
        spread: s.spread(),
        more_is_better: true,
    };
    let mut all: Vec<Figure> = speeds(r).into_iter().map(speed).collect();
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
        // With the cache in it, which is as large as the work.
        let cache = m.kv_bytes as f64 / 1e6;
        less(
            &format!("peak memory with {cache:.1} MB of cache"),
            "MB",
            Spread { median: mb, min: mb, max: mb },
        );
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
            let figure = |v: f64| if v < 10.0 { format!("{v:.3}") } else { format!("{v:.1}") };
            regressions.push(format!(
                "{}: {} {}, the baseline has {}: {:.1}% worse, and the noise of both is {:.1}%",
                old.name,
                figure(b),
                old.unit,
                figure(a),
                100.0 * worse,
                100.0 * allowed
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn speed(tokens: usize, median: f64, half: f64) -> Value {
        json!({
            "tokens": tokens, "tokens_per_s": median, "min": median - half, "max": median + half, "runs": [median],
            "gb_per_s": 1.0, "gop_per_s": 1.0, "ops_per_byte": 1.0, "share_of_peak": 0.5, "bound": "memory",
        })
    }

    fn with(mut speed: Value, key: &str, value: usize) -> Value {
        speed[key] = json!(value);
        speed
    }

    /// A report as it lies in a file: this pins the frame too.
    fn report(prompt: (f64, f64), batch: (f64, f64), start: f64) -> Report {
        serde_json::from_value(json!({
            "machine": {
                "cpu": "c", "cores": 2, "threads": 2, "isa": "avx2", "memory_bytes": 1, "cache_bytes": 1, "kernel": "k",
                "peaks": { "read_gb_per_s": 30.0, "int8_gop_per_s": 1.0, "f32_gflop_per_s": 1.0 }, "measured": 5,
            },
            "model": {
                "name": "m", "architecture": "llama", "parameters": 1, "weight_bytes": 2, "kv_bytes_per_token": 3,
                "types": { "Q4_1": 2 },
            },
            "prompt": speed(512, prompt.0, prompt.1),
            "decode": speed(128, 100.0, 1.0),
            "decode_at": [with(speed(128, 100.0, 1.0), "depth", 0)],
            "batch": [with(speed(64, batch.0, batch.1), "sequences", 2)],
            "latency": null,
            "startup": { "seconds": start, "min": start, "max": start },
            "memory": { "peak_rss_bytes": 1000, "weight_bytes": 2, "kv_bytes": 3 },
            "version": "0",
        }))
        .unwrap()
    }

    #[test]
    fn only_what_exceeds_the_noise_is_a_regression() {
        let base = report((1000.0, 10.0), (200.0, 40.0), 0.2);
        for (now, worse) in [
            (report((1000.0, 10.0), (200.0, 40.0), 0.2), &[][..]),
            (report((960.0, 1.0), (170.0, 1.0), 0.205), &[]), // 4%; 15% within 20% of noise; 2.5%
            (report((940.0, 1.0), (200.0, 40.0), 0.2), &["prompt of 512"]),
            (report((1000.0, 10.0), (155.0, 1.0), 0.3), &["batch of 2 with 32", "start-up"]),
            (report((9000.0, 10.0), (900.0, 1.0), 0.01), &[]), // better is never worse
            (report((810.0, 150.0), (200.0, 1.0), 0.2), &[]),  // the noise of this run counts too
        ] {
            let v = compare(&base, &now).unwrap();
            assert_eq!((v.compared, v.missing.len()), (5, 0));
            assert_eq!(v.regressions.len(), worse.len(), "{:?}", v.regressions);
            for (line, name) in v.regressions.iter().zip(worse) {
                assert!(line.starts_with(name) && line.contains("worse"), "{line}");
            }
        }
    }

    #[test]
    fn other_work_is_missing_and_nothing_in_common_is_an_error() {
        let base = report((1000.0, 1.0), (200.0, 1.0), 0.2);
        let mut now = base.clone();
        now.prompt.as_mut().unwrap().tokens = 64;
        now.startup = None;
        let v = compare(&base, &now).unwrap();
        assert_eq!((v.compared, v.missing), (3, vec!["prompt of 512 tokens".into(), "start-up".into()]));
        let empty = Report { decode_at: vec![], batch: vec![], memory: None, ..now };
        assert!(matches!(compare(&base, &empty), Err(Error::Different(_))));
    }

    #[test]
    fn other_work_is_known_before_it_is_measured() {
        let base = report((1000.0, 1.0), (200.0, 1.0), 0.2);
        let work = |prompt, decode, batch: &[usize]| Work {
            prompt,
            decode,
            depths: if decode > 0 { vec![0] } else { vec![] },
            batch: batch.into(),
            batch_depth: 0,
            repeat: 1,
            step: 512,
        };
        for same in [work(512, 0, &[]), work(9, 128, &[]), work(0, 0, &[1, 2])] {
            same_work(&base, &same).unwrap();
        }
        for other in [work(9, 5, &[]), work(0, 16, &[2]), work(0, 0, &[4])] {
            let e = same_work(&base, &other).unwrap_err().to_string();
            assert!(e.contains("prompt of 512 tokens, decode of 128 at depth 0, batch of 2 with 32"), "{e}");
        }
        // Another cache is other memory.
        let mut now = base.clone();
        now.memory.as_mut().unwrap().kv_bytes = 9_000_000;
        assert_eq!(compare(&base, &now).unwrap().missing, ["peak memory with 0.0 MB of cache"]);
    }

    #[test]
    fn another_machine_or_model_is_refused_by_what_differs() {
        let base = report((1.0, 0.0), (1.0, 0.0), 1.0);
        assert!(comparable(&base, &base.machine, &base.model).is_ok());
        let moved = ModelInfo { name: "elsewhere".into(), ..base.model.clone() };
        let again = Machine { measured: 9, ..base.machine.clone() };
        assert!(
            comparable(&base, &again, &moved).is_ok(),
            "neither the day nor the name is what is compared"
        );
        let threads = Machine { threads: 1, ..base.machine.clone() };
        let e = comparable(&base, &threads, &base.model).unwrap_err().to_string();
        assert!(e.contains("threads is 2") && e.contains("here it is 1"), "{e}");
        let other = ModelInfo { parameters: 7, ..base.model.clone() };
        assert!(comparable(&base, &base.machine, &other).unwrap_err().to_string().contains("parameters"));
    }

    #[test]
    fn a_file_that_is_no_report_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.json");
        assert!(read(&path).unwrap_err().to_string().contains("cannot read"));
        std::fs::write(&path, "{\"machine\":{}}").unwrap();
        let e = read(&path).unwrap_err().to_string();
        assert!(e.contains("b.json") && e.contains("bench --json"), "{e}");
        let whole = report((1.0, 0.0), (1.0, 0.0), 1.0);
        std::fs::write(&path, serde_json::to_string(&whole).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), whole);
    }
}
