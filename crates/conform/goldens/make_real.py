#!/usr/bin/env python3
"""Makes the reference numbers under real/ for the real models: what `transformers` computes in float32 from the same GGUF.

Run (only to regenerate; the tests need no Python), with a folder that holds the GGUF files named in MODELS:

    python3 -m venv v && v/bin/pip install torch transformers accelerate sentencepiece gguf numpy
    v/bin/python crates/conform/goldens/make_real.py FOLDER

Made with torch 2.15.0 (CPU), transformers 5.23.0, gguf 0.19.0, numpy 2.4.6; about ten minutes on two cores.
The weights are dequantised to float32 and every product is float32; nothing is rounded on the way.

real/NAME.topk.bin  The first 512 ids of text/page.txt (the beginning-of-text id included where the model adds one), all in
    one pass. For each position in turn, little-endian: 64 token ids (u32), best first; their log-probabilities (f32, natural
    logarithm, normalised over the whole vocabulary); the probability of all other tokens together (f32). 516 bytes a
    position; position i is the distribution of the token after ids[i].
real/NAME.json      The ids, greedy continuations and perplexities. `gap` is the smallest distance on the way between the
    best and the second-best log-probability: how much error a continuation tolerates.

The perplexities are of text/long.txt. Let t be the n ids of the text without a beginning-of-text id, B that id if the model
adds one (b = 1) or nothing (b = 0). A window at s is the sequence B t[s .. min(s + C - b, n)], evaluated afresh from position 0.
A token is scored by its log-probability given all before it in its window; t[0] is scored only where B precedes it.
    full     one window over the whole text
    sliding  C = 512, windows at 0, 256, 512, ..., the last one being the first that reaches n. Each scores the tokens that
             no earlier window scored, so all but the first window's have at least 255 tokens and B, or 256 tokens, before them
    chunked  C = 512, windows at 0, C - b, 2(C - b), ...; each scores all it holds but its first token when b = 0
nll is the mean of -log p over the scored tokens, perplexity = exp(nll), ci95 the half width 1.96 sd / sqrt(tokens) of nll.
"""

import json
import math
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
PAGE_IDS, TOP, CONTEXT, STRIDE, GREEDY_TOKENS = 512, 64, 512, 256, 64

# `chat` prompts are rendered by the file's own template (its default system turn included); `raw` ones are plain text.
# Chosen among a dozen for a wide `gap`, so that rounding in a correct engine does not change the words.
MODELS = {
    "smollm2-135m-instruct-q4_1": dict(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        prompts=[("chat", "What is the capital of France?"), ("chat", "Name the three primary colors."),
                 ("raw", "The first ten prime numbers are"), ("raw", "1, 2, 3, 4, 5, 6,")],
    ),
    "gemma-3-270m-q4_k_m": dict(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        prompts=[("raw", "The quick brown fox"), ("raw", "def fibonacci(n):"),
                 ("raw", "The sun rises in the east and"), ("raw", "In the beginning God created the heaven and the earth.")],
    ),
}


class Model:
    def __init__(self, folder: str, file: str):
        self.tok = AutoTokenizer.from_pretrained(folder, gguf_file=file)
        self.net = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32).eval()
        self.bos = self.tok("")["input_ids"]
        assert self.bos in ([], [self.tok.bos_token_id])

    def ids(self, text: str, add_bos=True) -> list[int]:
        ids = self.tok(text, add_special_tokens=False)["input_ids"]
        return self.bos + ids if add_bos else ids

    @torch.no_grad()
    def log_probs(self, ids: list[int]) -> torch.Tensor:
        """[len(ids), vocab], natural logarithm, float32."""
        logits = self.net(input_ids=torch.tensor([ids])).logits[0]
        return torch.log_softmax(logits, dim=-1)

    @torch.no_grad()
    def greedy(self, ids: list[int]):
        out, gap, past, feed, stopped = [], math.inf, None, list(ids), False
        while len(out) < GREEDY_TOKENS:
            step = self.net(input_ids=torch.tensor([feed]), past_key_values=past, use_cache=True)
            past = step.past_key_values
            values, best = torch.topk(torch.log_softmax(step.logits[0, -1], dim=-1), 2)
            gap = min(gap, float(values[0] - values[1]))
            if best[0] == self.net.config.eos_token_id:
                stopped = True
                break
            out.append(int(best[0]))
            feed = out[-1:]
        return out, gap, stopped


