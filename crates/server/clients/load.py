"""Streams side by side against a server on this machine: python load.py BASE_URL MODEL STREAMS SECONDS [MAX_TOKENS].

Each stream asks, reads the answer, and asks again; every eighth client leaves in the middle. Prints tokens in a second, the
times to the first token and between tokens, how evenly the streams were served, and the memory before, each minute and after.
"""

import asyncio
import json
import random
import sys
import time
import urllib.parse
import urllib.request

base, model, streams, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
most = int(sys.argv[5]) if len(sys.argv) > 5 else 128
url = urllib.parse.urlparse(base)
assert url.hostname in ("127.0.0.1", "localhost", "::1"), "only a server on this machine"
assert streams <= 1024 and seconds <= 900, "bounded in count and time"
words = "river stone lantern winter harbour copper garden signal mirror candle thunder valley orchard compass".split()
first, between, served, left, errors = [], [], [0] * streams, 0, []


def metric(name):
    text = urllib.request.urlopen(base + "/metrics").read().decode()
    return sum(float(l.rsplit(" ", 1)[1]) for l in text.splitlines() if l.startswith(name) and l[len(name)] in "{ ")


async def ask(me, n, leave):
    rng = random.Random(me * 10_007 + n)
    text = "Write about " + " ".join(rng.choices(words, k=60))
    body = json.dumps(
        {"model": model, "messages": [{"role": "user", "content": text}], "max_tokens": most, "seed": n, "stream": True}
    )
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {url.netloc}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}".encode())
    start, last, tokens = time.monotonic(), None, 0
    status = (await reader.readline()).split()[1]
    if status != b"200":
        errors.append((status, (await reader.read())[-200:]))
        await asyncio.sleep(1)
    while line := await reader.readline():
        if b'"content":"' in line and b'"role"' not in line:
            now = time.monotonic()
            (between if last else first).append(now - (last or start))
            last, tokens = now, tokens + 1
            served[me] += 1
            if leave and tokens == 5:
                break
        elif b'"error"' in line:
            errors.append(("stream", line[:200]))
    writer.close()


async def client(me, until):
    global left
    n = 0
    while time.monotonic() < until:
        leave = (me + n) % 8 == 7
        left += leave
        await ask(me, n, leave)
        n += 1
    return n


def at(values, q):
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] * 1e3 if values else float("nan")


async def watch(start):
    """The memory each minute: a line that stays level."""
    while True:
        await asyncio.sleep(60)
        resident = await asyncio.to_thread(metric, "quarrel_process_resident_bytes")
        blocks = await asyncio.to_thread(metric, "quarrel_kv_blocks_used")
        print(f"{time.monotonic() - start:.0f} s: {resident / 1e6:.0f} MB, {blocks:.0f} blocks, {sum(served)} tokens", flush=True)


async def main():
    before = metric("quarrel_process_resident_bytes")
    start = time.monotonic()
    watching = asyncio.create_task(watch(start))
    asked = sum(await asyncio.gather(*(client(i, start + seconds) for i in range(streams))))
    took = time.monotonic() - start
    watching.cancel()
    await asyncio.sleep(1)
    print(f"{streams} streams, {took:.0f} s: {asked} requests, {left} of them left early, {len(errors)} errors")
    print(f"{sum(served) / took:.0f} tokens/s; first token p50 {at(first, .5):.0f} ms, p99 {at(first, .99):.0f} ms; "
          f"between tokens p50 {at(between, .5):.1f} ms, p99 {at(between, .99):.1f} ms")
    print(f"tokens of a stream: least {min(served)}, most {max(served)}")
    after = metric("quarrel_process_resident_bytes")
    print(f"memory {before / 1e6:.0f} MB before, {after / 1e6:.0f} MB after; running {metric('quarrel_requests_running'):.0f}, "
          f"blocks in use {metric('quarrel_kv_blocks_used'):.0f}")
    for e in errors[:3]:
        print("error", e)


asyncio.run(main())
