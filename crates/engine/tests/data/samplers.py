"""Writes samplers.json beside itself: what transformers' logits processors and llama.cpp's samplers leave of rows of logits.

    python samplers.py MODEL.gguf

needs torch, transformers and llama-cpp-python. The model is only read for its vocabulary, which llama.cpp's DRY wants.
Settings have the names of quarrel's `Sampling`; `kept` are the tokens that could be drawn, with their probabilities.
"""

import ctypes
import json
import math
import pathlib
import random
import sys

import llama_cpp as llama
import torch
import transformers
from transformers import generation

rng = random.Random(6)


def row(n, spread=3.0):
    """Logits of three decimals, all different, so that nobody's ties matter."""
    values = rng.sample(range(-8000, 8000), n)
    return [round(v / 8000 * spread * 2, 4) for v in values]


def softmax(logits):
    kept = {i: l for i, l in logits.items() if l > -math.inf}
    best = max(kept.values())
    total = sum(math.exp(l - best) for l in kept.values())
    return {i: math.exp(l - best) / total for i, l in kept.items()}


def by_transformers(logits, prompt, processors):
    scores = torch.tensor([logits], dtype=torch.float64)
    ids = torch.tensor([prompt or [0]])
    for p in processors:
        scores = p(ids, scores)
    return softmax(dict(enumerate(scores[0].tolist())))


def by_llama(logits, prompt, samplers):
    data = (llama.llama_token_data * len(logits))(*[(i, l, 0.0) for i, l in enumerate(logits)])
    array = llama.llama_token_data_array(data=data, size=len(logits), selected=-1, sorted=False)
    for s in samplers:
        for token in prompt:
            llama.llama_sampler_accept(s, token)
        llama.llama_sampler_apply(s, ctypes.byref(array))
        llama.llama_sampler_free(s)
    return softmax({array.data[i].id: array.data[i].logit for i in range(array.size)})


