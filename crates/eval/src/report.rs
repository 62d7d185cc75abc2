//! Outcomes as a table for people and as a picture: the frontier between diversity and quality.

use std::fmt::Write;

use quarrel_bench::svg::{anchored, escape, line};

use crate::interval::Interval;
use crate::study::Outcome;

/// A table with a row for each method, intervals below the means' last digits. Costs are ratios to the first row.
pub fn table(outcomes: &[Outcome]) -> String {
    let head =
        ["METHOD", "REP-4", "DISTINCT-2", "SELF-BLEU", "PERPLEXITY", "COHERENCE", "WORDS", "TOKENS", "TIME"];
    let first = outcomes.first().map_or(1.0, |o| o.seconds_per_token);
    let row = |o: &Outcome| {
        let perplexity = Interval { mean: o.nll.mean.exp(), low: o.nll.low.exp(), high: o.nll.high.exp() };
        [
            o.method.to_string(),
            shown(&o.rep_4, 3),
            shown(&o.distinct_2, 3),
            shown(&o.self_bleu, 3),
            shown(&perplexity, 1),
            shown(&o.coherence, 2),
            format!("{:.0}", o.words.mean),
            format!("{:.2}x", o.tokens_per_token),
            format!("{:.2}x", o.seconds_per_token / first),
        ]
    };
    let rows: Vec<[String; 9]> =
        std::iter::once(head.map(String::from)).chain(outcomes.iter().map(row)).collect();
    let width = |c: usize| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let mut out = String::new();
    for r in &rows {
        let mut line = format!("{:<w$}", r[0], w = widths[0]);
        for (cell, w) in r.iter().zip(&widths).skip(1) {
            let _ = write!(line, "  {cell:>w$}");
        }
        out += line.trim_end();
        out.push('\n');
    }
    out
}

