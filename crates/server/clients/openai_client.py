"""The official `openai` client against a running server: python openai_client.py BASE_URL MODEL [KEY]."""

import json
import sys

import openai
from openai import OpenAI

base, model = sys.argv[1], sys.argv[2]
key = sys.argv[3] if len(sys.argv) > 3 else "none"
embedder = "minilm"  # served beside it
client = OpenAI(base_url=base + "/v1", api_key=key, max_retries=0, timeout=120)
ask = [{"role": "user", "content": "What is the capital of France? Answer in one word."}]
weather = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
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
    return f


def raises(kind, f):
    try:
        f()
    except kind as e:
        return e
    raise AssertionError(f"no {kind.__name__}")


@case
def models():
    ids = [m.id for m in client.models.list()]
    assert model in ids, ids
    assert client.models.retrieve(model).id == model
    raises(openai.NotFoundError, lambda: client.models.retrieve("nothing"))


@case
def chat():
    a = client.chat.completions.create(model=model, messages=ask, temperature=0, max_tokens=12)
    b = client.chat.completions.create(model=model, messages=ask, temperature=0, max_completion_tokens=12)
    assert "Paris" in a.choices[0].message.content, a
    assert a.choices[0].message.content == b.choices[0].message.content
    assert a.usage.total_tokens == a.usage.prompt_tokens + a.usage.completion_tokens
    assert b.usage.prompt_tokens_details.cached_tokens > 0, b.usage


@case
def streaming():
    whole = client.chat.completions.create(model=model, messages=ask, temperature=0, max_tokens=12)
    chunks = list(
        client.chat.completions.create(
            model=model, messages=ask, temperature=0, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content, text
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens


@case
def a_stream_can_be_left():
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "Count to a thousand."}], stream=True, max_tokens=4000
    )
    for i, _ in enumerate(stream):
        if i == 3:
            break
    stream.close()


@case
def logprobs():
    a = client.chat.completions.create(
        model=model, messages=ask, temperature=0, max_tokens=5, logprobs=True, top_logprobs=3
    )
    content = a.choices[0].logprobs.content
    assert len(content) == a.usage.completion_tokens
    assert all(t.logprob <= 0 and len(t.top_logprobs) == 3 and t.top_logprobs[0].token == t.token for t in content)
    assert b"".join(bytes(t.bytes) for t in content).decode() == a.choices[0].message.content


@case
def several_answers_with_seeds():
    def run():
        return client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Write a story."}], n=3, seed=7, temperature=1, max_tokens=16
        )

    a, b = run(), run()
    texts = [c.message.content for c in a.choices]
    assert texts == [c.message.content for c in b.choices]
    assert len(set(texts)) > 1, texts


@case
def stop_and_bias():
    a = client.chat.completions.create(model=model, messages=ask, temperature=0, max_tokens=30, stop=["Par"])
    assert "Par" not in a.choices[0].message.content and a.choices[0].finish_reason == "stop"
    ids = client.post("/../tokenize", body={"content": "Paris"}, cast_to=object)["tokens"]
    b = client.chat.completions.create(
        model=model, messages=ask, temperature=0, max_tokens=30, logit_bias={str(i): -100 for i in ids}
    )
    assert "Paris" not in b.choices[0].message.content.split()


@case
def tools():
    kinds = [("required", None), ({"type": "function", "function": {"name": "get_weather"}}, None)]
    for choice, _ in kinds:
        a = client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "How is the weather in Paris?"}],
            tools=[weather],
            tool_choice=choice,
            parallel_tool_calls=False,
            max_tokens=100,
            temperature=0,
        )
        call = a.choices[0].message.tool_calls[0]
        arguments = json.loads(call.function.arguments)
        assert call.function.name == "get_weather" and set(arguments) == {"city", "unit"}, call
        assert a.choices[0].finish_reason == "tool_calls"
    back = client.chat.completions.create(
        model=model,
        messages=[
            {"role": "user", "content": "How is the weather in Paris?"},
            a.choices[0].message,
            {"role": "tool", "tool_call_id": call.id, "content": "Sunny, 21 C"},
        ],
        tools=[weather],
        tool_choice="none",
        max_tokens=40,
        temperature=0,
    )
    assert back.choices[0].message.content


