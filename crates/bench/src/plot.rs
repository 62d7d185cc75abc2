//! A report as an SVG of two panels: the roofline with a point for each kind of op, and the speed of batches. Written by hand,
//! with classes for colours so that it follows the reader's light or dark scheme.

use crate::machine::Rates;
use crate::ops::Phase;
use crate::report::Report;
use crate::svg::{anchored, escape, file_name, line, text};
use crate::text::{tenth, whole};
use std::fmt::Write;

/// Kinds of ops that get a colour; those that take most time.
const GROUPS_MAX: usize = 6;
const WIDTH: f64 = 1160.0;
const HEIGHT: f64 = 600.0;

const STYLE: &str = "\
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px;fill:#57606a}\
.back{fill:#ffffff}.title{font-size:17px;font-weight:600;fill:#1f2328}.head{font-size:14px;font-weight:600;fill:#1f2328}\
.small{font-size:12px}.value{font-size:12px;fill:#1f2328}.halo{stroke:#ffffff;stroke-width:4;stroke-linejoin:round;paint-order:stroke}\
.grid{stroke:#e4e8ec;stroke-width:1}.axis{stroke:#8c959f;stroke-width:1}\
.roof{stroke:#1f2328;stroke-width:2;fill:none;stroke-linejoin:round}.second{stroke-dasharray:6 5;stroke-width:1.5}\
.under{fill:#1f2328;fill-opacity:0.04}\
.path{fill:none;stroke-width:1.5;stroke-opacity:0.55}.open{fill:#ffffff;stroke-width:2}.whisker{stroke-width:1.5}\
.c0{stroke:#0969da;fill:#0969da}.c1{stroke:#cf5a00;fill:#cf5a00}.c2{stroke:#12804a;fill:#12804a}\
.c3{stroke:#a63fb4;fill:#a63fb4}.c4{stroke:#b8860b;fill:#b8860b}.c5{stroke:#c02f52;fill:#c02f52}\
.key{stroke:#57606a;fill:#57606a}.ink{stroke:#1f2328;fill:#1f2328}.path.c0,.path.c1,.path.c2,.path.c3,.path.c4,.path.c5,.path.ink{fill:none}\
.open.c0,.open.c1,.open.c2,.open.c3,.open.c4,.open.c5,.open.key,.open.ink{fill:#ffffff}";

/// Only the colours change.
const DARK: &str = "\
text{fill:#9aa4af}.back{fill:#0d1117}.title,.head,.value{fill:#e6edf3}.halo{stroke:#0d1117}\
.grid{stroke:#21282f}.axis{stroke:#656d76}.roof{stroke:#e6edf3}.under{fill:#e6edf3}\
.c0{stroke:#58a6ff;fill:#58a6ff}.c1{stroke:#f0883e;fill:#f0883e}.c2{stroke:#3fb96f;fill:#3fb96f}\
.c3{stroke:#d58be0;fill:#d58be0}.c4{stroke:#e3b341;fill:#e3b341}.c5{stroke:#f7798f;fill:#f7798f}\
.key{stroke:#9aa4af;fill:#9aa4af}.ink{stroke:#e6edf3;fill:#e6edf3}\
.open.c0,.open.c1,.open.c2,.open.c3,.open.c4,.open.c5,.open.key,.open.ink{fill:#0d1117}";

/// Draws the report; `phases` are the profiled cases.
pub fn svg(report: &Report, phases: &[Phase]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" \
         role=\"img\">\n<style>{STYLE}@media (prefers-color-scheme:dark){{{DARK}}}</style>\n\
         <rect class=\"back\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    let m = &report.machine;
    let threads = if m.threads == 1 { "1 thread".into() } else { format!("{} threads", m.threads) };
    text(&mut out, 28.0, 36.0, "title", &file_name(&report.model.name));
    text(&mut out, 28.0, 58.0, "", &format!("{}, {threads}, {}; quarrel {}", m.cpu, m.isa, report.version));
    roofline(&mut out, &m.peaks, phases);
    sweep(&mut out, report);
    out += "</svg>\n";
    out
}

/// A rectangle with two logarithmic axes.
struct Panel {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
    x: (f64, f64),
    y: (f64, f64),
}

impl Panel {
    fn px(&self, x: f64) -> f64 {
        self.left + self.width * (x / self.x.0).ln() / (self.x.1 / self.x.0).ln()
    }

    fn py(&self, y: f64) -> f64 {
        self.top + self.height * (1.0 - (y / self.y.0).ln() / (self.y.1 / self.y.0).ln())
    }

    fn bottom(&self) -> f64 {
        self.top + self.height
    }

