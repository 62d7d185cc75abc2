//! Elements of an SVG, written by hand: lines and texts of a class, and names made safe for both.

use std::fmt::Write;

/// A line between two points.
pub fn line(out: &mut String, class: &str, from: (f64, f64), to: (f64, f64)) {
    let _ = writeln!(
        out,
        "<line class=\"{class}\" x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\"/>",
        from.0, from.1, to.0, to.1
    );
}

/// A text that begins at a point.
pub fn text(out: &mut String, x: f64, y: f64, class: &str, what: &str) {
    anchored(out, x, y, class, "start", what);
}

/// A text that begins, ends or has its middle at a point.
pub fn anchored(out: &mut String, x: f64, y: f64, class: &str, anchor: &str, what: &str) {
    let what = escape(what);
    let _ = writeln!(
        out,
        "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{what}</text>"
    );
}

/// Text of strangers inside XML; control characters, which XML cannot hold, are left out.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out += "&amp;",
            '<' => out += "&lt;",
            '>' => out += "&gt;",
            '"' => out += "&quot;",
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => out.push(c),
        }
    }
    out
}

/// The last part of a path; other names as they are.
pub fn file_name(name: &str) -> String {
    name.rsplit('/').next().unwrap_or(name).to_string()
}