fn shown(i: &Interval, digits: usize) -> String {
    if i.mean.is_nan() {
        return "-".into();
    }
    format!("{:.digits$} ({:.digits$}..{:.digits$})", i.mean, i.low, i.high)
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 560.0;
const STYLE: &str = "text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:13px;fill:#57606a}\
.back{fill:#fff}.title{font-size:17px;font-weight:600;fill:#1f2328}.grid{stroke:#e4e8ec}.axis{stroke:#8c959f}\
.dot{fill:#0969da}.bar{stroke:#0969da;stroke-opacity:.35;stroke-width:1.5}.front{stroke:#cf5a00;stroke-width:1.5;fill:none;stroke-dasharray:5 4}\
.lead{stroke:#8c959f;stroke-width:.8}\
.name{fill:#1f2328;paint-order:stroke;stroke:#fff;stroke-width:3;stroke-linejoin:round}\
@media (prefers-color-scheme:dark){text{fill:#9aa4af}.back{fill:#0d1117}.title,.name{fill:#e6edf3}.name{stroke:#0d1117}\
.lead{stroke:#656d76}.grid{stroke:#21282f}.axis{stroke:#656d76}.dot{fill:#58a6ff}.bar{stroke:#58a6ff}.front{stroke:#f0883e}}";

/// A point for each method: to the right more distinct answers, up likelier text; bars are the intervals, and the dashed line
/// joins the methods that no other beats in both.
pub fn svg(title: &str, outcomes: &[Outcome]) -> String {
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\">\n\
         <style>{STYLE}</style>\n<rect class=\"back\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n"
    );
    anchored(&mut out, 28.0, 34.0, "title", "start", title);
    anchored(
        &mut out,
        28.0,
        56.0,
        "",
        "start",
        "distinct 2-grams against perplexity under a second model (lower is likelier text, drawn upwards)",
    );
    let points: Vec<&Outcome> =
        outcomes.iter().filter(|o| o.nll.mean.is_finite() && o.distinct_2.mean.is_finite()).collect();
    let reach = |f: &dyn Fn(&Outcome) -> Interval| {
        let (low, high) =
            points.iter().map(|o| f(o)).fold((f64::MAX, f64::MIN), |(l, h), i| (l.min(i.low), h.max(i.high)));
        let pad = ((high - low) * 0.08).max(0.01);
        (low - pad, high + pad)
    };
    let (x, y) = (reach(&|o| o.distinct_2), reach(&|o| o.nll));
    let (left, right, top, bottom) = (80.0, WIDTH - 40.0, 84.0, HEIGHT - 64.0);
    let px = |v: f64| left + (right - left) * (v - x.0) / (x.1 - x.0);
    let py = |v: f64| top + (bottom - top) * (v - y.0) / (y.1 - y.0);
    for i in 0..=5 {
        let share = f64::from(i) / 5.0;
        let (vx, vy) = (x.0 + share * (x.1 - x.0), y.0 + share * (y.1 - y.0));
        line(&mut out, "grid", (px(vx), top), (px(vx), bottom));
        line(&mut out, "grid", (left, py(vy)), (right, py(vy)));
        anchored(&mut out, px(vx), bottom + 20.0, "", "middle", &format!("{vx:.2}"));
        anchored(&mut out, left - 8.0, py(vy) + 4.0, "", "end", &format!("{:.1}", vy.exp()));
    }
    line(&mut out, "axis", (left, bottom), (right, bottom));
    anchored(
        &mut out,
        (left + right) / 2.0,
        bottom + 44.0,
        "",
        "middle",
        "distinct-2 of the answers to a prompt",
    );
    anchored(&mut out, left, top - 10.0, "", "start", "perplexity");
    let front: Vec<String> = frontier(&points)
        .iter()
        .map(|o| format!("{:.1},{:.1}", px(o.distinct_2.mean), py(o.nll.mean)))
        .collect();
    let _ = writeln!(out, "<polyline class=\"front\" points=\"{}\"/>", front.join(" "));
    for o in &points {
        let (cx, cy) = (px(o.distinct_2.mean), py(o.nll.mean));
        line(&mut out, "bar", (px(o.distinct_2.low), cy), (px(o.distinct_2.high), cy));
        line(&mut out, "bar", (cx, py(o.nll.low)), (cx, py(o.nll.high)));
        let _ = writeln!(
            out,
            "<circle class=\"dot\" cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"4.5\"><title>{}</title></circle>",
            escape(o.about)
        );
    }
    // The frontier's names come first, so that they stand nearest.
    let front = frontier(&points);
    let is_front = |o: &&Outcome| front.iter().any(|f| std::ptr::eq(*f, *o));
    let order =
        points.iter().copied().filter(is_front).chain(points.iter().copied().filter(|o| !is_front(o)));
    let dots: Vec<Rect> =
        points.iter().map(|o| Rect::around(px(o.distinct_2.mean), py(o.nll.mean), 11.0, 11.0)).collect();
    let inside = Rect { left, top, right: WIDTH - 4.0, bottom };
    let mut taken: Vec<Rect> = Vec::new();
    for o in order {
        let (cx, cy) = (px(o.distinct_2.mean), py(o.nll.mean));
        let free = |r: &Rect| r.within(&inside) && !taken.iter().chain(&dots).any(|t| t.meets(r));
        let Some(place) = places(cx, cy, 7.4 * o.method.len() as f64).find(free) else { continue };
        let (x, y) = ((place.left + place.right) / 2.0, (place.top + place.bottom) / 2.0);
        // From the dot to the nearest point of the name, where that is not plain to see.
        let (nx, ny) = (cx.clamp(place.left, place.right), cy.clamp(place.top, place.bottom));
        if (nx - cx).hypot(ny - cy) > 14.0 {
            line(&mut out, "lead", (cx, cy), (nx, ny));
        }
        anchored(&mut out, x, y + 4.5, "name", "middle", o.method);
        taken.push(place);
    }
    out += "</svg>\n";
    out
}

/// A part of the picture.
#[derive(Debug, Clone, Copy)]
struct Rect {
    left: f64,
    top: f64,
    right: f64,
    bottom: f64,
}

impl Rect {
    fn around(x: f64, y: f64, width: f64, height: f64) -> Rect {
        let (w, h) = (width / 2.0, height / 2.0);
        Rect { left: x - w, top: y - h, right: x + w, bottom: y + h }
    }