    /// Grid, ticks and names of the axes.
    fn frame(&self, out: &mut String, title: &str, x_name: &str, y_name: &str, x_ticks: &[f64]) {
        text(out, self.left, self.top - 28.0, "head", title);
        text(out, self.left, self.top - 10.0, "small", y_name);
        for x in x_ticks {
            let at = self.px(*x);
            line(out, "grid", (at, self.top), (at, self.bottom()));
            anchored(out, at, self.bottom() + 18.0, "small", "middle", &number(*x));
        }
        for y in ticks(self.y) {
            let at = self.py(y);
            line(out, "grid", (self.left, at), (self.left + self.width, at));
            anchored(out, self.left - 8.0, at + 4.0, "small", "end", &number(y));
        }
        line(out, "axis", (self.left, self.bottom()), (self.left + self.width, self.bottom()));
        anchored(out, self.left + self.width / 2.0, self.bottom() + 38.0, "small", "middle", x_name);
    }
}

fn roofline(out: &mut String, peaks: &Rates, phases: &[Phase]) {
    // A peak of 0, as a damaged report may have, has no logarithm.
    let peaks = &Rates {
        read_gb_per_s: peaks.read_gb_per_s.max(1e-3),
        int8_gop_per_s: peaks.int8_gop_per_s.max(1e-3),
        f32_gflop_per_s: peaks.f32_gflop_per_s.max(1e-3),
    };
    let names = main_groups(phases);
    let shown = |p: &Phase| -> Vec<(usize, f64, f64)> {
        let at = |name: &str| names.iter().position(|n| n == name);
        let visible =
            |g: &&crate::ops::Group| g.share_of_peak.is_some() && g.ops_per_byte > 0.0 && g.gop_per_s > 0.0;
        p.groups
            .iter()
            .filter(visible)
            .filter_map(|g| Some((at(&g.name)?, g.ops_per_byte, g.gop_per_s)))
            .collect()
    };
    let points: Vec<(f64, f64)> = phases.iter().flat_map(shown).map(|(_, x, y)| (x, y)).collect();
    let ridge = peaks.int8_gop_per_s / peaks.read_gb_per_s;
    let x = range(points.iter().map(|p| p.0).chain([ridge / 20.0, ridge * 4.0]));
    let y = range(points.iter().map(|p| p.1).chain([peaks.int8_gop_per_s, peaks.f32_gflop_per_s]));
    let p = Panel { left: 78.0, top: 122.0, width: 600.0, height: 360.0, x, y };
    p.frame(
        out,
        "Roofline",
        "operations for each byte of weights and cache",
        "1e9 operations per second",
        &ticks(x),
    );
    roofs(out, &p, peaks);
    for (i, _) in names.iter().enumerate() {
        let of =
            |phase: &Phase| shown(phase).into_iter().find(|s| s.0 == i).map(|(_, x, y)| (p.px(x), p.py(y)));
        let steps: Vec<(f64, f64)> =
            phases.iter().filter(|f| !f.name.starts_with("prompt")).filter_map(of).collect();
        let path: Vec<String> = steps.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        if path.len() > 1 {
            let _ = writeln!(out, "<polyline class=\"path c{i}\" points=\"{}\"/>", path.join(" "));
        }
    }
    for phase in phases {
        let sequences = phase.sequences;
        for (i, x, y) in shown(phase) {
            let class = format!("c{i}");
            let tip = format!("{}, {}: {} GOP/s at {:.1} ops/byte", names[i], phase.name, tenth(y), x);
            marker(out, Shape::of(phase, sequences), (p.px(x), p.py(y)), &class, &tip);
        }
    }
    legend(out, &p, &names);
}

