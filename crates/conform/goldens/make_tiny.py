#!/usr/bin/env python3
"""Makes the tiny golden models under tiny/: random weights, logits in float32 from `transformers`.

Run (only to regenerate or to add a model; the tests need no Python):

    python3 -m venv v && v/bin/pip install torch transformers accelerate safetensors tokenizers gguf numpy
    v/bin/python crates/conform/goldens/make_tiny.py [NAME ...]

Made with torch 2.15.0, transformers 5.23.0, gguf 0.19.0, numpy 2.4.6. With `llama-cpp-python` (0.3.36) installed, each
GGUF is run by llama.cpp too, as a second opinion on tensor names, permutation and metadata.

Each folder NAME holds
  config.json        as a published checkpoint of that family writes it (classic keys, or those of transformers 5)
  model.safetensors  Hugging Face names (one model is sharded, with its index)
  tokenizer.json     where the vocabulary is byte-level BPE
  model.gguf         the same weights under llama.cpp's names and conventions (absent where GGUF cannot say it)
  golden.json        prompts, greedy continuations, what was compared and how closely it agreed
  logits.bin         f32 little-endian; for each prompt in turn [positions][vocab_size], row i after token i

Weights come from numpy's PCG64, one stream per tensor name, so they do not move with torch's version. They are scaled so
that attention and logits are far from flat: an error in RoPE, a mask, a norm or a scale moves the logits by much more
than the tolerance.
"""

import json
import math
import shutil
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

HERE = Path(__file__).parent / "tiny"
PROMPT_LENGTHS = (5, 17, 40)
GREEDY_TOKENS = 12

LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", hidden_size=32, intermediate_size=48,
    num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2, vocab_size=128, max_position_embeddings=256,
    rms_norm_eps=1e-5, rope_theta=10000.0, rope_scaling=None, tie_word_embeddings=False, attention_bias=False,
    mlp_bias=False, initializer_range=0.02, bos_token_id=1, eos_token_id=2, use_cache=True, torch_dtype="float32",
)
GEMMA3 = dict(
    architectures=["Gemma3ForCausalLM"], model_type="gemma3_text", hidden_activation="gelu_pytorch_tanh",
    hidden_size=24, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
    num_hidden_layers=7, vocab_size=128, max_position_embeddings=256, rms_norm_eps=1e-6, sliding_window=8,
    query_pre_attn_scalar=16, attention_bias=False, attention_dropout=0.0, final_logit_softcapping=None,
    attn_logit_softcapping=None, initializer_range=0.02, bos_token_id=2, eos_token_id=1, pad_token_id=0,
    use_cache=True, cache_implementation="hybrid", torch_dtype="float32",
)

