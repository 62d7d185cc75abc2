"""The driver API through ctypes, tensor types, and the launch rules of the kernels. Needs torch; quants.py of the gguf package beside it."""
import ctypes as C, os, sys
import numpy as np
import torch

HERE = os.environ.get("CUBINS", os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, HERE)
cu = C.CDLL("libcuda.so.1") if torch.cuda.is_available() else None


class Config(C.Structure):
    _fields_ = [(n, C.c_uint) for n in ("gx", "gy", "gz", "bx", "by", "bz", "smem")] + [
        ("stream", C.c_void_p), ("attrs", C.c_void_p), ("n", C.c_uint)]


class Attr(C.Structure):
    _fields_ = [("id", C.c_int), ("pad", C.c_int), ("v", C.c_uint * 16)]


def check(r, what):
    if r:
        s = C.c_char_p()
        cu.cuGetErrorString(r, C.byref(s))
        raise RuntimeError(f"{what}: {r} {s.value}")


_mods, _fns = {}, {}


def module(name):
    if name not in _mods:
        m = C.c_void_p()
        data = open(f"{HERE}/{name}.cubin", "rb").read()
        check(cu.cuModuleLoadData(C.byref(m), data), name)
        _mods[name] = m
    return _mods[name]


def fn(mod, name, smem=0):
    if (mod, name) not in _fns:
        f = C.c_void_p()
        check(cu.cuModuleGetFunction(C.byref(f), module(mod), name.encode()), name)
        _fns[mod, name] = [f, 0]
    e = _fns[mod, name]
    if smem > e[1]:
        check(cu.cuFuncSetAttribute(e[0], 8, smem), f"{name}: {smem} bytes of shared memory")
        e[1] = smem
    return e[0]


def launch(f, args, grid, block, smem=0, cluster=1, pdl=False):
    attrs = (Attr * 2)()
    n = 0
    if cluster > 1:
        attrs[n].id = 4
        attrs[n].v[0], attrs[n].v[1], attrs[n].v[2] = cluster, 1, 1
        n += 1
    if pdl:
        attrs[n].id = 6
        attrs[n].v[0] = 1
        n += 1
    g = grid if isinstance(grid, tuple) else (grid, 1, 1)
    cfg = Config(*g, block, 1, 1, smem, torch.cuda.current_stream().cuda_stream, C.cast(attrs, C.c_void_p), n)
    params = (C.c_void_p * 1)(C.cast(C.byref(args), C.c_void_p))
    check(cu.cuLaunchKernelEx(C.byref(cfg), f, params, None), "launch")


P, I64, I32, F = C.c_void_p, C.c_int64, C.c_int32, C.c_float


class TileArgs(C.Structure):
    _fields_ = [("w", P), ("x", P), ("xp", P), ("sums", P), ("rscale", P), ("gain", P), ("bias", P), ("add", P), ("out", P),
                ("ldx", I64), ("ldadd", I64), ("ldo", I64), ("n", I32), ("k", I32), ("rows", I32), ("norm", I32), ("eps", F),
                ("act", I32), ("wk", I32), ("ck", I32), ("stages", I32), ("pad", I32)]


class RepackArgs(C.Structure):
    _fields_ = [("src", P), ("dst", P), ("n", I64), ("row0", I64), ("rows", I32), ("k", I32), ("glu", I32), ("pad", I32)]


class PrepArgs(C.Structure):
    _fields_ = [("x", P), ("gain", P), ("xp", P), ("sums", P), ("rscale", P), ("ldx", I64), ("rows", I32), ("k", I32), ("norm", I32),
                ("eps", F)]


