//! For every family: what it writes, and what is read. Each text is also read cut at every place.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;
use crate::reasoning::{Prompt, ReasoningMarks};

pub(super) fn tools() -> Vec<Tool> {
    Tool::list_from_openai(&json!([
        {"type": "function", "function": {"name": "get_weather", "description": "The weather of a city",
            "parameters": {"type": "object", "properties": {
                "city": {"type": "string"}, "days": {"type": "integer"}, "units": {"enum": ["C", "F"]}},
                "required": ["city"]}}},
        {"type": "function", "function": {"name": "now", "description": ""}},
    ]))
    .unwrap()
}

fn parser(format: ToolFormat, prompt: Prompt, arguments: Arguments) -> OutputParser {
    let family = match format {
        ToolFormat::Harmony => "<|channel|><|message|>",
        ToolFormat::CommandR => "<|START_THINKING|>",
        ToolFormat::SeedXml => "<seed:think>",
        ToolFormat::Mistral | ToolFormat::MistralNamed => "[THINK]",
        _ => "<think>",
    };
    OutputParser::new(format, ReasoningMarks::detect(family), prompt, tools(), arguments)
}

/// The events in short: `R reasoning`, `C content`, `0 name arguments`, `! broken`, `~ name arguments that are cut`.
fn read(parser: OutputParser, pieces: &[&str]) -> Vec<String> {
    read_to(false, parser, pieces)
}

fn read_to(cut: bool, mut parser: OutputParser, pieces: &[&str]) -> Vec<String> {
    let mut events = Vec::new();
    for piece in pieces {
        events.extend(parser.push(piece));
    }
    events.extend(parser.finish(cut));
    assert!(parser.finish(false).is_empty());
    let mut out: Vec<String> = Vec::new();
    let mut open: Option<(usize, String, String)> = None;
    for event in events {
        match event {
            OutputEvent::Reasoning(text) => match out.last_mut() {
                Some(last) if last.starts_with("R ") => last.push_str(&text),
                _ => out.push(format!("R {text}")),
            },
            OutputEvent::Content(text) => match out.last_mut() {
                Some(last) if last.starts_with("C ") => last.push_str(&text),
                _ => out.push(format!("C {text}")),
            },
            OutputEvent::ToolCallBegin { index, name } => {
                assert!(open.is_none());
                open = Some((index, name, String::new()));
            }
            OutputEvent::ToolCallArguments { index, delta } => {
                let open = open.as_mut().unwrap();
                assert_eq!(open.0, index);
                open.2.push_str(&delta);
            }
            OutputEvent::ToolCallEnd { index } => {
                let (i, name, arguments) = open.take().unwrap();
                assert_eq!(i, index);
                let object: Json = serde_json::from_str(&arguments).unwrap();
                assert!(object.is_object());
                out.push(format!("{i} {name} {object}"));
            }
            OutputEvent::ToolCallCut { index } => {
                let (i, name, arguments) = open.take().unwrap();
                assert_eq!(i, index);
                out.push(format!("~ {name} {arguments}"));
            }
            OutputEvent::ToolCallBroken { index, text } => {
                assert_eq!(open.take().unwrap().0, index);
                out.push(format!("! {text}"));
            }
        }
    }
    assert!(open.is_none(), "a call is left open");
    out
}

/// A bound that cuts an answer inside of a call makes no content of it: it is told as far as it came.
#[test]
fn a_call_that_is_cut_is_no_content() {
    let mut cut = 0;
    for (format, text, _) in goldens() {
        if ["{", "```", "<code>"]
            .iter()
            .any(|mark| text.contains(&format!("{mark}\n")) || text.starts_with(mark))
        {
            continue; // may be text for all that is known
        }
        for arguments in [Arguments::Streamed, Arguments::Whole] {
            for (at, _) in text.char_indices() {
                let events = read_to(true, parser(format, Prompt::Silent, arguments), &[&text[..at]]);
                for event in &events {
                    let content = event.starts_with("C ") || event.starts_with("! ");
                    assert!(
                        !content || !(event.contains("get_w") || event.contains("Paris\"")),
                        "{format:?} {at} {events:?}"
                    );
                }
                cut += usize::from(events.last().is_some_and(|e| e.starts_with("~ get_weather {")));
            }
        }
    }
    assert!(cut > 500, "{cut}");
}

pub(super) fn read_whole(format: ToolFormat, text: &str) -> Vec<String> {
    read(parser(format, Prompt::Silent, Arguments::Whole), &[text])
}