# name: config.json, storage type of the matrices, vocabulary (kind and pre-tokenizer), whether a GGUF twin exists.
MODELS = {
    # Every head has its own key and value; untied output; num_key_value_heads left out, as the oldest configs do.
    "llama2": dict(config={k: v for k, v in LLAMA.items() if k != "num_key_value_heads"}, dtype="f32", vocab="spm"),
    # Grouped keys, tied output, Llama 3's frequency-dependent RoPE scaling: with 64 original positions and head_dim 16
    # the eight frequencies fall into all three of its regimes. `rope_freqs.weight` carries it in the GGUF.
    "llama3": dict(
        config=LLAMA | dict(
            num_key_value_heads=2, head_dim=16, tie_word_embeddings=True, rope_theta=500000.0,
            rope_scaling=dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0,
                              original_max_position_embeddings=64, rope_type="llama3"),
            bos_token_id=0, eos_token_id=[1, 2],
        ),
        dtype="f32", vocab=("bpe", "llama-bpe"),
    ),
    "tinyllama": dict(
        config=LLAMA | dict(hidden_size=64, intermediate_size=88, num_attention_heads=8, num_key_value_heads=2,
                            torch_dtype="float16"),
        dtype="f16", vocab="spm",
    ),
    # Nine heads over three; rope parameters as transformers 5 writes them.
    "smollm2": dict(
        config={k: v for k, v in LLAMA.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype")} | dict(
            hidden_size=72, intermediate_size=80, num_attention_heads=9, num_key_value_heads=3, head_dim=8,
            tie_word_embeddings=True, rope_parameters=dict(rope_theta=100000.0, rope_type="default"),
            dtype="bfloat16",
        ),
        dtype="bf16", vocab=("bpe", "smollm"),
    ),
    # Window of 8 in every layer; the longest prompt is 40. llama.cpp has no such key for this family, so
    # `llama.attention.sliding_window` in the GGUF follows its naming for the families that have one.
    "mistral": dict(
        config={k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias", "rope_scaling")} | dict(
            architectures=["MistralForCausalLM"], model_type="mistral", num_key_value_heads=1, num_hidden_layers=3,
            sliding_window=8, attention_dropout=0.0,
        ),
        dtype="f32", vocab="spm",
    ),
    # The 270M and 1B models: five windowed layers to one global, two RoPE bases, all the norms.
    "gemma3": dict(
        config=GEMMA3 | dict(rope_theta=1000000.0, rope_local_base_freq=10000.0, rope_scaling=None,
                             sliding_window_pattern=6),
        dtype="f32", vocab="gemma",
    ),
    # What the larger ones add: linear RoPE scaling in the global layers, an attention scale other than
    # head_dim^-1/2 (no GGUF key is read for it, hence no twin), the layer types listed, transformers 5's names.
    "gemma3-scaled": dict(
        config={k: v for k, v in GEMMA3.items() if k != "torch_dtype"} | dict(
            num_hidden_layers=6, query_pre_attn_scalar=10, dtype="bfloat16", tie_word_embeddings=True,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
            rope_parameters=dict(
                full_attention=dict(rope_type="linear", factor=8.0, rope_theta=1000000.0),
                sliding_attention=dict(rope_type="default", rope_theta=10000.0),
            ),
        ),
        dtype="bf16", vocab="gemma", gguf=False,
    ),
    # Nothing is a multiple of anything: head_dim 80 set apart from hidden_size / heads, an odd vocabulary.
    "llama-odd": dict(
        config=LLAMA | dict(hidden_size=38, num_attention_heads=2, num_key_value_heads=1, head_dim=80,
                            intermediate_size=51, vocab_size=131),
        dtype="f16", vocab="spm",
    ),
    # Linear RoPE scaling under its oldest key; sharded safetensors and a split GGUF.
    "llama-linear": dict(
        config=LLAMA | dict(num_key_value_heads=2, rope_scaling=dict(type="linear", factor=4.0)),
        dtype="f32", vocab="spm", split=True,
    ),
    "llama-bias": dict(
        config=LLAMA | dict(num_key_value_heads=2, attention_bias=True), dtype="f32", vocab=("bpe", "gpt-2"),
    ),
}

TORCH = dict(f32=torch.float32, f16=torch.float16, bf16=torch.bfloat16)
GGML = dict(f32=gguf.GGMLQuantizationType.F32, f16=gguf.GGMLQuantizationType.F16, bf16=gguf.GGMLQuantizationType.BF16)


def random_weight(model_name: str, name: str, shape, config) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{model_name}/{name}".encode())))
    w = rng.standard_normal(tuple(shape))
    gemma = config.model_type == "gemma3_text"
    if name.endswith(".bias"):
        w *= 0.5
    elif name.endswith("norm.weight"):
        w = w * 0.2 + (0.3 if gemma else 1.0)  # Gemma's norms multiply by 1 + w
    elif name.endswith("embed_tokens.weight"):
        w *= 2.5 / math.sqrt(shape[1]) if config.tie_word_embeddings else 1.0
    elif name.endswith("lm_head.weight"):
        w *= 2.5 / math.sqrt(shape[1])
    elif ".q_proj." in name or ".k_proj." in name:
        w *= 1.4 / math.sqrt(shape[1])
    else:
        w *= 1.0 / math.sqrt(shape[1])
        if config.tie_word_embeddings and not gemma and (".o_proj." in name or ".down_proj." in name):
            w *= 2.0  # else the embedding outweighs the layers and every token predicts itself
    return torch.from_numpy(w).float()


