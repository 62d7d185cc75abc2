//! The same work by another engine, in turn with ours: A B A B in one run, each turn a process of its own, so that a drift of
//! the machine meets both and only one model is in memory at a time.

use crate::child::{self, Child};
use crate::session::Turn;
use crate::stats::Spread;
use crate::text::{row, table, tenth};
use crate::work::{Case, Work};
use crate::{Error, Progress, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Our words in Python; what it prints is a [`child::Line`].
const SCRIPT: &str = include_str!("llama.py");

/// Two engines on the same work.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The other engine and its version.
    pub name: String,
    /// What it says of its instructions.
    pub system: String,
    /// Rounds; each is a process of ours and one of theirs.
    pub rounds: usize,
    /// Case by case.
    pub cases: Vec<Ratio>,
}

/// Two engines on one case, in tokens per second.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The case.
    pub name: String,
    /// Ours.
    pub ours: Spread,
    /// Theirs.
    pub theirs: Spread,
    /// Our median over theirs.
    pub ratio: f64,
    /// The least and the largest ratio of one round.
    pub ratio_min: f64,
    /// As above.
    pub ratio_max: f64,
}

/// `llama-cpp-python` in some Python.
#[derive(Debug, Clone)]
pub struct Llama {
    python: PathBuf,
    version: String,
    system: String,
    stop: fn() -> bool,
}

/// What the script says first.
#[derive(Deserialize)]
struct Hello {
    version: String,
    system: String,
}

impl Llama {
    /// Looks for the package; `stop` is as in [`Child`].
    ///
    /// # Errors
    /// A line that says what to install or to name, if it cannot be used.
    pub fn find(python: &Path, stop: fn() -> bool) -> Result<Llama> {
        let mut c = Command::new(python);
        c.args(["-c", SCRIPT]);
        let lines: Result<Vec<(Hello, f64)>> = child::run(c, "looking for llama-cpp-python", stop);
        let missing = |why: String| {
            Error::Package(format!(
                "llama-cpp-python cannot be used with {}: {why}; install it there (pip install llama-cpp-python) or name \
                 another Python with --python or QUARREL_PYTHON",
                python.display()
            ))
        };
        let hello = match lines {
            Ok(lines) => {
                lines
                    .into_iter()
                    .next()
                    .ok_or_else(|| missing("it prints nothing, as no Python would".into()))?
                    .0
            }
            Err(Error::Child { why, .. }) => return Err(missing(why)),
            Err(e) => return Err(e),
        };
        Ok(Llama { python: python.into(), version: hello.version, system: hello.system, stop })
    }

    /// Runs the rounds in turn: ours by `child`, theirs on `model`, a GGUF file. Gives our turns and the comparison.
    ///
    /// # Errors
    /// When a process of either fails.
    pub fn compare(
        &self,
        child: &Child,
        model: &Path,
        work: &Work,
        threads: usize,
        progress: Progress<'_>,
    ) -> Result<(Vec<Turn>, Comparison)> {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        // A depth is filled once; later rounds read the state back, which takes seconds instead of minutes.
        // The folder goes when this ends, also by an error or a stop.
        let states = tempfile::Builder::new().prefix("quarrel-bench-").tempdir();
        let states = states.map_err(|source| Error::File {
            what: "create a folder in",
            path: std::env::temp_dir(),
            source,
        })?;
        for round in 1..=work.repeat {
            progress(&format!("round {round} of {}: quarrel", work.repeat));
            ours.push(child.turn()?);
            progress(&format!("round {round} of {}: llama.cpp", work.repeat));
            theirs.push(self.turn(model, work, threads, states.path())?);
        }
        let comparison = Comparison {
            name: format!("llama-cpp-python {}", self.version),
            system: self.system.clone(),
            rounds: work.repeat,
            cases: ratios(&work.cases(), &ours, &theirs),
        };
        Ok((ours, comparison))
    }