const W: &str = r#"0 get_weather {"city":"Paris"}"#;
const W1: &str = r#"1 get_weather {"city":"Rome","days":2}"#;

#[rustfmt::skip]
fn goldens() -> Vec<(ToolFormat, &'static str, Vec<&'static str>)> {
    use ToolFormat::*;
    vec![
        (Hermes, "<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>", vec![W]),
        (Hermes, "<think>\nParis it is.\n</think>\n\nLet me look.\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}\n</tool_call>",
            vec!["R Paris it is.", "C Let me look.", W, W1]),
        (Hermes, "<tool_call>{\"arguments\": {\"city\": \"Paris\"}, \"name\": \"get_weather\"}</tool_call> Done.", vec![W, "C Done."]),
        (Hermes, "<tool_call>{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Paris\\\"}\"}</tool_call>", vec![W]),
        (Hermes, "<tool_call>\n{\"name\": \"now\"}\n</tool_call>", vec!["0 now {}"]),
        (Hermes, "<tool_call>[{\"name\": \"now\", \"arguments\": null}, {\"name\": \"now\", \"arguments\": {}}]</tool_call>", vec!["0 now {}", "1 now {}"]),
        (SmolLm3, "<think>\n\n</think>\n<tool_call>\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n</tool_call>", vec![W]),
        (SmolLm3, "<code>\nget_weather(city=\"Paris\")\nget_weather(city=\"Rome\", days=2)\n</code>", vec![W, W1]),
        (QwenXml, "I will look.\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
            vec!["C I will look.", W, W1]),
        (QwenXml, "<function=now>\n</function>\n</tool_call>", vec!["0 now {}"]),
        (QwenXml, "<tool_call>\n<function=get_weather>\n<parameter=city>\na < b > \"c\"\nd\n</parameter>\n</function>\n</tool_call>",
            vec![r#"0 get_weather {"city":"a < b > \"c\"\nd"}"#]),
        (SeedXml, "<seed:think>Hm.</seed:think>\n<seed:tool_call>\n<function=get_weather>\n<parameter=city>Paris</parameter>\n</function>\n</seed:tool_call>",
            vec!["R Hm.", W]),
        (MiniMax, "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Paris</parameter>\n</invoke>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">Rome</parameter>\n<parameter name=\"days\">2</parameter>\n</invoke>\n</minimax:tool_call>",
            vec![W, W1]),
        (Glm, "\n<think>Paris.</think>\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n</tool_call>\n<tool_call>get_weather<arg_key>city</arg_key><arg_value>Rome</arg_value><arg_key>days</arg_key><arg_value>2</arg_value></tool_call><|observation|>",
            vec!["R Paris.", W, W1]),
        (Glm, "<tool_call>now\n</tool_call>", vec!["0 now {}"]),
        (Llama, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}", vec![W]),
        (Llama, "<|python_tag|>{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}; {\"type\": \"function\", \"name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\", \"days\": 2}}<|eom_id|>", vec![W, W1]),
        (Llama, "<|python_tag|>get_weather.call(city=\"Paris\")<|eom_id|>", vec![W]),
        (Llama, "<|python_tag|>get_weather.call(city=\"Paris\")", vec![W]),
        (Mistral, "[TOOL_CALLS][{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}, \"id\": \"a1b2c3d4e\"}, {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}]</s>", vec![W, W1]),
        (Mistral, "[TOOL_CALLS] [{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]", vec![W]),
        (MistralNamed, "[THINK]Paris?[/THINK]I look.[TOOL_CALLS]get_weather[ARGS]{\"city\": \"Paris\"}[TOOL_CALLS]get_weather[CALL_ID]a1b2c3d4e[ARGS]{\"city\": \"Rome\", \"days\": 2}</s>",
            vec!["R Paris?", "C I look.", W, W1]),
        (MistralNamed, "[TOOL_CALLS]get_weather{\"city\": \"Paris\"}", vec![W]),
        (Granite, "<think>So.</think><response>I look.<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}]</response>", vec!["R So.", "C I look.", W]),
        (Phi4, "<|tool_call|>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}, {\"name\": \"get_weather\", \"arguments\": {\"city\": \"Rome\", \"days\": 2}}]<|/tool_call|><|end|>", vec![W, W1]),
        (Phi4, "<|tool_call|>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}<|/tool_call|>", vec![W]),
        (DeepSeek, "<think>\nParis.\n</think>\n\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Paris\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"Rome\", \"days\": 2}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
            vec!["R Paris.", W, W1]),
        (DeepSeekPlain, "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Paris\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"Rome\", \"days\": 2}<｜tool▁call▁end｜><｜tool▁calls▁end｜>", vec![W, W1]),
        (Kimi, "Wait.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{\"city\": \"Paris\"}<|tool_call_end|><|tool_call_begin|>functions.get_weather:1<|tool_call_argument_begin|>{\"city\": \"Rome\", \"days\": 2}<|tool_call_end|><|tool_calls_section_end|>",
            vec!["C Wait.", W, W1]),
        (Functionary, "<function=get_weather>{\"city\": \"Paris\"}</function><function=get_weather>{\"city\": \"Rome\", \"days\": 2}</function><|eom_id|>", vec![W, W1]),
        (CommandR, "<|START_THINKING|>I will look.<|END_THINKING|><|START_ACTION|>[\n    {\"tool_call_id\": \"0\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}},\n    {\"tool_call_id\": \"1\", \"tool_name\": \"get_weather\", \"parameters\": {\"city\": \"Rome\", \"days\": 2}}\n]<|END_ACTION|><|END_OF_TURN_TOKEN|>",
            vec!["R I will look.", W, W1]),
        (CommandR, "<|START_RESPONSE|>It rains.<|END_RESPONSE|>", vec!["C It rains."]),
        (Lfm2, "<|tool_call_start|>[get_weather(city=\"Paris\"), get_weather(city='Rome', days=2)]<|tool_call_end|>Looking.", vec![W, W1, "C Looking."]),
        (Harmony, "<|channel|>analysis<|message|>User asks for the weather.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Paris\"}<|call|>",
            vec!["R User asks for the weather.", "C I look.", W]),
        (Harmony, "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{\"city\": \"Paris\"}<|call|>", vec!["R Hm.", W]),
        (Harmony, "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>2 + 2 = 4.\n<|return|>", vec!["R Easy.", "C 2 + 2 = 4.\n"]),
        (Prompted, "```json\n{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}\n```", vec![W]),
        (Prompted, "```tool_code\nprint(get_weather(city=\"Paris\"))\n```", vec![W]),
        (Prompted, "{\"name\": \"get_weather\", \"parameters\": {\"city\": \"Paris\"}}", vec![W]),
        (Prompted, "I look.\n<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\"}}</tool_call>", vec!["C I look.", W]),
    ]
}

#[test]
fn every_family_is_read() {
    for (format, text, events) in goldens() {
        for arguments in [Arguments::Whole, Arguments::Streamed] {
            let parser = parser(format, Prompt::Silent, arguments);
            assert_eq!(read(parser.clone(), &[text]), events, "{format:?} {arguments:?}: {text}");
            let chars: Vec<String> = text.chars().map(String::from).collect();
            let chars: Vec<&str> = chars.iter().map(String::as_str).collect();
            assert_eq!(read(parser, &chars), events, "{format:?} {arguments:?}, by characters: {text}");
        }
    }
}

#[test]
fn what_only_looks_like_a_call_is_content() {
    use ToolFormat::*;
    let texts = [
        (Hermes, "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>"),
        (Hermes, "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": }}\n</tool_call>"),
        (Hermes, "<tool_call>\n{\"name\": \"now\", \"arguments\": {\"a\": 1"),
        (Hermes, "<tool_call>\n{\"name\": \"now\", \"arguments\": [1]}\n</tool_call>"),
        (Hermes, "The tag <tool_call> begins a call, </tool_call> ends it."),
        (Hermes, "a < b, <tool, <tool_cal"),
        (Hermes, " \n leading and trailing \n "),
        (QwenXml, "<tool_call>\n<function=other>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>"),
        (QwenXml, "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis"),
        (Glm, "<tool_call>other\n<arg_key>a</arg_key>"),
        (Glm, "<tool_call> and <arg_key> are tags"),
        (Llama, "{\"a\": 1}"),
        (Llama, "{\"name\": \"Ada\", \"age\": 36}"),
        (Llama, "A set {1, 2} and {\"name\": \"now\", \"parameters\": {}} in a text"),
        (Mistral, "[TOOL_CALLS] is a token"),
        (MistralNamed, "[TOOL_CALLS]other[ARGS]{\"a\": 1}"),
        (
            DeepSeek,
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>other\n```json\n{}\n```<｜tool▁call▁end｜>",
        ),
        (Harmony, "<|channel|>commentary to=functions.other<|message|>{}"),
        (Lfm2, "<|tool_call_start|>[other(a=1)]<|tool_call_end|>"),
        (Prompted, "```json\n{\"city\": \"Paris\"}\n```\nand\n```python\nprint(1)\n```"),
        (Prompted, "{\"city\": \"Paris\"}"),
    ];
    for (format, text) in texts {
        assert_eq!(read_whole(format, text), [format!("C {text}")], "{format:?}");
    }
    // After a real call, the broken one.
    let text = "<tool_call>{\"name\": \"now\"}</tool_call>\n<tool_call>{\"name\": \"nothing\"}</tool_call>";
    assert_eq!(read_whole(Hermes, text), ["0 now {}", "C <tool_call>{\"name\": \"nothing\"}</tool_call>"]);
    let text = "[TOOL_CALLS][{\"name\": \"now\"}, {\"nam]";
    assert_eq!(read_whole(Mistral, text), ["0 now {}", "C , {\"nam]"]);
}

#[test]
fn a_streamed_call_that_breaks_is_told_whole() {
    let text = "<tool_call>{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Par";
    let streamed = parser(ToolFormat::Hermes, Prompt::Silent, Arguments::Streamed);
    assert_eq!(read(streamed.clone(), &[text]), [format!("! {text}")]);
    let mut streamed = streamed;
    let events = streamed.push(text);
    assert_eq!(events[0], OutputEvent::ToolCallBegin { index: 0, name: "get_weather".into() });
    let delta = "{\"city\": \"Par".into();
    assert_eq!(events[1], OutputEvent::ToolCallArguments { index: 0, delta }, "arguments do not wait");
    assert_eq!(streamed.calls(), 1);
}

#[test]
fn reasoning_and_prompts() {
    let read_after = |prompt, text: &str| read(parser(ToolFormat::Hermes, prompt, Arguments::Whole), &[text]);
    assert_eq!(read_after(Prompt::Open, "Hm.\n</think>\n\nYes."), ["R Hm.", "C Yes."]);
    assert_eq!(read_after(Prompt::Open, "<think>\nHm.</think>Yes."), ["R Hm.", "C Yes."], "opened twice");
    assert_eq!(read_after(Prompt::Open, "it never ends <tool_call>"), ["R it never ends <tool_call>"]);
    assert_eq!(read_after(Prompt::Closed, "Yes, <think> is a tag."), ["C Yes, <think> is a tag."]);
    assert_eq!(read_after(Prompt::Silent, "<think>a</think>b</think>c"), ["R a", "C b</think>c"]);
    assert_eq!(read_after(Prompt::Silent, "<think></think>"), [""; 0]);
    let mut open = parser(ToolFormat::Hermes, Prompt::Open, Arguments::Whole);
    open.push("Hm");
    assert!(open.in_reasoning());
    open.push("</think>");
    assert!(!open.in_reasoning());
    let no_tools = OutputParser::new(ToolFormat::Hermes, None, Prompt::Silent, Vec::new(), Arguments::Whole);
    let text = "<tool_call>{\"name\": \"now\"}</tool_call>";
    assert_eq!(read(no_tools, &[text]), [format!("C {text}")], "no tools, no calls");
}

#[test]
fn text_does_not_wait_longer_than_it_must() {
    let mut p = parser(ToolFormat::Hermes, Prompt::Silent, Arguments::Whole);
    assert_eq!(p.push("Hello"), [OutputEvent::Content("Hello".into())]);
    assert_eq!(p.push(" <"), []);
    assert_eq!(p.push("b>"), [OutputEvent::Content(" <b>".into())]);
}

#[test]
fn formats_of_templates() {
    let cases = [
        (
            "{% if tools %}<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call>{% endif %}",
            ToolFormat::Hermes,
        ),
        (
            "{% for t in tools %}<tool_call>\n<function=example>\n<parameter=p>{% endfor %}",
            ToolFormat::QwenXml,
        ),
        (
            "{% set toolcall_begin_token = '<seed:tool_call>' %}{{ tools }}<function=f><parameter=p>",
            ToolFormat::SeedXml,
        ),
        (
            "{% if tools %}<tool_call>{function-name}\n<arg_key>{arg-key-1}</arg_key>{% endif %}",
            ToolFormat::Glm,
        ),
        ("{% if tools %}<minimax:tool_call>{% endif %}", ToolFormat::MiniMax),
        (
            "{% if tools is not none %}{\"name\": function name, \"parameters\": dict}{% endif %}<|python_tag|>",
            ToolFormat::Llama,
        ),
        ("{% if tools is not none %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS][", ToolFormat::Mistral),
        ("{% if tools %}{% endif %}[TOOL_CALLS]' + name + '[ARGS]'", ToolFormat::MistralNamed),
        ("<|start_of_role|>available_tools<|end_of_role|>{% for tool in tools %}", ToolFormat::Granite),
        ("{{ tools }}<|tool_call|>x<|/tool_call|>", ToolFormat::Phi4),
        ("{{ message['tools'] }}<|tool|>x<|/tool|>", ToolFormat::Phi4),
        (
            "message['tool_calls'] '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + tool['type'] + '```json'",
            ToolFormat::DeepSeek,
        ),
        (
            "message['tool_calls'] '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>'+ tool['function']['name']",
            ToolFormat::DeepSeekPlain,
        ),
        ("{{ tools }}<|tool_call_argument_begin|>", ToolFormat::Kimi),
        ("{{ tools }}<function=f>{}</function>", ToolFormat::Functionary),
        ("{{ tools }}<|START_ACTION|>", ToolFormat::CommandR),
        ("{{ tools }}<|tool_call_start|>", ToolFormat::Lfm2),
        ("{{ xml_tools }}<tool_call> {{ python_tools }}", ToolFormat::SmolLm3),
        ("<|start|>assistant<|channel|>final<|message|>", ToolFormat::Harmony),
        ("<start_of_turn>{{ message.content }}", ToolFormat::Prompted),
        ("<|im_start|>{{ message.content }}", ToolFormat::Prompted),
    ];
    for (source, format) in cases {
        assert_eq!(ToolFormat::detect(source), format, "{source}");
    }
}

fn cut<'a>(text: &'a str, cuts: &[usize]) -> Vec<&'a str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    for cut in cuts {
        let at = (0..=(*cut).min(rest.len())).rev().find(|&i| rest.is_char_boundary(i)).unwrap_or(0);
        let (a, b) = rest.split_at(at);
        pieces.push(a);
        rest = b;
    }
    pieces.push(rest);
    pieces
}