def main(path):
    quiet = llama.llama_log_callback(lambda *_: None)  # must outlive its use
    llama.llama_log_set(quiet, None)
    params = llama.llama_model_default_params()
    params.vocab_only = True
    vocab = llama.llama_model_get_vocab(llama.llama_model_load_from_file(path.encode(), params))
    cases = []

    def case(source, sampling, n, kept, prompt=(), spread=3.0):
        logits = row(n, spread)
        found = kept(logits, list(prompt))
        kept = [[i, round(p, 9)] for i, p in sorted(found.items())]
        cases.append(
            {"source": source, "sampling": sampling, "prompt": list(prompt), "row": logits, "kept": kept}
        )

    def hf(sampling, n, *processors, prompt=(), spread=3.0):
        case("transformers", sampling, n, lambda l, p: by_transformers(l, p, processors), prompt, spread)

    def cpp(sampling, n, *make, prompt=(), spread=3.0):
        case("llama.cpp", sampling, n, lambda l, p: by_llama(l, p, [m() for m in make]), prompt, spread)

    L, G = llama, generation
    temp = lambda t: lambda: L.llama_sampler_init_temp(t)
    for n, spread in [(30, 1.5), (60, 4.0), (400, 3.0)]:
        for t in [0.4, 1.0, 1.7]:
            hf({"temperature": t}, n, G.TemperatureLogitsWarper(t), spread=spread)
        for k in [1, 7, 25]:
            hf({"top_k": k}, n, G.TopKLogitsWarper(k), spread=spread)
        for p in [0.1, 0.6, 0.95]:
            hf({"top_p": p}, n, G.TopPLogitsWarper(p), spread=spread)
            hf({"typical_p": p}, n, G.TypicalLogitsWarper(p), spread=spread)
            cpp({"typical_p": p}, n, lambda p=p: L.llama_sampler_init_typical(p, 1), spread=spread)
        for p in [0.02, 0.3]:
            hf({"min_p": p}, n, G.MinPLogitsWarper(p), spread=spread)
        for s in [0.5, 1.0, 2.2]:
            cpp({"top_n_sigma": s}, n, lambda s=s: L.llama_sampler_init_top_n_sigma(s), spread=spread)
        for x in [0.01, 0.05, 0.2]:
            sampling = {"xtc_probability": 1.0, "xtc_threshold": x}
            cpp(sampling, n, lambda x=x: L.llama_sampler_init_xtc(1.0, x, 0, 1), spread=spread)
        for lo, hi, e in [(0.5, 1.5, 1.0), (0.2, 1.8, 2.0)]:
            middle, delta = (lo + hi) / 2, (hi - lo) / 2
            cpp(
                {"dynamic_temperature": [lo, hi, e]},
                n,
                lambda m=middle, d=delta, e=e: L.llama_sampler_init_temp_ext(m, d, e),
                spread=spread,
            )
        for tau in [0.7, 2.0, 5.0]:
            two = {"mirostat": 2, "mirostat_tau": tau}
            cpp(two, n, lambda tau=tau: L.llama_sampler_init_mirostat_v2(1, tau, 0.1), spread=spread)
            one = {"mirostat": 1, "mirostat_tau": tau}
            cpp(one, n, lambda tau=tau, n=n: L.llama_sampler_init_mirostat(n, 1, tau, 0.1, 100), spread=spread)
    texts = [[3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9], [1, 2, 3, 4, 5] * 4 + [1, 2, 3], [7] * 9, [0, 1, 2, 0, 1]]
    for text in texts:
        for r in [0.8, 1.3]:
            hf({"repetition_penalty": r}, 30, G.RepetitionPenaltyLogitsProcessor(r), prompt=text)
        for last in [-1, 8]:
            for base, allowed in [(1.75, 2), (1.2, 1), (2.0, 4)]:
                sampling = {
                    "dry_multiplier": 0.8,
                    "dry_base": base,
                    "dry_allowed_length": allowed,
                    "dry_window": last if last > 0 else None,
                }
                cpp(
                    sampling,
                    30,
                    lambda b=base, a=allowed, w=last: L.llama_sampler_init_dry(
                        vocab, 0.8, b, a, w if w > 0 else 1 << 20, None, 0
                    ),
                    prompt=text,
                )
    # Whole chains, in orders of both.
    for i in range(8):
        text = texts[i % 4]
        r, t, k, p, m = 1.2, 0.6 + 0.2 * (i % 4), 10 + 5 * i, 0.8 + 0.02 * i, 0.01 * (i + 1)
        hf(
            {"repetition_penalty": r, "temperature": t, "top_k": k, "top_p": p, "min_p": m},
            80,
            G.RepetitionPenaltyLogitsProcessor(r),
            G.TemperatureLogitsWarper(t),
            G.TopKLogitsWarper(k),
            G.TopPLogitsWarper(p),
            G.MinPLogitsWarper(m),
            prompt=text,
        )
        sampling = {
            "dry_multiplier": 0.9, "top_n_sigma": 2.0, "top_k": k, "typical_p": 0.9, "top_p": p, "min_p": m,
            "xtc_probability": 1.0, "xtc_threshold": 0.08, "temperature": t,
            "samplers": ["penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
        }  # fmt: skip
        cpp(
            sampling,
            80,
            lambda: L.llama_sampler_init_dry(vocab, 0.9, 1.75, 2, 1 << 20, None, 0),
            lambda: L.llama_sampler_init_top_n_sigma(2.0),
            lambda: L.llama_sampler_init_top_k(k),
            lambda: L.llama_sampler_init_typical(0.9, 1),
            lambda: L.llama_sampler_init_top_p(p, 1),
            lambda: L.llama_sampler_init_min_p(m, 1),
            lambda: L.llama_sampler_init_xtc(1.0, 0.08, 0, 1),
            temp(t),
            prompt=text,
        )
    versions = {"transformers": transformers.__version__, "llama-cpp-python": llama.__version__}
    out = pathlib.Path(__file__).with_suffix(".json")
    lines = ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases)
    out.write_text(f'{{"made_with":{json.dumps(versions)},"cases":[\n{lines}\n]}}\n')
    print(len(cases), "cases")


main(sys.argv[1])
