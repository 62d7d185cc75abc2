//! Names that look alike, for "did you mean".

/// The most suggestions that help.
const SUGGESTIONS_MAX: usize = 3;

/// The known names that `text` begins, or that are within a typing slip or two of it; the nearest first.
pub(super) fn near<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Vec<String> {
    let text = text.to_ascii_lowercase();
    let slips_max = (text.chars().count() / 4).clamp(1, 3);
    let mut scored: Vec<(usize, &str)> = known
        .filter_map(|k| {
            let lower = k.to_ascii_lowercase();
            let d = if lower.starts_with(&text) { 0 } else { distance(&text, &lower) };
            (d <= slips_max).then_some((d, k))
        })
        .collect();
    scored.sort();
    scored.dedup();
    scored.into_iter().take(SUGGESTIONS_MAX).map(|(_, k)| k.to_string()).collect()
}

/// Edits (insert, delete, replace, swap neighbours) between two short texts.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 1..=a.len() {
        let mut row = vec![i; b.len() + 1];
        for j in 1..=b.len() {
            let replace = last[j - 1] + usize::from(a[i - 1] != b[j - 1]);
            row[j] = replace.min(last[j] + 1).min(row[j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                row[j] = row[j].min(before[j - 2] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names() {
        let known = ["smollm2", "smollm", "mistral", "gemma3", "llama3.2"];
        for (text, want) in [
            ("smoll", vec!["smollm", "smollm2"]),
            ("mistrla", vec!["mistral"]),
            ("lama3.2", vec!["llama3.2"]),
            ("Gemma", vec!["gemma3"]),
            ("zebra", vec![]),
        ] {
            assert_eq!(near(text, known.into_iter()), want, "{text}");
        }
    }
}