    fn meets(&self, other: &Rect) -> bool {
        self.left < other.right
            && other.left < self.right
            && self.top < other.bottom
            && other.top < self.bottom
    }

    fn within(&self, other: &Rect) -> bool {
        self.left >= other.left
            && self.right <= other.right
            && self.top >= other.top
            && self.bottom <= other.bottom
    }
}

/// Where a name of this width may stand, the nearest first: beside the dot, then on wider and wider rings around it.
fn places(x: f64, y: f64, width: f64) -> impl Iterator<Item = Rect> {
    (0..14).flat_map(move |ring| {
        (0..24).map(move |turn| {
            // From the upper right on.
            let angle = f64::from(turn) * std::f64::consts::TAU / 24.0 - 0.5;
            let far = 10.0 + 12.0 * f64::from(ring);
            let (dx, dy) = (angle.cos() * (far + width / 2.0), angle.sin() * (far + 7.0));
            Rect::around(x + dx, y + dy, width, 14.0)
        })
    })
}

/// The methods that no other beats in both diversity and likelihood, by diversity.
fn frontier<'a>(points: &[&'a Outcome]) -> Vec<&'a Outcome> {
    let beats = |a: &Outcome, b: &Outcome| a.distinct_2.mean > b.distinct_2.mean && a.nll.mean < b.nll.mean;
    let mut front: Vec<&Outcome> =
        points.iter().copied().filter(|o| !points.iter().any(|p| beats(p, o))).collect();
    front.sort_by(|a, b| a.distinct_2.mean.total_cmp(&b.distinct_2.mean));
    front
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(method: &'static str, distinct: f64, nll: f64) -> Outcome {
        let i = |mean: f64| Interval { mean, low: mean - 0.01, high: mean + 0.01 };
        Outcome {
            method,
            about: "a < b",
            rep_4: i(0.1),
            distinct_2: i(distinct),
            self_bleu: i(0.2),
            nll: i(nll),
            coherence: i(f64::NAN),
            words: i(80.0),
            tokens_per_token: 1.0,
            seconds_per_token: 0.01 * nll,
        }
    }

    #[test]
    fn the_frontier_has_those_that_nobody_beats() {
        let all =
            [outcome("a", 0.9, 3.0), outcome("b", 0.5, 2.0), outcome("c", 0.4, 2.5), outcome("d", 0.95, 3.5)];
        let names: Vec<&str> = frontier(&all.iter().collect::<Vec<_>>()).iter().map(|o| o.method).collect();
        assert_eq!(names, ["b", "a", "d"]);
    }

    #[test]
    fn names_stand_apart_and_in_the_picture() {
        let names = ["plain", "a longer name", "b", "c", "d", "e", "f", "g", "h", "i"];
        let all: Vec<Outcome> =
            names.iter().enumerate().map(|(i, n)| outcome(n, 0.9 + 0.001 * i as f64, 2.0)).collect();
        let picture = svg("m", &[all, vec![outcome("far", 0.1, 5.0)]].concat());
        for name in names {
            assert_eq!(picture.matches(&format!(">{name}</text>")).count(), 1, "{name}");
        }
        let first = places(100.0, 100.0, 40.0).next().unwrap();
        assert!(first.left > 100.0 && !first.meets(&Rect::around(100.0, 100.0, 11.0, 11.0)), "{first:?}");
    }

    #[test]
    fn the_table_lines_up_and_the_picture_is_xml() {
        let all = [outcome("plain", 0.9, 3.0), outcome("b", 0.5, 1.5)];
        let t = table(&all);
        let lines: Vec<&str> = t.lines().collect();
        assert!(lines[1].starts_with("plain   0.100 (0.090..0.110)"), "{t}");
        assert!(
            lines[1].contains("20.1 (19.9..20.3)  -") || lines[1].contains("20.1 (19.9..20.3)          -"),
            "{t}"
        );
        assert!(lines[2].ends_with("0.50x"), "{t}");
        let picture = svg("Model & others", &all);
        assert_eq!(picture.matches("<circle").count(), 2);
        assert!(picture.contains("Model &amp; others") && picture.contains("a &lt; b"));
        assert!(!picture.contains("NaN") && !picture.contains("inf"));
    }
}
