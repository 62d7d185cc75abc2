#!/usr/bin/env python3
"""Regenerates the goldens of this crate:  pip install gguf numpy;  python3 crates/formats/tests/generate.py

tests/data/dequantize.bin   byte-made blocks of every tensor type and the values that the Python package `gguf` reads
tests/data/quantize.bin     values and what `gguf` encodes them to; for the types it has no encoder for, what ggml's library
                            does (pip install llama-cpp-python)
tests/data/python.gguf      a file with every metadata type
src/quant/grids/*.bin       the codebooks of the IQ types, packed as `gguf` packs them

The types that `gguf.quants` cannot decode (Q8_1, Q8_K; the integers and F64, which numpy reads) are decoded here from the
layouts in ggml-common.h. Layout of dequantize.bin, little-endian, repeated: name (u8 length, bytes), blocks (u32), bytes per
block (u32), values per block (u32), the blocks, per block the FNV-1a-64 of the values' bits, then the values of the
first FULL blocks as f32.
"""
import ctypes
import pathlib
import struct

import numpy as np
from gguf import GGUFWriter, quants
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType as T

HERE = pathlib.Path(__file__).parent
RANDOM, FULL = 12, 2
PLAIN = {"F64": "<f8", "I8": "<i1", "I16": "<i2", "I32": "<i4", "I64": "<i8", "U8": "<u1"}
SIZES = {t.name: GGML_QUANT_SIZES[t] for t in T}
SIZES["U8"] = (1, 1)
SIZES["Q8_1"] = (32, 36)  # gguf's table still has the old 40; ggml's block_q8_1 has two halves
TYPES = [
    "F32", "F16", "BF16", "F64", "U8", "I8", "I16", "I32", "I64",
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q8_1", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS",
    "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
]
# Where a block has its half-precision scales; random bytes there would often be NaN.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q8_1": [0, 2], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ1_S": [0], "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0],
    "IQ3_S": [0], "IQ4_NL": [0], "IQ4_XS": [0], "TQ1_0": [52], "TQ2_0": [64],
}


def set_half(name, block, which, value):
    bits = np.float16(value).view(np.uint16)
    if name == "IQ1_M":  # the half is spread over the upper four bits of four u16
        for i in range(4):
            block[48 + 2 * i + 1] = (int(block[48 + 2 * i + 1]) & 0x0F) | ((int(bits) >> (4 * i) & 15) << 4)
    else:
        at = HALVES[name][which]
        block[at], block[at + 1] = bits & 255, bits >> 8


def make_blocks(name, rng):
    values, size = SIZES[name]
    if values == 1:
        # 64 "blocks" of one value; floats from a wide but finite range, integers from random bytes, with the ends.
        if name in ("F32", "F64"):
            x = np.concatenate([rng.normal(size=59) * 10.0 ** rng.integers(-30, 30, 59), [0.0, -0.0, 1e-45, np.inf, -1.0]])
            return x.astype("<f4" if name == "F32" else "<f8").view(np.uint8).reshape(64, size)
        blocks = rng.integers(0, 256, (64, size), dtype=np.uint8)
        blocks[0], blocks[1] = 0, 255
        if name in ("F16", "BF16"):
            blocks[1] = [1, 0]
            blocks[:, 1] = np.where(blocks[:, 1] & 0x7C == 0x7C, blocks[:, 1] ^ 0x40, blocks[:, 1])
            blocks[2] = [0, 0x80]
            blocks[3] = [0xFF, 0x03]
        elif name != "U8" and name != "I8":
            blocks[2, -1] = 0x7F
        return blocks
    blocks = rng.integers(0, 256, (RANDOM + 4, size), dtype=np.uint8)
    blocks[RANDOM] = 0
    blocks[RANDOM + 1] = 255
    halves = range(len(HALVES.get(name, []))) if name != "IQ1_M" else [0]
    for i, block in enumerate(blocks):
        for h in halves:
            edge = {RANDOM: 0.0, RANDOM + 1: 65504.0, RANDOM + 2: 6e-8, RANDOM + 3: -0.0}.get(i)
            set_half(name, block, h, rng.normal() if edge is None else edge)
        if name == "Q8_K":
            block[:4] = np.array([rng.normal()], "<f4").view(np.uint8)
    return blocks


