//! An answer as items of the Responses API, and the events by which a stream tells of them. A whole answer takes the same
//! way; nobody hears its events.

use quarrel_text::OutputEvent;
use serde_json::{Value, json};

use super::Answering;
use crate::error::ApiError;
use crate::generate::{Finish, Generating, Step};
use crate::ids;
use crate::sse::{Protocol, Sent};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    Reasoning,
    Call,
}

impl Kind {
    /// The type of the part that holds the text, and the names of its events.
    fn names(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Kind::Message => ("output_text", "response.output_text.delta", "response.output_text.done"),
            Kind::Reasoning => {
                ("reasoning_text", "response.reasoning_text.delta", "response.reasoning_text.done")
            }
            Kind::Call => {
                ("", "response.function_call_arguments.delta", "response.function_call_arguments.done")
            }
        }
    }

    fn part(self, text: &str) -> Value {
        let mut part = json!({ "type": self.names().0, "text": text });
        if self == Kind::Message {
            part["annotations"] = json!([]);
            part["logprobs"] = json!([]);
        }
        part
    }
}

struct Open {
    kind: Kind,
    item: Value,
    /// The text, or the arguments.
    text: String,
}

/// Items as they come.
#[derive(Default)]
pub(super) struct Items {
    pub(super) done: Vec<Value>,
    open: Option<Open>,
    sequence: u64,
}

impl Items {
    pub(super) fn send(&mut self, name: &'static str, mut value: Value, out: &mut Vec<Sent>) {
        value["type"] = name.into();
        value["sequence_number"] = self.sequence.into();
        self.sequence += 1;
        out.push(Sent::named(name, &value));
    }

    /// An event of the open item.
    fn tell(&mut self, name: &'static str, mut value: Value, out: &mut Vec<Sent>) {
        let Some(open) = &self.open else { return };
        value["item_id"] = open.item["id"].clone();
        value["output_index"] = self.done.len().into();
        if open.kind != Kind::Call {
            value["content_index"] = 0.into();
        }
        self.send(name, value, out);
    }

    fn begin(&mut self, kind: Kind, name: &str, out: &mut Vec<Sent>) {
        self.close("completed", out);
        let item = match kind {
            Kind::Message => {
                json!({ "type": "message", "id": ids::new("msg_"), "role": "assistant", "content": [] })
            }
            Kind::Reasoning => {
                json!({ "type": "reasoning", "id": ids::new("rs_"), "summary": [], "content": [] })
            }
            Kind::Call => json!({
                "type": "function_call", "id": ids::new("fc_"), "call_id": ids::new("call_"), "name": name,
                "arguments": "",
            }),
        };
        let mut told = item.clone();
        told["status"] = "in_progress".into();
        self.open = Some(Open { kind, item, text: String::new() });
        let index = self.done.len();
        self.send("response.output_item.added", json!({ "output_index": index, "item": told }), out);
        if kind != Kind::Call {
            self.tell("response.content_part.added", json!({ "part": kind.part("") }), out);
        }
    }

    fn grow(&mut self, text: &str, out: &mut Vec<Sent>) {
        let Some(open) = &mut self.open else { return };
        open.text += text;
        let mut value = json!({ "delta": text });
        if open.kind == Kind::Message {
            value["logprobs"] = json!([]);
        }
        let name = open.kind.names().1;
        self.tell(name, value, out);
    }

    /// Ends the open item.
    fn close(&mut self, status: &str, out: &mut Vec<Sent>) {
        let Some(open) = &mut self.open else { return };
        let (kind, text) = (open.kind, open.text.clone());
        open.item["status"] = status.into();
        let done = kind.names().2;
        if kind == Kind::Call {
            open.item["arguments"] = text.clone().into();
            let name = open.item["name"].clone();
            self.tell(done, json!({ "arguments": text, "name": name }), out);
        } else {
            let part = kind.part(&text);
            open.item["content"] = json!([part]);
            let mut value = json!({ "text": text });
            if kind == Kind::Message {
                value["logprobs"] = json!([]);
            }
            self.tell(done, value, out);
            self.tell("response.content_part.done", json!({ "part": part }), out);
        }
        if let Some(open) = self.open.take() {
            let value = json!({ "output_index": self.done.len(), "item": open.item });
            self.done.push(open.item);
            self.send("response.output_item.done", value, out);
        }
    }

    fn text(&mut self, kind: Kind, text: &str, out: &mut Vec<Sent>) {
        if self.open.as_ref().is_none_or(|o| o.kind != kind) {
            self.begin(kind, "", out);
        }
        self.grow(text, out);
    }

