#!/usr/bin/env python3
"""Renders chat templates with Python's jinja2, set up as `transformers` does, and writes the goldens.

    python generate_templates.py [SHARED_FOLDER [GGUF..]]

Writes tests/data/templates/goldens.json (templates of tests/data/templates/*.jinja) and, with the shared folder or
model files, tests/data/templates/goldens_shared.json: there only lengths and SHA-256 of the texts, since the templates
belong to others. Needs jinja2 (3.1.6) and, for model files, gguf.
"""
import datetime
import hashlib
import json
import pathlib
import sys

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

HERE = pathlib.Path(__file__).parent / "data" / "templates"
NOW = datetime.datetime(2024, 7, 26, 15, 4, 9)

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather for a city, with <b>HTML</b> & 'quotes' in \"it\".",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "description": "Ville, Stadt, 都市"},
                "days": {"type": "integer", "minimum": 1, "default": 3},
                "units": {"type": "array", "items": {"type": "string", "enum": ["°C", "°F"]}},
                "threshold": {"type": "number", "default": 0.5, "maximum": 1e20, "examples": [1.0, 1e-7]},
            },
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
NOW_TOOL = {
    "type": "function",
    "function": {"name": "now", "description": "The time.\nTwo lines\tand a tab.", "parameters": {"type": "object", "properties": {}}},
}


