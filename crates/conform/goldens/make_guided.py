#!/usr/bin/env python3
"""Makes guided.json: what transformers' contrastive search and DoLa say with the tiny models under tiny/.

Run (only to regenerate; the tests need no Python), with the last releases that have both:

    python3 -m venv v && v/bin/pip install torch transformers==4.53.3 safetensors tokenizers
    v/bin/python crates/conform/goldens/make_guided.py

Made with torch 2.15.0, transformers 4.53.3. Both are greedy. DoLa differs from transformers' in two ways, as the paper has
it and as is patched here: a premature layer has the model's last norm before the head, and layers are chosen by the
Jensen-Shannon divergence itself (transformers takes both of its Kullback-Leibler parts the other way round).
"""

import json
from pathlib import Path

import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM
from transformers.generation import utils

HERE = Path(__file__).parent
TOKENS = 24
# The repetition in the answers is what contrastive search is about, so prompts repeat too.
SEARCHES = [(0.6, 4), (0.3, 6), (0.9, 3)]
LAYERS = {"gemma3": [[1, 2, 3, 5], [3, 5], [6]], "smollm2": [[1]], "llama-bias": [[1]]}


def select(layers, premature, final):
    """The layer of the largest Jensen-Shannon divergence, and transformers' own contrast with it."""
    p = final.double().softmax(-1)
    chosen, most = None, -1.0
    for layer in layers:
        q = premature[layer].double().softmax(-1)
        m = 0.5 * (p + q)
        jsd = 0.5 * (p * (p / m).log()).sum() + 0.5 * (q * (q / m).log()).sum()
        if jsd > most:
            chosen, most = layer, float(jsd)
    CHOSEN.append(chosen)
    base = premature[chosen]
    final, base = utils._relative_top_filter(final, base)
    return final - base


CHOSEN = []


class Exit(nn.Module):
    def __init__(self, norm, head):
        super().__init__()
        self.norm, self.head = norm, head

    def forward(self, x):
        return self.head(self.norm(x))


def main():
    utils._dola_select_contrast = select
    cases = []
    for name in ["gemma3", "smollm2", "llama-bias", "tinyllama"]:
        golden = json.loads((HERE / "tiny" / name / "golden.json").read_text())
        # Of transformers 5, which this release does not read.
        config = json.loads((HERE / "tiny" / name / "config.json").read_text())
        theta = {k: v for k, v in config.get("rope_parameters", {}).items() if k == "rope_theta"}
        model = AutoModelForCausalLM.from_pretrained(HERE / "tiny" / name, torch_dtype=torch.float32,
                                                     attn_implementation="eager", **theta).eval()
        model.generation_config.eos_token_id = None
        model.generation_config.pad_token_id = 0
        model.generation_config.cache_implementation = None
        for prompt in golden["prompts"]:
            ids = torch.tensor([prompt])
            run = lambda **k: model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS,
                                             do_sample=False, **k)[0][len(prompt):].tolist()
            # Its search knows no cache with windows.
            for alpha, k in SEARCHES if name != "gemma3" else []:
                tokens = run(penalty_alpha=alpha, top_k=k)
                cases.append(dict(model=name, prompt=prompt, alpha=alpha, k=k, tokens=tokens))
            head, plain = Exit(model.model.norm, model.lm_head), model.get_output_embeddings
            model.get_output_embeddings = lambda: head
            for layers in LAYERS.get(name, []):
                CHOSEN.clear()
                tokens = run(dola_layers=layers, use_cache=True)
                cases.append(dict(model=name, prompt=prompt, layers=layers, chosen=list(CHOSEN), tokens=tokens))
            model.get_output_embeddings = plain
    lines = ",\n".join(json.dumps(c) for c in cases)
    (HERE / "guided.json").write_text(f'{{"transformers": "{transformers.__version__}", "cases": [\n{lines}\n]}}\n')


main()