    pub(super) fn event(&mut self, event: OutputEvent, out: &mut Vec<Sent>) {
        match event {
            OutputEvent::Content(text) => self.text(Kind::Message, &text, out),
            OutputEvent::Reasoning(text) => self.text(Kind::Reasoning, &text, out),
            OutputEvent::ToolCallBegin { name, .. } => self.begin(Kind::Call, &name, out),
            OutputEvent::ToolCallArguments { delta, .. } => self.grow(&delta, out),
            OutputEvent::ToolCallEnd { .. } => self.close("completed", out),
            // What came of it was told; that it is not whole is told too.
            OutputEvent::ToolCallCut { .. } | OutputEvent::ToolCallBroken { .. } => {
                self.close("incomplete", out)
            }
        }
    }

    /// Nothing more comes.
    pub(super) fn end(&mut self, cut: bool, out: &mut Vec<Sent>) {
        if self.open.is_none() && self.done.is_empty() {
            self.begin(Kind::Message, "", out);
        }
        self.close(if cut { "incomplete" } else { "completed" }, out);
    }
}

/// The state of a stream.
pub(super) struct Events {
    pub(super) answering: Answering,
    pub(super) items: Items,
    pub(super) finish: Option<Finish>,
}

impl Protocol for Events {
    fn begin(&mut self, out: &mut Vec<Sent>) {
        for name in ["response.created", "response.in_progress"] {
            let value = json!({ "response": self.answering.response });
            self.items.send(name, value, out);
        }
    }

    fn step(&mut self, _: &Generating, step: Step, out: &mut Vec<Sent>) -> Result<(), ApiError> {
        match step {
            Step::Piece { events, .. } => events.into_iter().for_each(|e| self.items.event(e, out)),
            Step::Finished { finish, .. } => self.finish = Some(finish),
            Step::Done(summary) => {
                let cut = self.finish.is_some_and(Finish::is_cut);
                self.items.end(cut, out);
                let output = self.items.done.clone();
                let response = self.answering.finish(output, self.finish, &summary)?;
                let name = if cut { "response.incomplete" } else { "response.completed" };
                self.items.send(name, json!({ "response": response }), out);
            }
        }
        Ok(())
    }

    fn error(&mut self, error: &ApiError, out: &mut Vec<Sent>) {
        let response = &mut self.answering.response;
        response["status"] = "failed".into();
        response["output"] = self.items.done.clone().into();
        let code = if error.status.as_u16() == 429 { "rate_limit_exceeded" } else { "server_error" };
        response["error"] = json!({ "code": error.code.unwrap_or(code), "message": error.message });
        let value = json!({ "response": response });
        self.items.send("response.failed", value, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_begin_grow_and_end() {
        let mut items = Items::default();
        let mut out = Vec::new();
        for event in [
            OutputEvent::Reasoning("hm".into()),
            OutputEvent::Content("a".into()),
            OutputEvent::Content("b".into()),
            OutputEvent::ToolCallBegin { index: 0, name: "f".into() },
            OutputEvent::ToolCallArguments { index: 0, delta: "{}".into() },
            OutputEvent::ToolCallEnd { index: 0 },
            OutputEvent::ToolCallBegin { index: 1, name: "g".into() },
            OutputEvent::ToolCallArguments { index: 1, delta: "{".into() },
            OutputEvent::ToolCallBroken { index: 1, text: "g{".into() },
        ] {
            items.event(event, &mut out);
        }
        items.end(true, &mut out);
        let values: Vec<Value> = out.iter().map(|s| serde_json::from_str(&s.data).unwrap()).collect();
        for (i, (value, sent)) in values.iter().zip(&out).enumerate() {
            assert_eq!(value["sequence_number"], i);
            assert_eq!(value["type"].as_str(), sent.name);
        }
        let names: Vec<_> = values
            .iter()
            .map(|v| (v["output_index"].as_u64().unwrap(), v["type"].as_str().unwrap()))
            .collect();
        let expected = [
            (0, "response.output_item.added"),
            (0, "response.content_part.added"),
            (0, "response.reasoning_text.delta"),
            (0, "response.reasoning_text.done"),
            (0, "response.content_part.done"),
            (0, "response.output_item.done"),
            (1, "response.output_item.added"),
            (1, "response.content_part.added"),
            (1, "response.output_text.delta"),
            (1, "response.output_text.delta"),
            (1, "response.output_text.done"),
            (1, "response.content_part.done"),
            (1, "response.output_item.done"),
            (2, "response.output_item.added"),
            (2, "response.function_call_arguments.delta"),
            (2, "response.function_call_arguments.done"),
            (2, "response.output_item.done"),
            (3, "response.output_item.added"),
            (3, "response.function_call_arguments.delta"),
            (3, "response.function_call_arguments.done"),
            (3, "response.output_item.done"),
        ];
        assert_eq!(names, expected);
        let states: Vec<_> = items.done.iter().map(|i| i["status"].as_str().unwrap()).collect();
        assert_eq!(states, ["completed", "completed", "completed", "incomplete"]);
        assert_eq!(items.done[1]["content"][0]["text"], "ab");
        assert_eq!(items.done[2]["arguments"], "{}");
    }
}
