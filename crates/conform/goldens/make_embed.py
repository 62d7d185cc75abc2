#!/usr/bin/env python3
"""Makes the golden encoders under embed/: tiny ones with random weights, and what all-MiniLM-L6-v2 gives, both by
`transformers` in float32.

Run (only to regenerate or to add a model; the tests need no Python):

    python3 -m venv v && v/bin/pip install torch transformers safetensors tokenizers gguf numpy
    v/bin/python crates/conform/goldens/make_embed.py [MINILM_DIR]

Each tiny folder holds
  config.json, model.safetensors, tokenizer.json   as a published checkpoint has them (where transformers knows the family)
  model.gguf         the same weights under llama.cpp's names and conventions
  golden.json        prompts, and how closely float64 agreed
  hidden.bin         f32 little-endian; for each prompt in turn [positions][dim], the last hidden states

minilm.json has texts with their ids; minilm.bin f32 little-endian, for each text its mean of hidden states, normalised.
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
from transformers import AutoConfig, AutoModel, AutoTokenizer

HERE = Path(__file__).parent / "embed"
PROMPT_LENGTHS = (1, 2, 17, 40)
BERT = dict(
    architectures=["BertModel"], model_type="bert", hidden_act="gelu", hidden_size=36, intermediate_size=52,
    num_attention_heads=3, num_hidden_layers=3, vocab_size=127, max_position_embeddings=48, type_vocab_size=2,
    layer_norm_eps=1e-12, position_embedding_type="absolute", pad_token_id=0, initializer_range=0.02,
    torch_dtype="float32",
)
TEXTS = [
    "The cat sat on the mat.", "A kitten was lying on a rug.", "Interest rates rose by a quarter of a point.",
    "Zürich, naïve café: the quick brown fox's 2,000 jumps!", "x", "東京は日本の首都です。",
    " ".join(f"Sentence number {i} is about something else again." for i in range(40)),
]


def pieces(size: int):
    """A WordPiece vocabulary: specials, letters that start and that continue a word, a few longer pieces."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!'"
    longer = ["the", "##ing", "cat", "##s", "and", "##er", "on", "##ed", "in", "##ion", "to", "##al"]
    all = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *longer]
    return all + [f"[unused{i}]" for i in range(size - len(all))]


def random_state(name: str, shapes: dict) -> dict:
    state = {}
    for key, shape in shapes.items():
        w = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/{key}".encode()))).standard_normal(shape)
        if key.endswith(".bias"):
            w *= 0.3
        elif "LayerNorm" in key or "_norm." in key:
            w = 1.0 + 0.2 * w
        elif "query" in key or "key" in key or "qkv" in key:
            w *= 1.6 / math.sqrt(shape[1])
        elif "embeddings" in key or "embd" in key or "types" in key:
            w *= 1.0
        else:
            w *= 1.2 / math.sqrt(shape[1])
        state[key] = torch.from_numpy(w).float()
    return state


