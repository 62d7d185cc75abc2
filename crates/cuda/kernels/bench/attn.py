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
            launch(fn("attn_decode", f"attn_join_{self.hd}"), a, (self.heads, rows, 1), max(128, self.hd), 0, 1, True)

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


class PrefillArgs(C.Structure):
    _fields_ = [("tiles", P), ("blocks", P), ("q", P), ("out", P), ("pool", P), ("q_stride", I64), ("out_stride", I64), ("page", I64), ("k_at", I64),
                ("v_at", I64), ("heads", I32), ("kv_heads", I32), ("window", I32), ("pad", I32), ("scale", F), ("softcap", F)]


class Prompt:
    """Sequences of (context before, new rows); the rows of one after the other."""

    def __init__(self, seqs, heads, kv, hd, dt):
        self.c = Case([a + n - 1 for a, n in seqs], heads, kv, hd, dt, False)
        self.seqs, self.per = seqs, 64 * (2 if hd == 256 else 3)
        rows = sum(n for _, n in seqs)
        self.q = torch.randn(rows, heads * hd + 8, device="cuda")[:, : heads * hd]
        self.out = torch.full((rows + 1, heads * hd + 4), float("nan"), device="cuda")
        tiles, r = [], 0
        for i, (a, n) in enumerate(seqs):
            for x in range(0, n, self.per):
                tiles.append([r + x, min(self.per, n - x), a + x, int(self.c.row[i, 2])])
            r += n
        self.n = len(tiles) + 1
        self.tiles = torch.tensor(tiles + [[0, 0, 0, 0]], dtype=torch.int32).cuda()

    def run(self, window=0, softcap=0.0):
        c = self.c
        a = PrefillArgs(self.tiles.data_ptr(), c.blocks.data_ptr(), self.q.data_ptr(), self.out.data_ptr(), c.pool.data_ptr(), self.q.stride(0),
                        self.out.stride(0), c.page, 0, c.v_at, c.heads, c.kv, window, 0, 1 / math.sqrt(c.hd), softcap)
        s = 3 * 2 * ((c.hd + 63) // 64) * 8192 + (24576 if c.hd == 64 else 0)
        launch(fn("attn_prefill", f"attn_prefill_{'bf16' if c.dt == torch.bfloat16 else 'f16'}_{c.hd}", s), a, (c.heads, self.n, 1),
               128 * (2 if c.hd == 256 else 3), s, 1, True)

    def want(self, window, softcap):
        c, o, at, r = self.c, [], 0, 0
        for i, (a, n) in enumerate(self.seqs):
            nb = c.nb[i]
            f = lambda x: x[at:at + nb].permute(1, 0, 2, 3).reshape(c.kv, nb * 16, c.hd)[:, : a + n].double().repeat_interleave(c.heads // c.kv, 0)
            s = self.q[r:r + n].double().view(n, c.heads, c.hd).transpose(0, 1) @ f(c.k).transpose(1, 2) / math.sqrt(c.hd)
            if softcap:
                s = softcap * torch.tanh(s / softcap)
            p, k = torch.arange(a, a + n, device="cuda")[:, None], torch.arange(a + n, device="cuda")[None]
            s = s.masked_fill((k > p) | ((k + window <= p) if window else False), float("-inf"))
            o.append((s.softmax(-1) @ f(c.v)).transpose(0, 1).reshape(n, -1))
            at, r = at + nb, r + n
        return torch.cat(o)


def prefill(arg):
    if "check" in arg:
        worst = {}
        for dt in (torch.float16, torch.bfloat16):
            for hd in (64, 96, 128, 256):
                for seqs in ([(0, 1), (0, 70), (100, 300)], [(0, 513)], [(1000, 65), (63, 64)]):
                    for window, cap in ((0, 0.0), (100, 0.0), (0, 20.0)):
                        c = Prompt(seqs, 6, 2, hd, dt)
                        c.run(window, cap)
                        torch.cuda.synchronize()
                        rows = c.q.shape[0]
                        o, w = c.out[:rows, : 6 * hd], c.want(window, cap)
                        e = float((o.double() - w).norm() / w.norm()) if bool(torch.isfinite(o).all()) else float("nan")
                        key = (str(dt)[6:], hd)
                        worst[key] = max(worst.get(key, 0), e) if e == e else e
                        if not e < 1e-2:
                            print("bad", dt, hd, seqs, window, cap, e)
        print("prefill worst", {f"{k[0]}/{k[1]}": f"{v:.1e}" for k, v in worst.items()}, flush=True)
    if "time" in arg:
        for heads, kv, hd in ((32, 8, 128), (32, 8, 64)):
            for n in (512, 4096, 16384):
                cases = [Prompt([(0, n)], heads, kv, hd, torch.float16) for _ in range(2)]
                s = time_graph(lambda: [c.run() for c in cases]) / 2
                fl = 4 * heads * hd * n * n / 2
                print(f"prefill {heads}/{kv}x{hd} rows {n:6} {s * 1e6:8.1f} us {fl / s * 1e-12:6.1f} TFLOP/s", flush=True)


def main():
    arg = sys.argv[1:]
    if "prefill" in arg:
        return prefill(arg)
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
