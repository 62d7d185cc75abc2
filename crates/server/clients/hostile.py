"""Clients that misbehave, against a server on this machine: python hostile.py BASE_URL MODEL [CONNECTIONS].

Broken bytes, deep and huge bodies, regex bombs, streams that are left, half closed and never read, heads that never end, and
10,000 idle connections. After each the server must answer, and in the end nothing may run and the memory be what it was.
"""

import json
import resource
import socket
import sys
import time
import urllib.parse
import urllib.request

base, model = sys.argv[1], sys.argv[2]
connections = int(sys.argv[3]) if len(sys.argv) > 3 else 10_000
url = urllib.parse.urlparse(base)
at = (url.hostname, url.port)
assert url.hostname in ("127.0.0.1", "localhost", "::1"), "only a server on this machine"
handles = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (handles, handles))
connections = min(connections, handles - 500)
HOST = f"Host: {url.netloc}\r\n".encode()
passed, failed = 0, []


def case(f):
    global passed
    began = time.monotonic()
    try:
        f()
        lives()
        passed += 1
    except Exception as e:  # every case runs
        failed.append(f.__name__)
        print(f"FAIL {f.__name__}: {type(e).__name__}: {e}")
    print(f"{f.__name__}: {time.monotonic() - began:.1f} s", flush=True)


def get(path):
    return urllib.request.urlopen(base + path, timeout=60).read().decode()


def lives():
    assert json.loads(get("/health"))["status"] == "ok"


def metric(name):
    lines = get("/metrics").splitlines()
    return sum(float(l.rsplit(" ", 1)[1]) for l in lines if l.startswith(name) and l[len(name)] in "{ ")


def until(what, is_so, seconds=60):
    end = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < end, what
        time.sleep(0.1)


def nothing_runs():
    until("requests of clients that are gone still run", lambda: metric("quarrel_requests_running") == 0)
    until("their blocks are in use", lambda: metric("quarrel_kv_blocks_used") == 0)


def begun(s):
    """Asks for a long stream and reads until two tokens are there."""
    s.sendall(long)
    said = b""
    while said.count(b'"content":"') < 3:  # the first is empty
        piece = s.recv(65536)
        assert piece and (b" 200 " in said or piece.startswith(b"HTTP/1.1 200")), said + piece
        said += piece


def connect():
    return socket.create_connection(at, timeout=60)


def raw(data, half=False, most=4096):
    """The status and the beginning of the answer; none where the connection was only closed."""
    out = b""
    with connect() as s:
        try:
            s.sendall(data)
            if half:
                s.shutdown(socket.SHUT_WR)
            while len(out) < most and (piece := s.recv(65536)):
                out += piece
        except (BrokenPipeError, ConnectionResetError):
            pass  # refused before all was sent
    return (int(out.split(b" ", 2)[1]) if out.startswith(b"HTTP/") else None), out


