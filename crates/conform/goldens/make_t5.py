#!/usr/bin/env python3
"""Makes the golden models of T5's kin: tiny ones with random weights, by `transformers` in float32.

    v/bin/python crates/conform/goldens/make_t5.py

Made with torch 2.15.0, transformers 5.23.0, gguf 0.19.0, numpy 2.4.6.

embed/t5encoder, embed/umt5encoder   encoders alone, as make_embed.py has them (hidden.bin)
encdec/t5, encdec/flan-t5            both stacks: T5 1.0 (ReLU, tied and scaled head) and 1.1 (gated GELU, a head of its own)
encdec/mt5                           1.1 under mT5's names, with heads that are narrower together than the model

Each folder of encdec/ holds
  config.json, tokenizer.json, model.safetensors   as a published checkpoint has them
  model.gguf     the same weights under llama.cpp's names and conventions
  golden.json    sources (ids as the encoder takes them), answers (the decoder's, its first token included), greedy answers
  logits.bin     f32 little-endian; for each answer in turn [positions][vocab_size]

Weights are exact in bf16 and come from numpy's PCG64, one stream for each name.
"""

import json
import math
import shutil
import zlib
from pathlib import Path

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, MT5ForConditionalGeneration, T5EncoderModel, T5ForConditionalGeneration, UMT5EncoderModel

HERE = Path(__file__).parent
CONFIG = dict(
    model_type="t5", d_model=24, d_kv=8, num_heads=4, d_ff=40, num_layers=2, num_decoder_layers=3, vocab_size=96,
    relative_attention_num_buckets=32, relative_attention_max_distance=128, layer_norm_epsilon=1e-6, n_positions=512,
    feed_forward_proj="relu", is_encoder_decoder=True, decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    dropout_rate=0.1, initializer_factor=1.0, torch_dtype="bfloat16", use_cache=True,
)
SOURCES = (1, 5, 17, 150)
ANSWERS = (9, 3, 140, 20)
GREEDY = 12


def weight(name, key, shape):
    w = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/{key}".encode()))).standard_normal(shape)
    if "layer_norm" in key:
        w = 1.0 + 0.2 * w
    elif "relative_attention_bias" in key:
        w *= 1.5
    elif key in ("shared.weight", "lm_head.weight"):
        w *= 1.0 if key == "shared.weight" else 1.5 / math.sqrt(shape[1])
    elif ".q." in key:
        w *= 1.5 / math.sqrt(shape[1] * CONFIG["d_kv"])
    else:
        w *= 1.2 / math.sqrt(shape[1])
    return torch.from_numpy(w).to(torch.bfloat16)


def pieces(size):
    """A unigram vocabulary: specials, the mark of a space, letters, and a few words, with their scores."""
    words = ["▁the", "▁cat", "ing", "er", "▁a", "and", "on", "▁to", "s"]
    letters = list("▁abcdefghijklmnopqrstuvwxyz0123456789.,!?'")
    rows = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    rows += [(w, -3.0 - 0.1 * i) for i, w in enumerate(w for w in words if w not in letters)]
    rows += [(c, -6.0 - 0.05 * i) for i, c in enumerate(letters)]
    return rows + [(f"<extra_id_{i}>", 0.0) for i in range(size - len(rows))]


def write_tokenizer(folder, rows):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    t = Tokenizer(models.Unigram(rows, unk_id=2))
    t.add_special_tokens([r[0] for r in rows if r[0].startswith("<")])
    t.pre_tokenizer = pre_tokenizers.Metaspace()
    t.decoder = decoders.Metaspace()
    t.post_processor = processors.TemplateProcessing("$A </s>", "$A </s> $B </s>", [("</s>", 1)])
    t.save(str(folder / "tokenizer.json"))


