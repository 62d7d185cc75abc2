//! A report as people read it.

use crate::machine::Machine;
use crate::ops::Phase;
use crate::report::{Bound, ModelInfo, Report, Speed};
use crate::stats::Spread;
use crate::work::Case;

/// The machine and its peaks, three lines; a fourth one where the instructions were chosen by a measurement.
pub fn machine(m: &Machine) -> String {
    let cache = match m.cache_bytes {
        0 => String::new(),
        n => format!(", cache {:.0} MB", n as f64 / 1e6),
    };
    let plural = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let memory = format!("memory {:.1} GB{cache}", m.memory_bytes as f64 / 1e9);
    let scores: Vec<String> = m.isa_scores.iter().map(|(isa, s)| format!("{isa} {s:.1}")).collect();
    let chosen = match scores.is_empty() {
        true => String::new(),
        false => format!("{} chosen by 1e9 products/s on a thread: {}\n", m.isa, scores.join(", ")),
    };
    format!(
        "{}, {}\n{memory}, {}, peaks of {}\n{} with {}: read {:.1} GB/s, int8 {} GOP/s, f32 {} GFLOP/s\n{chosen}",
        m.cpu,
        plural(m.cores, "processor"),
        m.kernel,
        date(m.measured),
        plural(m.threads, "thread"),
        m.isa,
        m.peaks.read_gb_per_s,
        whole(m.peaks.int8_gop_per_s),
        whole(m.peaks.f32_gflop_per_s),
    )
}

/// The model, two lines.
pub fn model(m: &ModelInfo) -> String {
    let mut types: Vec<_> = m.types.iter().collect();
    types.sort_by_key(|(_, bytes)| std::cmp::Reverse(**bytes));
    let n = m.parameters as f64;
    let count = if n < 1e9 { format!("{:.1} M", n / 1e6) } else { format!("{:.2} B", n / 1e9) };
    let share = |b: u64| 100.0 * b as f64 / m.weight_bytes.max(1) as f64;
    let types: Vec<_> = types.iter().take(3).map(|(t, b)| format!("{t} {:.0}%", share(**b))).collect();
    format!(
        "{}: {}, {} parameters\n{:.1} MB ({}), {:.1} KB of cache for a token\n",
        m.name,
        m.architecture,
        count,
        m.weight_bytes as f64 / 1e6,
        types.join(", "),
        m.kv_bytes_per_token as f64 / 1e3
    )
}

/// The whole report.
pub fn report(r: &Report) -> String {
    let mut out = format!("{}{}\n", machine(&r.machine), model(&r.model));
    let mut rows = vec![row(["", "TOKENS/S", "MIN..MAX", "GB/S", "GOP/S", "OF PEAK"])];
    let mut add = |name: String, s: &Speed| {
        rows.push(row([
            &name,
            &tenth(s.tokens_per_s),
            &format!("{}..{}", tenth(s.min), tenth(s.max)),
            &format!("{:.1}", s.gb_per_s),
            &whole(s.gop_per_s),
            &format!("{:.0}% {}", 100.0 * s.share_of_peak, bound(s.bound)),
        ]));
    };
    r.prompt.iter().for_each(|s| add(Case::Prompt(s.tokens).name(), s));
    for d in &r.decode_at {
        add(Case::Decode { depth: d.depth, tokens: d.speed.tokens }.name(), &d.speed);
    }
    r.batch
        .iter()
        .for_each(|b| add(Case::Batch { sequences: b.sequences, depth: b.depth, steps: 0 }.name(), &b.speed));
    out += &table(&rows, &[1, 2, 3, 4, 5]);
    out += &waits(r);
    r.ops.iter().for_each(|p| out += &phase(p));
    if let Some(a) = &r.against {
        out += &format!("\n{}", crate::against::text(a));
    }
    let speeds = r.prompt.iter().chain(r.decode_at.iter().map(|d| &d.speed));
    let mut speeds = speeds.chain(r.batch.iter().map(|b| &b.speed));
    if speeds.any(|s| s.share_of_peak > 1.0) {
        out += match r.model.weight_bytes < r.machine.cache_bytes {
            true => {
                "\nAbove 100%: the weights fit the last-level cache, or the peaks were measured\non a busy machine; --fresh measures them again.\n"
            }
            false => {
                "\nAbove 100%: the peaks were measured on a busy machine;\n--fresh measures them again.\n"
            }
        };
    }
    out
}

fn bound(b: Bound) -> &'static str {
    match b {
        Bound::Memory => "read",
        Bound::Arithmetic => "arithmetic",
    }
}