    fn turn(&self, model: &Path, work: &Work, threads: usize, states: &Path) -> Result<Turn> {
        let cases: Vec<[usize; 3]> = work
            .cases()
            .into_iter()
            .map(|c| match c {
                Case::Prompt(n) => [n, 0, 0],
                Case::Decode { depth, tokens } => [1, depth, tokens],
                Case::Batch { sequences, depth, steps } => [sequences, depth, steps],
            })
            .collect();
        let kinds: Vec<&str> = work
            .cases()
            .into_iter()
            .map(|c| match c {
                Case::Prompt(_) => "prompt",
                Case::Decode { .. } | Case::Batch { .. } => "decode",
            })
            .collect();
        let job = serde_json::json!({
            "model": model, "threads": threads, "states": states, "kinds": kinds, "cases": cases,
        });
        let mut c = Command::new(&self.python);
        c.args(["-c", SCRIPT]).arg(job.to_string());
        let lines = child::run(c, "a round of llama-cpp-python", self.stop)?;
        let turn = lines.into_iter().find_map(|(l, _)| match l {
            child::Line::Turn(t) => Some(t),
            _ => None,
        });
        turn.filter(|t| t.seconds.len() == cases.len()).ok_or_else(|| Error::Child {
            what: "a round of llama-cpp-python".into(),
            why: "it said nothing".into(),
        })
    }
}

fn ratios(cases: &[Case], ours: &[Turn], theirs: &[Turn]) -> Vec<Ratio> {
    let speeds = |turns: &[Turn], i: usize, case: Case| -> Vec<f64> {
        turns.iter().filter_map(|t| t.seconds.get(i).map(|s| case.tokens() as f64 / s.max(1e-9))).collect()
    };
    let one = |(i, case): (usize, &Case)| {
        let (a, b) = (speeds(ours, i, *case), speeds(theirs, i, *case));
        let rounds: Vec<f64> = a.iter().zip(&b).map(|(a, b)| a / b).collect();
        let (ours, theirs, rounds) = (Spread::of(&a)?, Spread::of(&b)?, Spread::of(&rounds)?);
        Some(Ratio {
            name: case.name(),
            ours,
            theirs,
            ratio: ours.median / theirs.median,
            ratio_min: rounds.min,
            ratio_max: rounds.max,
        })
    };
    cases.iter().enumerate().filter_map(one).collect()
}

/// The comparison as people read it.
pub fn text(c: &Comparison) -> String {
    let mut rows = vec![row(["AGAINST", "OURS", "MIN..MAX", "THEIRS", "MIN..MAX", "RATIO", "OF ROUNDS"])];
    let range = |s: &Spread| format!("{}..{}", tenth(s.min), tenth(s.max));
    for r in &c.cases {
        rows.push(row([
            &r.name,
            &tenth(r.ours.median),
            &range(&r.ours),
            &tenth(r.theirs.median),
            &range(&r.theirs),
            &format!("{:.2}", r.ratio),
            &format!("{:.2}..{:.2}", r.ratio_min, r.ratio_max),
        ]));
    }
    let rounds = if c.rounds == 1 { "1 round".into() } else { format!("{} rounds", c.rounds) };
    format!(
        "{}{}, {rounds} in turn, a process each; theirs without choosing a token\n",
        table(&rows, &[1, 2, 3, 4, 5, 6]),
        c.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_of_medians_with_the_spread_of_rounds() {
        let turn = |a: f64, b: f64| Turn { seconds: vec![a, b] };
        let cases = [Case::Prompt(100), Case::Batch { sequences: 4, depth: 0, steps: 10 }];
        let r = ratios(
            &cases,
            &[turn(1.0, 1.0), turn(2.0, 1.0), turn(1.0, 2.0)],
            &[turn(4.0, 2.0), turn(2.0, 2.0), turn(2.0, 2.0)],
        );
        assert_eq!((r[0].name.as_str(), r[0].ours.median, r[0].theirs.median), ("prompt 100", 100.0, 50.0));
        assert_eq!((r[0].ratio, r[0].ratio_min, r[0].ratio_max), (2.0, 1.0, 4.0));
        assert_eq!((r[1].ratio, r[1].ratio_min, r[1].ratio_max), (2.0, 1.0, 2.0));
        let c = Comparison { name: "x 1".into(), system: String::new(), rounds: 3, cases: r };
        assert!(text(&c).contains("2.00  1.00..4.00"), "{}", text(&c));
    }

    #[test]
    fn a_missing_python_is_one_clear_line() {
        let e = Llama::find(Path::new("./no/such/python"), || false).unwrap_err().to_string();
        assert!(e.contains("no/such/python") && e.contains("pip install") && e.lines().count() == 1, "{e}");
    }
}
