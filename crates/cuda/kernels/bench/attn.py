"""Attention of single rows: right against float64, then timed. usage: attn.py [check] [time]"""
import sys, time, math
import torch
from gpu import *


class AttendArgs(C.Structure):
    _fields_ = [("n", P), ("row", P), ("outputs", P), ("blocks", P), ("list", P), ("q", P), ("out", P), ("pool", P), ("part", P), ("q_stride", I64),
                ("out_stride", I64), ("page", I64), ("k_at", I64), ("v_at", I64), ("heads", I32), ("kv_heads", I32), ("head_dim", I32), ("v_dim", I32),
                ("window", I32), ("chunks", I32), ("scale", F), ("softcap", F)]


gen = torch.Generator().manual_seed(int(time.time()))


class Case:
    """Rows at given positions, each of a sequence of its own, in a shuffled paged cache; unwritten memory is NaN."""

    def __init__(self, positions, heads, kv, hd, dt, fill=True):
        self.positions, self.heads, self.kv, self.hd, self.dt = positions, heads, kv, hd, dt
        nb = [p // 16 + 1 for p in positions]
        total = sum(nb)
        self.page = 2 * kv * 16 * hd * 2 + 256
        pool = torch.full((total, self.page // 2), float("nan"), dtype=dt, device="cuda")
        self.v_at = kv * 16 * hd * 2 + 128
        perm = torch.randperm(total, generator=gen)
        self.blocks = perm.int().cuda()
        k = torch.randn(total, kv, 16, hd, generator=gen if total < 4096 else None).to(dt).cuda() if fill else torch.randn(total, kv, 16, hd, device="cuda", dtype=dt)
        v = torch.randn_like(k)
        at, rows = 0, []
        for i, p in enumerate(positions):  # positions beyond the context stay NaN
            rows.append([0, p, at, 0])
            last = (p + 1) % 16
            if last:
                k[at + nb[i] - 1, :, last:], v[at + nb[i] - 1, :, last:] = float("nan"), float("nan")
            at += nb[i]
        idx = perm.cuda()
        pool[idx, : kv * 16 * hd] = k.view(total, -1)
        pool[idx, self.v_at // 2: self.v_at // 2 + kv * 16 * hd] = v.view(total, -1)
        self.pool, self.k, self.v, self.nb = pool, k, v, nb
        self.row = torch.tensor(rows, dtype=torch.int32).cuda()
        self.n = torch.tensor([len(positions), 0], dtype=torch.int32).cuda()
        self.q = torch.randn(len(positions), heads * hd + 8, device="cuda")[:, : heads * hd]
        self.out = torch.full((len(positions) + 1, heads * hd + 4), float("nan"), device="cuda")
        self.chunks = max(positions) // 256 + 1
        self.part = torch.full((len(positions), heads, self.chunks, hd + 2), float("nan"), device="cuda")

    def args(self, window, softcap, part=True):
        return AttendArgs(self.n.data_ptr(), self.row.data_ptr(), None, self.blocks.data_ptr(), None, self.q.data_ptr(), self.out.data_ptr(), self.pool.data_ptr(),
                          self.part.data_ptr() if part else None, self.q.stride(0), self.out.stride(0), self.page, 0, self.v_at, self.heads, self.kv, self.hd, self.hd,
                          window, self.chunks, 1 / math.sqrt(self.hd), softcap)

    def run(self, window=0, softcap=0.0):
        rows, group = len(self.positions), self.heads // self.kv
        name = "bf16" if self.dt == torch.bfloat16 else "f16"
        s = 8 * min(16, group) * self.hd * 4
        a = self.args(window, softcap, self.chunks > 1)
        launch(fn("attn_decode", f"attn_decode_{name}_{self.hd}", s), a, (self.chunks, self.kv * ((group + 15) // 16), rows), 256, s, 1, True)
        if self.chunks > 1:
            launch(fn("attn_decode", f"attn_join_{self.hd}"), a, ((self.heads + 3) // 4, rows, 1), 128, 0, 1, True)

    def want(self, window, softcap):
        o, at = [], 0
        for i, p in enumerate(self.positions):
            n = self.nb[i]
            f = lambda c: c[at:at + n].permute(1, 0, 2, 3).reshape(self.kv, n * 16, self.hd)[:, max(0, p + 1 - window) if window else 0:p + 1].double()
            k, v = f(self.k), f(self.v)
            q = self.q[i].double().view(self.kv, self.heads // self.kv, self.hd)
            s = q @ k.transpose(1, 2) / math.sqrt(self.hd)
            if softcap:
                s = softcap * torch.tanh(s / softcap)
            o.append((s.softmax(-1) @ v).reshape(-1))
            at += n
        return torch.stack(o)


def main():
    arg = sys.argv[1:]
    if "check" in arg:
        worst = {}
        for dt in (torch.float16, torch.bfloat16):
            for hd in (64, 96, 128, 256):
                for heads, kv in ((8, 2), (9, 3), (20, 1), (4, 4)):
                    for positions in ([0, 5, 255, 256, 1000], [37], [2047, 300]):
                        for window, cap in ((0, 0.0), (100, 0.0), (0, 20.0)):
                            c = Case(positions, heads, kv, hd, dt)
                            c.run(window, cap)
                            torch.cuda.synchronize()
                            o, w = c.out[: len(positions), : heads * hd], c.want(window, cap)
                            e = float((o.double() - w).norm() / w.norm()) if bool(torch.isfinite(o).all()) else float("nan")
                            key = (str(dt)[6:], hd)
                            worst[key] = max(worst.get(key, 0), e) if e == e else e
                            if not e < 1e-3:
                                print("bad", dt, hd, heads, kv, positions, window, cap, e)
        print("attention worst", {f"{k[0]}/{k[1]}": f"{v:.1e}" for k, v in worst.items()}, flush=True)
    if "time" in arg:
        peak = peak_read()
        for heads, kv, hd in ((32, 8, 128), (32, 8, 64)):
            for rows, ctx in ((1, 256), (1, 2048), (1, 16384), (32, 1024), (128, 320), (8, 16384)):
                cases = [Case([ctx - 1] * rows, heads, kv, hd, torch.float16, False) for _ in range(4)]
                s = time_graph(lambda: [c.run() for c in cases]) / 4
                b = rows * ctx * kv * hd * 4
                print(f"decode {heads}/{kv}x{hd} rows {rows:3} context {ctx:6} {s * 1e6:7.1f} us {b / s * 1e-9:6.0f} GB/s {b / s / peak * 100:5.1f}%", flush=True)


main()
