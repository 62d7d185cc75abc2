"""The families that make_families.py makes whose layers are not all attention; rows as in families.py."""


def rows(config):
    lfm2 = dict(
        architectures=["Lfm2ForCausalLM"], model_type="lfm2", hidden_size=32, block_ff_dim=54, block_multiple_of=8,
        block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=True, conv_L_cache=3, conv_bias=False, full_attn_idxs=[1, 3],
        num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=4, vocab_size=64, max_position_embeddings=256,
        norm_eps=1e-5, rope_theta=1000000.0, tie_embedding=True, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    return {
        # Two of four layers are short convolutions, the first too; the width of the feed-forward block is rounded up.
        "lfm2": dict(config=lfm2, gguf="LFM2", rms=True, ff=40,
                     meta={"attention.head_count_kv": [0, 2, 0, 2], "shortconv.l_cache": 3}),
    }
