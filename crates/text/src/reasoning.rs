//! Reasoning in a model's text: the marks around it, and whether the prompt has already opened it.

use crate::{Reasoning, Tokenizer};

/// The marks around the reasoning of a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReasoningMarks {
    /// What begins it.
    pub start: &'static str,
    /// What ends it. A grammar for the answer begins after this, and after [`Self::answer`].
    pub end: &'static str,
    /// What stands between the end mark and the answer.
    pub answer: &'static str,
}

/// Where a rendered prompt leaves the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Inside its reasoning: the prompt ends with the start mark.
    Open,
    /// Behind it: the prompt has closed it (`enable_thinking=false`).
    Closed,
    /// Before it, or there is none: the model opens it if it likes.
    Silent,
}

/// Ends any message of harmony, not the reasoning alone.
const HARMONY_END: &str = "<|end|>";

/// All known marks; those of one family only come first.
const FAMILIES: [ReasoningMarks; 5] = [
    ReasoningMarks {
        start: "<|channel|>analysis<|message|>",
        end: HARMONY_END,
        answer: "<|start|>assistant<|channel|>final<|message|>",
    },
    ReasoningMarks { start: "<|START_THINKING|>", end: "<|END_THINKING|>", answer: "" },
    ReasoningMarks { start: "<seed:think>", end: "</seed:think>", answer: "" },
    ReasoningMarks { start: "[THINK]", end: "[/THINK]", answer: "" },
    ReasoningMarks { start: "<think>", end: "</think>", answer: "\n\n" },
];

impl ReasoningMarks {
    /// The marks that a chat template writes or reads; `None` where it knows no reasoning.
    pub fn detect(source: &str) -> Option<Self> {
        let [harmony, others @ ..] = FAMILIES;
        if source.contains("<|channel|>") && source.contains("<|message|>") {
            return Some(harmony);
        }
        others.into_iter().find(|r| source.contains(r.start) || source.contains(r.end))
    }

    /// Where a rendered prompt leaves the model.
    pub fn after(&self, prompt: &str) -> Prompt {
        let prompt = prompt.trim_end();
        if prompt.ends_with(self.start) {
            Prompt::Open
        } else if prompt.ends_with(self.end) && self.end != HARMONY_END {
            Prompt::Closed
        } else {
            Prompt::Silent
        }
    }

    /// The reasoning of an answer that a client gives back with its marks in it, and what is behind it: the start mark (empty
    /// where the prompt had opened it), the reasoning, and the rest. Harmony's ends any message, so nothing can be told apart.
    pub fn split<'t>(&self, answer: &'t str) -> Option<(&'t str, &'t str, &'t str)> {
        if self.end == HARMONY_END {
            return None;
        }
        let (thought, rest) = answer.split_once(self.end)?;
        let inner = thought.trim_start().strip_prefix(self.start).unwrap_or(thought);
        let (start, inner) = thought.split_at(thought.len() - inner.len());
        Some((start, inner, rest))
    }

    /// How an answer is guided around its reasoning ([`Guided`](crate::Guided)), with at most `budget` tokens of it; `None`
    /// where the prompt has closed it. A grammar of calls in harmony has the reasoning in it and needs no such guide.
    pub fn guide(&self, prompt: Prompt, budget: Option<u32>) -> Option<Reasoning> {
        let start = match prompt {
            Prompt::Closed => return None,
            Prompt::Open => "",
            Prompt::Silent => self.start,
        };
        Some(Reasoning { start: start.into(), end: self.end.into(), budget, then: self.answer.into() })
    }

    /// Whether the marks can only be seen when control tokens show.
    pub fn needs_control_tokens(&self, tokenizer: &Tokenizer) -> bool {
        let is_control = |mark| tokenizer.token_id(mark).is_some_and(|id| tokenizer.is_special(id));
        [self.start, self.end, "<|channel|>"].into_iter().any(is_control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_templates() {
        let start = |source| ReasoningMarks::detect(source).map(|r| r.start);
        assert_eq!(start("{%- if '</think>' in message.content %}"), Some("<think>"));
        assert_eq!(start("{{- '<|START_THINKING|>' }}"), Some("<|START_THINKING|>"));
        assert_eq!(start("{%- set think_end_token = '</seed:think>' -%}"), Some("<seed:think>"));
        assert_eq!(start("[THINK]Your thoughts[/THINK]"), Some("[THINK]"));
        assert_eq!(
            start("'<|channel|>analysis<|message|>' + message.thinking"),
            Some("<|channel|>analysis<|message|>")
        );
        assert_eq!(start("{{ message.content }}"), None);
    }

    #[test]
    fn an_answer_with_its_reasoning_in_it() {
        let think = ReasoningMarks::detect("<think>").unwrap();
        for (answer, parts) in [
            ("<think>a</think>b</think>", Some(("<think>", "a", "b</think>"))),
            ("\n<think>\na\n</think>\n\nb", Some(("\n<think>", "\na\n", "\n\nb"))),
            (" a</think>b", Some(("", " a", "b"))),
            ("a <think>b</think>", Some(("", "a <think>b", ""))),
            ("<think>a", None),
            ("a", None),
        ] {
            assert_eq!(think.split(answer), parts, "{answer}");
        }
        let harmony = ReasoningMarks::detect("<|channel|><|message|>").unwrap();
        assert_eq!(harmony.split("<|channel|>analysis<|message|>a<|end|>b"), None);
    }

    #[test]
    fn what_the_prompt_left_open() {
        let think = ReasoningMarks::detect("<think>").unwrap();
        let cases = [
            ("<|im_start|>assistant\n<think>\n", Prompt::Open),
            ("<|im_start|>assistant\n<think>\n\n</think>\n\n", Prompt::Closed),
            ("<｜Assistant｜></think>", Prompt::Closed),
            ("what is <think>?<|im_end|>\n<|im_start|>assistant\n", Prompt::Silent),
        ];
        for (prompt, state) in cases {
            assert_eq!(think.after(prompt), state, "{prompt}");
        }
        assert_eq!(think.guide(Prompt::Closed, None), None);
        assert_eq!(
            think.guide(Prompt::Open, Some(9)).map(|g| (g.start, g.budget)),
            Some((String::new(), Some(9)))
        );
        assert_eq!(think.guide(Prompt::Silent, None).map(|g| g.start), Some("<think>".into()));
        let harmony = ReasoningMarks::detect("<|channel|><|message|>").unwrap();
        assert_eq!(harmony.after("<|end|><|start|>assistant"), Prompt::Silent);
    }
}