def gguf_writer(path: Path, arch: str, c: dict) -> gguf.GGUFWriter:
    w = gguf.GGUFWriter(path, arch)
    w.add_type("model")
    w.add_name(f"tiny {arch}")
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_block_count(c["num_hidden_layers"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(c["num_attention_heads"])
    w.add_layer_norm_eps(c["layer_norm_eps"])
    w.add_causal_attention(False)
    w.add_pooling_type(gguf.PoolingType.MEAN)
    tokens = pieces(c["vocab_size"])
    special = [t.startswith("[") for t in tokens]
    spelled = [t if s else t[2:] if t.startswith("##") else "▁" + t for t, s in zip(tokens, special)]
    T = gguf.TokenType
    w.add_tokenizer_model("bert")
    w.add_tokenizer_pre("default")
    w.add_token_type_count(2)
    w.add_token_list(spelled)
    w.add_token_types([int(T.UNUSED if "unused" in t else T.CONTROL if s else T.NORMAL) for t, s in zip(tokens, special)])
    # As llama.cpp's converter does: [CLS] begins a text, and is in the field for that.
    for role, text in [("unknown", "[UNK]"), ("seperator", "[SEP]"), ("padding", "[PAD]"), ("bos", "[CLS]"), ("mask", "[MASK]")]:
        w.add_uint32(f"tokenizer.ggml.{role}_token_id", tokens.index(text))
    return w


def finish(w: gguf.GGUFWriter, tensors: dict):
    for name, data in tensors.items():
        w.add_tensor(name, np.ascontiguousarray(data, dtype=np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def write_tokenizer(folder: Path, tokens):
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    t = Tokenizer(models.WordPiece({k: i for i, k in enumerate(tokens)}, unk_token="[UNK]"))
    t.add_special_tokens(tokens[:5])
    t.normalizer = normalizers.BertNormalizer(lowercase=True)
    t.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(n, tokens.index(n)) for n in ("[CLS]", "[SEP]")]
    t.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", ends)
    t.decoder = decoders.WordPiece()
    t.save(str(folder / "tokenizer.json"))


def nomic_hidden(c: dict, s: dict, ids: list[int]) -> np.ndarray:
    """nomic-embed-text's forward pass by its paper and published code, in float64: no release of transformers is asked."""
    s = {k: v.double() for k, v in s.items()}
    norm = lambda x, n: torch.nn.functional.layer_norm(x, x.shape[-1:], s[n + ".weight"], s[n + ".bias"], c["layer_norm_eps"])
    n, heads = len(ids), c["num_attention_heads"]
    dim = c["hidden_size"] // heads
    freq = 1000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angle = torch.arange(n, dtype=torch.float64)[:, None] * freq
    cos, sin = (torch.cat([f(angle)] * 2, -1)[:, None] for f in (torch.cos, torch.sin))
    turn = lambda x: x * cos + torch.cat([-x[..., dim // 2:], x[..., : dim // 2]], -1) * sin
    x = norm(s["token_embd.weight"][ids] + s["token_types.weight"][0], "token_embd_norm")
    for l in range(c["num_hidden_layers"]):
        p = f"blk.{l}."
        q, k, v = (x @ s[p + "attn_qkv.weight"].T).reshape(n, 3, heads, dim).unbind(1)
        w = torch.softmax(torch.einsum("ihd,jhd->hij", turn(q), turn(k)) / math.sqrt(dim), -1)
        a = torch.einsum("hij,jhd->ihd", w, v).reshape(n, -1) @ s[p + "attn_output.weight"].T
        x = norm(x + a, p + "attn_output_norm")
        f = torch.nn.functional.silu(x @ s[p + "ffn_gate.weight"].T) * (x @ s[p + "ffn_up.weight"].T)
        x = norm(x + f @ s[p + "ffn_down.weight"].T, p + "layer_output_norm")
    return x.numpy()


def save(folder: Path, name: str, dim: int, prompts, full, agreement: dict, safetensors):
    golden = dict(
        name=name, made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__),
        dim=dim, safetensors=safetensors, gguf=["model.gguf"], prompts=prompts,
        max_abs_difference={k: float(f"{v:.2g}") for k, v in agreement.items()},
    )
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items())
    (folder / "golden.json").write_text(f"{{\n{lines}\n}}\n")
    np.concatenate([f.astype("<f4").ravel() for f in full]).tofile(folder / "hidden.bin")
    print(name, sum(p.stat().st_size for p in folder.iterdir()), "bytes", golden["max_abs_difference"])


def fresh(name: str) -> Path:
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def prompts_of(name: str):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/prompts".encode())))
    return [[2] + rng.integers(5, 120, n - 1).tolist() for n in PROMPT_LENGTHS]


def worst(full, other) -> float:
    return max(float(np.abs(a - b).max()) for a, b in zip(full, other))


def make_bert():
    folder = fresh("bert")
    (folder / "config.json").write_text(json.dumps(BERT, indent=2) + "\n")
    blank = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    shapes = {k: tuple(v.shape) for k, v in blank.state_dict().items() if v.is_floating_point()}
    state = random_state("bert", shapes)
    save_file(state, folder / "model.safetensors", metadata=dict(format="pt"))
    (folder / "model.safetensors").chmod(0o644)
    write_tokenizer(folder, pieces(BERT["vocab_size"]))
    model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    prompts = prompts_of("bert")
    run = lambda p: model(input_ids=torch.tensor([p])).last_hidden_state[0].detach().double().numpy()
    full = [run(p) for p in prompts]
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.BERT, BERT["num_hidden_layers"])
    w = gguf_writer(folder / "model.gguf", "bert", BERT)
    finish(w, {names.get_name(k, try_suffixes=(".weight", ".bias")): v.numpy() for k, v in state.items() if "pooler" not in k})
    model = model.double()
    agreement = dict(float64=worst(full, [run(p) for p in prompts]))
    save(folder, "bert", BERT["hidden_size"], prompts, full, agreement, ["model.safetensors"])


def make_nomic():
    folder = fresh("nomic")
    c = BERT | dict(num_hidden_layers=2)
    dim, ff = c["hidden_size"], c["intermediate_size"]
    shapes = {"token_embd.weight": (c["vocab_size"], dim), "token_types.weight": (2, dim)}
    norms = ["token_embd_norm"]
    for l in range(c["num_hidden_layers"]):
        p = f"blk.{l}."
        shapes |= {p + "attn_qkv.weight": (3 * dim, dim), p + "attn_output.weight": (dim, dim),
                   p + "ffn_gate.weight": (ff, dim), p + "ffn_up.weight": (ff, dim), p + "ffn_down.weight": (dim, ff)}
        norms += [p + "attn_output_norm", p + "layer_output_norm"]
    shapes |= {f"{n}.{kind}": (dim,) for n in norms for kind in ("weight", "bias")}
    state = random_state("nomic", shapes)
    prompts = prompts_of("nomic")
    full = [nomic_hidden(c, state, p) for p in prompts]
    w = gguf_writer(folder / "model.gguf", "nomic-bert", c)
    w.add_rope_freq_base(1000.0)
    finish(w, {k: v.numpy() for k, v in state.items()})
    save(folder, "nomic", dim, prompts, full, {}, [])


def make_minilm(path: Path):
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModel.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()
    ids = [tokenizer(t, truncation=True, max_length=512)["input_ids"] for t in TEXTS]
    rows = []
    for i in ids:
        mean = model(input_ids=torch.tensor([i])).last_hidden_state[0].detach().double().numpy().mean(0)
        rows.append(mean / np.linalg.norm(mean))
    lines = ",\n".join(json.dumps(dict(text=t, ids=i), ensure_ascii=False) for t, i in zip(TEXTS, ids))
    (HERE / "minilm.json").write_text(f"[\n{lines}\n]\n")
    np.stack(rows).astype("<f4").tofile(HERE / "minilm.bin")
    print("minilm", [len(i) for i in ids], np.round(np.stack(rows) @ rows[0], 4))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    make_bert()
    make_nomic()
    if len(sys.argv) > 1:
        make_minilm(Path(sys.argv[1]))
