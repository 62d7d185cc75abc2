"""The families that make_families.py makes besides Qwen: what `config.json` and the GGUF say, and what its converter does.

A row: `config`; `gguf` (name in gguf.MODEL_ARCH) with `meta`, keys beyond the common ones; `twin`, the configuration of a
family of `transformers` that computes the same; `published`, the names under which that family keeps its tensors; `fuse`,
what it has in one matrix; `alter`, what is changed in the model that computes; `model`, the model itself where `transformers` has none. `llama_cpp` is how closely llama.cpp must agree: it takes another GELU than some families, and
looks it up in a table of f16; False where it has another idea of the model.
"""

import math
import re
from types import SimpleNamespace

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface, eager_mask



def stack_qkv(published, q, k, v, to, kv_heads=None, head_dim=8):
    """Queries, keys and values of each layer in one matrix: one after the other, or by key head."""
    out = dict(published)
    for name in list(published):
        if q not in name:
            continue
        three = [out.pop(name.replace(q, part)) for part in (q, k, v)]
        if kv_heads:
            cut = [t.reshape(kv_heads, -1, head_dim, *t.shape[1:]) for t in three]
            out[name.replace(q, to)] = torch.cat(cut, 1).reshape(-1, *three[0].shape[1:])
        else:
            out[name.replace(q, to)] = torch.cat(three)
    return out


def renamed(*rows):
    def change(name):
        for a, b in rows:
            name = re.sub(a, b, name)
        return name
    return change


def alibi(module, query, key, value, attention_mask, scaling, **_):
    """Attention with a bias that falls with the distance, as Baichuan's own code has it."""
    heads, length = query.shape[1], key.shape[2]
    n = 2 ** int(math.log2(heads))
    slopes = [2 ** (-8 * (h + 1) / n) if h < n else 2 ** (-8 * (h - n + 0.5) / n) for h in range(heads)]
    bias = torch.tensor(slopes)[:, None, None] * (torch.arange(length) - length + 1)[None, None, :]
    scores = query @ key.transpose(2, 3) * scaling + bias + attention_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), None


def baichuan2(model):
    """A head whose rows have length 1, in the type of the file; ALiBi in place of rotations."""
    head = torch.nn.functional.normalize(model.lm_head.weight.data)
    model.lm_head.weight.data = head.to(torch.bfloat16).float()
    model.model.rotary_emb.inv_freq.zero_()
    AttentionInterface.register("alibi", alibi)
    AttentionMaskInterface.register("alibi", eager_mask)
    model.config._attn_implementation = "alibi"