def decode(name, blocks):
    if name in PLAIN:
        return blocks.reshape(-1).view(PLAIN[name]).astype(np.float32)
    if name == "F32":
        return blocks.reshape(-1).view("<f4")
    if name == "Q8_1":
        return (blocks[:, :2].copy().view("<f2").astype(np.float32) * blocks[:, 4:].view(np.int8)).ravel()
    if name == "Q8_K":
        return (blocks[:, :4].copy().view("<f4") * blocks[:, 4:260].view(np.int8).astype(np.float32)).ravel()
    return quants.dequantize(blocks.reshape(1, -1), T[name]).ravel()


def encoded():
    rng = np.random.default_rng(7)
    x = rng.normal(size=256 * 6).astype(np.float32)
    x[256:512] = rng.laplace(size=256) * 0.02       # as weights are
    x[512:768] = np.abs(x[512:768]) + 1             # one sign, far from zero
    x[768:1024] *= 10.0 ** rng.integers(-6, 3, 256)  # uneven
    x[1024:1280] = 0
    x[1280:1312] = 0.75                              # constant blocks, then a ramp
    x[1312:1344] = -3
    x[1344:1536] = np.linspace(-5, 5, 192)
    out = bytearray(struct.pack("<I", len(x)) + x.astype("<f4").tobytes())
    for name in ["F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "MXFP4"]:
        out += struct.pack("<B", len(name)) + name.encode() + quants.quantize(x.reshape(1, -1), T[name]).tobytes()
    import llama_cpp
    lib = ctypes.CDLL(str(pathlib.Path(llama_cpp.__file__).parent / "lib/libggml-base.so"))
    f = lib.ggml_quantize_chunk
    f.restype, f.argtypes = ctypes.c_size_t, [ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p] + [ctypes.c_int64] * 3 + [ctypes.c_void_p]
    for name in ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL"]:
        values, size = SIZES[name]
        dst = np.zeros(len(x) // values * size, np.uint8)
        n = f(int(T[name]), x.ctypes.data, dst.ctypes.data, 0, 1, len(x), None)
        assert n == dst.size, (name, n, dst.size)
        out += struct.pack("<B", len(name)) + name.encode() + dst.tobytes()
    return out


def fnv(data):
    h = 0xCBF29CE484222325
    for b in data:
        h = (h ^ b) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return h


def python_gguf(path):
    w = GGUFWriter(path, "test")
    w.add_custom_alignment(64)
    for name, value in {"u8": 200, "i8": -100, "u16": 60_000, "i16": -30_000, "u32": 4_000_000_000, "i32": -2_000_000_000,
                        "u64": 1 << 63, "i64": -1 << 63, "f32": 0.1, "f64": 0.1}.items():
        kind = {"u": "uint", "i": "int", "f": "float"}[name[0]] + name[1:]
        getattr(w, "add_" + kind)("t." + name, value)
    w.add_bool("t.bool", True)
    w.add_string("t.string", "h\u00e9llo\n")
    w.add_array("t.strings", ["a", "", "\u00df"])
    w.add_array("t.ints", [1, -2, 3])
    w.add_array("t.floats", [0.5, -1.5])
    w.add_array("t.bools", [True, False])
    w.add_tensor("plain", np.arange(6, dtype=np.float32).reshape(2, 3))
    w.add_tensor("blocks", quants.quantize(np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64), T.Q8_0), raw_dtype=T.Q8_0)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    python_gguf(HERE / "data/python.gguf")
    out = bytearray()
    for name in TYPES:
        rng = np.random.default_rng([ord(c) for c in name])
        blocks = make_blocks(name, rng)
        per_block = SIZES[name][0]
        with np.errstate(over="ignore"):
            values = decode(name, blocks).astype("<f4").reshape(len(blocks), per_block)
        assert not np.isnan(values).any(), name
        out += struct.pack("<B", len(name)) + name.encode()
        out += struct.pack("<III", len(blocks), blocks.shape[1], per_block)
        out += blocks.tobytes()
        for row in values:
            out += struct.pack("<Q", fnv(row.tobytes()))
        out += values[:FULL].tobytes()
    (HERE / "data/dequantize.bin").write_bytes(out)

    (HERE / "data/quantize.bin").write_bytes(encoded())

    grids = HERE.parent / "src/quant/grids"
    grids.mkdir(exist_ok=True)
    for name in ["IQ1_S", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S"]:
        q = quants._type_traits[T[name]]
        (grids / f"{name.lower()}.bin").write_bytes(bytes.fromhex(q.grid_hex.decode()))
        q.init_grid()
        table = q.grid.astype(np.int8).tobytes()
        print(f"{name}: {len(table)} values, FNV {fnv(table):#018x}")


main()
