//! A model's text as events: reasoning, content, calls. Character by character, so how the text is cut cannot matter.

use super::body::{Body, Kind, MAX_HEADER};
use super::call::{Calls, Progress, Sink};
use super::format::ToolFormat;
use super::json::Scanner;
use super::tool::Tool;
use crate::reasoning::{Prompt, ReasoningMarks};

/// What an answer consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutputEvent {
    /// More of the reasoning.
    Reasoning(String),
    /// More of the answer.
    Content(String),
    /// A call of this tool begins.
    ToolCallBegin {
        /// Which call, from 0.
        index: usize,
        /// The tool's name, one of those given.
        name: String,
    },
    /// More of the JSON text of its arguments. Together the deltas of an ended call are one JSON object.
    ToolCallArguments {
        /// Which call.
        index: usize,
        /// The text.
        delta: String,
    },
    /// The call is whole.
    ToolCallEnd {
        /// Which call.
        index: usize,
    },
    /// The answer was cut inside of the call, by a bound on its tokens: what came of it is all there is. It never ends.
    ToolCallCut {
        /// Which call.
        index: usize,
    },
    /// A call that had begun is none: its JSON is broken, or the text ended inside it. It never ends. Only with
    /// [`Arguments::Streamed`].
    ToolCallBroken {
        /// Which call.
        index: usize,
        /// All of its text, as the model wrote it.
        text: String,
    },
}

/// When a call is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arguments {
    /// As it comes. Best with a grammar that forces calls to be right; a call that breaks ends in
    /// [`OutputEvent::ToolCallBroken`].
    Streamed,
    /// When it is whole. A call that breaks is content.
    Whole,
}

/// Reads one answer.
#[derive(Clone, Debug)]
pub struct OutputParser {
    format: ToolFormat,
    reasoning: Option<ReasoningMarks>,
    calls: Calls,
    mode: Mode,
    /// What may be the beginning of a mark.
    held: String,
    /// White space whose fate the next character decides.
    space: String,
    /// The text of the call being read, as it was written.
    raw: String,
    /// No text has come since the start, the reasoning or the last call.
    fresh: bool,
    /// White space before the next text is dropped.
    strip: bool,
    /// A call has just ended.
    after_call: bool,
    events: Vec<OutputEvent>,
}

#[derive(Clone, Debug)]
enum Mode {
    Text,
    Reasoning,
    Body(Box<Body>),
    Header,
}

/// What a mark means.
#[derive(Clone, Copy, Debug)]
enum Mark {
    Call(Kind),
    Reason,
    ReasonEnd,
    Header,
    Drop,
}

impl OutputParser {
    /// A parser at the start of an answer. Without tools no call is looked for. `prompt` is what the rendered prompt
    /// left open ([`ReasoningMarks::after`]).
    pub fn new(
        format: ToolFormat,
        reasoning: Option<ReasoningMarks>,
        prompt: Prompt,
        tools: Vec<Tool>,
        arguments: Arguments,
    ) -> Self {
        let open = prompt == Prompt::Open && reasoning.is_some();
        Self {
            format,
            reasoning,
            calls: Calls { tools, arguments, open: None, next_index: 0, ended: false },
            mode: if open { Mode::Reasoning } else { Mode::Text },
            held: String::new(),
            space: String::new(),
            raw: String::new(),
            fresh: true,
            strip: false,
            after_call: false,
            events: Vec::new(),
        }
    }

    /// Takes more text. Neighbouring events of one kind are one.
    pub fn push(&mut self, text: &str) -> Vec<OutputEvent> {
        text.chars().for_each(|c| self.step(c));
        std::mem::take(&mut self.events)
    }

    /// The end of the answer: what waited is told. An answer that was `cut` by a bound may end inside of a call; that is no
    /// broken one, and its marks are no content.
    pub fn finish(&mut self, cut: bool) -> Vec<OutputEvent> {
        while !self.held.is_empty() {
            self.settle(true);
        }
        match std::mem::replace(&mut self.mode, Mode::Text) {
            Mode::Body(body) => {
                let mut sink = Sink { calls: &mut self.calls, events: &mut self.events };
                if !body.finish(&mut sink) {
                    if cut { self.cut() } else { self.give_back() }
                }
            }
            Mode::Header if cut => self.raw.clear(),
            Mode::Header => self.give_back(),
            Mode::Text if !self.strip => {
                let space = std::mem::take(&mut self.space);
                self.content(&space);
            }
            Mode::Text | Mode::Reasoning => self.space.clear(),
        }
        std::mem::take(&mut self.events)
    }