def perplexity(model: Model, t: list[int], context: int, step: int, chunked: bool) -> dict:
    b, n, scored_to, at, nll = len(model.bos), len(t), 0, 0, []
    while scored_to < n:
        end = min(at + context - b, n)
        lp = model.log_probs(model.bos + t[at:end])
        first = at if chunked else scored_to
        for i in range(first, end):
            row = i - at + b - 1  # the row of the token before t[i]
            if row >= 0:
                nll.append(-float(lp[row, t[i]]))
        scored_to, at = end, at + step
    nll = np.array(nll, dtype=np.float64)
    return dict(perplexity=math.exp(nll.mean()), nll=nll.mean(), tokens=len(nll),
                ci95=1.96 * nll.std(ddof=1) / math.sqrt(len(nll)))


def make(name: str, spec: dict, folder: str):
    import hashlib

    with open(Path(folder) / spec["file"], "rb") as f:
        assert hashlib.file_digest(f, "sha256").hexdigest() == spec["sha256"], spec["file"]
    m = Model(folder, spec["file"])
    out = HERE / "real"
    out.mkdir(exist_ok=True)

    page = m.ids((HERE / "text/page.txt").read_text())[:PAGE_IDS]
    assert len(page) == PAGE_IDS
    lp = m.log_probs(page)
    values, best = torch.topk(lp, TOP, dim=-1)
    tail = 1.0 - values.double().exp().sum(-1)
    record = np.dtype([("ids", "<u4", TOP), ("log_probs", "<f4", TOP), ("tail", "<f4")])
    rows = np.zeros(PAGE_IDS, dtype=record)
    rows["ids"], rows["log_probs"], rows["tail"] = best.numpy(), values.numpy(), tail.clamp(min=0).numpy()
    rows.tofile(out / f"{name}.topk.bin")
    gaps = (values[:, 0] - values[:, 1]).numpy()
    del lp

    greedy = []
    for kind, prompt in spec["prompts"]:
        if kind == "chat":
            turns = [dict(role="user", content=prompt)]
            text = m.tok.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            ids = m.ids(text, add_bos=False)
        else:
            text, ids = prompt, m.ids(prompt)
        new, gap, stopped = m.greedy(ids)
        greedy.append(dict(kind=kind, prompt=prompt, rendered=text, prompt_ids=ids, ids=new,
                           text=m.tok.decode(new, skip_special_tokens=True), stopped=stopped, gap=round(gap, 4)))
        print(name, repr(greedy[-1]["text"]), "gap", greedy[-1]["gap"], flush=True)

    t = m.ids((HERE / "text/long.txt").read_text(), add_bos=False)
    ppl = dict(
        full=perplexity(m, t, len(t) + len(m.bos), len(t), False),
        sliding=perplexity(m, t, CONTEXT, STRIDE, False),
        chunked=perplexity(m, t, CONTEXT, CONTEXT - len(m.bos), True),
    )
    print(name, ppl, flush=True)
    expected = dict(
        model=name, file=spec["file"], sha256=spec["sha256"],
        made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__),
        bos=m.bos, text_ids=len(t), page_top=TOP, page_ids=page,
        page_positions_with_gap_under_0_01=int((gaps < 0.01).sum()),
        page_positions_with_gap_under_0_1=int((gaps < 0.1).sum()),
        greedy=greedy, perplexity=ppl,
    )
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in expected.items())
    (out / f"{name}.json").write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    for name, spec in MODELS.items():
        make(name, spec, sys.argv[1])
