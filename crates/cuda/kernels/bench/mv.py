"""Matrix-vector kernels: right against float64, then timed. usage: mv.py [check] [time] [types=a,b]"""
import sys, time
import torch, torch.nn.functional as nf
from gpu import *

ACT = [nf.silu, lambda v: nf.gelu(v, approximate="tanh"), nf.gelu, nf.relu]
gen = torch.Generator().manual_seed(int(time.time()))


def rel(o, r):
    return float((o.double() - r).norm() / r.norm()) if bool(torch.isfinite(o).all()) else float("nan")


def check_type(t):
    worst, same, msgs = 0, True, []
    for n, k in ((88, 768), (200, 2304 if FMT[t][6] == 256 else 608 if FMT[t][6] == 32 else 601)):
        for glu in (False, True):
            r = raw(t, n, k, gen)
            w = torch.from_numpy(dequant(t, r, n, k)).cuda()
            p = repack(t, r, n, k, glu, parts=3)
            gain, bias = torch.rand(k + 3, device="cuda")[:k] + 0.5, torch.randn(n, device="cuda") * 0.1
            ldx = (k + 3) // 4 * 4 + 4
            x = (torch.randn(32, ldx, generator=gen) * torch.rand(32, 1, generator=gen) * 3).cuda()[:, :k]
            no = n // 2 if glu else n
            add = torch.randn(32, no + 5, device="cuda")[:, :no]
            for norm in (False, True):
                xd = x.double()
                if norm:
                    xd = xd / (xd.pow(2).mean(1, keepdim=True) + 1e-5).sqrt() * gain.double()
                y = xd @ w.T + bias.double()
                y = ACT[1](y[:, :no]) * y[:, no:] if glu else y + add.double()
                first = None
                for rows, wk, ck, warps, stages in ((1, 8, 1, 8, 2), (1, 1, 1, 8, 4), (3, 1, 1, 16, 3), (8, 2, 4, 8, 3), (8, 8, 1, 16, 2), (5, 1, 8, 8, 3),
                                                    (12, 4, 2, 8, 3), (27, 1, 8, 8, 2), (32, 2, 4, 8, 2)):
                    for prepared in (False, True):
                        out = torch.full((32, no + 3), float("nan"), device="cuda")
                        pr = mv_prep(x[:rows], k, FMT[t][4] == 2, gain, norm) if prepared else None
                        if mv(t, p, x[:rows], n, k, wk, ck, out=out, prep=pr, gain=gain, norm=norm, bias=bias, add=None if glu else add,
                              act=1 if glu else -1, warps=warps, stages=stages) is None:
                            continue
                        torch.cuda.synchronize()
                        e = rel(out[:rows, :no], y[:rows])
                        if not (e < 2e-2):
                            msgs.append(f"{t} n{n} k{k} glu{int(glu)} norm{int(norm)} rows{rows} wk{wk} ck{ck} prep{int(prepared)}: {e:.2e}")
                        worst = max(worst, e) if e == e else e
                        if not bool(out[rows:].isnan().all()) or not bool(out[:, no:].isnan().all()):
                            msgs.append(f"{t}: wrote outside rows{rows}")
                        if wk * ck == 8:
                            if first is None:
                                first = out[0, :no].clone()
                            elif not torch.equal(first, out[0, :no]):
                                same = False
    return worst, same, msgs


SHAPES = {"o": (4096, 4096, -1), "qkv": (6144, 4096, -1), "gate_up": (28672, 4096, 0), "down": (4096, 14336, -1), "head": (128256, 4096, -1),
          "1b_o": (2048, 2048, -1), "1b_gu": (16384, 2048, 0), "1b_down": (2048, 8192, -1)}


