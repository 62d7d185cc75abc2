//! Templates against what Python renders, and templates that try to do harm.

use super::*;
use serde_json::json;

fn render(source: &str, messages: &Json) -> Result<String> {
    let now = DateTime::parse("2024-07-26T09:05:00");
    ChatTemplate::new(source)?.render(&RenderInput {
        messages: Some(messages),
        bos: Some("<s>"),
        eos: Some("</s>"),
        now,
        add_generation_prompt: true,
        ..Default::default()
    })
}

#[test]
fn chatml_is_chatml() {
    let messages = json!([{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]);
    let text = ChatTemplate::chatml().unwrap();
    let input = RenderInput { messages: Some(&messages), add_generation_prompt: true, ..Default::default() };
    assert_eq!(
        text.render(&input).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
}

#[test]
fn errors_name_the_line_and_the_cause() {
    let none = json!([]);
    let message = |source: &str| render(source, &none).unwrap_err().to_string();
    assert_eq!(
        message("a\n\n{{ raise_exception('no system role') }}"),
        "the model's chat template refuses this conversation (line 3): no system role"
    );
    assert!(
        message("a\n{% if %}").starts_with("chat template, line 2: syntax error"),
        "{}",
        message("a\n{% if %}")
    );
    assert!(message("{{ messages[0].role }}").contains("line 1"), "{}", message("{{ messages[0].role }}"));
    assert!(message("{{ strftime_now('%Q') }}").contains("%Q"));
    assert!(message("{{ .System }}{{ range .Messages }}x{{ end }}").contains("Ollama"));
    let no_clock = ChatTemplate::new("{{ strftime_now('%Y') }}").unwrap().render(&RenderInput::default());
    assert!(no_clock.unwrap_err().to_string().contains("none was given"));
}

#[test]
fn no_template_runs_for_ever_or_eats_the_memory() {
    let none = json!([]);
    for source in [
        "{% for i in range(100000) %}{% for j in range(100000) %}x{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='abcdefgh') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "{% set ns = namespace(x=['a']) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | join }}",
        "{% set x = 'a' * 90000000 %}{{ x }}{{ x }}",
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "{{ '{:99999999}'.format(1) }}",
        "{{ '%99999999d' % 1 }}",
        "{{ 'a'.join(range(100000)|map('string')|list) | length }}{{ range(99999) | list | tojson(indent=99) * 999 }}",
    ] {
        let started = std::time::Instant::now();
        let result = render(source, &none);
        assert!(result.is_err(), "{source}: {} bytes", result.unwrap().len());
        assert!(started.elapsed().as_secs() < 20, "{source}");
    }
}

#[test]
fn deep_values_are_refused_not_overflowed() {
    let none = json!([]);
    let deep =
        "{% set ns = namespace(x=['a']) %}{% for i in range(50000) %}{% set ns.x = [ns.x] %}{% endfor %}";
    for tail in
        ["{{ ns.x | tojson }}", "{{ ns.x }}", "{{ ns.x == ns.x }}", "{{ ns.x | string | length }}", ""]
    {
        let _ = render(&format!("{deep}{tail}"), &none);
    }
}

#[test]
fn no_files_no_includes() {
    let none = json!([]);
    for source in ["{% include '/etc/passwd' %}", "{% import 'x' as x %}", "{% extends 'base' %}"] {
        assert!(render(source, &none).is_err(), "{source}");
    }
}

#[test]
fn named_templates() {
    let list = json!([{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]);
    let t = ChatTemplate::from_config(&list).unwrap();
    let tools = json!([]);
    let with = RenderInput { tools: Some(&tools), ..Default::default() };
    assert_eq!(t.render(&with).unwrap(), "tools");
    assert_eq!(t.render(&RenderInput::default()).unwrap(), "plain");
    assert!(
        ChatTemplate::from_config(&json!([{"name": "a", "template": ""}, {"name": "b", "template": ""}]))
            .is_err()
    );
    assert!(ChatTemplate::from_config(&json!(3)).is_err());
}

#[test]
fn generation_tags_are_scopes() {
    let messages = json!([{"role": "assistant", "content": "ok"}]);
    let source = "{% for m in messages %}[{%- generation -%} {{ m.content }}{% endgeneration %}]{% endfor %}";
    assert_eq!(render(source, &messages).unwrap(), "[ok]");
}
