//! Where the readers of calls put what they find: it becomes events at once, or when the call is whole.

use super::parser::{Arguments, OutputEvent};
use super::tool::Tool;

/// What a character did to the reading of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// The call goes on.
    More,
    /// All calls of this place are whole; the character belonged to them.
    Done,
    /// This is no call. The character does not belong to it.
    Fail,
}

/// The calls of one answer.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    pub(super) tools: Vec<Tool>,
    pub(super) arguments: Arguments,
    pub(super) open: Option<Open>,
    pub(super) next_index: usize,
    /// A call has ended since this was last looked at.
    pub(super) ended: bool,
}

/// A call whose name is known and whose arguments are coming.
#[derive(Clone, Debug)]
pub(super) struct Open {
    pub(super) index: usize,
    pub(super) name: String,
    pub(super) text: String,
}

/// The calls, and the events of this push.
pub(super) struct Sink<'a> {
    pub(super) calls: &'a mut Calls,
    pub(super) events: &'a mut Vec<OutputEvent>,
}

impl Sink<'_> {
    /// The tool of this name, if there is one.
    pub(super) fn tool(&self, name: &str) -> Option<&Tool> {
        self.calls.tools.iter().find(|t| t.name == name)
    }

    /// A call begins, if there is such a tool.
    pub(super) fn begin(&mut self, name: &str) -> bool {
        if self.tool(name).is_none() {
            return false;
        }
        let index = self.calls.next_index;
        self.calls.next_index += 1;
        if self.calls.arguments == Arguments::Streamed {
            self.events.push(OutputEvent::ToolCallBegin { index, name: name.into() });
        }
        self.calls.open = Some(Open { index, name: name.into(), text: String::new() });
        true
    }

    /// More of the arguments' JSON.
    pub(super) fn arguments(&mut self, c: char) {
        self.arguments_text(c.encode_utf8(&mut [0; 4]));
    }

    /// As [`Self::arguments`].
    pub(super) fn arguments_text(&mut self, text: &str) {
        let Some(open) = &mut self.calls.open else { return };
        if self.calls.arguments == Arguments::Whole {
            open.text.push_str(text);
            return;
        }
        match self.events.last_mut() {
            Some(OutputEvent::ToolCallArguments { index, delta }) if *index == open.index => {
                delta.push_str(text)
            }
            _ => self.events.push(OutputEvent::ToolCallArguments { index: open.index, delta: text.into() }),
        }
    }

    /// The call is whole.
    pub(super) fn end(&mut self) {
        let Some(Open { index, name, text }) = self.calls.open.take() else { return };
        self.calls.ended = true;
        if self.calls.arguments == Arguments::Whole {
            self.events.push(OutputEvent::ToolCallBegin { index, name });
            self.events.push(OutputEvent::ToolCallArguments { index, delta: text });
        }
        self.events.push(OutputEvent::ToolCallEnd { index });
    }

    /// A call that is whole from the start.
    pub(super) fn whole(&mut self, name: &str, arguments: &str) -> bool {
        let known = self.begin(name);
        if known {
            self.arguments_text(arguments);
            self.end();
        }
        known
    }
}
