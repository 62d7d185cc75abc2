"""Products for many rows: right against float64, then timed. usage: mm.py [check] [time] [types=a,b]"""
import sys, time
import torch
from gpu import *


class MmArgs(C.Structure):
    _fields_ = [("w", P), ("x", P), ("rscale", P), ("bias", P), ("add", P), ("out", P), ("ldadd", I64), ("ldo", I64), ("n", I32), ("k", I32),
                ("rows", I32), ("xrows", I32), ("act", I32), ("pad", I32)]


class MmPrepArgs(C.Structure):
    _fields_ = [("x", P), ("gain", P), ("image", P), ("rscale", P), ("ldx", I64), ("rows", I32), ("k", I32), ("norm", I32), ("eps", F),
                ("xrows", I32), ("pad", I32)]


gen = torch.Generator().manual_seed(int(time.time()))
MOD = lambda t: FMT[t][0].replace("mv", "mm")


def prep(x, k, bf, ntok, gain=None, norm=False, eps=1e-5):
    rows = x.shape[0]
    xrows, kp = (rows + ntok - 1) // ntok * ntok, (k + 63) // 64 * 64
    image = torch.randint(0, 256, (kp * xrows * 2,), dtype=torch.uint8, device="cuda")  # padding rows hold anything
    rs = torch.empty(xrows, device="cuda")
    launch_prep(x, k, bf, (image, rs, xrows), norm, gain, eps)
    return image, rs, xrows


def launch_prep(x, k, bf, im, norm, gain=None, eps=1e-5):
    rows, (image, rs, xrows) = x.shape[0], im
    a = MmPrepArgs(x.data_ptr(), gain.data_ptr() if gain is not None else None, image.data_ptr(), rs.data_ptr(), x.stride(0), rows, k, int(norm), eps,
                   xrows, 0)
    launch(fn("mm_prep", "mm_prep_bf16" if bf else "mm_prep_f16"), a, rows, 256)


def smem(t, ntok, split):
    _, kt, tile, *_ = FMT[t]
    sb = {256: 4, 128: 5, 64: 6, 32: 5}[ntok]
    sa = (4 if tile > 1500 else 6) if kt == 64 else 2 if tile > 2400 else 3
    return 1024 + sb * ntok * 128 + sa * 8 * tile + (0 if split else 16384)


