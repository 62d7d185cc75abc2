#!/usr/bin/env python3
"""Makes the golden adapters under adapters/: random LoRA weights for models under tiny/, logits in float32 from `peft`.

Run (only to regenerate or to add an adapter; the tests need no Python), after make_tiny.py and with `peft` installed too:

    v/bin/python crates/conform/goldens/make_adapters.py [NAME ...]

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2, gguf 0.19.0. With `llama-cpp-python` installed, each GGUF adapter
is run by llama.cpp too, as a second opinion on names, permutation and scale.

Each folder NAME holds
  adapter_config.json, adapter_model.safetensors   as `save_pretrained` wrote them
  adapter.gguf       the same under llama.cpp's names and conventions (absent where llama.cpp has no such adapter)
  golden.json        the model, and how closely others agreed; the prompts are the model's
  logits.bin         as in tiny/
"""

import json
import shutil
import sys
import zlib
from pathlib import Path

import gguf
import numpy as np
import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from make_tiny import TORCH, logits_of, permute

ROOT = Path(__file__).parent
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

# The model, PEFT's settings, storage type, whether a GGUF twin exists.
ADAPTERS = {
    # Every matrix, the head too; ranks and scales of their own for some.
    "llama2-all": dict(model="llama2", dtype="f32", config=dict(
        r=4, lora_alpha=8, target_modules=LINEAR + ["lm_head"],
        rank_pattern={"q_proj": 2, "layers.0.mlp.down_proj": 7}, alpha_pattern={"^model.layers.1.mlp.up_proj": 3, "v_proj": 12})),
    # Few matrices, grouped heads, scale by the root of the rank.
    "llama3-rslora": dict(model="llama3", dtype="f16", config=dict(
        r=16, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "k_proj", "down_proj"])),
    # A head that is the embedding table: only the product with it changes. llama.cpp has no such tensor to adapt.
    "llama3-head": dict(model="llama3", dtype="f32", gguf=False, config=dict(
        r=1, lora_alpha=2, target_modules=["lm_head", "o_proj"])),
    "gemma3": dict(model="gemma3", dtype="bf16", config=dict(r=3, lora_alpha=9, target_modules=LINEAR)),
}


def write_gguf(path: Path, model, config: LoraConfig, state: dict[str, torch.Tensor], dtype: str) -> None:
    gemma = model.config.model_type == "gemma3_text"
    arch = gguf.MODEL_ARCH.GEMMA3 if gemma else gguf.MODEL_ARCH.LLAMA
    w = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
    w.add_type("adapter")
    w.add_string("adapter.type", "lora")
    # One alpha for all: what differs from it goes into B, as does the root of the rank.
    w.add_float32("adapter.lora.alpha", float(config.lora_alpha))
    names = gguf.get_tensor_name_map(arch, model.config.num_hidden_layers)
    for key, tensor in state.items():
        module, _, side = key.removeprefix("base_model.model.").removesuffix(".weight").rpartition(".lora_")
        data = tensor.float().numpy()
        if side == "B":
            data = data * (scale_of(config, module, data.shape[1]) / (config.lora_alpha / data.shape[1]))
            if not gemma and module.endswith(("q_proj", "k_proj")):
                heads = model.config.num_attention_heads if module.endswith("q_proj") else model.config.num_key_value_heads
                data = permute(data, heads)
        data = np.ascontiguousarray(data, dtype=np.float32)
        w.add_tensor(f"{names.get_name(module)}.weight.lora_{side.lower()}", data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def scale_of(config: LoraConfig, module: str, rank: int) -> float:
    named = [a for p, a in config.alpha_pattern.items() if module.endswith(p.removeprefix("^"))]
    alpha = named[0] if named else config.lora_alpha
    return alpha / (rank**0.5 if config.use_rslora else rank)


def llama_cpp_logits(model: Path, adapter: Path, prompts):
    try:
        import llama_cpp
    except ImportError:
        return None
    m = llama_cpp.Llama(str(model), lora_path=str(adapter), n_ctx=64, n_batch=64, n_threads=1, logits_all=True, verbose=False,
                        type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32, flash_attn=False)
    out = []
    for ids in prompts:
        m.reset()
        m.eval(ids)
        out.append(np.array(m.scores[: len(ids)], dtype=np.float64))
    return out


def make(name: str, spec: dict) -> int:
    folder, base = ROOT / "adapters" / name, ROOT / "tiny" / spec["model"]
    shutil.rmtree(folder, ignore_errors=True)
    golden = json.loads((base / "golden.json").read_text())
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager").eval()
    without = [logits_of(plain, p) for p in golden["prompts"]]
    config = LoraConfig(task_type="CAUSAL_LM", **spec["config"])
    model = get_peft_model(plain, config).eval()
    for key, tensor in model.named_parameters():
        if "lora_" in key:
            rng = np.random.Generator(np.random.PCG64(zlib.crc32(f"{name}/{key}".encode())))
            value = rng.standard_normal(tuple(tensor.shape)) * (0.7 * tensor.shape[1] ** -0.5)
            tensor.data = torch.from_numpy(value).to(TORCH[spec["dtype"]]).float()
    full = [logits_of(model, p) for p in golden["prompts"]]
    worst = lambda other: max(float(np.abs(a - b).max()) for a, b in zip(full, other))
    agreement = dict(what_the_adapter_changes=worst(without))
    assert agreement["what_the_adapter_changes"] > 0.5, agreement
    model.to(TORCH[spec["dtype"]]).save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink()
    state = {k: v for k, v in peft.get_peft_model_state_dict(model, save_embedding_layers=False).items()}
    written = json.loads((folder / "adapter_config.json").read_text())
    written["base_model_name_or_path"] = f"tiny/{spec['model']}"  # not the place on this machine
    written["target_modules"] = sorted(written["target_modules"])  # a set has no order
    (folder / "adapter_config.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
    if spec.get("gguf", True):
        write_gguf(folder / "adapter.gguf", plain, config, state, spec["dtype"])
        other = llama_cpp_logits(base / golden["gguf"][0], folder / "adapter.gguf", golden["prompts"])
        if other is not None:
            agreement["gguf_by_llama_cpp"] = worst(other)
            assert agreement["gguf_by_llama_cpp"] < (2e-2 if spec["model"] == "gemma3" else 1e-3), agreement
    out = dict(
        name=name, model=spec["model"], gguf=spec.get("gguf", True),
        made_with=dict(torch=torch.__version__.split("+")[0], transformers=transformers.__version__, peft=peft.__version__),
        max_abs_difference={k: float(f"{v:.2g}") for k, v in agreement.items()},
    )
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in out.items())
    (folder / "golden.json").write_text(f"{{\n{lines}\n}}\n")
    np.concatenate([f.astype("<f4").ravel() for f in full]).tofile(folder / "logits.bin")
    for f in folder.iterdir():
        f.chmod(0o644)
    size = sum(p.stat().st_size for p in folder.iterdir())
    print(f"{name:14} {size:>8,} bytes  {out['max_abs_difference']}", flush=True)
    return size


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # a fixed order of sums
    total = sum(make(n, ADAPTERS[n]) for n in (sys.argv[1:] or ADAPTERS))
    print(f"{total:,} bytes in all")