/// The ceilings, and the area below them.
fn roofs(out: &mut String, p: &Panel, peaks: &Rates) {
    let clip = |x: f64| x.clamp(p.x.0, p.x.1);
    let roof = |x: f64, ceiling: f64| (peaks.read_gb_per_s * x).min(ceiling);
    let path = |from: f64, ceiling: f64| -> Vec<String> {
        let knee = clip(ceiling / peaks.read_gb_per_s);
        [from, knee.max(from), p.x.1]
            .map(|x| format!("{:.1},{:.1}", p.px(x), p.py(roof(x, ceiling))))
            .to_vec()
    };
    // Where the slope enters the panel: at its left edge, or at its bottom.
    let from = clip(p.y.0 / peaks.read_gb_per_s);
    let top = path(from, peaks.int8_gop_per_s);
    let bottom = p.bottom();
    let _ = writeln!(
        out,
        "<polygon class=\"under\" points=\"{:.1},{bottom:.1} {} {:.1},{bottom:.1}\"/>",
        p.px(from),
        top.join(" "),
        p.px(p.x.1)
    );
    let knee = clip(peaks.f32_gflop_per_s / peaks.read_gb_per_s);
    let second = [knee, p.x.1].map(|x| format!("{:.1},{:.1}", p.px(x), p.py(peaks.f32_gflop_per_s)));
    let _ = writeln!(out, "<polyline class=\"roof second\" points=\"{}\"/>", second.join(" "));
    let _ = writeln!(out, "<polyline class=\"roof\" points=\"{}\"/>", top.join(" "));
    let right = p.left + p.width - 4.0;
    let int8 = format!("int8 {} GOP/s", whole(peaks.int8_gop_per_s));
    anchored(out, right, p.py(peaks.int8_gop_per_s) - 8.0, "value halo", "end", &int8);
    let float = format!("f32 {} GFLOP/s", whole(peaks.f32_gflop_per_s));
    anchored(out, right, p.py(peaks.f32_gflop_per_s) - 8.0, "value halo", "end", &float);
    // The slope's name, along it.
    let knee = clip(peaks.int8_gop_per_s / peaks.read_gb_per_s);
    let middle = (from.max(1e-9) * knee).sqrt();
    let (x, y) = (p.px(middle), p.py(roof(middle, peaks.int8_gop_per_s)));
    let (dx, dy) = (
        p.px(knee) - p.px(from),
        p.py(roof(knee, peaks.int8_gop_per_s)) - p.py(roof(from, peaks.int8_gop_per_s)),
    );
    let angle = dy.atan2(dx.max(1e-9)).to_degrees();
    let _ = writeln!(
        out,
        "<text class=\"value halo\" text-anchor=\"middle\" transform=\"translate({x:.1} {y:.1}) rotate({angle:.1}) translate(0 -9)\">read {:.1} GB/s</text>",
        peaks.read_gb_per_s
    );
}

/// The kinds of ops with most time over all phases, each phase counting alike.
fn main_groups(phases: &[Phase]) -> Vec<String> {
    let mut sums: Vec<(String, f64)> = Vec::new();
    for g in phases.iter().flat_map(|p| &p.groups).filter(|g| g.share_of_peak.is_some()) {
        match sums.iter_mut().find(|s| s.0 == g.name) {
            Some(s) => s.1 += g.share_of_time,
            None => sums.push((g.name.clone(), g.share_of_time)),
        }
    }
    sums.sort_by(|a, b| b.1.total_cmp(&a.1));
    sums.into_iter().take(GROUPS_MAX).map(|s| s.0).collect()
}

fn legend(out: &mut String, p: &Panel, names: &[String]) {
    let y = p.bottom() + 66.0;
    let mut x = p.left;
    for (i, name) in names.iter().enumerate() {
        let name = name.trim_start_matches("matmul ");
        let _ = writeln!(
            out,
            "<rect class=\"c{i}\" x=\"{x:.1}\" y=\"{:.1}\" width=\"11\" height=\"11\" rx=\"2\"/>",
            y - 10.0
        );
        text(out, x + 17.0, y, "small", name);
        x += 38.0 + 7.0 * name.chars().count() as f64;
    }
    let mut x = p.left;
    for (shape, name) in [
        (Shape::Ring, "decode, one sequence"),
        (Shape::Dot(4.5), "batches; the more sequences, the larger"),
        (Shape::Diamond, "prompt"),
    ] {
        marker(out, shape, (x + 5.5, y + 20.0), "key", name);
        text(out, x + 17.0, y + 24.0, "small", name);
        x += 38.0 + 6.6 * name.chars().count() as f64;
    }
}

