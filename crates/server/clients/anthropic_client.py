"""The official `anthropic` client against a running server: python anthropic_client.py BASE_URL MODEL [KEY]."""

import json
import sys

import anthropic
from anthropic import Anthropic

base, model = sys.argv[1], sys.argv[2]
client = Anthropic(base_url=base, api_key=sys.argv[3] if len(sys.argv) > 3 else "none", max_retries=0, timeout=120)
# Newer versions of the client leave sampling out of their arguments.
greedy = {"extra_body": {"temperature": 0}}
ask = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
add = {
    "name": "add",
    "description": "Adds two numbers.",
    "input_schema": {
        "type": "object",
        "properties": {k: {"type": "integer", "minimum": 0, "maximum": 99} for k in "ab"},
        "required": ["a", "b"],
    },
}
passed, failed = 0, []


def case(f):
    global passed
    try:
        f()
        passed += 1
    except Exception as e:  # every case runs
        failed.append(f.__name__)
        print(f"FAIL {f.__name__}: {type(e).__name__}: {e}")


@case
def message():
    m = client.messages.create(model=model, max_tokens=12, messages=ask, **greedy, system="You are brief.")
    assert m.role == "assistant" and m.content[0].type == "text" and m.content[0].text, m
    assert m.stop_reason in ("end_turn", "max_tokens") and m.usage.input_tokens > 5 and m.usage.output_tokens > 0


@case
def streaming():
    whole = client.messages.create(model=model, max_tokens=12, messages=ask, **greedy)
    with client.messages.stream(model=model, max_tokens=12, messages=ask, **greedy) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text == final.content[0].text, (text, whole)
    assert final.stop_reason == whole.stop_reason and final.usage.output_tokens == whole.usage.output_tokens


@case
def stop_sequences():
    m = client.messages.create(model=model, max_tokens=30, messages=ask, **greedy, stop_sequences=["Par"])
    assert m.stop_reason == "stop_sequence" and m.stop_sequence == "Par", m


@case
def count_tokens():
    short = client.messages.count_tokens(model=model, messages=ask).input_tokens
    long = client.messages.count_tokens(model=model, messages=ask, system="Be brief. " * 20).input_tokens
    assert 5 < short < long


@case
def tools():
    m = client.messages.create(
        model=model,
        max_tokens=80,
        **greedy,
        messages=[{"role": "user", "content": "Add 2 and 3."}],
        tools=[add],
        tool_choice={"type": "any", "disable_parallel_tool_use": True},
    )
    call = next(b for b in m.content if b.type == "tool_use")
    assert call.name == "add" and set(call.input) == {"a", "b"} and m.stop_reason == "tool_use", m
    back = client.messages.create(
        model=model,
        max_tokens=30,
        **greedy,
        messages=[
            {"role": "user", "content": "Add 2 and 3."},
            {"role": "assistant", "content": [b.model_dump() for b in m.content]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "5"}]},
        ],
        tools=[add],
        tool_choice={"type": "none"},
    )
    assert back.content[0].text


@case
def streamed_tools():
    with client.messages.stream(
        model=model,
        max_tokens=80,
        **greedy,
        messages=[{"role": "user", "content": "Add 2 and 3."}],
        tools=[add],
        tool_choice={"type": "tool", "name": "add"},
    ) as stream:
        pieces = "".join(e.partial_json for e in stream if e.type == "input_json")
        final = stream.get_final_message()
    call = next(b for b in final.content if b.type == "tool_use")
    assert json.loads(pieces) == call.input, (pieces, call)


@case
def errors():
    try:
        client.messages.create(model="nothing", max_tokens=5, messages=ask)
        raise AssertionError("an unknown model was served")
    except anthropic.NotFoundError as e:
        assert e.body["type"] == "error" and e.body["error"]["type"] == "not_found_error", e.body
    try:
        client.messages.create(model=model, max_tokens=5, messages=ask, extra_body={"no_such_field": 1})
        raise AssertionError("an unknown field was ignored")
    except anthropic.BadRequestError as e:
        assert "no_such_field" in str(e)


print(f"anthropic {anthropic.__version__}: {passed} passed, {len(failed)} failed")
sys.exit(bool(failed))