    /// How many calls have begun.
    pub fn calls(&self) -> usize {
        self.calls.next_index
    }

    /// Whether the text so far ends inside reasoning.
    pub fn in_reasoning(&self) -> bool {
        matches!(self.mode, Mode::Reasoning)
    }

    fn step(&mut self, c: char) {
        match &mut self.mode {
            Mode::Text | Mode::Reasoning => {
                self.held.push(c);
                while !self.held.is_empty() && self.settle(false) {}
            }
            Mode::Header => self.header(c),
            Mode::Body(body) => {
                self.raw.push(c);
                let mut sink = Sink { calls: &mut self.calls, events: &mut self.events };
                let progress = body.feed(c, &mut sink);
                if std::mem::take(&mut self.calls.ended) {
                    self.raw.clear();
                    (self.fresh, self.strip, self.after_call) = (true, true, true);
                }
                match progress {
                    Progress::More => {}
                    Progress::Done => self.mode = Mode::Text,
                    Progress::Fail => {
                        self.raw.pop();
                        self.mode = Mode::Text;
                        self.give_back();
                        self.step(c); // it may begin a mark
                    }
                }
            }
        }
    }

    /// Decides about the start of the held text; false when more has to come first.
    fn settle(&mut self, end: bool) -> bool {
        let mut found: Option<(usize, Mark)> = None;
        let mut wait = false;
        self.marks(|marker, mark| {
            if self.held.starts_with(marker) && found.is_none_or(|(len, _)| len < marker.len()) {
                found = Some((marker.len(), mark));
            }
            wait |= marker.len() > self.held.len() && marker.starts_with(&self.held);
        });
        if wait && !end {
            return false;
        }
        if let Some((len, mark)) = found {
            let marker: String = self.held.drain(..len).collect();
            let rest = std::mem::take(&mut self.held);
            self.mark(mark, &marker);
            rest.chars().for_each(|c| self.step(c));
        } else if let Some(c) = self.held.chars().next() {
            self.held.remove(0);
            self.plain(c);
        }
        true
    }

