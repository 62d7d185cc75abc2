//! Stop strings over streamed text. Text that may be the start of a stop string waits; everything else leaves at once.
//! The result does not depend on how the text is cut: the first stop string to be complete wins, of two that end
//! together the longer.

/// Watches one stream.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    stopped: Option<usize>,
}

/// What a push gives.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StopOutput {
    /// Text that is safe to show.
    pub text: String,
    /// The stop string that was found (its index in the list); nothing comes after it.
    pub stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these stop strings. Empty ones never match.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new(), stopped: None }
    }

    /// The stop string of an index that [`StopOutput::stopped`] gave.
    pub fn stop(&self, index: usize) -> Option<&str> {
        self.stops.get(index).map(String::as_str)
    }

    /// Takes more text. After a stop it gives nothing more.
    pub fn push(&mut self, text: &str) -> StopOutput {
        if self.stopped.is_some() {
            return StopOutput { text: String::new(), stopped: self.stopped };
        }
        self.held.push_str(text);
        let ends = self.stops.iter().enumerate().filter(|(_, s)| !s.is_empty());
        let first =
            ends.filter_map(|(i, s)| self.held.find(s.as_str()).map(|at| (at + s.len(), at, i))).min(); // earliest end, then earliest start
        if let Some((_, start, index)) = first {
            self.held.truncate(start);
            self.stopped = Some(index);
            return StopOutput { text: std::mem::take(&mut self.held), stopped: self.stopped };
        }
        let wait = self.held.len() - self.longest_open();
        let rest = self.held.split_off(wait);
        StopOutput { text: std::mem::replace(&mut self.held, rest), stopped: None }
    }

    /// The end of the stream: what waited was no stop string.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes at the end of the held text that begin a stop string.
    fn longest_open(&self) -> usize {
        let open = |stop: &String| {
            let most = self.held.len().min(stop.len().saturating_sub(1));
            (1..=most).rev().find(|&n| self.held.as_bytes().ends_with(&stop.as_bytes()[..n]))
        };
        self.stops.iter().filter_map(open).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn run(stops: &[&str], chunks: &[&str]) -> (String, Option<usize>) {
        let mut m = StopMatcher::new(stops.iter().map(|s| s.to_string()).collect());
        let mut text = String::new();
        for chunk in chunks {
            text += &m.push(chunk).text;
        }
        let stopped = m.push("").stopped;
        text += &m.finish();
        (text, stopped)
    }

    #[test]
    fn holds_back_exactly_the_possible_prefix() {
        let mut m = StopMatcher::new(vec!["</s>".into(), "\nUser:".into()]);
        assert_eq!(m.push("Hello <"), StopOutput { text: "Hello ".into(), stopped: None });
        assert_eq!(m.push("b>"), StopOutput { text: "<b>".into(), stopped: None });
        assert_eq!(m.push("\nUs"), StopOutput::default());
        assert_eq!(m.push("er: hi"), StopOutput { text: String::new(), stopped: Some(1) });
        assert_eq!(m.push("more"), StopOutput { text: String::new(), stopped: Some(1) });
        assert_eq!(m.finish(), "");
        assert_eq!(m.stop(1), Some("\nUser:"));
    }

    #[test]
    fn which_stop() {
        assert_eq!(run(&["abcd", "bc"], &["xabcd"]), ("xa".into(), Some(1)), "the first to be complete");
        assert_eq!(
            run(&["bc", "abc"], &["xabc"]),
            ("x".into(), Some(1)),
            "of two that end together the longer"
        );
        assert_eq!(run(&[""], &["abc"]), ("abc".into(), None));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]), ("a".into(), Some(0)));
        assert_eq!(run(&["é"], &["\u{c3}é"]), ("\u{c3}".into(), Some(0)));
    }

    proptest! {
        #[test]
        fn cutting_does_not_matter(text in "[ab]{0,12}", stops in prop::collection::vec("[ab]{0,4}", 0..3)) {
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            let (out, stopped) = run(&stops, &chars);
            prop_assert_eq!(run(&stops, &[&text]), (out.clone(), stopped));
            match stopped {
                Some(i) => prop_assert!(text.starts_with(&(out + stops[i]))),
                None => prop_assert!(out == text && !stops.iter().any(|s| !s.is_empty() && text.contains(s))),
            }
        }
    }
}
