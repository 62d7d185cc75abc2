#!/usr/bin/env python3
"""Makes the golden model of each family under tiny/: as make_tiny.py does, with two or four layers of width 32 and 64 tokens.

    v/bin/python crates/conform/goldens/make_families.py [NAME ...]

Made with torch 2.15.0, transformers 5.23.0, gguf 0.19.0, llama-cpp-python 0.3.36.

A row says what `config.json` holds, which GGUF family it is and what its metadata says. Families whose code is not part of
`transformers` are computed by one that is equal to them (`twin`), and their tensors renamed. Every number of every weight
comes from one pool of 1021, so that files of equal shape are nearly equal and cost little to keep; each is exact in bf16.
With llama-cpp-python installed, each GGUF is run by llama.cpp too (with f32 weights, which it does not round).
"""

import json
import math
import shutil
import sys
import tempfile
import zlib
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import families
import hybrids
from make_tiny import greedy, llama3_rope_factors, llama_cpp_logits, logits_of, logits_step_by_step, permute, vocabulary

HERE = Path(__file__).parent / "tiny"
PROMPT_LENGTHS = (5, 17, 40)
POOL = np.random.Generator(np.random.PCG64(8)).standard_normal(1021)

COMMON = dict(
    hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, vocab_size=64,
    max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0, tie_word_embeddings=False, bos_token_id=1,
    eos_token_id=2, pad_token_id=0, torch_dtype="bfloat16",
)


def config(name, kind, drop=(), **more):
    return {k: v for k, v in (dict(architectures=[name], model_type=kind) | COMMON | more).items() if k not in drop}


LLAMA_KIN = dict(twin=config("LlamaForCausalLM", "llama"))
LAYER_NORM = ("rms_norm_eps",)
SPEC = {
    "qwen2": dict(config=config("Qwen2ForCausalLM", "qwen2", sliding_window=8, max_window_layers=1, use_sliding_window=False,
                                rope_theta=1000000.0, hidden_act="silu"), gguf="QWEN2"),
    # Sliding windows in all layers but the first, and YaRN, as the Qwen 2.5 card says for long texts.
    "qwen2-yarn": dict(config=config("Qwen2ForCausalLM", "qwen2", sliding_window=8, max_window_layers=1, use_sliding_window=True,
                                     hidden_act="silu", tie_word_embeddings=True, rope_scaling=dict(
                                         type="yarn", factor=4.0, original_max_position_embeddings=16)),
                       gguf=None),
    "qwen3": dict(config=config("Qwen3ForCausalLM", "qwen3", head_dim=16, sliding_window=None, max_window_layers=2,
                                use_sliding_window=False, hidden_act="silu", attention_bias=False, tie_word_embeddings=True,
                                rope_theta=1000000.0), gguf="QWEN3"),
    # Beyond the 16 positions that it was trained for first.
    "qwen3-yarn": dict(config=config("Qwen3ForCausalLM", "qwen3", head_dim=16, use_sliding_window=False, hidden_act="silu",
                                     attention_bias=False, rope_scaling=dict(
                                         rope_type="yarn", factor=4.0, original_max_position_embeddings=16)),
                       gguf="QWEN3"),
} | families.rows(config) | hybrids.rows(config)


def random_weight(name: str, shape, tied: bool, minus_one: bool) -> torch.Tensor:
    n = math.prod(shape)
    w = POOL[(np.arange(n) + zlib.crc32(name.encode())) % len(POOL)].reshape(tuple(shape))
    cols = shape[-1]
    norm = any(k in name for k in ("norm", "ln_", "layernorm", "LayerNorm")) and (len(shape) == 1 or "_norm." in name)
    if name.endswith("bias") or name.endswith("_bias"):
        w = w * 0.5
    elif norm or "norms." in name:
        w = w * 0.25 + (0.25 if minus_one else 1.0)
    elif "embed" in name or "wte" in name or "lm_head" in name:
        w = w * (2.5 / math.sqrt(cols) if tied or "lm_head" in name or "embed_out" in name else 1.0)
    elif "wpe" in name:
        w = w * 0.5
    else:
        w = w * (1.25 / math.sqrt(cols))
    return torch.from_numpy(np.ascontiguousarray(w)).to(torch.bfloat16)


def by_kv_head(w, heads: int, kv_heads: int, head_dim: int):
    """Rows of [kv head][its queries, key, value] to all queries, all keys, all values."""
    group = heads // kv_heads
    w = w.reshape(kv_heads, group + 2, head_dim, *w.shape[1:])
    rest = w.shape[3:]
    return np.concatenate([w[:, :group].reshape(-1, *rest), w[:, group].reshape(-1, *rest), w[:, group + 1].reshape(-1, *rest)])