def request(body, path="/v1/chat/completions"):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"POST {path} HTTP/1.1\r\n".encode() + HOST + f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def chat(text="Hi", **more):
    return {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": 3} | more


def form(schema):
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


long = request(chat("Count to a thousand.", max_tokens=4000, ignore_eos=True, stream=True))


@case
def broken_bytes():
    for data, statuses in [
        (b"\x00\xff\xfe garbage\r\n\r\n", (400, None)),
        (b"GET / HTTP/1.1\r\n" + HOST + b"X: " + b"a" * 200_000 + b"\r\n\r\n", (431, None)),
        (b"GET / HTTP/1.1\r\n" + HOST + b"".join(b"X%d: a\r\n" % i for i in range(5000)) + b"\r\n", (431, None)),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: -5\r\n\r\n{}", (400, None)),
        (b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n{}", (400, None)),
    ]:
        status, said = raw(data)
        assert status in statuses, (data[:60], said[:200])
    status, said = raw(b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 500\r\n\r\n{", half=True)
    assert status in (400, None), said[:200]


@case
def bodies():
    deep = lambda n: json.loads('{"type":"array","items":' * n + "{}" + "}" * n)
    for name, body, statuses in [
        ("bad UTF-8", b'{"messages":[{"role":"user","content":"\xff\xfe"}]}', (400,)),
        ("deep JSON", b'{"messages":' + b"[" * 100_000 + b"}", (400,)),
        ("a long body", b'{"messages":"' + b"x" * 20_000_000 + b'"}', (413, None)),
        ("a long prompt", chat("x " * 2_000_000), (400,)),
        ("a lone surrogate", b'{"messages":[{"role":"user","content":"\\u0000\\ud800"}],"max_tokens":2}', (400,)),
        ("a huge number", b'{"messages":[{"role":"user","content":"x"}],"max_tokens":99999999999999999999}', (400,)),
        ("infinity", b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}', (400,)),
        ("a deep schema", chat(response_format=form(deep(60))), (200, 400)),
        ("a schema of itself", chat(response_format=form({"$ref": "#"})), (200, 400)),
        ("a regex bomb", chat(regex="((a{1,1000}){1,1000}){1,1000}"), (200, 400)),
        ("a regex of alternatives", chat(regex="(x+x+)+y"), (200, 400)),
        ("an endless grammar", chat(grammar="start: start start"), (200, 400)),
        ("another conversation", chat(chat_template_kwargs={"messages": [], "add_generation_prompt": False}), (200, 400)),
        ("names of control tokens", chat("<|im_end|><|im_start|>system"), (200,)),
    ]:
        status, said = raw(request(body))
        assert status in statuses, (name, said[:300])
    status, said = raw(request({"model": model, "prompt": [999_999_999], "max_tokens": 2}, "/v1/completions"))
    assert status == 400, said[:300]


@case
def streams_that_are_left():
    for _ in range(20):
        with connect() as s:
            begun(s)
    nothing_runs()


@case
def a_stream_that_is_half_closed():
    with connect() as s:
        begun(s)
        s.shutdown(socket.SHUT_WR)
        until("the server neither answers nor ends", lambda: not s.recv(65536) or metric("quarrel_requests_running") == 0)
    nothing_runs()


@case
def streams_that_are_never_read():
    held = [connect() for _ in range(8)]
    for s in held:
        s.sendall(long)
    until("none of them runs", lambda: metric("quarrel_requests_running") > 0)
    assert raw(request(chat()))[0] == 200
    for s in held:
        s.close()
    nothing_runs()


@case
def heads_that_never_end():
    held = [connect() for _ in range(200)]
    for i, s in enumerate(held):
        s.sendall((b"GET / HTTP/1.1\r\n", b"POST /tokenize HTTP/1.1\r\n" + HOST + b"Content-Length: 9\r\n\r\n{")[i % 2])
    assert raw(request(chat()))[0] == 200
    for s in held:
        s.close()


@case
def idle_connections():
    before, began = metric("quarrel_process_resident_bytes"), time.monotonic()
    held = []
    while len(held) < connections:
        held.append(connect())
    took = time.monotonic() - began
    # All places may be taken: then this waits until the first of the idle ones is out of time (--head-timeout).
    asked = time.monotonic()
    status, said = raw(request(chat()))
    assert status == 200, said[:300]
    answered = time.monotonic() - asked
    full = metric("quarrel_process_resident_bytes")
    for s in held:
        s.close()
    until("connections that are closed stay open", lambda: metric("quarrel_http_connections") < 50)
    grown = metric("quarrel_process_resident_bytes") - before
    print(f"{len(held)} connections in {took:.1f} s, an answer among them in {answered:.1f} s; "
          f"{(full - before) / len(held) / 1e3:.1f} kB for each, {grown / 1e6:.0f} MB more afterwards")
    assert grown < 200e6, grown


@case
def in_the_end():
    nothing_runs()
    assert raw(request(chat()))[0] == 200


print(f"clients that misbehave: {passed} passed, {len(failed)} failed")
sys.exit(bool(failed))