def vocabulary(kind, size: int):
    """(tokens, token types, scores or None, merges or None): printable ASCII, a few longer pieces, specials first."""
    T = gguf.TokenType
    if isinstance(kind, tuple):  # byte-level BPE: Ġ is the space, Ċ the newline
        special = ["<|begin|>", "<|end|>", "<|eot|>"]
        base = [chr(c) for c in range(33, 127)] + ["Ġ", "Ċ"]
        merges = ["Ġ t", "h e", "Ġ a", "i n", "Ġt he", "o n", "e r", "r e", "Ġ s", "a t", "n d", "Ġ w", "Ġ o", "i t", "Ġa nd",
                  "o u", "e s", "e n", "Ġ c", "i s", "o r", "in g", "Ġ f", "a n", "Ġ p", "Ġo f", "e d", "a l", "Ġ m"]
        merges = merges[: size - len(special) - len(base)]
        tokens = special + base + [m.replace(" ", "") for m in merges]
        types = [T.CONTROL] * len(special) + [T.NORMAL] * (len(tokens) - len(special))
        scores = None
    else:
        special = ["<pad>", "<eos>", "<bos>", "<unk>"] if kind == "gemma" else ["<unk>", "<s>", "</s>"]
        longer = ["▁the", "▁t", "he", "in", "▁a", "er", "on", "re", "at", "nd", "it", "▁th", "▁an", "▁and", "is", "or", "es",
                  "en", "ed", "ing", "▁of", "▁o", "al", "an", "▁s", "▁w", "▁c", "ou", "▁m", "▁p", "▁f"]
        pieces = ["<0x0A>"] + longer + ["▁"] + [chr(c) for c in range(33, 127)]
        pieces = pieces[: size - len(special)]
        tokens = special + pieces
        types = [T.CONTROL] * len(special) + [T.BYTE] + [T.NORMAL] * (len(pieces) - 1)
        types[tokens.index("<unk>")] = T.UNKNOWN
        scores = [0.0] * (len(special) + 1) + [-float(i) for i in range(len(pieces) - 1)]
        merges = None
    for i in range(size - len(tokens)):
        tokens.append(f"<unused{i}>")
        types.append(T.UNUSED)
        if scores is not None:
            scores.append(0.0)
    assert len(tokens) == size == len(set(tokens)), (kind, len(tokens), size)
    return tokens, [int(t) for t in types], scores, merges


