//! An answer as Anthropic's events: blocks that begin, grow and end, inside of a message that does.

use quarrel_text::OutputEvent;
use serde_json::{Value, json};

use super::{AnthropicMessage, MessageUsage, SIGNATURE, stop_reason};
use crate::dialect::anthropic_error;
use crate::error::ApiError;
use crate::generate::{Finish, Generating, Step};
use crate::ids;
use crate::sse::{Protocol, Sent};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Open {
    Text,
    Thinking,
    ToolUse,
}

/// The state of a stream.
pub(super) struct Events {
    id: String,
    model: String,
    input: usize,
    /// Reasoning is not given.
    hidden: bool,
    /// Of the block that is open or comes next.
    index: usize,
    open: Option<Open>,
    finish: Option<Finish>,
}

fn sent(name: &'static str, mut value: Value) -> Sent {
    value["type"] = name.into();
    Sent::named(name, &value)
}

impl Events {
    pub(super) fn new(id: String, model: String, input: usize, hidden: bool) -> Events {
        Events { id, model, input, hidden, index: 0, open: None, finish: None }
    }

    fn delta(&self, delta: Value, out: &mut Vec<Sent>) {
        out.push(sent("content_block_delta", json!({ "index": self.index, "delta": delta })));
    }

    fn close(&mut self, out: &mut Vec<Sent>) {
        match self.open.take() {
            None => return,
            Some(Open::Thinking) => {
                self.delta(json!({ "type": "signature_delta", "signature": SIGNATURE }), out);
            }
            Some(Open::Text | Open::ToolUse) => {}
        }
        out.push(sent("content_block_stop", json!({ "index": self.index })));
        self.index += 1;
    }

    /// Begins a block, unless one like it is open.
    fn open(&mut self, open: Open, block: Value, out: &mut Vec<Sent>) {
        if self.open == Some(open) && open != Open::ToolUse {
            return;
        }
        self.close(out);
        self.open = Some(open);
        out.push(sent("content_block_start", json!({ "index": self.index, "content_block": block })));
    }

    fn text(&mut self, text: String, out: &mut Vec<Sent>) {
        self.open(Open::Text, json!({ "type": "text", "text": "", "citations": null }), out);
        self.delta(json!({ "type": "text_delta", "text": text }), out);
    }

    fn event(&mut self, event: OutputEvent, out: &mut Vec<Sent>) {
        match event {
            OutputEvent::Content(text) => self.text(text, out),
            OutputEvent::Reasoning(text) => {
                let block = json!({ "type": "thinking", "thinking": "", "signature": "" });
                self.open(Open::Thinking, block, out);
                if !self.hidden {
                    self.delta(json!({ "type": "thinking_delta", "thinking": text }), out);
                }
            }
            OutputEvent::ToolCallBegin { name, .. } => {
                let block =
                    json!({ "type": "tool_use", "id": ids::new("toolu_"), "name": name, "input": {} });
                self.open(Open::ToolUse, block, out);
            }
            OutputEvent::ToolCallArguments { delta, .. } => {
                self.delta(json!({ "type": "input_json_delta", "partial_json": delta }), out);
            }
            OutputEvent::ToolCallEnd { .. } | OutputEvent::ToolCallCut { .. } => self.close(out),
            // The call cannot be taken back; its text shows what happened.
            OutputEvent::ToolCallBroken { text, .. } => self.text(text, out),
        }
    }
}

impl Protocol for Events {
    fn ping(&self) -> Option<Sent> {
        Some(sent("ping", json!({})))
    }

    fn begin(&mut self, out: &mut Vec<Sent>) {
        let message = AnthropicMessage {
            id: self.id.clone(),
            r#type: "message",
            role: "assistant",
            model: self.model.clone(),
            content: Vec::new(),
            stop_reason: None,
            stop_sequence: None,
            usage: MessageUsage { input_tokens: self.input, ..MessageUsage::default() },
        };
        out.push(sent("message_start", json!({ "message": message })));
        out.extend(self.ping());
    }

    fn step(&mut self, _: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError> {
        match step {
            Step::Piece { events, .. } => events.into_iter().for_each(|e| self.event(e, out)),
            Step::Finished { finish, .. } => self.finish = Some(finish),
            Step::Done(summary) => {
                self.close(out);
                let (reason, sequence) = stop_reason(self.finish, &summary)?;
                let delta = json!({ "stop_reason": reason, "stop_sequence": sequence });
                let usage = MessageUsage::new(&summary);
                out.push(sent("message_delta", json!({ "delta": delta, "usage": usage })));
                out.push(sent("message_stop", json!({})));
            }
        }
        Ok(())
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<Sent>) {
        out.push(sent("error", anthropic_error(error)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(events: Vec<OutputEvent>, hidden: bool) -> Vec<String> {
        let mut state = Events::new("i".into(), "m".into(), 3, hidden);
        let mut out = Vec::new();
        events.into_iter().for_each(|e| state.event(e, &mut out));
        state.close(&mut out);
        let of = |s: &Sent| {
            let v: Value = serde_json::from_str(&s.data).unwrap();
            assert_eq!(v["type"].as_str(), s.name);
            let inner = v["delta"]["type"].as_str().or(v["content_block"]["type"].as_str());
            format!("{} {} {}", v["index"], s.name.unwrap(), inner.unwrap_or_default())
        };
        out.iter().map(of).collect()
    }

    #[test]
    fn blocks_begin_and_end_in_turn() {
        let call = |index| OutputEvent::ToolCallBegin { index, name: "f".into() };
        let arguments = |index| OutputEvent::ToolCallArguments { index, delta: "{}".into() };
        let events = vec![
            OutputEvent::Reasoning("a".into()),
            OutputEvent::Reasoning("b".into()),
            OutputEvent::Content("c".into()),
            OutputEvent::Content("d".into()),
            call(0),
            arguments(0),
            OutputEvent::ToolCallEnd { index: 0 },
            call(1),
            arguments(1),
            OutputEvent::ToolCallBroken { index: 1, text: "f{}".into() },
        ];
        let expected = [
            "0 content_block_start thinking",
            "0 content_block_delta thinking_delta",
            "0 content_block_delta thinking_delta",
            "0 content_block_delta signature_delta",
            "0 content_block_stop ",
            "1 content_block_start text",
            "1 content_block_delta text_delta",
            "1 content_block_delta text_delta",
            "1 content_block_stop ",
            "2 content_block_start tool_use",
            "2 content_block_delta input_json_delta",
            "2 content_block_stop ",
            "3 content_block_start tool_use",
            "3 content_block_delta input_json_delta",
            "3 content_block_stop ",
            "4 content_block_start text",
            "4 content_block_delta text_delta",
            "4 content_block_stop ",
        ];
        assert_eq!(names(events.clone(), false), expected);
        assert_eq!(names(events, true).len(), expected.len() - 2);
    }
}
