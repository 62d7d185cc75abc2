"""The families that make_families.py makes whose layers are not all attention, or of several streams; rows as in families.py."""

import re

import numpy as np


def granite_tensors(name, data):
    """(GGUF name without its ending, array) of the tensors that llama.cpp's converter changes; none for others."""
    layer, rest = (m.groups() if (m := re.match(r"model\.layers\.(\d+)\.(.+)", name)) else ("", name))
    halves = lambda gate, up, axis: list(zip([f"blk.{layer}.{gate}.weight", f"blk.{layer}.{up}.weight"],
                                             np.split(data, 2, axis=axis)))
    match rest:
        case "mamba.A_log":
            return [(f"blk.{layer}.ssm_a", -np.exp(data).reshape(-1, 1))]
        case "mamba.D":
            return [(f"blk.{layer}.ssm_d", data.reshape(-1, 1))]
        case "mamba.dt_bias":
            return [(f"blk.{layer}.ssm_dt.bias", data)]
        case "mamba.norm.weight":
            return [(f"blk.{layer}.ssm_norm.weight", data.reshape(1, -1))]
        case "block_sparse_moe.router.weight":
            return [(f"blk.{layer}.ffn_gate_inp.weight", data)]
        case "block_sparse_moe.experts.gate_up_proj":
            return halves("ffn_gate_exps", "ffn_up_exps", 1)
        case "block_sparse_moe.experts.down_proj":
            return [(f"blk.{layer}.ffn_down_exps.weight", data)]
    return None


def granite_shared(end):
    """The same with the names of the shared expert, which is a plain feed-forward block where there are no others."""
    def tensors(name, data):
        if m := re.match(r"model\.layers\.(\d+)\.shared_mlp\.(in|out)put_linear", name):
            if m[2] == "out":
                return [(f"blk.{m[1]}.ffn_down{end}.weight", data)]
            return [(f"blk.{m[1]}.ffn_{part}{end}.weight", half) for part, half in zip(("gate", "up"), np.split(data, 2))]
        return granite_tensors(name, data)
    return tensors


def published_granite(name):
    for a, b in (("experts.gate_up_proj", "input_linear.weight"), ("experts.down_proj", "output_linear.weight"),
                 ("router.weight", "router.layer.weight")):
        name = name.replace("block_sparse_moe." + a, "block_sparse_moe." + b)
    return name


def gemma3n_tensors():
    """The same for Gemma 3n: the matrices of all streams but the first are in one, and the last of its names has an ending."""
    held = {}
    def tensors(name, data):
        if m := re.match(r"model\.altup_(unembed_)?projections\.(\d)", name):
            own = held.setdefault(m[1], [])
            own.append(data)
            to = "altup_unembd_proj.weight" if m[1] else "altup_proj.weight"
            whole = [(to, np.stack(own))] if len(own) == 3 else []
            if whole:
                held.pop(m[1])
            return whole
        if m := re.match(r"model\.layers\.(\d+)\.altup\.correct_output_scale", name):
            return [(f"blk.{m[1]}.altup_correct_scale.weight", data)]
        return None
    return tensors


def rows(config):
    kinds = ["sliding_attention", "full_attention", "sliding_attention", "full_attention", "sliding_attention"]
    gemma3n = config(
        "Gemma3nForCausalLM", "gemma3n_text", hidden_activation="gelu_pytorch_tanh", num_hidden_layers=5, head_dim=16,
        intermediate_size=[40] * 5, layer_types=kinds, sliding_window=8, rope_theta=1000000.0, rope_local_base_freq=10000.0,
        rms_norm_eps=1e-6, final_logit_softcapping=5.0, vocab_size_per_layer_input=60, hidden_size_per_layer_input=8,
        altup_active_idx=0, altup_coef_clip=120.0, altup_correct_scale=True, altup_num_inputs=4, num_kv_shared_layers=2,
        laurel_rank=6, activation_sparsity_pattern=[0.75, 0.0, 0.9, 0.25, 0.0], tie_word_embeddings=True)
    lfm2 = dict(
        architectures=["Lfm2ForCausalLM"], model_type="lfm2", hidden_size=32, block_ff_dim=54, block_multiple_of=8,
        block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=True, conv_L_cache=3, conv_bias=False, full_attn_idxs=[1, 3],
        num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4, vocab_size=64, max_position_embeddings=256,
        norm_eps=1e-5, rope_theta=1000000.0, tie_embedding=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    granite = lambda **more: config(
        "GraniteMoeHybridForCausalLM", "granitemoehybrid", hidden_act="silu", num_hidden_layers=3, intermediate_size=24,
        layer_types=["mamba", "attention", "mamba"], attention_multiplier=0.25, embedding_multiplier=3.0,
        residual_multiplier=0.5, logits_scaling=2.0, attention_bias=False, mamba_n_heads=4, mamba_d_head=16, mamba_d_state=8,
        mamba_n_groups=1, mamba_expand=2, mamba_d_conv=4, mamba_conv_bias=True, mamba_proj_bias=False, mamba_chunk_size=8,
        normalization_function="rmsnorm", position_embedding_type="nope", rope_scaling=None, shared_intermediate_size=20,
        tie_word_embeddings=True, **more)
    metadata = {
        "attention.head_count_kv": [0, 2, 0], "attention.scale": 0.25, "embedding_scale": 3.0, "residual_scale": 0.5,
        "logit_scale": 2.0, "ssm.conv_kernel": 4, "ssm.state_size": 8, "ssm.group_count": 1, "ssm.inner_size": 64,
        "ssm.time_step_rank": 4, "rope.scaling.finetuned": False}
    hybrid = dict(gguf="GRANITE_HYBRID", rope=False, permute=True, published=published_granite)
    return {
        # The last two layers attend to keys and values of others, and have their own in the file, as published ones do; some
        # tokens have no input of their own. The factors of the router are larger than random ones would be.
        "gemma3n": dict(config=gemma3n, gguf="GEMMA3N", convert=gemma3n_tensors(), scaled={"modality_router": 12.0}, beside={
            f"model.layers.{l}.self_attn.{name}.weight": np.zeros(shape) for l in (3, 4)
            for name, shape in (("k_proj", (32, 32)), ("v_proj", (32, 32)), ("k_norm", (16,)))}, meta={
            "attention.sliding_window": 8, "attention.sliding_window_pattern": [k.startswith("s") for k in kinds],
            "final_logit_softcapping": 5.0, "altup.active_idx": 0, "altup.num_inputs": 4, "embedding_length_per_layer_input": 8,
            "attention.shared_kv_layers": 2.0,
            "activation_sparsity_scale": [0.6744897, float("-inf"), 1.2815515, -0.6744897, float("-inf")]}),
        # Two of four layers are short convolutions, the first too; the width of the feed-forward block is rounded up.
        "lfm2": dict(config=lfm2, gguf="LFM2", rms=True, ff=40,
                     meta={"attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 3}),
        # Two of three layers are Mamba-2, whose prompts are longer than a chunk; the one that attends knows no positions.
        "granitehybrid": dict(config=granite(num_local_experts=0, num_experts_per_tok=0), ff=20, convert=granite_shared(""),
                              meta=metadata, **hybrid),
        "granitehybrid-moe": dict(config=granite(num_local_experts=4, num_experts_per_tok=2),
                                  convert=granite_shared("_shexp"), meta=metadata | {
                                      "expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 24,
                                      "expert_shared_feed_forward_length": 20}, **hybrid),
    }
