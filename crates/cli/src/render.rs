//! How things look: results on stdout, everything else on stderr. Decoration only where a person looks at a terminal.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use quarrel_bench::text::table;

/// 0 quiet, 1 as usual, 2 verbose. Set once, before anything is said.
static TALK: AtomicU8 = AtomicU8::new(1);

/// Sets how much is said.
pub(crate) fn set_talk(quiet: bool, verbose: bool) {
    TALK.store(if quiet { 0 } else { 1 + u8::from(verbose) }, Ordering::Relaxed);
}

fn talk() -> u8 {
    TALK.load(Ordering::Relaxed)
}

/// A line for people, unless they want quiet.
pub(crate) fn note(line: impl Display) {
    if talk() > 0 {
        stderr_line(&dim(&visible(&line.to_string())));
    }
}

/// A line for those who asked for more.
pub(crate) fn detail(line: impl Display) {
    if talk() > 1 {
        stderr_line(&dim(&visible(&line.to_string())));
    }
}

/// The one line that an error is.
pub(crate) fn error(message: &str) {
    stderr_line(&format!("quarrel: error: {}", visible(message)));
}

fn stderr_line(line: &str) {
    // Where stderr cannot be written there is nobody to tell.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Whether stderr may have colour: a terminal, not a dumb one, and `NO_COLOR` (no-color.org) unset or empty.
fn colour() -> bool {
    let set = |key: &str| std::env::var_os(key).is_some_and(|v| !v.is_empty());
    io::stderr().is_terminal() && !set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

fn dim(text: &str) -> String {
    if colour() { format!("\x1b[2m{text}\x1b[0m") } else { text.into() }
}

/// Text of strangers for a terminal: control characters (but tab and new line) become pictures, so that a file or a model
/// cannot move the cursor, change the title or hide a line.
pub(crate) fn visible(text: &str) -> String {
    let picture = |c: char| match c {
        '\n' | '\t' => c,
        '\0'..='\x1f' => char::from_u32(0x2400 + c as u32).unwrap_or('\u{FFFD}'),
        '\x7f' => '\u{2421}',
        '\u{80}'..='\u{9f}' => '\u{FFFD}',
        c => c,
    };
    text.chars().map(picture).collect()
}

/// Stdout: whole, flushed at once, and with pictures for control characters if it is a terminal.
pub(crate) struct Out {
    terminal: bool,
    ends_line: bool,
}

impl Out {
    pub(crate) fn new() -> Out {
        Out { terminal: io::stdout().is_terminal(), ends_line: true }
    }

    /// Whether a person looks at it.
    pub(crate) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// Writes and flushes.
    pub(crate) fn text(&mut self, text: &str) -> io::Result<()> {
        let Some(last) = text.as_bytes().last() else { return Ok(()) };
        self.ends_line = *last == b'\n';
        let mut out = io::stdout().lock();
        let written = match self.terminal {
            true => out.write_all(visible(text).as_bytes()),
            false => out.write_all(text.as_bytes()),
        };
        let named = |e: io::Error| io::Error::new(e.kind(), format!("cannot write to stdout: {e}"));
        written.and_then(|()| out.flush()).map_err(named)
    }

    /// Writes a line.
    pub(crate) fn line(&mut self, text: &str) -> io::Result<()> {
        self.text(&format!("{text}\n"))
    }

    /// Ends the line if one is open.
    pub(crate) fn end_line(&mut self) -> io::Result<()> {
        if self.ends_line { Ok(()) } else { self.text("\n") }
    }

    /// Writes one JSON object on one line.
    pub(crate) fn json(&mut self, value: &impl serde::Serialize) -> anyhow::Result<()> {
        let text = serde_json::to_string(value)?;
        // JSON has its own escapes for control characters below 0x20.
        Ok(self.line(&text)?)
    }

    /// Writes rows as aligned columns; columns in `right` are flushed right.
    pub(crate) fn table(&mut self, rows: &[Vec<String>], right: &[usize]) -> io::Result<()> {
        self.text(&table(rows, right))
    }
}

/// A count as people say it: `134.5 M`.
pub(crate) fn human_count(n: u64) -> String {
    match n {
        0..1_000 => n.to_string(),
        1_000..1_000_000 => format!("{:.1} K", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} B", n as f64 / 1e9),
    }
}

/// Whether there has been a bar.
static BAR: AtomicBool = AtomicBool::new(false);

/// Wipes the line where a bar may stand, before the program ends in the middle of something.
pub(crate) fn clear_bar() {
    if BAR.load(Ordering::Relaxed) {
        let _ = write!(io::stderr().lock(), "\r\x1b[2K"); // nobody to tell
    }
}

/// A bar on stderr; hidden when that is no terminal or quiet is wanted.
fn bar(total: Option<u64>, template: &str, spinner: &str, what: &str) -> ProgressBar {
    let shown = talk() > 0 && io::stderr().is_terminal();
    let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    BAR.fetch_or(shown, Ordering::Relaxed);
    let bar = ProgressBar::with_draw_target(total, target);
    let style = ProgressStyle::with_template(if total.is_some() { template } else { spinner });
    bar.set_style(style.expect("the templates are constant and checked by a test").progress_chars("━╸─"));
    bar.set_message(visible(what));
    bar
}

const BYTES: &str =
    "{msg}  {wide_bar} {decimal_bytes:>9} of {decimal_total_bytes}  {decimal_bytes_per_sec:>11}  {eta:>4}";
const BYTES_OPEN: &str = "{msg}  {spinner} {decimal_bytes}  {decimal_bytes_per_sec}";
const STEPS: &str = "{msg}  {wide_bar} {pos:>7} of {len}  {eta:>4}";
const PARTS: &str = "{msg:25}  {wide_bar} {pos:>3} of {len}  {left:>9}";
const STEPS_OPEN: &str = "{msg}  {spinner} {pos}";

/// A bar that counts steps, such as tokens.
pub(crate) fn steps(total: u64, what: &str) -> ProgressBar {
    bar(Some(total), STEPS, STEPS_OPEN, what)
}

/// A bar of unequal parts: how many are done, the name of the present one, and about how long the rest takes.
pub(crate) struct Parts {
    bar: ProgressBar,
    end: Arc<Mutex<Option<Instant>>>,
}

impl Parts {
    pub(crate) fn new(total: u64, what: &str) -> Parts {
        let end = Arc::new(Mutex::new(None));
        let seen = Arc::clone(&end);
        let left = move |_: &ProgressState, w: &mut dyn std::fmt::Write| {
            let end: Option<Instant> = *seen.lock().unwrap_or_else(PoisonError::into_inner);
            let left = end.map(|e| time_left(e.saturating_duration_since(Instant::now())));
            let _ = w.write_str(&left.unwrap_or_default()); // into a String
        };
        let bar = bar(Some(total), PARTS, PARTS, what);
        bar.set_style(bar.style().with_key("left", left));
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_secs(1));
        }
        Parts { bar, end }
    }

    /// The next part begins.
    pub(crate) fn begin(&self, what: &str, done: usize, seconds_left: f64) {
        let left = Duration::try_from_secs_f64(seconds_left).ok();
        *self.end.lock().unwrap_or_else(PoisonError::into_inner) =
            left.and_then(|l| Instant::now().checked_add(l));
        self.bar.set_position(done as u64);
        self.bar.set_message(visible(what));
    }

    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

/// `about 3m`; an estimate that has run out says no more than that.
fn time_left(left: Duration) -> String {
    if left.as_secs() == 0 { "soon".into() } else { format!("about {:#}", HumanDuration(left)) }
}

/// A bar that counts bytes.
pub(crate) fn transfer(total: Option<u64>, what: &str) -> ProgressBar {
    bar(total, BYTES, BYTES_OPEN, what)
}

/// Shows the hub's transfers.
#[derive(Default)]
pub(crate) struct Transfers {
    bar: Option<ProgressBar>,
}

impl quarrel_hub::Progress for Transfers {
    fn start(&mut self, total: Option<u64>, what: &str) {
        self.finish();
        let bar = transfer(total, what);
        if bar.is_hidden() {
            let size = total.map(|n| format!(" ({})", quarrel_hub::human_bytes(n))).unwrap_or_default();
            note(format!("{what}{size}"));
        }
        self.bar = Some(bar);
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn note(&mut self, line: &str) {
        match &self.bar {
            Some(bar) if !bar.is_hidden() => bar.suspend(|| note(line)),
            _ => note(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quarrel_bench::text::thousands;

    #[test]
    fn templates_of_bars_are_valid() {
        for t in [BYTES, BYTES_OPEN, PARTS, STEPS, STEPS_OPEN] {
            ProgressStyle::with_template(t).unwrap();
        }
    }

    #[test]
    fn control_characters_cannot_reach_a_terminal() {
        assert_eq!(visible("a\x1b[2Jb\tc\n\u{9b}\x7f"), "a␛[2Jb\tc\n\u{FFFD}␡");
        assert_eq!(visible("žluťoučký 🦙"), "žluťoučký 🦙");
    }

    #[test]
    fn columns_align() {
        let rows = vec![vec!["NAME".into(), "SIZE".into()], vec!["a".into(), "12345".into()]];
        assert_eq!(table(&rows, &[1]), "NAME   SIZE\na     12345\n");
        assert_eq!(table(&[], &[]), "");
    }

    #[test]
    fn numbers_for_people() {
        assert_eq!(
            [0, 999, 1000, 98_362_432].map(thousands),
            ["0", "999", "1,000", "98,362,432"].map(String::from)
        );
        assert_eq!([7, 1_500, 134_515_008].map(human_count), ["7", "1.5 K", "134.5 M"].map(String::from));
    }

    #[test]
    fn what_is_left_is_short_enough_for_the_bar() {
        for (seconds, want) in [(0, "soon"), (59, "about 59s"), (200, "about 3m"), (200_000, "about 2d")] {
            assert_eq!(time_left(Duration::from_secs(seconds)), want);
        }
    }
}
