#!/usr/bin/env python3
"""Makes the tiny golden models with mixtures of experts and compressed caches under tiny/, as make_tiny.py makes the others:
same files, same checks, same tools (see there).

    v/bin/python crates/conform/goldens/make_experts.py [NAME ...]

The safetensors file has the names of published checkpoints (transformers writes them back from its own fused parameters); the GGUF
has one tensor of all experts, as llama.cpp's converter stacks them.
"""

import json
import math
import shutil
import sys
import zlib

import gguf
import numpy as np
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from make_tiny import GGML, HERE, PROMPT_LENGTHS, greedy, llama_cpp_logits, logits_of, logits_step_by_step, vocabulary

MXFP4 = gguf.GGMLQuantizationType.MXFP4

BASE = dict(
    hidden_act="silu", hidden_size=32, intermediate_size=24, num_attention_heads=4, num_key_value_heads=2,
    num_hidden_layers=2, vocab_size=128, max_position_embeddings=256, rms_norm_eps=1e-5, rope_theta=10000.0,
    tie_word_embeddings=False, initializer_range=0.02, bos_token_id=1, eos_token_id=2, use_cache=True,
)
QWEN_EXPERTS = "mlp.experts.{e}.{part}_proj"
MIXTRAL_EXPERTS = "block_sparse_moe.experts.{e}.{part}"
W = dict(gate="w1", down="w2", up="w3")

# name: config.json, GGUF architecture, metadata beyond the common, where experts are.
MODELS = {
    "mixtral": dict(
        config=BASE | dict(architectures=["MixtralForCausalLM"], model_type="mixtral", num_local_experts=4,
                           num_experts_per_tok=2, sliding_window=None, attention_dropout=0.0, router_jitter_noise=0.0),
        arch="llama", experts=(MIXTRAL_EXPERTS, W), permute=True,
    ),
    # A shared expert behind a gate of its own; biases on queries, keys and values; weights that do not sum to one.
    "qwen2moe": dict(
        config=BASE | dict(architectures=["Qwen2MoeForCausalLM"], model_type="qwen2_moe", intermediate_size=40,
                           num_experts=5, num_experts_per_tok=3, moe_intermediate_size=16,
                           shared_expert_intermediate_size=28, norm_topk_prob=False, decoder_sparse_step=1,
                           mlp_only_layers=[], use_sliding_window=False, sliding_window=64, max_window_layers=28),
        arch="qwen2moe",
    ),
    "qwen3moe": dict(
        config=BASE | dict(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", intermediate_size=40,
                           num_experts=6, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=12,
                           norm_topk_prob=True, decoder_sparse_step=1, mlp_only_layers=[], attention_bias=False,
                           use_sliding_window=False, sliding_window=None),
        arch="qwen3moe",
    ),
    "olmoe": dict(
        config=BASE | dict(architectures=["OlmoeForCausalLM"], model_type="olmoe", num_experts=6, num_experts_per_tok=3,
                           num_key_value_heads=4,
                           norm_topk_prob=False, clip_qkv=None, attention_bias=False, attention_dropout=0.0,
                           rope_scaling=None),
        arch="olmoe",
    ),
    # Four factors: on embeddings, scores, residuals and logits; gate and up of all experts in one tensor, and of the shared one.
    "granitemoe": dict(
        config=BASE | dict(architectures=["GraniteMoeSharedForCausalLM"], model_type="granitemoeshared",
                           num_local_experts=4, num_experts_per_tok=2, embedding_multiplier=3.0,
                           attention_multiplier=0.2, residual_multiplier=0.6, logits_scaling=2.0,
                           attention_bias=False, rope_scaling=None, shared_intermediate_size=20),
        arch="granitemoe", permute=True,
    ),
    # SparseMixer's weights; layer norms; biases also on the logits. llama.cpp weighs otherwise, so there is no twin.
    "phimoe": dict(
        config=BASE | dict(architectures=["PhimoeForCausalLM"], model_type="phimoe", num_local_experts=4,
                           num_experts_per_tok=2, attention_bias=True, lm_head_bias=True, sliding_window=64,
                           router_jitter_noise=0.01, input_jitter_noise=0.01, hidden_dropout=0.0,
                           attention_dropout=0.0, rope_scaling=None),
        gguf=False,
    ),
}