# name: (module, KT, TILE, ST, planes, SG, block values, block bytes)
FMT = {
    "f32": ("mv_f", 64, 4096, 1, 2, 0, 1, 4), "f16": ("mv_f", 64, 2048, 1, 1, 0, 1, 2), "bf16": ("mv_f", 64, 2048, 1, 2, 0, 1, 2),
    "q8_0": ("mv_q", 64, 1088, 2, 1, 32, 32, 34), "q4_0": ("mv_q", 64, 576, 4, 1, 32, 32, 18), "q4_1": ("mv_q", 64, 640, 4, 1, 32, 32, 20),
    "q5_0": ("mv_q", 64, 704, 4, 1, 32, 32, 22), "q5_1": ("mv_q", 64, 768, 4, 1, 32, 32, 24),
    "iq4_nl": ("mv_q", 64, 576, 4, 1, 32, 32, 18), "mxfp4": ("mv_q", 64, 544, 4, 1, 32, 32, 17),
    "q4_k": ("mv_k", 256, 2304, 1, 1, 32, 256, 144), "q5_k": ("mv_k", 256, 2816, 1, 1, 32, 256, 176),
    "q6_k": ("mv_k", 256, 3360, 1, 1, 16, 256, 210), "q3_k": ("mv_k", 256, 1824, 2, 1, 16, 256, 110),
    "q2_k": ("mv_k", 256, 1344, 2, 1, 16, 256, 84), "iq4_xs": ("mv_k", 256, 2208, 1, 1, 32, 256, 136),
}