def gguf_tensors(spec, conf, state):
    """(name, array) of each tensor as llama.cpp's converter would write it."""
    arch = gguf.MODEL_ARCH[spec["gguf"]]
    names = gguf.get_tensor_name_map(arch, conf.num_hidden_layers)
    heads = conf.num_attention_heads
    kv = getattr(conf, "num_key_value_heads", None) or heads
    if spec.get("stack_norms"):  # of each head
        state = dict(state)
        for l in range(conf.num_hidden_layers):
            for x, n in (("q", heads), ("k", kv)):
                own = [state.pop(f"model.layers.{l}.self_attn.{x}_layernorm.norms.{h}.weight") for h in range(n)]
                state[f"model.layers.{l}.self_attn.{x}_layernorm.weight"] = torch.stack(own)
    for hf, tensor in state.items():
        data = tensor.float().numpy()
        if spec.get("minus_one") and hf.endswith("norm.weight"):
            data = data + 1.0
        if spec.get("permute") and (".q_proj." in hf or ".k_proj." in hf):
            data = permute(data, heads if ".q_proj." in hf else kv)
        if spec.get("transposed") and data.ndim == 2 and "wte" not in hf and "wpe" not in hf:
            data = data.T
        if hf.endswith((".conv.conv.weight", ".conv1d.weight")):  # one filter for each column, between them an axis of 1
            data = data.squeeze(1)
        if "query_key_value" in hf:
            data = by_kv_head(data, heads, spec.get("kv_heads", kv), conf.hidden_size // heads)
        changed = spec["convert"](hf, data) if "convert" in spec else None
        if changed is not None:
            yield from changed
            continue
        name = next(filter(None, (names.get_name(n, (".weight", ".bias")) for n in (hf, hf.removeprefix("transformer.")))), None)
        assert name, hf
        yield name, np.ascontiguousarray(data)


def write_gguf(path: Path, name: str, spec, conf, state, f32: bool):
    arch = gguf.MODEL_ARCH[spec["gguf"]]
    a = gguf.MODEL_ARCH_NAMES[arch]
    w = gguf.GGUFWriter(path, a)
    w.add_type("model")
    w.add_name(f"tiny {name}")
    w.add_file_type(gguf.LlamaFileType.ALL_F32 if f32 else gguf.LlamaFileType.MOSTLY_BF16)
    raw = spec["config"]
    scaling = raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    heads = conf.num_attention_heads
    meta = {
        "vocab_size": conf.vocab_size, "context_length": getattr(conf, "max_position_embeddings", None) or getattr(conf, "max_seq_len", 2048), "embedding_length": conf.hidden_size,
        "block_count": conf.num_hidden_layers, "feed_forward_length": spec.get("ff") or conf.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": spec.get("kv_heads") or getattr(conf, "num_key_value_heads", None) or heads,
    }
    eps = [getattr(conf, k) for k in ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps") if hasattr(conf, k)]
    eps = [spec["eps"]] if "eps" in spec else eps
    meta["attention.layer_norm_rms_epsilon" if spec.get("rms", "rms_norm_eps" in raw) else "attention.layer_norm_epsilon"] = float(eps[0])
    if spec.get("rope", True):
        meta["rope.freq_base"] = float(raw.get("rope_theta", 10000.0))
        head_dim = raw.get("head_dim") or conf.hidden_size // heads
        meta["rope.dimension_count"] = int(head_dim * spec.get("partial", 1.0))
    if raw.get("head_dim"):
        meta["attention.key_length"] = meta["attention.value_length"] = raw["head_dim"]
    if kind == "yarn":
        meta |= {"rope.scaling.type": "yarn", "rope.scaling.factor": scaling["factor"],
                 "rope.scaling.original_context_length": scaling["original_max_position_embeddings"]}
    elif kind == "linear":
        meta |= {"rope.scaling.type": "linear", "rope.scaling.factor": scaling["factor"]}
    elif kind == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_rope_factors(scaling, raw["rope_theta"], head_dim))
    elif kind in ("longrope", "su"):
        for length in ("long", "short"):
            w.add_tensor(f"rope_factors_{length}.weight", np.array(scaling[f"{length}_factor"], dtype=np.float32))
    for k, v in (meta | spec.get("meta", {})).items():
        key = f"{a}.{k}"
        if isinstance(v, bool):
            w.add_bool(key, v)
        elif isinstance(v, int):
            w.add_uint32(key, v)
        elif isinstance(v, float):
            w.add_float32(key, v)
        elif isinstance(v, str):
            w.add_string(key, v)
        else:
            w.add_array(key, v)
    tokens, types, scores, _ = vocabulary("spm", conf.vocab_size)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_scores(scores)
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    for name, data in gguf_tensors(spec, conf, state):
        plain = (
            f32 or data.ndim == 1 or "norm" in name or ".conv." in name or name.endswith(("conv1d.weight", "ssm_a", "ssm_d", "ssm_norm.weight"))
        )
        data = np.ascontiguousarray(data)
        kind = gguf.GGMLQuantizationType.F32 if plain else gguf.GGMLQuantizationType.BF16
        w.add_tensor(name, data if plain else gguf.quants.quantize(data, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def make(name: str, spec: dict) -> int:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as temp:
        temp = Path(temp)
        computed = spec.get("twin") or spec["config"]
        (temp / "config.json").write_text(json.dumps(computed))
        own = spec.get("model")
        conf = SimpleNamespace(**computed) if own else AutoConfig.from_pretrained(temp)
        blank = own(conf) if own else AutoModelForCausalLM.from_config(conf, dtype=torch.float32)
        tied = conf.tie_word_embeddings
        scale = lambda k: next((by for part, by in spec.get("scaled", {}).items() if part in k), 1.0)
        state = {k: (random_weight(k, t.shape, tied, spec.get("minus_one", False)) * scale(k)).to(torch.bfloat16)
                 for k, t in (blank.state_dict() | spec.get("beside", {})).items() if not (tied and k.startswith("lm_head.")) and k not in spec.get("skip", ())}
        save_file(state, temp / "model.safetensors", metadata=dict(format="pt"))
        load = dict(dtype=torch.float32, attn_implementation="eager")
        if own:
            blank.load_state_dict({k: t.float() for k, t in state.items()})
        model = blank.eval() if own else AutoModelForCausalLM.from_pretrained(temp, **load).eval()
        spec.get("alter", lambda m: None)(model)
        fixed = spec.get("contexts") and not spec.get("greedy", False)
        for salt in range(50):  # until no two logits that greedy text chooses between are nearly equal
            rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/prompts/{salt}".encode())))
            prompts = [[1] + rng.integers(3, conf.vocab_size, n - 1).tolist() for n in PROMPT_LENGTHS]
            continuations = [([], 0.0) if fixed else greedy(model, p) for p in prompts]
            if fixed or min(c[1] for c in continuations) > 0.03:
                break
        else:
            raise AssertionError("no prompts without near ties")
        full = [logits_of(model, p) for p in prompts]
        worst = lambda other: max(float(np.abs(a - b).max()) for a, b in zip(full, other))
        agreement = {}
        if not spec.get("contexts") and not own:  # whose keys in the cache would be turned by other angles
            agreement["step_by_step"] = worst([logits_step_by_step(model, p) for p in prompts])
            assert agreement["step_by_step"] < 1e-4, agreement
        files = []
        if spec.get("gguf"):
            files = ["model.gguf"]
            write_gguf(folder / "model.gguf", name, spec, conf, state, False)
            write_gguf(temp / "f32.gguf", name, spec, conf, state, True)
            other = None if spec.get("llama_cpp") is False else llama_cpp_logits(temp / "f32.gguf", prompts)
            if other is not None:
                agreement["gguf_by_llama_cpp"] = worst(other)
                limit = spec.get("llama_cpp", 1e-3)  # more where it looks GELU up in a table of f16, or takes another one
                assert agreement["gguf_by_llama_cpp"] < limit, agreement
        published = {spec.get("published", lambda n: n)(k): t for k, t in state.items()}
        published = spec.get("fuse", lambda p: p)(published)
        save_file({k: t.contiguous() for k, t in published.items()}, folder / "model.safetensors", metadata=dict(format="pt"))
        (folder / "model.safetensors").chmod(0o644)
        (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    golden = dict(
        name=name, made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__),
        dtype="bf16", vocab_size=conf.vocab_size, safetensors=["model.safetensors"], gguf=files, prompts=prompts,
        greedy=[c[0] for c in continuations], greedy_smallest_gap=round(min(c[1] for c in continuations), 4),
        logits_std=round(float(np.concatenate(full)[np.concatenate(full) > -1e29].std()), 3),
        max_abs_difference={k: float(f"{v:.2g}") for k, v in agreement.items()},
    )
    if spec.get("contexts"):
        golden["contexts"] = spec["contexts"]
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items())
    (folder / "golden.json").write_text(f"{{\n{lines}\n}}\n")
    np.concatenate([f.astype("<f4").ravel() for f in full]).tofile(folder / "logits.bin")
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{name:14} {size:>8,} bytes  logits std {golden['logits_std']:<6} gap {golden['greedy_smallest_gap']:<7} "
          f"{golden['max_abs_difference']}", flush=True)
    return size


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # a fixed order of sums
    total = sum(make(n, SPEC[n]) for n in (sys.argv[1:] or SPEC))
    print(f"{total:,} bytes in all")