fn sweep(out: &mut String, r: &Report) {
    let bound = |s: &crate::report::Speed| s.tokens_per_s / s.share_of_peak.max(1e-9);
    let depths = r.decode_at.iter().filter(|d| d.depth > 0);
    let sizes: Vec<f64> = r.batch.iter().map(|b| b.sequences as f64).collect();
    let speeds = r.batch.iter().flat_map(|b| [b.speed.min, b.speed.max, bound(&b.speed)]);
    let y = range(
        speeds
            .chain(depths.clone().map(|d| d.speed.tokens_per_s))
            .chain(r.decode.iter().map(|d| d.tokens_per_s)),
    );
    let x = (0.8, sizes.iter().copied().fold(2.0, f64::max) * 1.25);
    let p = Panel { left: 770.0, top: 122.0, width: 360.0, height: 360.0, x, y };
    p.frame(
        out,
        "Decoding",
        "sequences in a step",
        "tokens per second, all together",
        if sizes.is_empty() { &[1.0] } else { &sizes },
    );
    let path = |f: &dyn Fn(&crate::report::Speed) -> f64| {
        let at = |b: &crate::report::BatchSpeed| {
            format!("{:.1},{:.1}", p.px(b.sequences as f64), p.py(f(&b.speed)))
        };
        r.batch.iter().map(at).collect::<Vec<_>>().join(" ")
    };
    if !r.batch.is_empty() {
        let _ = writeln!(out, "<polyline class=\"roof second\" points=\"{}\"/>", path(&bound));
        let _ = writeln!(out, "<polyline class=\"path ink\" points=\"{}\"/>", path(&|s| s.tokens_per_s));
    }
    for b in &r.batch {
        let (s, x) = (&b.speed, p.px(b.sequences as f64));
        line(out, "whisker ink", (x, p.py(s.min)), (x, p.py(s.max)));
        let tip = format!("{} sequences: {} tokens/s", b.sequences, tenth(s.tokens_per_s));
        marker(out, Shape::Dot(4.5), (x, p.py(s.tokens_per_s)), "ink", &tip);
        anchored(out, x, p.py(s.min) + 18.0, "value halo", "middle", &whole(s.tokens_per_s));
    }
    for d in depths {
        let (x, y) = (p.px(1.0), p.py(d.speed.tokens_per_s));
        let tip = format!("depth {}: {} tokens/s", d.depth, tenth(d.speed.tokens_per_s));
        marker(out, Shape::Ring, (x, y), "ink", &tip);
        let name = format!("{} behind {} tokens", whole(d.speed.tokens_per_s), whole(d.depth as f64));
        text(out, x + 12.0, y + 4.0, "value halo", &name);
    }
    let y = p.bottom() + 66.0;
    let mut entry = |x: f64, shape: Option<(Shape, &str)>, name: &str| {
        match shape {
            Some((shape, class)) => marker(out, shape, (x + 9.0, y - 4.0), class, name),
            None => line(out, "roof second", (x, y - 4.0), (x + 20.0, y - 4.0)),
        }
        text(out, x + 26.0, y, "small", name);
    };
    entry(p.left, Some((Shape::Dot(4.5), "ink")), "measured, with the range");
    entry(p.left + 196.0, None, "what the peaks allow");
}

/// How a point looks.
#[derive(Clone, Copy)]
enum Shape {
    Ring,
    Dot(f64),
    Diamond,
}

impl Shape {
    fn of(phase: &Phase, sequences: Option<usize>) -> Shape {
        match sequences {
            Some(n) => Shape::Dot(2.2 + 0.65 * (n.max(1) as f64).log2()),
            None if phase.name.starts_with("prompt") => Shape::Diamond,
            None => Shape::Ring,
        }
    }
}

fn marker(out: &mut String, shape: Shape, (x, y): (f64, f64), class: &str, tip: &str) {
    let tip = escape(tip);
    let _ = match shape {
        Shape::Ring => {
            writeln!(
                out,
                "<circle class=\"open {class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"5\"><title>{tip}</title></circle>"
            )
        }
        Shape::Dot(r) => {
            writeln!(
                out,
                "<circle class=\"{class}\" cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"{r:.1}\"><title>{tip}</title></circle>"
            )
        }
        Shape::Diamond => writeln!(
            out,
            "<path class=\"{class}\" d=\"M{x:.1} {:.1}L{:.1} {y:.1}L{x:.1} {:.1}L{:.1} {y:.1}Z\"><title>{tip}</title></path>",
            y - 6.5,
            x + 6.5,
            y + 6.5,
            x - 6.5
        ),
    };
}

/// A range around positive values with some air, for a logarithmic axis.
fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (low, high) = values
        .filter(|v| v.is_finite() && *v > 0.0)
        .fold((f64::INFINITY, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    if low > high { (1.0, 10.0) } else { (low / 1.5, high * 1.7) }
}

/// Round numbers within a range: 1, 2 and 5 times powers of ten if they are few, else the powers alone.
fn ticks((low, high): (f64, f64)) -> Vec<f64> {
    let decades = low.log10().floor() as i32..=high.log10().ceil() as i32;
    let steps: &[f64] = if (high / low).log10() > 2.5 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = decades.flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
    all.filter(|t| (low..=high).contains(t)).collect()
}

/// A tick's number.
fn number(v: f64) -> String {
    if v >= 1.0 { whole(v) } else { format!("{v}") }
}

#[cfg(test)]
mod tests;
