"""Streams that break and go on, and many over one WebSocket: python streams_client.py BASE_URL MODEL.

With `httpx` (as the clients of openai and anthropic use it) and `websockets`, which know nothing of this server.
"""

import asyncio
import json
import sys

import httpx
import openai
import websockets

base, model = sys.argv[1], sys.argv[2]
ask = [{"role": "user", "content": "Tell me about France."}]
chat = {"model": model, "messages": ask, "temperature": 0, "max_tokens": 24}
passed, failed = 0, []


def case(f):
    global passed
    try:
        asyncio.run(f()) if asyncio.iscoroutinefunction(f) else f()
        passed += 1
    except Exception as e:  # every case runs
        failed.append(f.__name__)
        print(f"FAIL {f.__name__}: {type(e).__name__}: {e}")


def events(text):
    return [e for e in text.split("\n\n") if e.startswith("id: ")]


@case
def a_broken_stream_goes_on():
    ours = {"model": model, "temperature": 0, "stream": True}
    for path, body in [
        ("/v1/chat/completions", ours | {"messages": ask, "max_tokens": 24}),
        ("/v1/completions", ours | {"prompt": "France is", "max_tokens": 24}),
        ("/v1/responses", ours | {"input": "Tell me about France.", "max_output_tokens": 24}),
        ("/v1/messages", ours | {"messages": ask, "max_tokens": 24}),
    ]:
        text = ""
        with httpx.stream("POST", base + path, json=body, headers={"X-Quarrel-Resume": "1"}, timeout=60) as r:
            assert r.status_code == 200, r.read()
            place = r.headers["x-quarrel-stream"]
            for part in r.iter_text():
                text += part
                if len(events(text)) >= 6:
                    break  # the connection is closed here
        text = text[: text.rfind("\n\n") + 2]
        last = events(text)[-1].split("\n")[0].removeprefix("id: ")
        rest = httpx.get(base + place, headers={"Last-Event-ID": last}, timeout=60)
        assert rest.status_code == 200 and rest.text.startswith(f"id: {int(last) + 1}\n"), (path, rest.text[:200])
        again = httpx.get(base + place, headers={"Last-Event-ID": "0"}, timeout=60)
        whole = events(text + rest.text)
        assert events(again.text) == whole[1:], path
        assert [int(e.split("\n")[0][4:]) for e in whole] == list(range(len(whole)))


@case
def the_openai_client_resumes_a_response():
    client = openai.OpenAI(base_url=base + "/v1", api_key="none", max_retries=0, timeout=60)
    stream = client.responses.create(
        model=model, input="Tell me about France.", max_output_tokens=24, temperature=0, stream=True,
        extra_headers={"X-Quarrel-Resume": "1"},
    )
    id, last, text = None, None, ""
    for event in stream:
        last = event.sequence_number
        if event.type == "response.created":
            id = event.response.id
        elif event.type == "response.output_text.delta":
            text += event.delta
        if last == 8:
            break
    stream.close()
    for event in client.responses.retrieve(id, stream=True, starting_after=last):
        assert event.sequence_number == last + 1
        last = event.sequence_number
        if event.type == "response.output_text.delta":
            text += event.delta
    assert event.type in ("response.completed", "response.incomplete") and event.response.output_text == text, text


@case
def without_the_header_nothing_is_held():
    with httpx.stream("POST", base + "/v1/chat/completions", json=chat | {"stream": True}, timeout=60) as r:
        assert "x-quarrel-stream" not in r.headers
        id = json.loads(next(l for l in r.iter_lines() if l.startswith("data: "))[6:])["id"]
    assert httpx.get(f"{base}/v1/chat/completions/{id}").status_code == 404


def socket(**more):
    return websockets.connect(base.replace("http", "ws", 1) + "/v1/ws", **more)


@case
async def several_streams_over_one_socket():
    whole = httpx.post(base + "/v1/chat/completions", json=chat, timeout=60).json()["choices"][0]["message"]["content"]
    async with socket() as ws:
        ids = [f"r{i}" for i in range(8)]
        for id in ids:
            await ws.send(json.dumps({"type": "chat.completions", "id": id, "request": chat}))
        texts, numbers, done = {i: "" for i in ids}, {i: 0 for i in ids}, set()
        while len(done) < len(ids):
            frame = json.loads(await ws.recv())
            if frame["type"] == "done":
                done.add(frame["id"])
                continue
            assert frame["type"] == "event" and frame["number"] == numbers[frame["id"]], frame
            numbers[frame["id"]] += 1
            for choice in frame["data"]["choices"]:
                texts[frame["id"]] += choice["delta"].get("content") or ""
    assert set(texts.values()) == {whole}, texts


@case
async def each_api_over_a_socket():
    async with socket() as ws:
        requests = {
            "messages": {"model": model, "messages": ask, "max_tokens": 8},
            "responses": {"model": model, "input": "Hi", "max_output_tokens": 8},
            "completions": {"model": model, "prompt": "Hi", "max_tokens": 8},
        }
        for kind, request in requests.items():
            await ws.send(json.dumps({"type": kind, "id": kind, "request": request}))
        seen, done = {k: [] for k in requests}, 0
        while done < len(requests):
            frame = json.loads(await ws.recv())
            done += frame["type"] == "done"
            seen[frame["id"]].append(frame.get("event"))
    assert seen["messages"][0] == "message_start" and seen["messages"][-2] == "message_stop", seen
    assert seen["responses"][0] == "response.created", seen


@case
async def cancel_and_errors():
    async with socket() as ws:
        long = chat | {"max_tokens": 4000, "ignore_eos": True}
        await ws.send(json.dumps({"type": "chat.completions", "id": "a", "request": long}))
        await ws.recv()
        await ws.send(json.dumps({"type": "cancel", "id": "a"}))
        while json.loads(await ws.recv())["type"] != "cancelled":
            pass
        await ws.send(json.dumps({"type": "chat.completions", "id": "b", "request": {"foo": 1}}))
        error = json.loads(await ws.recv())
        assert (error["type"], error["status"]) == ("error", 400) and "foo" in error["data"]["error"]["message"], error
    try:
        async with socket(origin="http://example.org"):
            raise AssertionError("a page of another origin was let in")
    except websockets.InvalidStatus as e:
        assert e.response.status_code == 403


@case
async def closing_a_socket_ends_its_work():
    def running():
        text = httpx.get(base + "/metrics").text
        return sum(float(l.rsplit(" ", 1)[1]) for l in text.splitlines() if l.startswith("quarrel_requests_running{"))

    async with socket() as ws:
        for i in range(4):
            request = chat | {"max_tokens": 4000, "ignore_eos": True}
            await ws.send(json.dumps({"type": "chat.completions", "id": str(i), "request": request}))
        await ws.recv()
        assert running() > 0
    for _ in range(100):
        if running() == 0:
            return
        await asyncio.sleep(0.05)
    raise AssertionError("requests of a closed socket still run")


print(f"streams: {passed} passed, {len(failed)} failed")
sys.exit(bool(failed))