def mm(t, w, p, n, k, rows, ntok, cl, out, bias=None, add=None, act=-1):
    image, rs, xrows = p
    d = lambda v: v.data_ptr() if v is not None else None
    a = MmArgs(w.data_ptr(), image.data_ptr(), rs.data_ptr(), d(bias), d(add), out.data_ptr(), add.stride(0) if add is not None else 0, out.stride(0), n, k,
               rows, xrows, act, 0)
    groups, tokens = ((n + 15) // 16 + 7) // 8, (rows + ntok - 1) // ntok
    s = smem(t, ntok, cl > 0)
    if cl:  # a cluster of cl slices of K for every tile
        launch(fn(MOD(t), f"mm_{t}_{ntok}s", s), a, groups * tokens * cl, 384, s, cl, True)
    else:
        launch(fn(MOD(t), f"mm_{t}_{ntok}", s), a, min(groups * tokens, 132), 384, s, 1, True)


VARIANTS = ((256, 0), (128, 0), (64, 0), (128, 1), (128, 2), (64, 1), (64, 2), (64, 4), (32, 1), (32, 2), (32, 4), (32, 8))


def check_type(t):
    worst, msgs = 0, []
    for n, k in ((328, 768), (1000, 2304 if FMT[t][6] == 256 else 608)):
        for glu in (False, True):
            r = raw(t, n, k, gen)
            w = torch.from_numpy(dequant(t, r, n, k)).cuda()
            p = repack(t, r, n, k, glu, parts=2)
            gain, bias = torch.rand(k, device="cuda") + 0.5, torch.randn(n, device="cuda") * 0.1
            x = (torch.randn(600, k + 4, generator=gen) * torch.rand(600, 1, generator=gen) * 3).cuda()[:, :k]
            no = n // 2 if glu else n
            add = torch.randn(600, no + 5, device="cuda")[:, :no]
            xd = x.double()
            xd = xd / (xd.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * gain.double()
            y = xd @ w.T + bias.double()
            y = torch.nn.functional.silu(y[:, :no]) * y[:, no:] if glu else y + add.double()
            for ntok, cl in VARIANTS:
                for rows in ((600, 17) if ntok > 64 else (130, 17)):
                    out = torch.full((601, no + 3), float("nan"), device="cuda")
                    mm(t, p, prep(x[:rows], k, t == "bf16", ntok, gain, True), n, k, rows, ntok, cl, out, bias, None if glu else add, 0 if glu else -1)
                    torch.cuda.synchronize()
                    o = out[:rows, :no]
                    e = float((o.double() - y[:rows]).norm() / y[:rows].norm()) if bool(torch.isfinite(o).all()) else float("nan")
                    if not e < 2e-2:
                        msgs.append(f"{t} n{n} k{k} glu{int(glu)} rows{rows} {ntok}_{cl}: {e:.2e}")
                    worst = max(worst, e) if e == e else e
                    if not bool(out[rows:].isnan().all()) or not bool(out[:, no:].isnan().all()):
                        msgs.append(f"{t}: wrote outside {ntok} {rows}")
    return worst, msgs


def time_type(t, shapes, rowss, gm):
    for name, n, k, act in shapes:
        src = raw(t, 256, k, gen)
        p = repack(t, np.concatenate([src] * (n // 256 + 1))[:n], n, k, act >= 0)
        copies = 2 if p.numel() > 6e7 else 4
        ws = [p] + [p.clone() for _ in range(copies - 1)]
        no = n // 2 if act >= 0 else n
        for rows in rowss:
            x, res = torch.randn(rows, k, device="cuda"), []
            out = torch.empty(rows, no, device="cuda")
            for ntok, cl in VARIANTS:
                if ntok >= 2 * rows and ntok > 32 or cl and rows > 512 or cl > 2 and n > 10000:
                    continue
                im = prep(x, k, t == "bf16", ntok)
                def body():
                    for w in ws:
                        mm(t, w, im, n, k, rows, ntok, cl, out, act=act)
                s = time_graph(body) / copies
                res.append((s, f"{ntok}_{cl}"))
            tp = time_graph(lambda: [launch_prep(x, k, t == "bf16", im, 0) for _ in range(4)]) / 4 if t == "bf16" else 0
            res.sort()
            s, fl = res[0][0], 2 * n * k * rows
            true = n * (k // FMT[t][6]) * FMT[t][7]
            print(f"{t:7} {name:8} rows {rows:4} {s * 1e6:8.1f} us {fl / s * 1e-12:6.1f} TFLOP/s {fl / s / gm * 100:5.1f}% of {gm * 1e-12:.0f}, {true / s * 1e-9:5.0f} GB/s | "
                  + " ".join(f"{r[1]}:{r[0] * 1e6:.1f}" for r in res[:6]) + (f" prep {tp * 1e6:.1f}" if tp else ""), flush=True)


def main():
    arg = sys.argv[1:]
    types = next((a[6:].split(",") for a in arg if a.startswith("types=")), [t for t in FMT if t != "f32"])
    t0 = time.time()
    if "check" in arg:
        for t in types:
            try:
                w, msgs = check_type(t)
                print(f"mm {t:7} worst {w:.2e}  {len(msgs)} bad", *msgs[:6], sep="\n    " if msgs else " ", flush=True)
            except Exception as e:
                print(t, "FAILED", repr(e)[:300], flush=True)
                if "700" in repr(e) or "illegal" in repr(e):
                    return
    if "time" in arg:
        a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        gm = 2 * 8192**3 / time_graph(lambda: [a @ b for _ in range(4)]) * 4
        print(f"library bf16 8192^3: {gm * 1e-12:.0f} TFLOP/s")
        sq = [("o", 4096, 4096, -1), ("gate_up", 28672, 4096, 0), ("down", 4096, 14336, -1), ("qkv", 6144, 4096, -1)]
        for t in types:
            main_ = t in ("bf16", "q8_0", "q4_k", "q6_k")
            try:
                time_type(t, sq if main_ else sq[:1], (4096, 512, 256, 128, 64, 32) if main_ else (4096,), gm)
            except Exception as e:
                print(t, "FAILED", repr(e)[:300], flush=True)
    print("mm", round(time.time() - t0, 1), "s")


main()