    /// The marks that mean something here.
    fn marks(&self, mut see: impl FnMut(&'static str, Mark)) {
        let layout = self.format.layout();
        if self.format == ToolFormat::Harmony {
            see("<|channel|>", Mark::Header);
            see("<|start|>", Mark::Header);
            layout.drops.iter().for_each(|d| see(d, Mark::ReasonEnd));
            return;
        }
        if let Mode::Reasoning = self.mode {
            if let Some(reasoning) = &self.reasoning {
                see(reasoning.end, Mark::ReasonEnd);
                if self.fresh {
                    see(reasoning.start, Mark::Drop); // opened by the prompt, and once more by the model
                }
            }
            return;
        }
        if let Some(reasoning) = self.reasoning.as_ref().filter(|_| self.fresh) {
            see(reasoning.start, Mark::Reason);
        }
        if !self.calls.tools.is_empty() {
            for opening in layout.openings.iter().filter(|o| self.fresh || !o.first) {
                see(opening.marker, Mark::Call(opening.kind));
            }
        }
        if self.after_call {
            layout.closers.iter().for_each(|c| see(c, Mark::Drop));
        }
        layout.drops.iter().for_each(|d| see(d, Mark::Drop));
    }

    fn mark(&mut self, mark: Mark, marker: &str) {
        match mark {
            Mark::Drop => {}
            Mark::Call(kind) => {
                let space = std::mem::take(&mut self.space);
                self.raw = if self.strip { String::new() } else { space };
                self.mode = Mode::Body(Box::new(Body::new(kind)));
                if marker == "{" {
                    self.step('{'); // not a mark in front of the object, but its first character
                } else {
                    self.raw.push_str(marker);
                }
            }
            Mark::Reason => {
                self.space.clear();
                self.fresh = true;
                self.mode = Mode::Reasoning;
            }
            Mark::ReasonEnd => {
                if self.in_reasoning() {
                    self.space.clear();
                    (self.fresh, self.strip, self.after_call) = (true, true, false);
                }
                self.mode = Mode::Text;
            }
            Mark::Header => {
                if !self.in_reasoning() && !self.strip {
                    let space = std::mem::take(&mut self.space);
                    self.content(&space);
                }
                self.space.clear();
                self.raw = marker.into();
                self.mode = Mode::Header;
            }
        }
    }

    /// A character that is no mark.
    fn plain(&mut self, c: char) {
        if c.is_whitespace() {
            self.space.push(c);
            return;
        }
        let reasoning = self.in_reasoning();
        let mut text = std::mem::take(&mut self.space);
        if self.strip || (reasoning && self.fresh) {
            text.clear();
        }
        text.push(c);
        if reasoning {
            self.fresh = false;
            match self.events.last_mut() {
                Some(OutputEvent::Reasoning(last)) => last.push_str(&text),
                _ => self.events.push(OutputEvent::Reasoning(text)),
            }
        } else {
            self.content(&text);
        }
    }

    fn content(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        (self.fresh, self.strip, self.after_call) = (false, false, false);
        match self.events.last_mut() {
            Some(OutputEvent::Content(last)) => last.push_str(text),
            _ => self.events.push(OutputEvent::Content(text.into())),
        }
    }

    /// The answer ends inside of what was read as a call. Without a name it is one only if its mark cannot be anything else.
    fn cut(&mut self) {
        let perhaps_text =
            |raw: &str| ["{", "`", "<code>"].iter().any(|mark| raw.trim_start().starts_with(mark));
        if let Some(open) = self.calls.open.take() {
            self.raw.clear();
            if self.calls.arguments == Arguments::Whole {
                self.events.push(OutputEvent::ToolCallBegin { index: open.index, name: open.name });
                self.events.push(OutputEvent::ToolCallArguments { index: open.index, delta: open.text });
            }
            self.events.push(OutputEvent::ToolCallCut { index: open.index });
        } else if !self.after_call && perhaps_text(&self.raw) {
            self.give_back();
        } else {
            self.raw.clear();
        }
    }

    /// What was read as a call is none.
    fn give_back(&mut self) {
        let text = std::mem::take(&mut self.raw);
        match self.calls.open.take() {
            Some(open) if self.calls.arguments == Arguments::Streamed => {
                (self.fresh, self.strip, self.after_call) = (false, false, false);
                self.events.push(OutputEvent::ToolCallBroken { index: open.index, text });
            }
            Some(open) => {
                self.calls.next_index = open.index; // nobody has seen it
                self.content(&text);
            }
            None => self.content(&text),
        }
    }

    /// A header of harmony, up to its `<|message|>`.
    fn header(&mut self, c: char) {
        self.raw.push(c);
        if self.raw.len() > MAX_HEADER {
            self.mode = Mode::Text;
            return self.give_back();
        }
        let Some(header) = self.raw.strip_suffix("<|message|>") else { return };
        let channel = header.split_once("<|channel|>").map_or("", |(_, rest)| rest.trim_start());
        let recipient = header
            .split_once("to=")
            .map(|(_, rest)| rest.split(|c: char| c.is_whitespace() || c == '<').next().unwrap_or(""));
        let mut sink = Sink { calls: &mut self.calls, events: &mut self.events };
        match recipient {
            Some(to) if to.strip_prefix("functions.").is_some_and(|name| sink.begin(name)) => {
                self.mode = Mode::Body(Box::new(Body::Arguments(Scanner::new())));
                return; // the header is a part of the call's text
            }
            Some(_) => {
                self.mode = Mode::Text;
                return self.give_back();
            }
            None if channel.starts_with("analysis") => self.mode = Mode::Reasoning,
            None => self.mode = Mode::Text,
        }
        self.raw.clear();
        self.fresh = true;
        self.strip = false;
    }
}