DEEPSEEK = BASE | dict(
    num_key_value_heads=4, num_hidden_layers=2, intermediate_size=40, moe_intermediate_size=12, n_routed_experts=8,
    num_experts_per_tok=3, n_shared_experts=2, first_k_dense_replace=1, moe_layer_freq=1, kv_lora_rank=16,
    qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10, attention_bias=False, rms_norm_eps=1e-6,
)


def latent(w: gguf.GGUFWriter, raw: dict):
    """llama.cpp's converter says of latent attention what it is once absorbed: one key head of latent and rotated part."""
    if raw["q_lora_rank"]:
        w.add_q_lora_rank(raw["q_lora_rank"])
    w.add_kv_lora_rank(raw["kv_lora_rank"])
    w.add_key_length(raw["kv_lora_rank"] + raw["qk_rope_head_dim"])
    w.add_value_length(raw["kv_lora_rank"])
    w.add_key_length_mla(raw["qk_nope_head_dim"] + raw["qk_rope_head_dim"])
    w.add_value_length_mla(raw["v_head_dim"])
    w.add_rope_dimension_count(raw["qk_rope_head_dim"])
    w.add_leading_dense_block_count(raw["first_k_dense_replace"])
    w.add_expert_shared_count(raw["n_shared_experts"])
    w.add_expert_weights_scale(raw["routed_scaling_factor"])
    w.add_expert_weights_norm(raw["norm_topk_prob"])
    w.add_expert_gating_func(gguf.ExpertGatingFuncType.SIGMOID if raw["model_type"] == "deepseek_v3"
                             else gguf.ExpertGatingFuncType.SOFTMAX)
    if raw.get("n_group"):
        w.add_expert_group_count(raw["n_group"])
        w.add_expert_group_used_count(raw["topk_group"])
    scaling = raw.get("rope_scaling")
    if scaling:
        w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        w.add_rope_scaling_factor(scaling["factor"])
        w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])
        w.add_rope_scaling_yarn_log_mul(0.1 * scaling["mscale_all_dim"])


