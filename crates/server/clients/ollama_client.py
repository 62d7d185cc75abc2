"""The official `ollama` client against a running server: python ollama_client.py BASE_URL MODEL."""

import json
import sys
from importlib.metadata import version

import ollama

base, model = sys.argv[1], sys.argv[2]
client = ollama.Client(host=base, timeout=120)
ask = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
person = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 16}, "age": {"type": "integer", "minimum": 0, "maximum": 120}},
    "required": ["name", "age"],
    "additionalProperties": False,
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


def greedy(tokens):
    return {"temperature": 0, "num_predict": tokens}


def weather(city: str) -> str:
    """The weather of a city.

    Args:
      city: its name
    """
    return "sunny in " + city


@case
def chat():
    r = client.chat(model=model, messages=ask, options=greedy(12) | {"repeat_last_n": 64, "num_ctx": 512}, keep_alive="5m")
    assert "Paris" in r.message.content and r.done and r.done_reason in ("stop", "length"), r
    assert r.eval_count > 0 and r.prompt_eval_count > 5 and r.total_duration > 0


@case
def chat_in_parts():
    whole = client.chat(model=model, messages=ask, options=greedy(12))
    parts = list(client.chat(model=model + ":latest", messages=ask, options=greedy(12), stream=True))
    assert "".join(p.message.content for p in parts) == whole.message.content
    assert [p.done for p in parts] == [False] * (len(parts) - 1) + [True]


@case
def generate():
    system = client.generate(model=model, prompt="The capital of France?", system="Be brief.", options=greedy(8))
    raw = client.generate(model=model, prompt="The capital of France is", raw=True, options=greedy(4))
    assert system.response and "Paris" in raw.response, raw
    assert client.generate(model=model).done_reason == "load"


@case
def tools():
    r = client.chat(model=model, messages=ask, tools=[weather], options=greedy(8))
    assert r.message.role == "assistant"
    call = {"function": {"name": "weather", "arguments": {"city": "Rome"}}}
    talk = ask + [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_name": "weather", "content": "sunny"}]
    assert client.chat(model=model, messages=talk, tools=[weather], options=greedy(8)).done


@case
def the_form_of_the_answer():
    r = client.chat(model=model, messages=ask, format=person, options=greedy(60))
    value = json.loads(r.message.content)
    assert set(value) == {"name", "age"}, value
    r = client.generate(model=model, prompt="A JSON object:", format="json", options=greedy(200))
    assert r.done_reason == "length" or isinstance(json.loads(r.response), dict), r.response


@case
def models():
    assert model in [m.model.removesuffix(":latest") for m in client.list().models]
    assert model in [m.model.removesuffix(":latest") for m in client.ps().models]
    shown = client.show(model)
    assert "completion" in shown.capabilities and shown.modelinfo, shown


@case
def errors():
    for status, name, f in [
        (404, "nothing", lambda: client.chat(model="nothing", messages=ask)),
        (400, "template", lambda: client.generate(model=model, prompt="x", template="{{x}}")),
        (400, "tfs_z", lambda: client.generate(model=model, prompt="x", options={"tfs_z": 0.9})),
        (400, "num_ctx", lambda: client.generate(model=model, prompt="x", options={"num_ctx": 10**7})),
        (400, "temperature", lambda: client.generate(model=model, prompt="x", options={"temperature": -2})),
        (400, "repeat_penalty", lambda: list(client.generate(model=model, prompt="x", options={"repeat_penalty": -2}, stream=True))),
        (400, "images", lambda: client.generate(model=model, prompt="x", images=["aGk="])),
    ]:
        try:
            f()
        except ollama.ResponseError as e:
            assert e.status_code == status and name in e.error, (e.status_code, e.error)
        else:
            raise AssertionError(f"{name} was ignored")


print(f"ollama {version('ollama')}: {passed} passed, {len(failed)} failed")
sys.exit(bool(failed))