def write_tokenizer_json(path: Path, tokens, merges):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    t = Tokenizer(models.BPE({k: i for i, k in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    t.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in tokens[:3]])
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.decoder = decoders.ByteLevel()
    t.save(str(path))


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    """Hugging Face's half-split rows of Q and K to llama.cpp's interleaved pairs, as its converter does."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def llama3_rope_factors(scaling: dict, theta: float, dim: int) -> np.ndarray:
    """What each rotary frequency is divided by (llama.cpp's `rope_freqs.weight`)."""
    old = scaling["original_max_position_embeddings"]
    low, high, factor = (scaling[k] for k in ("low_freq_factor", "high_freq_factor", "factor"))
    out = []
    for i in range(0, dim, 2):
        wavelen = 2 * math.pi * theta ** (i / dim)
        if wavelen < old / high:
            out.append(1.0)
        elif wavelen > old / low:
            out.append(factor)
        else:
            smooth = (old / wavelen - low) / (high - low)
            out.append(1 / ((1 - smooth) / factor + smooth))
    assert out[0] == 1.0 and out[-1] == factor and any(1.0 < f < factor for f in out), "a regime is not exercised"
    return np.array(out, dtype=np.float32)


def write_gguf(folder: Path, name: str, spec: dict, config, state: dict[str, torch.Tensor]) -> list[str]:
    raw = spec["config"]
    gemma = config.model_type == "gemma3_text"
    arch = gguf.MODEL_ARCH.GEMMA3 if gemma else gguf.MODEL_ARCH.LLAMA
    split = 8 if spec.get("split") else 0
    w = gguf.GGUFWriter(folder / "model.gguf", gguf.MODEL_ARCH_NAMES[arch], split_max_tensors=split)
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    w.add_type("model")
    w.add_name("mistral" if config.model_type == "mistral" else f"tiny {name}")
    w.add_file_type(dict(f32=gguf.LlamaFileType.ALL_F32, f16=gguf.LlamaFileType.MOSTLY_F16,
                         bf16=gguf.LlamaFileType.MOSTLY_BF16)[spec["dtype"]])
    w.add_vocab_size(config.vocab_size)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(heads)
    w.add_head_count_kv(kv_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    if "head_dim" in raw:
        w.add_key_length(config.head_dim)
        w.add_value_length(config.head_dim)
    w.add_rope_freq_base(raw.get("rope_theta") or raw["rope_parameters"]["rope_theta"])
    if not gemma:
        w.add_rope_dimension_count(config.head_dim)
    if raw.get("sliding_window"):
        w.add_sliding_window(raw["sliding_window"])
    scaling = raw.get("rope_scaling") or {}
    kind = scaling.get("rope_type", scaling.get("type"))
    if kind == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(scaling["factor"])
    elif kind == "llama3":
        w.add_tensor("rope_freqs.weight", llama3_rope_factors(scaling, raw["rope_theta"], config.head_dim))

    tokens, types, scores, merges = vocabulary(spec["vocab"], config.vocab_size)
    w.add_tokenizer_model("gpt2" if merges else "llama")
    w.add_tokenizer_pre(spec["vocab"][1] if merges else "default")
    w.add_token_list(tokens)
    w.add_token_types(types)
    if scores is not None:
        w.add_token_scores(scores)
        w.add_unk_token_id(tokens.index("<unk>"))
        w.add_add_space_prefix(not gemma)
    if merges:
        w.add_token_merges(merges)
    w.add_bos_token_id(config.bos_token_id)
    eos = config.eos_token_id
    w.add_eos_token_id(eos[0] if isinstance(eos, list) else eos)
    w.add_add_bos_token(spec["vocab"] != ("bpe", "smollm"))

    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for hf, tensor in state.items():
        data = tensor.float().numpy()
        if not gemma and (".q_proj." in hf or ".k_proj." in hf):
            data = permute(data, heads if ".q_proj." in hf else kv_heads)
        if gemma and hf.endswith("norm.weight"):
            data = data + 1.0
        kind = GGML["f32"] if data.ndim == 1 else GGML[spec["dtype"]]
        w.add_tensor(names.get_name(hf, try_suffixes=(".weight", ".bias")),
                     data if kind == GGML["f32"] else gguf.quants.quantize(data, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return sorted(p.name for p in folder.glob("*.gguf"))


def logits_of(model, ids: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].double().numpy()


def logits_step_by_step(model, ids: list[int]) -> np.ndarray:
    rows, past = [], None
    with torch.no_grad():
        for t in ids:
            out = model(input_ids=torch.tensor([[t]]), past_key_values=past, use_cache=True)
            past = out.past_key_values
            rows.append(out.logits[0, 0].double().numpy())
    return np.stack(rows)


def greedy(model, ids: list[int]):
    """Ids, and the smallest gap between the best and second-best logit on the way (no ties to argue about)."""
    ids, out, gap = list(ids), [], math.inf
    for _ in range(GREEDY_TOKENS):
        row = logits_of(model, ids)[-1]
        best = np.argsort(row)[::-1][:2]
        gap = min(gap, float(row[best[0]] - row[best[1]]))
        out.append(int(best[0]))
        ids.append(int(best[0]))
    return out, gap


def llama_cpp_logits(path: Path, prompts):
    """The same logits by llama.cpp with an f32 cache; None where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    m = llama_cpp.Llama(str(path), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False,
                        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False)
    out = []
    for ids in prompts:
        m.reset()
        m.eval(ids)
        out.append(np.array(m.scores[: len(ids)], dtype=np.float64))
    return out


def make(name: str, spec: dict) -> int:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    blank = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    state = {}
    for key, tensor in blank.state_dict().items():
        if key == "lm_head.weight" and config.tie_word_embeddings:
            continue
        state[key] = random_weight(name, key, tensor.shape, config).to(TORCH[spec["dtype"]])
    keys = list(state)
    if spec.get("split"):
        half = len(keys) // 2
        files = {f"model-0000{i + 1}-of-00002.safetensors": part for i, part in enumerate((keys[:half], keys[half:]))}
        index = dict(metadata=dict(total_size=sum(t.numel() * t.element_size() for t in state.values())),
                     weight_map={k: f for f, part in files.items() for k in part})
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True) + "\n")
    else:
        files = {"model.safetensors": keys}
    for f, part in files.items():
        save_file({k: state[k] for k in part}, folder / f, metadata=dict(format="pt"))
        (folder / f).chmod(0o644)

    load = dict(dtype=torch.float32, attn_implementation="eager")
    model = AutoModelForCausalLM.from_pretrained(folder, **load).eval()
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/prompts".encode())))
    prompts = [[int(config.bos_token_id)] + rng.integers(3, config.vocab_size, n - 1).tolist() for n in PROMPT_LENGTHS]
    full = [logits_of(model, p) for p in prompts]
    worst = lambda other: max(float(np.abs(a - b).max()) for a, b in zip(full, other))
    agreement = dict(step_by_step=worst([logits_step_by_step(model, p) for p in prompts]))
    assert agreement["step_by_step"] < 1e-4, agreement
    agreement["float64"] = worst([logits_of(model.double(), p) for p in prompts])
    model = model.float()

    gguf_files = []
    if spec.get("gguf", True):
        gguf_files = write_gguf(folder, name, spec, config, state)
        if not spec.get("split") and config.model_type != "mistral":  # neither can be read back by transformers
            # It ignores llama3's factors and linear scaling in a GGUF: config.json gives them.
            twin = AutoModelForCausalLM.from_pretrained(folder, gguf_file=gguf_files[0], config=config, **load).eval()
            agreement["gguf_by_transformers"] = worst([logits_of(twin, p) for p in prompts])
            assert agreement["gguf_by_transformers"] < 1e-5, agreement
        other = llama_cpp_logits(folder / gguf_files[0], prompts)
        if other is not None and config.model_type == "mistral":  # no window there: compare with ours taken off
            wide = AutoModelForCausalLM.from_pretrained(folder, sliding_window=None, **load).eval()
            agreement["gguf_by_llama_cpp_without_window"] = max(
                float(np.abs(logits_of(wide, p) - b).max()) for p, b in zip(prompts, other))
            agreement["what_the_window_changes"] = worst([logits_of(wide, p) for p in prompts])
        elif other is not None:
            agreement["gguf_by_llama_cpp"] = worst(other)
        for key in [k for k in agreement if k.startswith("gguf_by_llama")]:
            # llama.cpp rounds activations to the type of the weights, and looks GELU up in a table of f16.
            limit = 0.2 if spec["dtype"] != "f32" else 2e-2 if config.model_type == "gemma3_text" else 1e-3
            assert agreement[key] < limit, agreement

    tokens, _, _, merges = vocabulary(spec["vocab"], config.vocab_size)
    if merges:
        write_tokenizer_json(folder / "tokenizer.json", tokens, merges)
    continuations = [greedy(model, p) for p in prompts]
    golden = dict(
        name=name, made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__),
        dtype=spec["dtype"], vocab_size=config.vocab_size, safetensors=sorted(files), gguf=gguf_files, prompts=prompts,
        greedy=[c[0] for c in continuations], greedy_smallest_gap=round(min(c[1] for c in continuations), 4),
        logits_std=round(float(np.concatenate(full).std()), 3),
        max_abs_difference={k: float(f"{v:.2g}") for k, v in agreement.items()},
    )
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
    total = sum(make(n, MODELS[n]) for n in (sys.argv[1:] or MODELS))
    print(f"{total:,} bytes in all")