def latent_tensors(config, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What makes keys and values of latents, by head, that of keys turned."""
    out = {}
    for l in range(config.num_hidden_layers):
        at = f"model.layers.{l}."
        kv = state.pop(at + "self_attn.kv_b_proj.weight").reshape(
            config.num_attention_heads, config.qk_nope_head_dim + config.v_head_dim, config.kv_lora_rank)
        k, v = np.split(kv, [config.qk_nope_head_dim], axis=1)
        out[f"blk.{l}.attn_k_b.weight"], out[f"blk.{l}.attn_v_b.weight"] = k.swapaxes(1, 2), v
        bias = at + "mlp.gate.e_score_correction_bias"
        if bias in state:
            out[f"blk.{l}.exp_probs_b.bias"] = state.pop(bias)
    return out


DEEPSEEK_GGUF = dict(arch="deepseek2", metadata=latent, tensors=latent_tensors)
MODELS |= {
    # Queries without a latent of their own, no groups, weights that do not sum to one.
    "deepseek-v2-lite": dict(
        config=DEEPSEEK | dict(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", q_lora_rank=None,
                               topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, scoring_func="softmax",
                               routed_scaling_factor=1.0, rope_scaling=None),
        **DEEPSEEK_GGUF, llama_cpp=False,  # it knows this model by its 27 layers
    ),
    # Groups judged by their best expert, and YaRN. llama.cpp judges them by the best two, hence no twin.
    "deepseek-v2": dict(
        config=DEEPSEEK | dict(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", q_lora_rank=14,
                               topk_method="group_limited_greedy", n_group=4, topk_group=2, norm_topk_prob=False,
                               scoring_func="softmax", routed_scaling_factor=4.0,
                               rope_scaling=dict(type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32,
                                                 beta_slow=1, mscale=0.707, mscale_all_dim=0.707)),
        gguf=False,
    ),
    # Sigmoids, a bias of the choice, groups judged by their best two, YaRN.
    "deepseek-v3": dict(
        config=DEEPSEEK | dict(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", q_lora_rank=14,
                               topk_method="noaux_tc", n_group=4, topk_group=2, norm_topk_prob=True, scoring_func="sigmoid",
                               routed_scaling_factor=2.5,
                               rope_scaling=dict(type="yarn", factor=8.0, original_max_position_embeddings=32, beta_fast=32,
                                                 beta_slow=1, mscale=1.0, mscale_all_dim=1.0)),
        **DEEPSEEK_GGUF,
    ),
}



def oss(w: gguf.GGUFWriter, raw: dict):
    w.add_sliding_window(raw["sliding_window"])
    w.add_expert_feed_forward_length(raw["intermediate_size"])
    scaling = raw["rope_scaling"]
    w.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    w.add_rope_scaling_factor(scaling["factor"])
    w.add_rope_scaling_orig_ctx_len(scaling["original_max_position_embeddings"])


def oss_tensors(config, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    out = {}
    for l in range(config.num_hidden_layers):
        at, to = f"model.layers.{l}.", f"blk.{l}."
        joined = state.pop(at + "mlp.experts.gate_up_proj").swapaxes(1, 2)
        out[to + "ffn_gate_exps.weight"], out[to + "ffn_up_exps.weight"] = joined[:, ::2], joined[:, 1::2]
        bias = state.pop(at + "mlp.experts.gate_up_proj_bias")
        out[to + "ffn_gate_exps.bias"], out[to + "ffn_up_exps.bias"] = bias[:, ::2], bias[:, 1::2]
        out[to + "ffn_down_exps.weight"] = state.pop(at + "mlp.experts.down_proj").swapaxes(1, 2)
        out[to + "ffn_down_exps.bias"] = state.pop(at + "mlp.experts.down_proj_bias")
        for part in ("weight", "bias"):
            out[to + "ffn_gate_inp." + part] = state.pop(at + "mlp.router." + part)
        out[to + "attn_sinks.weight"] = state.pop(at + "self_attn.sinks")
        out[to + "post_attention_norm.weight"] = state.pop(at + "post_attention_layernorm.weight")
    return out


def oss_blocks(folder):
    """The checkpoint as it is published: experts in blocks of 32 numbers of 4 bits, two neighbours a byte, and their scales."""
    path, out = folder / "model.safetensors", {}
    for key, t in load_file(path).items():
        if not key.endswith(("experts.gate_up_proj", "experts.down_proj")):
            out[key] = t
            continue
        blocks = gguf.quants.quantize(np.ascontiguousarray(t.float().numpy().swapaxes(1, 2)), MXFP4)
        blocks = blocks.reshape(*t.shape[:1], t.shape[2], -1, 17)
        # GGUF has the first sixteen in the low halves of the bytes and the others in the high ones.
        low, high = blocks[..., 1:] & 15, blocks[..., 1:] >> 4
        numbers = np.concatenate([low, high], axis=-1)
        out[key + "_blocks"] = torch.from_numpy(np.ascontiguousarray(numbers[..., ::2] | numbers[..., 1::2] << 4))
        out[key + "_scales"] = torch.from_numpy(np.ascontiguousarray(blocks[..., 0]))
    save_file(out, path, metadata=dict(format="pt"))
    path.chmod(0o644)


MODELS |= {
    # Sinks, windows in every other layer, YaRN, biases everywhere, clamped gates, four-bit experts.
    "gpt-oss": dict(
        config={k: v for k, v in BASE.items() if k != "use_cache"} | dict(
            architectures=["GptOssForCausalLM"], model_type="gpt_oss", head_dim=16, intermediate_size=32,
            num_local_experts=4, num_experts_per_tok=2, experts_per_token=2, sliding_window=8,
            layer_types=["sliding_attention", "full_attention"], attention_bias=True, swiglu_limit=7.0,
            rope_theta=150000.0, max_position_embeddings=128,
            rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32.0,
                              beta_slow=1.0, truncate=False)),
        arch="gpt-oss", metadata=oss, tensors=oss_tensors, blocks=True, llama_cpp=False,
    ),
    # Chunks of 8 tokens, a layer without rotation whose queries grow with their position, a dense layer, weighted inputs. A GGUF
    # cannot say the chunk or the growth: llama.cpp has the published models' in its code.
    "llama4": dict(
        config=BASE | dict(architectures=["Llama4ForCausalLM"], model_type="llama4_text", head_dim=8, num_hidden_layers=3,
                           intermediate_size=16, intermediate_size_mlp=40, num_local_experts=4, num_experts_per_tok=1,
                           moe_layers=[0, 1], no_rope_layers=[1, 0, 1], attention_chunk_size=8, attn_temperature_tuning=True,
                           floor_scale=6, attn_scale=0.5, use_qk_norm=True, attention_bias=False, attention_dropout=0.0,
                           rope_theta=500000.0, rope_scaling=None, pad_token_id=0),
        gguf=False,
    ),
}


def random_weight(salt: str, name: str, shape, config) -> torch.Tensor:
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{salt}/{name}".encode())))
    w = rng.standard_normal(tuple(shape))
    if name.endswith("bias") and "correction" in name:
        w *= 0.1
    elif name.endswith("bias") or "sinks" in name:
        w *= 0.5
    elif "norm" in name:
        w = w * 0.2 + 1.0
    elif name.endswith("embed_tokens.weight"):
        pass
    elif name.endswith("lm_head.weight"):
        w *= 2.5 / math.sqrt(shape[1]) * getattr(config, "logits_scaling", 1.0)
    elif ".q_proj." in name or ".k_proj." in name or ".q_b_proj." in name:
        w *= 1.4 / math.sqrt(shape[1])
    elif ".gate.weight" in name or ".router." in name:
        w *= 2.0 / math.sqrt(shape[1])
    elif ".experts." in name:  # [experts, out, in], or [experts, in, out] where the checkpoint has it so
        turned = config.model_type in ("gpt_oss", "llama4_text")
        w *= 1.5 / math.sqrt(shape[1] if turned else shape[2])
    else:
        w *= 1.2 / math.sqrt(shape[-1])
    return torch.from_numpy(w).float()


def permute(w: np.ndarray, heads: int) -> np.ndarray:
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def stacked(spec: dict, config, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """GGUF names of everything that belongs to experts, taken out of `state`."""
    out, pattern = {}, spec.get("experts", (QWEN_EXPERTS, dict(gate="gate", up="up", down="down")))
    for l in range(config.num_hidden_layers):
        at = f"model.layers.{l}."
        for part in ("gate", "up", "down"):
            name = lambda e: at + pattern[0].format(e=e, part=pattern[1][part]) + ".weight"
            if name(0) in state:
                n = next(e for e in range(1000) if name(e) not in state)
                out[f"blk.{l}.ffn_{part}_exps.weight"] = np.stack([state.pop(name(e)) for e in range(n)])
        for hf, ours in (("block_sparse_moe.input_linear", "exps"), ("shared_mlp.input_linear", "shexp")):
            if at + hf + ".weight" in state:
                gate, up = np.split(state.pop(at + hf + ".weight"), 2, axis=-2)
                down = state.pop(at + hf.replace("input", "output") + ".weight")
                out |= {f"blk.{l}.ffn_{p}_{ours}.weight": t for p, t in (("gate", gate), ("up", up), ("down", down))}
        rest = {
            "block_sparse_moe.gate": "ffn_gate_inp", "block_sparse_moe.router.layer": "ffn_gate_inp", "mlp.gate": "ffn_gate_inp",
            "mlp.shared_expert.gate_proj": "ffn_gate_shexp", "mlp.shared_expert.up_proj": "ffn_up_shexp",
            "mlp.shared_expert.down_proj": "ffn_down_shexp", "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
            "mlp.shared_experts.gate_proj": "ffn_gate_shexp", "mlp.shared_experts.up_proj": "ffn_up_shexp",
            "mlp.shared_experts.down_proj": "ffn_down_shexp",
        }
        for hf, ours in rest.items():
            if at + hf + ".weight" in state:
                out[f"blk.{l}.{ours}.weight"] = state.pop(at + hf + ".weight")
    return out


def write_gguf(path, name: str, spec: dict, config, state: dict[str, torch.Tensor], kind: str):
    arch = next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == spec["arch"])
    state = {k: v.float().numpy() for k, v in state.items()}
    w = gguf.GGUFWriter(path, spec["arch"])
    raw, heads, kv_heads = spec["config"], config.num_attention_heads, config.num_key_value_heads
    w.add_type("model")
    w.add_name(f"tiny {name}")
    w.add_file_type(dict(f32=gguf.LlamaFileType.ALL_F32, bf16=gguf.LlamaFileType.MOSTLY_BF16)[kind])
    w.add_vocab_size(config.vocab_size)
    w.add_context_length(config.max_position_embeddings)
    w.add_embedding_length(config.hidden_size)
    w.add_block_count(config.num_hidden_layers)
    w.add_feed_forward_length(config.intermediate_size)
    w.add_head_count(heads)
    w.add_head_count_kv(1 if "kv_lora_rank" in raw else kv_heads)
    w.add_layer_norm_rms_eps(config.rms_norm_eps)
    w.add_rope_freq_base(raw["rope_theta"])
    if "head_dim" in raw:
        w.add_key_length(config.head_dim)
        w.add_value_length(config.head_dim)
    w.add_expert_count(raw.get("num_local_experts") or raw.get("num_experts") or raw["n_routed_experts"])
    w.add_expert_used_count(raw["num_experts_per_tok"])
    if "moe_intermediate_size" in raw:
        w.add_expert_feed_forward_length(raw["moe_intermediate_size"])
    if "shared_expert_intermediate_size" in raw:
        w.add_expert_shared_feed_forward_length(raw["shared_expert_intermediate_size"])
    if "shared_intermediate_size" in raw:
        w.add_expert_shared_feed_forward_length(raw["shared_intermediate_size"])
    if "embedding_multiplier" in raw:
        w.add_embedding_scale(raw["embedding_multiplier"])
        w.add_residual_scale(raw["residual_multiplier"])
        w.add_attention_scale(raw["attention_multiplier"])
        w.add_logit_scale(raw["logits_scaling"])
    if spec["arch"] == "llama":
        w.add_rope_dimension_count(config.hidden_size // heads)
    if "metadata" in spec:
        spec["metadata"](w, raw)

    tokens, types, scores, _ = vocabulary("spm", config.vocab_size)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_scores(scores)
    w.add_unk_token_id(tokens.index("<unk>"))
    w.add_bos_token_id(config.bos_token_id)
    w.add_eos_token_id(config.eos_token_id)
    w.add_add_bos_token(True)

    out = spec["tensors"](config, state) if "tensors" in spec else {}
    out |= stacked(spec, config, state)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    for hf, data in state.items():
        if spec.get("permute") and (".q_proj." in hf or ".k_proj." in hf):
            data = permute(data, heads if ".q_proj." in hf else kv_heads)
        out[names.get_name(hf, try_suffixes=(".weight", ".bias"))] = data
    for key, data in out.items():
        # As llama.cpp's converter does, what is small or chooses stays as it is.
        plain = data.ndim == 1 or data.shape[0] == 1 or "_inp" in key or key.endswith("bias")
        data, of = np.ascontiguousarray(data), GGML["f32" if plain else kind]
        if spec.get("blocks") and "_exps.weight" in key:
            of = MXFP4
        w.add_tensor(key, data if of == GGML["f32"] else gguf.quants.quantize(data, of), raw_dtype=of)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def attempt(name: str, spec: dict, salt: str):
    folder = HERE / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    config = AutoConfig.from_pretrained(folder)
    blank = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    blank.load_state_dict({k: random_weight(salt, k, t.shape, config) for k, t in blank.state_dict().items()})
    if spec.get("blocks"):  # numbers that blocks of four bits have
        for key, t in blank.state_dict().items():
            if key.endswith(("experts.gate_up_proj", "experts.down_proj")):
                rows = np.ascontiguousarray(t.numpy().swapaxes(1, 2))
                rows = gguf.quants.dequantize(gguf.quants.quantize(rows, MXFP4), MXFP4)
                t.copy_(torch.from_numpy(rows.reshape(t.shape[0], t.shape[2], t.shape[1]).swapaxes(1, 2).copy()))
    blank.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "config.json").write_text(json.dumps(spec["config"], indent=2) + "\n")
    (folder / "model.safetensors").chmod(0o644)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager",
                                                 experts_implementation="eager").eval()
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/prompts".encode())))
    prompts = [[int(config.bos_token_id)] + rng.integers(3, config.vocab_size, n - 1).tolist() for n in PROMPT_LENGTHS]
    return folder, config, model, prompts, [greedy(model, p) for p in prompts]


def make(name: str, spec: dict) -> int:
    # Greedy continuations must not hang on a hair: the first weights of which that is true.
    for salt in (f"{name}{n or ''}" for n in range(50)):
        folder, config, model, prompts, continuations = attempt(name, spec, salt)
        if min(c[1] for c in continuations) > 0.03:
            break
    state = load_file(folder / "model.safetensors")
    full = [logits_of(model, p) for p in prompts]
    worst = lambda other: max(float(np.abs(a - b).max()) for a, b in zip(full, other))
    agreement = dict(step_by_step=worst([logits_step_by_step(model, p) for p in prompts]))
    assert agreement["step_by_step"] < 1e-4, agreement
    agreement["float64"] = worst([logits_of(model.double(), p) for p in prompts])

    gguf_files = []
    if spec.get("gguf", True):
        gguf_files = ["model.gguf"]
        # llama.cpp rounds activations to the type of the weights: it is asked about the same numbers in f32.
        write_gguf(folder / "model.gguf", name, spec, config, state, "f32")
        other = llama_cpp_logits(folder / "model.gguf", prompts) if spec.get("llama_cpp", True) else None
        if other is not None:
            agreement["gguf_by_llama_cpp"] = worst(other)
            assert agreement["gguf_by_llama_cpp"] < spec.get("tolerance", 1e-3), agreement
        write_gguf(folder / "model.gguf", name, spec, config, state, "bf16")
    if spec.get("blocks"):
        oss_blocks(folder)

    golden = dict(
        name=name, made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__),
        dtype="bf16", vocab_size=config.vocab_size, safetensors=["model.safetensors"], gguf=gguf_files, prompts=prompts,
        greedy=[c[0] for c in continuations], greedy_smallest_gap=round(min(c[1] for c in continuations), 4),
        logits_std=round(float(np.concatenate(full).std()), 3),
        max_abs_difference={k: float(f"{v:.2g}") for k, v in agreement.items()},
    )
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in golden.items())
    (folder / "golden.json").write_text(f"{{\n{lines}\n}}\n")
    np.concatenate([f.astype("<f4").ravel() for f in full]).tofile(folder / "logits.bin")
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{name:18} {size:>8,} bytes  logits std {golden['logits_std']:<6} gap {golden['greedy_smallest_gap']:<7} "
          f"{golden['max_abs_difference']} {salt}", flush=True)
    return size


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # a fixed order of sums
    total = sum(make(n, MODELS[n]) for n in (sys.argv[1:] or MODELS))
    print(f"{total:,} bytes in all")