class Phi3Small(torch.nn.Module):
    """Phi-3-small as its published code computes it, with its kernel of blocks replaced by a mask."""

    def __init__(self, c):
        super().__init__()
        nn, self.config = torch.nn, c
        c.tie_word_embeddings = True
        self.head = c.hidden_size // c.num_attention_heads
        wide = (c.num_attention_heads + 2 * c.num_key_value_heads) * self.head
        norm = lambda: nn.LayerNorm(c.hidden_size, eps=c.layer_norm_epsilon)
        layer = lambda: nn.ModuleDict(dict(
            self_attn=nn.ModuleDict(dict(query_key_value=nn.Linear(c.hidden_size, wide),
                                         dense=nn.Linear(c.hidden_size, c.hidden_size))),
            mlp=nn.ModuleDict(dict(up_proj=nn.Linear(c.hidden_size, 2 * c.ff_intermediate_size),
                                   down_proj=nn.Linear(c.ff_intermediate_size, c.hidden_size))),
            input_layernorm=norm(), post_attention_layernorm=norm()))
        self.model = nn.ModuleDict(dict(embed_tokens=nn.Embedding(c.vocab_size, c.hidden_size), final_layernorm=norm(),
                                        layers=nn.ModuleList(layer() for _ in range(c.num_hidden_layers))))

    def mask(self, n):
        c = self.config
        blocks, tokens = torch.arange(n) // c.blocksparse_block_size, torch.arange(n)
        step = 0 if c.blocksparse_homo_head_pattern else max(1, c.blocksparse_vert_stride // c.num_attention_heads)
        far = [(blocks + h * step + 1) % c.blocksparse_vert_stride == 0 for h in range(c.num_attention_heads)]
        near = blocks[:, None] - blocks[None] < c.blocksparse_num_local_blocks
        return torch.stack([(near | f[None]) & (tokens[:, None] >= tokens[None]) for f in far])

    def attention(self, at, l, x):
        c, n, hd = self.config, x.shape[1], self.head
        group = c.num_attention_heads // c.num_key_value_heads
        qkv = at["query_key_value"](x).view(n, c.num_key_value_heads, group + 2, hd)
        q, k, v = qkv.split([group, 1, 1], dim=2)
        q = q.reshape(n, -1, hd).transpose(0, 1)
        k, v = (t.expand(n, -1, group, hd).reshape(n, -1, hd).transpose(0, 1) for t in (k, v))
        turn = torch.arange(n)[:, None] * c.rope_embedding_base ** (-torch.arange(0, hd, 2) / hd)
        cos, sin = (torch.cat([f(turn)] * 2, -1) for f in (torch.cos, torch.sin))
        half = lambda t: torch.cat((-t[..., hd // 2:], t[..., :hd // 2]), -1)
        q, k = (t * cos + half(t) * sin for t in (q, k))
        dense = (l + 1) % c.dense_attention_every_n_layers == 0
        seen = torch.ones(n, n).tril().bool() if dense else self.mask(n)
        scores = (q @ k.transpose(1, 2) * c.mup_attn_multiplier / hd).masked_fill(~seen, -torch.inf)
        return at["dense"]((scores.softmax(-1) @ v).transpose(0, 1).reshape(1, n, -1))

    def forward(self, input_ids):
        c = self.config
        x = self.model["embed_tokens"](input_ids) * c.mup_embedding_multiplier
        for l, layer in enumerate(self.model["layers"]):
            x = x + self.attention(layer["self_attn"], l, layer["input_layernorm"](x))
            y = layer["mlp"]["up_proj"](layer["post_attention_layernorm"](x))
            gate, up = y[..., ::2].clamp(max=c.gegelu_limit), y[..., 1::2].clamp(-c.gegelu_limit, c.gegelu_limit)
            x = x + layer["mlp"]["down_proj"](gate * torch.sigmoid(1.702 * gate) * (up + 1))
        logits = self.model["final_layernorm"](x) @ self.model["embed_tokens"].weight.T / c.mup_width_multiplier
        logits[..., c.dummy_token_indices] = -1e30
        return SimpleNamespace(logits=logits)


def rows(config):
    ln = ("rms_norm_eps",)
    llama = lambda **more: config("LlamaForCausalLM", "llama", hidden_act="silu", **more)
    forty = dict(num_hidden_layers=40, hidden_size=24, intermediate_size=8, num_attention_heads=3, num_key_value_heads=3)
    four = dict(num_hidden_layers=4, intermediate_size=32)
    alternate = lambda n: ["full_attention" if (i + 1) % n == 0 else "sliding_attention" for i in range(4)]
    gpt2 = dict(
        architectures=["GPT2LMHeadModel"], model_type="gpt2", n_embd=32, n_head=4, n_layer=2, n_positions=64, n_ctx=64,
        vocab_size=64, layer_norm_epsilon=1e-5, activation_function="gelu_new", bos_token_id=1, eos_token_id=2)
    neox = config(
        "GPTNeoXForCausalLM", "gpt_neox", drop=ln + ("num_key_value_heads", "rope_theta"), layer_norm_eps=1e-5,
        hidden_act="gelu", rotary_pct=0.5, rotary_emb_base=10000, use_parallel_residual=True)
    falcon = dict(
        architectures=["FalconForCausalLM"], model_type="falcon", hidden_size=32, num_attention_heads=4, num_hidden_layers=2,
        vocab_size=64, layer_norm_epsilon=1e-5, alibi=False, bias=False, parallel_attn=True, bos_token_id=1, eos_token_id=2,
        hidden_dropout=0.0, attention_dropout=0.0, initializer_range=0.02)
    mpt = dict(
        architectures=["MptForCausalLM"], model_type="mpt", d_model=24, n_heads=3, n_layers=2, vocab_size=64, max_seq_len=64,
        expansion_ratio=4, no_bias=True, layer_norm_epsilon=1e-5, logit_scale=None, bos_token_id=1, eos_token_id=2,
        attn_config=dict(alibi=True, alibi_bias_max=8, attn_type="multihead_attention", clip_qkv=None, prefix_lm=False,
                         qk_ln=False, softmax_scale=None))
    bloom = dict(
        architectures=["BloomForCausalLM"], model_type="bloom", hidden_size=32, n_head=4, n_layer=2, vocab_size=64,
        layer_norm_epsilon=1e-5, apply_residual_connection_post_layernorm=False, bos_token_id=1, eos_token_id=2)
    phi3 = lambda **more: config("Phi3ForCausalLM", "phi3", hidden_act="silu", attention_bias=False, **more)
    longrope = dict(type="longrope", long_factor=[1.0, 2.0, 5.0, 9.0], short_factor=[1.0, 1.1, 1.25, 1.5])
    cohere = dict(hidden_act="silu", layer_norm_eps=1e-5, logit_scale=0.25, use_qk_norm=False, tie_word_embeddings=True)
    glm = dict(hidden_act="silu", attention_bias=True, head_dim=8, partial_rotary_factor=0.5)
    llama3 = dict(factor=8.0, high_freq_factor=4.0, low_freq_factor=1.0, original_max_position_embeddings=64, rope_type="llama3")
    exaone = config("ExaoneForCausalLM", "exaone", activation_function="silu", rope_theta=500000.0, head_dim=16,
                    layer_norm_epsilon=1e-5, num_layers=2, rope_scaling=llama3,
                    drop=("rms_norm_eps", "num_hidden_layers"))
    exaone_names = renamed(
        ("model.embed_tokens", "transformer.wte"), ("model.norm", "transformer.ln_f"), (r"model\.layers", "transformer.h"),
        ("self_attn.o_proj", "self_attn.out_proj"), ("self_attn", "attn.attention"), ("input_layernorm", "ln_1"),
        ("post_attention_layernorm", "ln_2"), ("gate_proj", "c_fc_0"), ("up_proj", "c_fc_1"), ("down_proj", "c_proj"))
    internlm_names = renamed(
        ("embed_tokens", "tok_embeddings"), ("lm_head", "output"), ("self_attn.o_proj", "attention.wo"),
        ("self_attn", "attention"), ("input_layernorm", "attention_norm"), ("post_attention_layernorm", "ffn_norm"),
        ("mlp.gate_proj", "feed_forward.w1"), ("mlp.up_proj", "feed_forward.w3"), ("mlp.down_proj", "feed_forward.w2"))
    internlm = config("InternLM2ForCausalLM", "internlm2", hidden_act="silu", bias=False, rope_scaling=None)
    internlm_qkv = lambda p: stack_qkv(p, "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.wqkv", 2)
    dynamic = dict(type="dynamic", factor=2.0)
    return {
        "nemo": dict(config=config("MistralForCausalLM", "mistral", hidden_act="silu", head_dim=16, sliding_window=None),
                     gguf="LLAMA", permute=True),
        "ministral": dict(config=config("MinistralForCausalLM", "ministral", hidden_act="silu", head_dim=8, sliding_window=8,
                                        layer_types=alternate(2), **four), gguf=None),
        # Queries beyond the 16 positions of the first training grow.
        "ministral3": dict(config=config("Ministral3ForCausalLM", "ministral3", hidden_act="silu", head_dim=8, drop=("rope_theta",),
                                         sliding_window=None, rope_parameters=dict(
                                             type="yarn", rope_type="yarn", rope_theta=10000.0, factor=4.0, beta_fast=32.0,
                                             beta_slow=1.0, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.5,
                                             original_max_position_embeddings=16)),
                           gguf="MISTRAL3", permute=True,
                           meta={"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0,
                                 "rope.scaling.original_context_length": 16, "rope.scaling.yarn_log_multiplier": 1.0,
                                 "rope.scaling.yarn_beta_fast": 32.0, "rope.scaling.yarn_beta_slow": 1.0,
                                 "attention.temperature_scale": 0.5}),
        "gemma": dict(config=config("GemmaForCausalLM", "gemma", hidden_activation="gelu_pytorch_tanh",
                                    hidden_act="gelu_pytorch_tanh", head_dim=16, tie_word_embeddings=True,
                                    num_key_value_heads=1), gguf="GEMMA", minus_one=True, llama_cpp=2e-2),
        "gemma2": dict(config=config("Gemma2ForCausalLM", "gemma2", hidden_activation="gelu_pytorch_tanh", head_dim=8,
                                     tie_word_embeddings=True, query_pre_attn_scalar=8, sliding_window=8,
                                     attn_logit_softcapping=5.0, final_logit_softcapping=3.0, **four), gguf="GEMMA2",
                       minus_one=True, llama_cpp=2e-2,
                       meta={"attention.sliding_window": 8, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
                             "attention.key_length": 8, "attention.value_length": 8}),
        "smollm3": dict(config=config("SmolLM3ForCausalLM", "smollm3", hidden_act="silu", no_rope_layers=[1, 1, 1, 0],
                                      no_rope_layer_interval=4, use_sliding_window=False, sliding_window=None,
                                      tie_word_embeddings=True, attention_bias=False, mlp_bias=False, **four),
                        gguf="SMOLLM3", permute=True),
        "granite": dict(config=config("GraniteForCausalLM", "granite", hidden_act="silu", attention_multiplier=0.25,
                                      embedding_multiplier=3.0, residual_multiplier=0.5, logits_scaling=2.0,
                                      tie_word_embeddings=True, attention_bias=False, mlp_bias=False), gguf="GRANITE",
                        permute=True, meta={"attention.scale": 0.25, "embedding_scale": 3.0, "residual_scale": 0.5,
                                            "logit_scale": 2.0}),
        # MiniCPM is Granite in other words.
        "minicpm": dict(config=config("MiniCPMForCausalLM", "minicpm", hidden_act="silu", scale_emb=3, scale_depth=1.0,
                                      dim_model_base=16), gguf="MINICPM", permute=True,
                        twin=config("GraniteForCausalLM", "granite", hidden_act="silu", attention_multiplier=8 ** -0.5,
                                    embedding_multiplier=3.0, residual_multiplier=2 ** -0.5, logits_scaling=2.0,
                                    attention_bias=False, mlp_bias=False),
                        meta={"embedding_scale": 3.0, "residual_scale": 2 ** -0.5, "logit_scale": 2.0}),
        "internlm2": dict(config=internlm, twin=llama(), gguf="INTERNLM2", permute=True, published=internlm_names,
                          fuse=internlm_qkv),
        # The base grows with the context beyond the 16 positions of the training.
        "internlm2-ntk": dict(config=internlm | dict(rope_scaling=dynamic, max_position_embeddings=16),
                              twin=llama(rope_scaling=dynamic) | dict(max_position_embeddings=16), gguf=None,
                              published=internlm_names, fuse=internlm_qkv, contexts=[5, 17, 40]),
        "baichuan": dict(config=config("BaichuanForCausalLM", "baichuan", hidden_act="silu", drop=("num_key_value_heads",)),
                         twin=llama(num_key_value_heads=4), gguf="BAICHUAN", permute=True, llama_cpp=False,
                         fuse=lambda p: stack_qkv(p, "q_proj", "k_proj", "v_proj", "W_pack")),
        # Local windows in every second layer.
        "gptneo": dict(config=dict(
            architectures=["GPTNeoForCausalLM"], model_type="gpt_neo", hidden_size=32, num_heads=4, num_layers=4, vocab_size=64,
            intermediate_size=None, max_position_embeddings=64, layer_norm_epsilon=1e-5, activation_function="gelu_new",
            attention_types=[[["global", "local"], 2]], window_size=8, bos_token_id=1, eos_token_id=2), gguf=None),
        # Blocks of eight tokens, two near and every third, which differ by head.
        "phi3-small": dict(config=dict(
            architectures=["Phi3SmallForCausalLM"], model_type="phi3small", hidden_size=32, num_attention_heads=4,
            num_key_value_heads=2, num_hidden_layers=3, vocab_size=64, ff_intermediate_size=24, max_position_embeddings=128,
            layer_norm_epsilon=1e-5, hidden_act="gegelu", gegelu_limit=20.0, mup_use_scaling=True, mup_attn_multiplier=2.0,
            mup_embedding_multiplier=3.0, mup_width_multiplier=0.5, rope_embedding_base=10000, rope_position_scale=1.0,
            blocksparse_block_size=8, blocksparse_num_local_blocks=2, blocksparse_vert_stride=3,
            blocksparse_homo_head_pattern=False, dense_attention_every_n_layers=2, dummy_token_indices=[60, 61, 63],
            bos_token_id=1, eos_token_id=2), gguf=None, model=Phi3Small),
        # With 40 layers it is the 13B; `z_loss_weight` says that it is version 2.
        "baichuan2": dict(config=config("BaichuanForCausalLM", "baichuan", hidden_act="silu", z_loss_weight=0, **forty,
                                        drop=("num_key_value_heads", "max_position_embeddings"), model_max_length=256),
                          twin=llama(**forty), gguf=None, alter=baichuan2,
                          fuse=lambda p: stack_qkv(p, "q_proj", "k_proj", "v_proj", "W_pack")),
        "exaone": dict(config=exaone, gguf="EXAONE", published=exaone_names,
                       twin=llama(rope_scaling=llama3, head_dim=16) | dict(rope_theta=500000.0), rms=True),
        "exaone4": dict(config=config("Exaone4ForCausalLM", "exaone4", hidden_act="silu", sliding_window=8,
                                      sliding_window_pattern="LLLG", layer_types=alternate(4), **four), gguf="EXAONE4",
                        llama_cpp=False, meta={"attention.sliding_window": 8}),
        "olmo": dict(config=config("OlmoForCausalLM", "olmo", drop=ln, hidden_act="silu", attention_bias=False, clip_qkv=None,
                                   tie_word_embeddings=True), gguf="OLMO", permute=True, eps=1e-5),
        "olmo-clip": dict(config=config("OlmoForCausalLM", "olmo", drop=ln, hidden_act="silu", attention_bias=False,
                                        clip_qkv=0.75), gguf="OLMO", permute=True, eps=1e-5,
                          meta={"attention.clamp_kqv": 0.75}),
        "olmo2": dict(config=config("Olmo2ForCausalLM", "olmo2", hidden_act="silu", attention_bias=False), gguf="OLMO2"),
        # Scaled rotations in the layers that see everything alone.
        "olmo3": dict(config=config("Olmo3ForCausalLM", "olmo3", hidden_act="silu", attention_bias=False, sliding_window=8,
                                    rope_theta=500000.0, layer_types=alternate(4), rope_scaling=dict(
                                        rope_type="yarn", factor=4.0, original_max_position_embeddings=16), **four),
                      gguf="OLMO2", meta={"attention.sliding_window": 8,
                                          "attention.sliding_window_pattern": [True, True, True, False]}),
        "phi3": dict(config=phi3(sliding_window=8, num_key_value_heads=4) | dict(num_key_value_heads=4), gguf="PHI3",
                     meta={"attention.sliding_window": 8}, llama_cpp=False),
        # Beyond the 16 positions of the first training other factors hold, for all tokens.
        "phi3-long": dict(config=phi3(sliding_window=None, original_max_position_embeddings=16, rope_scaling=longrope),
                          gguf="PHI3", contexts=[16, 64, 64], greedy=True, llama_cpp=False,
                          meta={"rope.scaling.original_context_length": 16,
                                "rope.scaling.attn_factor": float(np.sqrt(1 + np.log(16) / np.log(16)))}),
        "phi4-mini": dict(config=phi3(sliding_window=None, head_dim=8, partial_rotary_factor=0.75, tie_word_embeddings=True),
                          gguf="PHI3", partial=0.75),
        "command-r": dict(config=config("CohereForCausalLM", "cohere", drop=ln, **cohere), gguf="COMMAND_R",
                          meta={"logit_scale": 0.25}),
        # A gain for each head, which llama.cpp expects of models with 64 layers alone.
        "command-r-plus": dict(config=config("CohereForCausalLM", "cohere", drop=ln, **cohere | dict(use_qk_norm=True)),
                               gguf="COMMAND_R", meta={"logit_scale": 0.25}, llama_cpp=False),
        "cohere2": dict(config=config("Cohere2ForCausalLM", "cohere2", drop=ln, sliding_window=8, sliding_window_pattern=4,
                                      layer_types=alternate(4), head_dim=8, **cohere, **four), gguf="COHERE2",
                        meta={"logit_scale": 0.25, "attention.sliding_window": 8}),
        "glm": dict(config=config("GlmForCausalLM", "glm", **glm), gguf="CHATGLM", partial=0.5),
        "glm4": dict(config=config("Glm4ForCausalLM", "glm4", **glm), gguf="GLM4", partial=0.5),
        "gpt2": dict(config=gpt2, gguf="GPT2", rope=False, transposed=True, ff=128, llama_cpp=2e-2),
        "gptneox": dict(config=neox, gguf="GPTNEOX", partial=0.5, meta={"use_parallel_residual": True}, llama_cpp=0.1),
        "pythia": dict(config=neox | dict(use_parallel_residual=False, tie_word_embeddings=False), gguf="GPTNEOX",
                       partial=0.5, meta={"use_parallel_residual": False}, llama_cpp=0.1),
        "starcoder2": dict(config=config("Starcoder2ForCausalLM", "starcoder2", drop=ln, norm_epsilon=1e-5, use_bias=True,
                                         hidden_act="gelu_pytorch_tanh", sliding_window=8, tie_word_embeddings=True,
                                         residual_dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0),
                           gguf=None),
        "starcoder2-full": dict(config=config("Starcoder2ForCausalLM", "starcoder2", drop=ln, norm_epsilon=1e-5, use_bias=True,
                                              hidden_act="gelu_pytorch_tanh", sliding_window=None, tie_word_embeddings=True,
                                              residual_dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0),
                                gguf="STARCODER2", llama_cpp=2e-2),
        "phi2": dict(config=config("PhiForCausalLM", "phi", drop=ln, layer_norm_eps=1e-5, hidden_act="gelu_new",
                                   partial_rotary_factor=0.5, qk_layernorm=False, num_key_value_heads=4)
                     | dict(num_key_value_heads=4), gguf="PHI2", partial=0.5, llama_cpp=2e-2),
        # One key head, one norm for attention and feed-forward.
        "falcon": dict(config=falcon | dict(multi_query=True, new_decoder_architecture=False), gguf="FALCON", ff=128,
                       kv_heads=1, llama_cpp=0.1),
        # Two key heads, a norm for each; GGUF calls them the other way round.
        "falcon-new": dict(config=falcon | dict(multi_query=True, new_decoder_architecture=True, num_kv_heads=2,
                                                num_ln_in_parallel_attn=2), gguf="FALCON", ff=128, kv_heads=2,
                           llama_cpp=0.1),
        "mpt": dict(config=mpt, gguf="MPT", rope=False, ff=96, meta={"attention.max_alibi_bias": 8.0}, llama_cpp=0.1),
        "mpt-clip": dict(config=mpt | dict(attn_config=mpt["attn_config"] | dict(clip_qkv=0.75)), gguf="MPT", rope=False, ff=96,
                         meta={"attention.max_alibi_bias": 8.0, "attention.clamp_kqv": 0.75}, llama_cpp=0.1),
        "bloom": dict(config=bloom, gguf="BLOOM", rope=False, ff=128, kv_heads=4, llama_cpp=2e-2),
        "stablelm": dict(config=config("StableLmForCausalLM", "stablelm", drop=ln, layer_norm_eps=1e-5, hidden_act="silu",
                                       partial_rotary_factor=0.25, use_qkv_bias=True, use_parallel_residual=False,
                                       qk_layernorm=False), gguf="STABLELM", partial=0.25,
                         meta={"use_parallel_residual": False}),
        # A norm of its own for each query and key head, one norm for attention and feed-forward.
        "stablelm-12b": dict(config=config("StableLmForCausalLM", "stablelm", drop=ln, layer_norm_eps=1e-5, hidden_act="silu",
                                           partial_rotary_factor=0.25, use_qkv_bias=False, use_parallel_residual=True,
                                           qk_layernorm=True), gguf="STABLELM", partial=0.25, stack_norms=True,
                             meta={"use_parallel_residual": True}),
    }