proptest! {
    /// Pieces of all formats in any order: nothing panics, and the cutting does not matter.
    #[test]
    fn cutting_does_not_matter(
        which in 0..ToolFormat::ALL.len(),
        parts in prop::collection::vec(prop::sample::select(PARTS), 0..10),
        cuts in prop::collection::vec(0usize..9, 0..40),
        streamed in any::<bool>(),
    ) {
        let text = parts.concat();
        let arguments = if streamed { Arguments::Streamed } else { Arguments::Whole };
        let parser = parser(ToolFormat::ALL[which], Prompt::Silent, arguments);
        prop_assert_eq!(read(parser.clone(), &[&text]), read(parser, &cut(&text, &cuts)));
    }

    /// A text without marks comes back as it was.
    #[test]
    fn plain_text_is_not_changed(which in 0..ToolFormat::ALL.len(), text in "[a-z <>{}\\[\\]|/\n\"é🦙]{0,40}", cuts in prop::collection::vec(0usize..9, 0..20)) {
        prop_assume!(!ToolFormat::ALL[which].layout().drops.iter().any(|d| text.contains(d)));
        let events = read(parser(ToolFormat::ALL[which], Prompt::Silent, Arguments::Whole), &cut(&text, &cuts));
        let expected = if text.is_empty() { Vec::new() } else { vec![format!("C {text}")] };
        prop_assert_eq!(events, expected);
    }
}

const PARTS: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "\n",
    " ",
    "{",
    "}",
    "\"name\"",
    ": ",
    "\"now\"",
    ", \"arguments\": {}",
    "\"x\"",
    "[",
    "]",
    ",",
    ";",
    "{\"name\": \"now\"}",
    "{\"name\": \"get_weather\", \"arguments\": {\"city\": \"é\"}}",
    "<function=now>",
    "</function>",
    "<function=get_weather>",
    "<parameter=city>",
    "é🦙",
    "</parameter>",
    "<think>",
    "</think>",
    "[TOOL_CALLS]",
    "now[ARGS]",
    "now",
    "<|tool_call|>",
    "```",
    "```json",
    "```tool_code",
    "now()",
    "print(now())",
    "<|python_tag|>",
    "now.call()",
    "<|channel|>",
    "analysis",
    "final",
    "commentary to=functions.now",
    "<|message|>",
    "<|end|>",
    "<|start|>assistant",
    "<|call|>",
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "function<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<|START_ACTION|>",
    "<|END_ACTION|>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
    "<|tool_call_start|>",
    "<|tool_call_end|>",
    "text",
    "<",
    "<|",
    "</s>",
];