def write_gguf(path, arch, c, state):
    w = gguf.GGUFWriter(path, arch)
    w.add_type("model")
    w.add_name(f"tiny {arch}")
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_context_length(c["n_positions"])
    w.add_embedding_length(c["d_model"])
    w.add_feed_forward_length(c["d_ff"])
    w.add_block_count(c["num_layers"])
    w.add_head_count(c["num_heads"])
    w.add_key_length(c["d_kv"])
    w.add_value_length(c["d_kv"])
    w.add_layer_norm_eps(c["layer_norm_epsilon"])
    w.add_relative_attn_buckets_count(c["relative_attention_num_buckets"])
    w.add_layer_norm_rms_eps(c["layer_norm_epsilon"])
    if arch == "t5":
        w.add_decoder_block_count(c["num_decoder_layers"])
        w.add_decoder_start_token_id(c["decoder_start_token_id"])
    rows, T = pieces(c["vocab_size"]), gguf.TokenType
    w.add_tokenizer_model("t5")
    w.add_tokenizer_pre("default")
    w.add_token_list([r[0] for r in rows])
    w.add_token_scores([r[1] for r in rows])
    kinds = {"<pad>": T.CONTROL, "</s>": T.CONTROL, "<unk>": T.UNKNOWN}
    w.add_token_types([int(kinds.get(r[0], T.USER_DEFINED if r[0].startswith("<") else T.NORMAL)) for r in rows])
    w.add_add_space_prefix(True)
    w.add_remove_extra_whitespaces(False)
    for role, i in (("eos", 1), ("unknown", 2), ("padding", 0)):
        w.add_uint32(f"tokenizer.ggml.{role}_token_id", i)
    w.add_add_bos_token(False)
    w.add_add_eos_token(True)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5, max(c["num_layers"], c["num_decoder_layers"]))
    for k, v in state.items():
        w.add_tensor(names.get_name(k, try_suffixes=(".weight",)), np.ascontiguousarray(v.float().numpy()))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def prepare(place, name, cls, arch, **more):
    folder = HERE / place / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    c = CONFIG | more
    (folder / "config.json").write_text(json.dumps(c, indent=2) + "\n")
    blank = cls._from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    drop = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"] + (["lm_head.weight"] if c.get("tied") else [])
    state = {k: weight(name, k, tuple(v.shape)) for k, v in blank.state_dict().items() if k not in drop}
    save_file(state, folder / "model.safetensors", metadata=dict(format="pt"))
    (folder / "model.safetensors").chmod(0o644)
    write_tokenizer(folder, pieces(c["vocab_size"]))
    write_gguf(folder / "model.gguf", arch, c, state)
    model = cls.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    for k, v in state.items():
        assert torch.equal(model.state_dict()[k], v.float()), k
    return folder, c, model


def ids(name, what, lengths, first=None):
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/{what}".encode())))
    return [([first] if first is not None else []) + rng.integers(3, 90, n - (first is not None)).tolist() for n in lengths]


def write(folder, golden, arrays, file):
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items())
    (folder / "golden.json").write_text(f"{{\n{lines}\n}}\n")
    np.concatenate([a.detach().numpy().astype("<f4").ravel() for a in arrays]).tofile(folder / file)
    print(folder.name, sum(p.stat().st_size for p in folder.iterdir()), "bytes", golden.get("greedy"), golden["max_abs_difference"])


def worst(a, b):
    return float(f"{max(float((x.double() - y.double()).abs().max()) for x, y in zip(a, b)):.2g}")


MADE = dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__)


@torch.no_grad()
def encoder(name, cls, kind, arch_name, **more):
    folder, c, model = prepare("embed", name, cls, "t5encoder", architectures=[arch_name], model_type=kind, **more)
    prompts = ids(name, "prompts", SOURCES)
    run = lambda p: model(input_ids=torch.tensor([p])).last_hidden_state[0]
    full = [run(p) for p in prompts]
    model.double()
    golden = dict(name=name, made_with=MADE, dim=c["d_model"], safetensors=["model.safetensors"], gguf=["model.gguf"],
                  prompts=prompts, max_abs_difference=dict(float64=worst(full, [run(p) for p in prompts])))
    write(folder, golden, full, "hidden.bin")


@torch.no_grad()
def whole(name, tied, cls=T5ForConditionalGeneration, **more):
    folder, c, model = prepare("encdec", name, cls, "t5", architectures=[cls.__name__], tie_word_embeddings=tied, tied=tied,
                               **more)
    config = {k: v for k, v in c.items() if k != "tied"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    assert (model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr()) == tied
    sources, answers = ids(name, "sources", SOURCES), ids(name, "answers", ANSWERS, first=0)
    run = lambda s, a: model(input_ids=torch.tensor([s]), decoder_input_ids=torch.tensor([a])).logits[0]

    def greedy(s):
        out = [0]
        for _ in range(GREEDY):
            out.append(int(run(s, out)[-1].argmax()))
        return out[1:]

    full, best = [run(s, a) for s, a in zip(sources, answers)], [greedy(s) for s in sources]
    model.double()
    double = [run(s, a) for s, a in zip(sources, answers)]
    golden = dict(name=name, made_with=MADE, vocab_size=c["vocab_size"], sources=sources, answers=answers, greedy=best,
                  max_abs_difference=dict(float64=worst(full, double)))
    write(folder, golden, full, "logits.bin")


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    encoder("t5encoder", T5EncoderModel, "t5", "T5EncoderModel", feed_forward_proj="gated-gelu")
    encoder("umt5encoder", UMT5EncoderModel, "umt5", "UMT5EncoderModel", feed_forward_proj="gated-gelu")
    whole("t5", True)
    whole("flan-t5", False, feed_forward_proj="gated-gelu")
    whole("mt5", False, MT5ForConditionalGeneration, model_type="mt5", feed_forward_proj="gated-gelu", num_heads=2, d_kv=6)