@case
def streamed_tools():
    name, arguments, finish = "", "", None
    for chunk in client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "How is the weather in Paris?"}],
        tools=[weather],
        tool_choice="required",
        parallel_tool_calls=False,
        max_tokens=100,
        temperature=0,
        stream=True,
    ):
        for call in chunk.choices[0].delta.tool_calls or []:
            name += call.function.name or ""
            arguments += call.function.arguments or ""
        finish = chunk.choices[0].finish_reason or finish
    assert name == "get_weather" and json.loads(arguments)["unit"] in "CF" and finish == "tool_calls"


@case
def structured_output():
    a = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "Invent a person."}],
        response_format={"type": "json_schema", "json_schema": {"name": "person", "schema": person, "strict": True}},
        max_tokens=100,
        temperature=0,
    )
    value = json.loads(a.choices[0].message.content)
    assert set(value) == {"name", "age"} and 0 <= value["age"] <= 120, value
    b = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "A small JSON object, please."}],
        response_format={"type": "json_object"},
        max_tokens=200,
        temperature=0,
    )
    if b.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(b.choices[0].message.content), dict)


@case
def extra_fields():
    a = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "A phone number:"}],
        max_tokens=20,
        extra_body={"regex": "[0-9]{3}-[0-9]{4}", "top_k": 20, "min_p": 0.1, "priority": "batch"},
    )
    text = a.choices[0].message.content
    assert len(text) == 8 and text[3] == "-", text


@case
def errors():
    e = raises(openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=[]))
    assert e.body["param"] == "messages", e.body
    e = raises(
        openai.BadRequestError,
        lambda: client.chat.completions.create(model=model, messages=ask, extra_body={"no_such_field": 1}),
    )
    assert "no_such_field" in str(e) and e.body["code"] == "unknown_field"
    e = raises(openai.NotFoundError, lambda: client.chat.completions.create(model="nothing", messages=ask))
    assert e.body["code"] == "model_not_found"
    long = [{"role": "user", "content": "word " * 40_000}]
    e = raises(openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=long))
    assert e.body["code"] == "context_length_exceeded", e.body
    raises(openai.BadRequestError, lambda: client.chat.completions.create(model=model, messages=ask, temperature=-1))


@case
def embeddings():
    texts = ["The cat sat on the mat.", "A kitten lay on a rug.", "Interest rates rose again."]
    a = client.embeddings.create(model=embedder, input=texts)  # the client asks for base64 by itself
    b = client.embeddings.create(model=embedder, input=texts[0], encoding_format="float")
    vectors = [d.embedding for d in a.data]
    assert [d.index for d in a.data] == [0, 1, 2] and a.usage.total_tokens == a.usage.prompt_tokens > 10
    assert all(abs(x - y) < 1e-6 for x, y in zip(vectors[0], b.data[0].embedding))
    dot = lambda x, y: sum(p * q for p, q in zip(x, y))
    assert abs(dot(vectors[0], vectors[0]) - 1) < 1e-4
    assert dot(vectors[0], vectors[1]) > dot(vectors[0], vectors[2])
    e = raises(openai.BadRequestError, lambda: client.embeddings.create(model=embedder, input="a", dimensions=7))
    assert e.param == "dimensions", e
    e = raises(openai.BadRequestError, lambda: client.embeddings.create(model=embedder, input=[]))
    assert e.param == "input", e


@case
def completions():
    a = client.completions.create(model=model, prompt="The capital of France is", temperature=0, max_tokens=4)
    assert "Paris" in a.choices[0].text
    b = client.completions.create(
        model=model, prompt="The capital of France is", temperature=0, max_tokens=4, echo=True, logprobs=2
    )
    logs = b.choices[0].logprobs
    assert b.choices[0].text == "The capital of France is" + a.choices[0].text
    assert logs.token_logprobs[0] is None and all(v <= 0 for v in logs.token_logprobs[1:])
    assert len(logs.tokens) == len(logs.token_logprobs) == len(logs.top_logprobs) == len(logs.text_offset)
    c = client.completions.create(model=model, prompt=["One, two,", "A, B,"], temperature=0, max_tokens=3)
    assert [x.index for x in c.choices] == [0, 1]
    text = "".join(
        x.choices[0].text
        for x in client.completions.create(
            model=model, prompt="The capital of France is", temperature=0, max_tokens=4, stream=True
        )
    )
    assert text == a.choices[0].text


print(f"openai {openai.__version__}: {passed} passed, {len(failed)} failed")
sys.exit(bool(failed))