def raw(t, n, k, gen):
    """Random GGUF blocks [n, bytes], with scales of a usual size."""
    _, _, _, _, _, _, bv, bb = FMT[t]
    if t in ("f32", "f16", "bf16"):
        w = torch.randn(n, k, generator=gen, dtype=torch.float32) * 0.02
        w = w.to({"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[t])
        return w.contiguous().view(torch.uint8).numpy().reshape(n, -1)
    b = torch.randint(0, 256, (n * (k // bv), bb), generator=gen, dtype=torch.uint8).numpy()
    m = b.shape[0]
    f = lambda lo, hi: (torch.rand(m, generator=gen).numpy() * (hi - lo) + lo).astype(np.float16).view(np.uint8).reshape(m, 2)
    if t == "mxfp4":
        b[:, 0] = 118 + b[:, 0] % 6
    elif t == "q6_k":
        b[:, 208:] = f(1e-5, 4e-5)
    elif t == "q3_k":
        b[:, 108:] = f(1e-4, 4e-4)
    elif t == "q2_k":
        b[:, 80:82], b[:, 82:] = f(1e-3, 3e-3), f(1e-3, 3e-3)
    else:
        big = {"q8_0": 3e-4, "iq4_nl": 3e-4, "q4_k": 1e-4, "q5_k": 5e-5, "iq4_xs": 1e-5}.get(t, 4e-3)
        b[:, :2] = f(big / 2, big)
        if t in ("q4_k", "q5_k"):
            b[:, 2:4] = f(4e-4, 8e-4)
        if t in ("q4_1", "q5_1"):
            b[:, 2:4] = f(-0.04, -0.02)
    return b.reshape(n, -1)


def dequant(t, r, n, k):
    if t == "f32":
        return r.reshape(-1).view(np.float32).reshape(n, k).astype(np.float64)
    if t == "f16":
        return r.reshape(-1).view(np.float16).reshape(n, k).astype(np.float64)
    if t == "bf16":
        return (r.reshape(-1).view(np.uint16).astype(np.uint32) << 16).view(np.float32).reshape(n, k).astype(np.float64)
    import quants
    from constants import GGMLQuantizationType as T
    return quants.dequantize(r.reshape(n, -1), getattr(T, t.upper())).reshape(n, k).astype(np.float64)


def tiles_bytes(t, n, k):
    _, kt, tile, *_ = FMT[t]
    return (n + 15) // 16 * ((k + kt - 1) // kt) * tile


def repack(t, r, n, k, glu=False, parts=1):
    """The whole weight in tiles; `parts` pieces one after the other, as stacked tensors come."""
    dst = torch.zeros(tiles_bytes(t, n, k), dtype=torch.uint8, device="cuda")
    src = torch.from_numpy(np.ascontiguousarray(r)).cuda() if isinstance(r, np.ndarray) else r
    src = src.view(n, -1)
    step = (n + parts - 1) // parts
    for r0 in range(0, n, step):
        rows = min(step, n - r0)
        a = RepackArgs(src[r0:].data_ptr(), dst.data_ptr(), n, r0, rows, k, int(glu), 0)
        launch(fn("mv_repack", "repack_" + t), a, ((k + 31) // 32 * rows + 255) // 256, 256)
    torch.cuda.synchronize()
    return dst


def mv_smem(t, rows, k, nt, wk, ck, warps, stages):
    _, kt, tile, st, planes, sg, _, _ = FMT[t]
    stage = tile * st
    tk = (k + kt - 1) // kt
    kc = ((tk + ck - 1) // ck + (1 if ck > 1 else 0)) * kt
    total = 1792 + warps * stages * ((stage + 127) // 128 * 128) + (nt * warps * 1024 if wk * ck > 1 else 0)
    total += kc // sg * nt * 32 if sg else 0
    return total + rows * (kc * 2 + 64) * planes


def nt_of(rows):
    return 1 if rows <= 8 else 2 if rows <= 16 else 4


def mv(t, w, x, n, k, wk, ck, *, out, prep=None, gain=None, norm=False, bias=None, add=None, act=-1, pdl=False, sms=132, eps=1e-5, warps=8, stages=3, per=2):
    rows = x.shape[0]
    nt = nt_of(rows)
    smem = mv_smem(t, rows, k, nt, wk, ck, warps, stages)
    per = min(per if nt == 1 else 1, 16 // warps, 227 * 1024 // (smem + 1024))
    if per == 0:
        return None
    tiles = (n + 15) // 16
    wr = warps // wk
    units = (tiles + wr - 1) // wr
    grid = min(units, sms * per // ck) * ck
    d = lambda v: v.data_ptr() if v is not None else None
    xp, sums, rs = prep or (None, None, None)
    a = TileArgs(w if isinstance(w, int) else w.data_ptr(), x.data_ptr(), d(xp), d(sums), d(rs), d(gain), d(bias), d(add), out.data_ptr(),
                 x.stride(0), add.stride(0) if add is not None else 0, out.stride(0), n, k, rows, int(norm and prep is None), eps, act, wk, ck, stages, 0)
    launch(fn(FMT[t][0], f"mv_{t}_{nt * 8}", smem), a, grid, warps * 32, smem, ck, pdl)
    return smem, per, grid


def mv_prep(x, k, bf, gain=None, norm=False, eps=1e-5):
    rows, kp = x.shape[0], (k + 63) // 64 * 64
    xp = torch.empty(2 if bf else 1, rows, kp, dtype=torch.int16, device="cuda")
    sums = torch.empty(rows, kp // 16, device="cuda")
    rs = torch.empty(rows, device="cuda")
    a = PrepArgs(x.data_ptr(), gain.data_ptr() if gain is not None else None, xp.data_ptr(), sums.data_ptr(), rs.data_ptr(), x.stride(0), rows, k,
                 int(norm), eps)
    launch(fn("mv_prep", "mv_prep_bf16" if bf else "mv_prep_f16"), a, rows, 256)
    return xp, sums, rs


def time_graph(body, reps=5):
    """Median seconds of a replay of what `body` launches, after a warm-up."""
    s = torch.cuda.Stream()
    with torch.cuda.stream(s):
        body()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, stream=s):
            body()
        for _ in range(2):
            g.replay()
        ts = []
        for _ in range(reps):
            a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            a.record()
            g.replay()
            b.record()
            b.synchronize()
            ts.append(a.elapsed_time(b) * 1e-3)
    return sorted(ts)[len(ts) // 2]


class ReadArgs(C.Structure):
    _fields_ = [("p", P), ("out", P), ("n", I64)]


def peak_read():
    b = torch.randint(0, 2**31 - 1, (1 << 28,), dtype=torch.int32, device="cuda")
    o = torch.zeros(4, dtype=torch.int32, device="cuda")
    a = ReadArgs(b.data_ptr(), o.data_ptr(), b.numel() // 4)
    best = 0
    for per in (2, 4):
        t = time_graph(lambda: launch(fn("read", "bench_read"), a, 132 * per, 512))
        best = max(best, b.numel() * 4 / t)
    return best