/// First token, pauses, start-up, memory.
fn waits(r: &Report) -> String {
    let mut rows = Vec::new();
    let range = |s: &Spread, unit: &str| format!("{:.1} {unit} ({:.1}..{:.1})", s.median, s.min, s.max);
    if let Some(l) = &r.latency {
        rows.push(row([&format!("first token after {}", l.prompt_tokens), &range(&l.ttft_ms, "ms")]));
        if let (Some(p50), Some(p99)) = (l.itl_p50_ms, l.itl_p99_ms) {
            rows.push(row(["between tokens", &format!("p50 {p50:.2} ms, p99 {p99:.2} ms")]));
        }
    }
    if let Some(s) = &r.startup {
        let text = format!("{:.3} s ({:.3}..{:.3}), a process to its first token", s.seconds, s.min, s.max);
        rows.push(row(["start-up", &text]));
    }
    if let Some(m) = &r.memory {
        let mb = |b: u64| b as f64 / 1e6;
        let rest = m.peak_rss_bytes as f64 - (m.weight_bytes + m.kv_bytes) as f64;
        let text = format!(
            "{:.1} MB = weights {:.1} + cache {:.1} + {:.1}",
            mb(m.peak_rss_bytes),
            mb(m.weight_bytes),
            mb(m.kv_bytes),
            rest / 1e6
        );
        rows.push(row(["peak memory", &text]));
    }
    if rows.is_empty() { String::new() } else { format!("\n{}", table(&rows, &[])) }
}

fn phase(p: &Phase) -> String {
    let title = format!("OPS OF {}", p.name.to_uppercase());
    let mut rows = vec![row([&title, "MS", "SHARE", "CALLS", "MB", "GB/S", "GOP/S", "OF PEAK"])];
    let percent = |v: f64| format!("{:.1}%", 100.0 * v);
    for g in &p.groups {
        rows.push(row([
            &g.name,
            &format!("{:.2}", 1e3 * g.seconds),
            &percent(g.share_of_time),
            &g.calls.to_string(),
            &format!("{:.2}", g.bytes as f64 / 1e6),
            &format!("{:.1}", g.gb_per_s),
            &whole(g.gop_per_s),
            &g.share_of_peak.map(|s| format!("{:.0}%", 100.0 * s)).unwrap_or_default(),
        ]));
    }
    for (name, seconds) in [
        ("waiting for threads", p.waiting_s),
        ("choosing tokens", p.choosing_s),
        ("beginning and end of steps", p.outside_s),
    ] {
        rows.push(row([name, &format!("{:.2}", 1e3 * seconds), &percent(seconds / p.seconds.max(1e-9))]));
    }
    format!("\n{}", table(&rows, &[1, 2, 3, 4, 5, 6, 7]))
}

pub(crate) fn row<const N: usize>(cells: [&str; N]) -> Vec<String> {
    cells.map(String::from).to_vec()
}

/// Rows as aligned columns; those in `right` are flushed right.
pub fn table(rows: &[Vec<String>], right: &[usize]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cell = |(c, s): (usize, &String)| {
            let w = widths[c];
            if right.contains(&c) { format!("{s:>w$}") } else { format!("{s:w$}") }
        };
        let line: Vec<String> = row.iter().enumerate().map(cell).collect();
        out += line.join("  ").trim_end();
        out.push('\n');
    }
    out
}

/// With one digit behind the point, and thousands apart.
pub(crate) fn tenth(v: f64) -> String {
    let tenths = (v * 10.0).round().max(0.0) as u64;
    format!("{}.{}", thousands(tenths / 10), tenths % 10)
}

/// Without digits behind the point, and thousands apart.
pub(crate) fn whole(v: f64) -> String {
    thousands(v.round().max(0.0) as u64)
}

/// A number with its thousands apart: `98,362,432`.
pub fn thousands(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// The day of a time in seconds since 1970, UTC (civil-from-days, Howard Hinnant).
pub(crate) fn date(seconds: u64) -> String {
    let z = (seconds / 86_400) as i64 + 719_468;
    let (era, day) = (z / 146_097, z % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    format!("{:04}-{month:02}-{day:02}", year + era * 400 + i64::from(month <= 2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_dates_for_people() {
        assert_eq!([0.04, 9.96, 1234.56].map(tenth), ["0.0", "10.0", "1,234.6"].map(String::from));
        assert_eq!([0.4, 999.5, 1e6].map(whole), ["0", "1,000", "1,000,000"].map(String::from));
        for (seconds, want) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (1_795_392_000, "2026-11-23"),
            (68_169_599, "1972-02-28"),
        ] {
            assert_eq!(date(seconds), want);
        }
    }

    #[test]
    fn columns_align() {
        let rows = vec![row(["", "TOKENS/S"]), row(["prompt 512", "9.5"])];
        assert_eq!(table(&rows, &[1]), "            TOKENS/S\nprompt 512       9.5\n");
    }
}