def time_type(t, peak, shapes, rowss, plans):
    for name in shapes:
        n, k, act = SHAPES[name]
        size = tiles_bytes(t, n, k)
        copies = max(2, min(64, int(4e8 // size) + 1))
        true = n * (k // FMT[t][6]) * FMT[t][7]
        src = raw(t, 256, k, gen)
        p = repack(t, np.concatenate([src] * (n // 256 + 1))[:n], n, k, act >= 0)
        w = [p] + [p.clone() for _ in range(copies - 1)]
        gain = torch.rand(k, device="cuda")
        no = n // 2 if act >= 0 else n
        for rows in rowss:
            x, out = torch.randn(rows, k, device="cuda"), torch.empty(rows, no, device="cuda")
            res = []
            for wk, ck, warps, per, stages, prepared in plans(name, rows):
                pr = mv_prep(x, k, FMT[t][4] == 2, gain, True) if prepared else None
                info = mv(t, w[0], x, n, k, wk, ck, out=out, prep=pr, gain=gain, norm=True, act=act, pdl=True, warps=warps, per=per, stages=stages)
                if info is None:
                    continue
                try:
                    def body():
                        for b in w:
                            mv(t, b, x, n, k, wk, ck, out=out, prep=pr, gain=gain, norm=True, act=act, pdl=True, warps=warps, per=per, stages=stages)
                    s = time_graph(body) / copies
                except RuntimeError as e:
                    print("  failed", t, name, rows, wk, ck, warps, per, stages, e)
                    continue
                res.append((s, f"{wk}x{ck}w{warps}b{info[1]}s{stages}{'' if prepared else 'f'}"))
            if res:
                res.sort(key=lambda r: r[0])
                s = res[0][0]
                rest = " ".join(f"{r[1]}:{r[0] * 1e6:.1f}" for r in res[:10])
                print(f"{t:7} {name:8} rows {rows:2} {s * 1e6:7.2f} us {true / s * 1e-9:6.0f} GB/s {true / s / peak * 100:5.1f}% | {rest}", flush=True)


def main():
    arg = sys.argv[1:]
    types = next((a[6:].split(",") for a in arg if a.startswith("types=")), list(FMT))
    t0 = time.time()
    if "check" in arg:
        for t in types:
            try:
                w, same, msgs = check_type(t)
                print(f"{t:7} worst {w:.2e} same bits {same}  {len(msgs)} bad", *msgs[:4], sep="\n    " if msgs else " ", flush=True)
            except Exception as e:
                print(t, "FAILED", repr(e)[:300], flush=True)
    print("check", round(time.time() - t0, 1), "s")
    if "time" in arg:
        peak = peak_read()
        print(f"read peak {peak * 1e-9:.0f} GB/s")
        fast = [t for t in types if t in ("bf16", "q8_0", "q4_k", "q6_k")]

        def plans(name, rows):
            big, r = name in ("head", "gate_up"), []
            for prepared in ((False, True) if rows == 1 else (True,)):
                for wk, ck in ((1, 1), (2, 1), (8, 1)) if big else ((8, 1), (4, 1), (2, 1)):
                    for warps, per in ((8, 1), (8, 2), (16, 1)):
                        for stages in (2, 3, 4):
                            r.append((wk, ck, warps, per, stages, prepared))
            if rows > 1 and not big:
                r += [(2, 2, 8, 1, 3, True), (4, 2, 8, 1, 3, True), (4, 2, 16, 1, 3, True), (8, 2, 16, 1, 3, True), (2, 4, 8, 2, 3, True)]
            return r
        if "wide" in arg:
            for t in types:
                time_type(t, peak, ("o", "qkv", "gate_up", "down"), (16, 32), lambda n, r: [(w, k, 8, 1, s, True) for w, k in ((8, 1), (4, 2), (2, 4), (1, 8)) for s in (2, 3)])
            return
        for t in types:
            time_type(t, peak, SHAPES if t in fast else ("gate_up", "down"), (1, 8) if t in fast else (1,), plans)
    print("all", round(time.time() - t0, 1), "s")


main()
