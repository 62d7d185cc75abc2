//! How model families write calls: one row per family, and how a family is known from its template.

use super::body::{Header, Kind};
use super::xml;
use crate::Tokenizer;

/// How a model writes tool calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ToolFormat {
    /// `<tool_call>{"name": .., "arguments": ..}</tool_call>`: Hermes, Qwen 2.5, Qwen3, Granite 4.
    Hermes,
    /// As Hermes, and Python between `<code>` and `</code>`: SmolLM3.
    SmolLm3,
    /// `<tool_call><function=f><parameter=p>value</parameter></function></tool_call>`: Qwen3-Coder.
    QwenXml,
    /// The same tags in `<seed:tool_call>`: Seed-OSS.
    SeedXml,
    /// `<minimax:tool_call><invoke name="f"><parameter name="p">value</parameter></invoke></minimax:tool_call>`: MiniMax M2.
    MiniMax,
    /// `<tool_call>f<arg_key>p</arg_key><arg_value>value</arg_value></tool_call>`: GLM 4.5 and later.
    Glm,
    /// The answer is `{"name": .., "parameters": ..}`, perhaps behind `<|python_tag|>`: Llama 3.1 to 3.3.
    Llama,
    /// `[TOOL_CALLS][{"name": .., "arguments": ..}]`: Mistral up to 2024.
    Mistral,
    /// `[TOOL_CALLS]f[ARGS]{..}`: Mistral since 2025.
    MistralNamed,
    /// `<|tool_call|>[{"name": .., "arguments": ..}]`: Granite 3.
    Granite,
    /// `<|tool_call|>[..]<|/tool_call|>`: Phi-4-mini.
    Phi4,
    /// `<｜tool▁call▁begin｜>function<｜tool▁sep｜>f`, arguments in a fence: DeepSeek V3 and R1.
    DeepSeek,
    /// `<｜tool▁call▁begin｜>f<｜tool▁sep｜>{..}<｜tool▁call▁end｜>`: DeepSeek V3.1.
    DeepSeekPlain,
    /// `<|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{..}<|tool_call_end|>`: Kimi K2.
    Kimi,
    /// `<function=f>{..}</function>`: Functionary 3.1.
    Functionary,
    /// `<|START_ACTION|>[{"tool_name": .., "parameters": ..}]<|END_ACTION|>`: Command R7B and A.
    CommandR,
    /// `<|tool_call_start|>[f(p="value")]<|tool_call_end|>`: LFM2.
    Lfm2,
    /// Messages in channels (`<|channel|>commentary to=functions.f<|message|>{..}<|call|>`): gpt-oss.
    Harmony,
    /// No form of its own. Tools are told in the system prompt and answered as Hermes does; fenced JSON and Gemma's
    /// `tool_code` are understood too.
    Prompted,
}

/// What begins a call.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) marker: &'static str,
    pub(super) kind: Kind,
    /// Only where no text has come since the start, or since the last call.
    pub(super) first: bool,
}

/// The marks of a format.
#[derive(Debug)]
pub(super) struct Layout {
    pub(super) openings: &'static [Opening],
    /// What may follow a call and belongs to it.
    pub(super) closers: &'static [&'static str],
    /// Control tokens that frame an answer and say nothing.
    pub(super) drops: &'static [&'static str],
}

const fn at(marker: &'static str, kind: Kind) -> Opening {
    Opening { marker, kind, first: false }
}

const fn first(marker: &'static str, kind: Kind) -> Opening {
    Opening { marker, kind, first: true }
}

macro_rules! layout {
    ($openings:expr, $closers:expr, $drops:expr) => {
        const { &Layout { openings: &$openings, closers: &$closers, drops: &$drops } }
    };
}

impl ToolFormat {
    /// All formats.
    pub const ALL: [Self; 19] = [
        Self::Hermes,
        Self::SmolLm3,
        Self::QwenXml,
        Self::SeedXml,
        Self::MiniMax,
        Self::Glm,
        Self::Llama,
        Self::Mistral,
        Self::MistralNamed,
        Self::Granite,
        Self::Phi4,
        Self::DeepSeek,
        Self::DeepSeekPlain,
        Self::Kimi,
        Self::Functionary,
        Self::CommandR,
        Self::Lfm2,
        Self::Harmony,
        Self::Prompted,
    ];

    /// The format of a chat template, from its source; [`Self::Prompted`] where the template does not know tools.
    pub fn detect(source: &str) -> Self {
        let has = |text: &str| source.contains(text);
        let tools = has("tools") || has("tool_calls");
        // Marks that only one family has come first; `<tool_call>` alone, which many have, comes late.
        let families: &[(bool, Self)] = &[
            (has("<|channel|>") && has("<|message|>"), Self::Harmony),
            (has("<｜tool▁calls▁begin｜>") && has("```json"), Self::DeepSeek),
            (has("<｜tool▁calls▁begin｜>"), Self::DeepSeekPlain),
            (has("<|tool_call_argument_begin|>"), Self::Kimi),
            (has("<|START_ACTION|>"), Self::CommandR),
            (has("<seed:tool_call>"), Self::SeedXml),
            (has("<minimax:tool_call>"), Self::MiniMax),
            (has("<arg_key>"), Self::Glm),
            (has("<function=") && has("<parameter="), Self::QwenXml),
            (has("<function=") && has("</function>"), Self::Functionary),
            (has("<|tool_call_start|>"), Self::Lfm2),
            (has("[TOOL_CALLS]") && has("[ARGS]"), Self::MistralNamed),
            (has("[TOOL_CALLS]"), Self::Mistral),
            (has("xml_tools"), Self::SmolLm3),
            (has("<|tool_call|>") && has("<|/tool_call|>"), Self::Phi4),
            (has("<|tool|>") && has("<|/tool|>"), Self::Phi4),
            (has("<|tool_call|>") || (has("<|start_of_role|>") && has("available_tools")), Self::Granite),
            (has("<tool_call>"), Self::Hermes),
            (has("<|python_tag|>") || (has("<|start_header_id|>") && has("\"parameters\": ")), Self::Llama),
        ];
        let found = families.iter().find(|(is, _)| *is);
        found.filter(|_| tools).map_or(
            if has("<|channel|>") && has("<|message|>") { Self::Harmony } else { Self::Prompted },
            |(_, f)| *f,
        )
    }