def call(name, arguments, id="abcDEF123"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def m(role, content, **more):
    return {"role": role, "content": content, **more}


CALLS = [m("user", "Weather in Zürich?"), m("assistant", None, tool_calls=[call("get_weather", {"city": "Zürich", "days": 2, "deep": {"a": [1, 2.5, None, True]}})]),
         m("tool", '{"temp": 21.5, "sky": "☀"}', tool_call_id="abcDEF123", name="get_weather"), m("assistant", "21.5 °C and sunny.")]
TWO_CALLS = [m("system", "Use tools."), m("user", "Both!"), m("assistant", "Let me see.", tool_calls=[call("get_weather", {"city": "Rome"}), call("now", {}, "xyzXYZ789")]),
             m("tool", "rain", tool_call_id="abcDEF123"), m("tool", "12:00", tool_call_id="xyzXYZ789")]
TEXT_CALLS = [m("user", "Weather?"), m("assistant", "", tool_calls=[call("get_weather", '{"city": "Oslo"}')]), m("tool", "snow", tool_call_id="abcDEF123"), m("user", "Thanks")]

CASES = {
    "user": dict(messages=[m("user", "Hello")]),
    "system_user": dict(messages=[m("system", "You are brief."), m("user", "Hi there")]),
    "turns": dict(messages=[m("user", "1+1?"), m("assistant", "2"), m("user", "Sure?")]),
    "system_turns": dict(messages=[m("system", "  padded  \n"), m("user", "  a\n b  "), m("assistant", "\n\nx\n"), m("user", "c")]),
    "no_prompt": dict(messages=[m("user", "Q"), m("assistant", "A")], add_generation_prompt=False),
    "unicode": dict(messages=[m("system", "Réponds en 日本語 🦙"), m("user", "Ünïcödé \u00a0 \u200b ½ 🏳️‍🌈 'q' \"d\" \\ <|im_end|> {{ x }} {% if %}")]),
    "empty_content": dict(messages=[m("user", "")]),
    "empty_list": dict(messages=[]),
    "two_users": dict(messages=[m("user", "a"), m("user", "b")]),
    "assistant_first": dict(messages=[m("assistant", "a"), m("user", "b")]),
    "late_system": dict(messages=[m("user", "a"), m("system", "b"), m("user", "c")]),
    "thinking": dict(messages=[m("user", "why?"), m("assistant", "<think>\nbecause\n</think>\n\nSo."), m("user", "ok"), m("assistant", "Done", reasoning_content="short"), m("user", "more")]),
    "thinking_last": dict(messages=[m("user", "why?"), m("assistant", "<think>\nhm\n</think>\n\nSo.")], add_generation_prompt=False),
    "no_think": dict(messages=[m("system", "Be quick. /no_think"), m("user", "go"), m("assistant", "ok"), m("user", "on")]),
    "enable_thinking_false": dict(messages=[m("user", "go")], enable_thinking=False),
    "tools_user": dict(messages=[m("user", "Weather in Rome?")], tools=[WEATHER]),
    "tools_system": dict(messages=[m("system", "Help."), m("user", "Weather in Rome?")], tools=[WEATHER, NOW_TOOL]),
    "tools_empty": dict(messages=[m("user", "Hi")], tools=[]),
    "tools_no_messages": dict(messages=[], tools=[WEATHER]),
    "calls": dict(messages=CALLS, tools=[WEATHER]),
    "calls_no_tools": dict(messages=CALLS),
    "calls_open": dict(messages=CALLS[:3], tools=[WEATHER]),
    "two_calls": dict(messages=TWO_CALLS, tools=[WEATHER, NOW_TOOL]),
    "text_calls": dict(messages=TEXT_CALLS, tools=[WEATHER]),
    "tools_in_system": dict(messages=[m("system", "S"), m("user", "U")], tools=[WEATHER], tools_in_user_message=False),
    "builtin": dict(messages=CALLS[:3], builtin_tools=["get_weather", "code_interpreter"]),
    "date": dict(messages=[m("user", "U")], date_string="1 Jan 2025"),
    "tool_dict_content": dict(messages=[m("user", "x"), m("tool", {"a": [1, "é"], "b": None}, tool_call_id="abcDEF123")]),
    "parts": dict(messages=[m("user", [{"type": "text", "text": "What is this?"}, {"type": "image"}])]),
    "no_role": dict(messages=[{"content": "x"}]),
    "null_content": dict(messages=[m("user", None)]),
    "no_bos": dict(messages=[m("user", "U"), m("assistant", "A"), m("user", "V")], bos=None, eos=None),
}


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    class Generation(jinja2.ext.Extension):
        tags = {"generation"}

        def parse(self, parser):
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.CallBlock(self.call_method("_run"), [], [], body).set_lineno(line)

        def _run(self, caller):
            return caller()

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = NOW.strftime
    return env


def render(source, case):
    case = dict(case)
    messages = case.pop("messages")
    tokens = {k + "_token": v for k, v in (("bos", case.pop("bos", "<s>")), ("eos", case.pop("eos", "</s>"))) if v is not None}
    variables = dict(messages=messages, tools=case.pop("tools", None), documents=None,
                     add_generation_prompt=case.pop("add_generation_prompt", True), **tokens, **case)
    try:
        return {"text": environment().from_string(source).render(**variables)}
    except jinja2.exceptions.TemplateError as e:
        kind = "refused" if type(e) is jinja2.exceptions.TemplateError else "error"
        return {kind: str(e)}
    except Exception as e:  # a TypeError and the like: the template fails, in Python's words
        return {"error": str(e)}


def digest(result):
    if "text" in result:
        text = result["text"].encode()
        return {"bytes": len(text), "sha256": hashlib.sha256(text).hexdigest()}
    return result


def write(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def main():
    own = {p.name: p.read_text() for p in sorted(HERE.glob("*.jinja"))}
    write(HERE / "cases.json", CASES)
    write(HERE / "goldens.json", {n: {c: render(s, v) for c, v in CASES.items()} for n, s in own.items()})
    if len(sys.argv) < 2:
        return
    # Line ends and a byte-order mark are part of a template: read as it is.
    shared = {p.name: p.read_bytes().decode() for p in sorted(pathlib.Path(sys.argv[1], "chat_templates").glob("*.jinja"))}
    for path in sys.argv[2:]:
        import gguf
        field = gguf.GGUFReader(path).get_field("tokenizer.chat_template")
        if field is not None:
            shared[pathlib.Path(path).name] = field.contents()
    write(HERE / "goldens_shared.json", {n: {c: digest(render(s, v)) for c, v in CASES.items()} for n, s in shared.items()})


main()
