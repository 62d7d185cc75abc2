"""`lm-eval` on a small task against `/v1/completions`: python run.py BASE_URL MODEL QUARREL MODEL_FILE.

The task is committed beside this file, and words become tokens by the server's `/tokenize`, so that no network is needed. What
lm-eval makes of `echo` and `logprobs` is then compared with the log-probabilities that `quarrel logits` gives for the same
sentences, which come from the last row of a forward pass instead of from scoring.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"

import lm_eval
import requests
from lm_eval.models.openai_completions import LocalCompletionsAPI
from lm_eval.tasks import TaskManager

base, name, quarrel, model_file = sys.argv[1:5]
here = Path(__file__).parent


class Served(LocalCompletionsAPI):
    """`local-completions` with the server's own tokenizer."""

    def __init__(self):
        super().__init__(base_url=base + "/v1/completions", model=name, tokenizer_backend=None, num_concurrent=4, max_length=2048)
        self.tokenized_requests = True

    def tok_encode(self, string, **_):
        answer = requests.post(base + "/tokenize", json={"model": name, "content": string, "parse_special": False}, timeout=60)
        answer.raise_for_status()
        return answer.json()["tokens"]


def next_tokens(text):
    """The log-probability of each next token, by its text."""
    command = [quarrel, "logits", "--model", model_file, "--prompt", text, "--top", "20000", "--json"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return {t["text"]: t["logprob"] for t in json.loads(out)["tokens"]}


with tempfile.TemporaryDirectory() as folder:
    task = (here / "facts.yaml").read_text().replace("FOLDER", str(here.resolve()))
    (Path(folder) / "facts.yaml").write_text(task)
    results = lm_eval.simple_evaluate(
        model=Served(), tasks=["quarrel_facts"], task_manager=TaskManager(include_path=folder, include_defaults=False),
        log_samples=True, bootstrap_iters=0,
    )
accuracy = results["results"]["quarrel_facts"]["acc,none"]
samples = sorted(results["samples"]["quarrel_facts"], key=lambda s: s["doc_id"])
assert len(samples) == 20, len(samples)
assert accuracy >= 0.8, f"a model of English ends most of these sentences well; this one {accuracy:.2f}"

compared, worst = 0, 0.0
for sample in samples[:8]:
    known = next_tokens(sample["doc"]["question"])
    for choice, answer in zip(sample["doc"]["choices"], sample["filtered_resps"]):
        if choice in known:  # a choice of one token
            compared += 1
            worst = max(worst, abs(float(answer[0]) - known[choice]))
assert compared >= 20 and worst < 2e-3, (compared, worst)
print(f"lm-eval {lm_eval.__version__}: accuracy {accuracy:.2f}; {compared} log-likelihoods, at most {worst:.1e} from the model's own")