    /// The marks by which calls are written, for a tokenizer to look up.
    pub fn markers(self) -> impl Iterator<Item = &'static str> {
        let layout = self.layout();
        let openings = layout.openings.iter().map(|o| o.marker);
        openings.chain(layout.closers.iter().copied()).filter(|m| m.len() > 1)
    }

    /// Whether calls can only be seen when control tokens show (`Control::Show`), because some of the marks are control
    /// tokens of this vocabulary. The parser drops those that frame an answer.
    pub fn needs_control_tokens(self, tokenizer: &Tokenizer) -> bool {
        let is_control = |mark| tokenizer.token_id(mark).is_some_and(|id| tokenizer.is_special(id));
        self.markers().chain(self.layout().inner()).any(is_control)
    }

    #[rustfmt::skip]
    pub(super) fn layout(self) -> &'static Layout {
        use Kind::{Header as H, Json, LlamaTag, Mistral, Python, Xml};
        match self {
            Self::Hermes => layout!([at("<tool_call>", Json)], ["</tool_call>"], []),
            Self::SmolLm3 => layout!([at("<tool_call>", Json), at("<code>", Python(&["</code>"]))], ["</tool_call>"], []),
            Self::QwenXml => layout!(
                [at("<tool_call>", Xml(&xml::QWEN, false)), at("<function=", Xml(&xml::QWEN, true))], ["</tool_call>"], []),
            Self::SeedXml => layout!(
                [at("<seed:tool_call>", Xml(&xml::QWEN, false)), at("<function=", Xml(&xml::QWEN, true))],
                ["</seed:tool_call>"], ["<seed:eos>"]),
            Self::MiniMax => layout!(
                [at("<minimax:tool_call>", Xml(&xml::MINIMAX, false)), at("<invoke name=\"", Xml(&xml::MINIMAX, true))],
                ["</minimax:tool_call>"], []),
            Self::Glm => layout!([at("<tool_call>", Xml(&xml::GLM, false))], [], ["<|observation|>", "<|user|>"]),
            Self::Llama => layout!(
                [at("<|python_tag|>", LlamaTag), first("{", Json)], [";", ","], ["<|eom_id|>", "<|eot_id|>"]),
            Self::Mistral | Self::MistralNamed => layout!([at("[TOOL_CALLS]", Mistral)], [], ["</s>"]),
            Self::Granite => layout!([at("<|tool_call|>", Json)], [], ["<response>", "</response>", "<|end_of_text|>"]),
            Self::Phi4 => layout!([at("<|tool_call|>", Json)], ["<|/tool_call|>"], ["<|end|>"]),
            Self::DeepSeek | Self::DeepSeekPlain => layout!(
                [at("<｜tool▁calls▁begin｜>", H(Header::DeepSeek)), at("<｜tool▁call▁begin｜>", H(Header::DeepSeek))],
                ["```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"], ["<｜end▁of▁sentence｜>"]),
            Self::Kimi => layout!(
                [at("<|tool_calls_section_begin|>", H(Header::Kimi)), at("<|tool_call_begin|>", H(Header::Kimi))],
                ["<|tool_call_end|>", "<|tool_calls_section_end|>"], ["<|im_end|>"]),
            Self::Functionary => layout!(
                [at("<function=", H(Header::Functionary))], ["</function>"], ["<|eom_id|>", "<|eot_id|>"]),
            Self::CommandR => layout!([at("<|START_ACTION|>", Json)], ["<|END_ACTION|>"],
                ["<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>", "<|END_OF_TURN_TOKEN|>"]),
            Self::Lfm2 => layout!([at("<|tool_call_start|>", Python(&["<|tool_call_end|>"]))], [], ["<|im_end|>"]),
            // Its messages are told apart by their headers, in the parser.
            Self::Harmony => layout!([], [], ["<|end|>", "<|return|>", "<|call|>"]),
            Self::Prompted => layout!(
                [at("<tool_call>", Json), at("```json", Json), at("```tool_call", Json),
                 at("```tool_code", Python(&["```"])), first("{", Json)], ["</tool_call>", "```"], []),
        }
    }
}

impl Layout {
    /// Marks inside calls, which control tokens have to show for the reading.
    fn inner(&self) -> Vec<&'static str> {
        match self.openings.first().map(|o| o.kind) {
            None => vec!["<|channel|>", "<|message|>"],
            Some(Kind::Header(Header::DeepSeek)) => vec!["<｜tool▁sep｜>"],
            Some(Kind::Header(Header::Kimi)) => vec!["<|tool_call_argument_begin|>"],
            Some(Kind::Mistral) => vec!["[ARGS]"],
            Some(Kind::Xml(tags, _)) => vec![tags.param, tags.value, tags.close],
            _ => Vec::new(),
        }
    }
}
