// Matrix times 1..8 NT rows. A block is 8 or 16 warps; each warp streams the tiles of its 16 rows and its slice of K through a
// ring of its own in shared memory, filled by bulk copies (sm_90) or cp.async. The ring is filled before the input of the
// preceding kernel is waited for. Partial sums are added in the order of the slices, whatever warp or block held them, so
// the result depends on (n, k, type) alone.
#pragma once
#include "experts.cuh"
#include "tile.cuh"

namespace q {

enum { MV_CANON = 256, MV_HEAD = 1792 }; // threads of a norm; head: 1024 B barriers, 512 B reductions, 256 B scales

struct Ring { // one warp's
    u32 base, bar;
    int lane, stages;
    __device__ void init() {
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            for (int i = 0; i < stages; i++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar + 8 * i));
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
            asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        }
        __syncwarp();
#endif
    }
    __device__ __forceinline__ void load(int slot, u32 stage, const u8* src, int bytes, uint64_t policy) {
#if __CUDA_ARCH__ >= 900
        if (lane == 0 && bytes > 0) {
            u32 b = bar + 8 * slot;
            asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
            asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
                             base + slot * stage),
                         "l"(src), "r"(bytes), "r"(b), "l"(policy)
                         : "memory");
        }
#else
        for (int i = lane * 16; i < bytes; i += 512)
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(base + slot * stage + i), "l"(src + i) : "memory");
        asm volatile("cp.async.commit_group;" ::: "memory");
#endif
    }
    __device__ __forceinline__ void wait(int slot, u32 phase) {
#if __CUDA_ARCH__ >= 900
        u32 done = 0;
        while (!done)
            asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                         : "=r"(done)
                         : "r"(bar + 8 * slot), "r"(phase)
                         : "memory");
#else
        switch (stages) {
        case 2: asm volatile("cp.async.wait_group 1;" ::: "memory"); break;
        case 3: asm volatile("cp.async.wait_group 2;" ::: "memory"); break;
        case 4: asm volatile("cp.async.wait_group 3;" ::: "memory"); break;
        case 5: asm volatile("cp.async.wait_group 4;" ::: "memory"); break;
        default: asm volatile("cp.async.wait_group 5;" ::: "memory"); break;
        }
        __syncwarp();
#endif
    }
};

// ---- the input ----

__device__ __forceinline__ float4 load4(const float* p, int k, int kmax, bool aligned) {
    if (aligned && k + 4 <= kmax) return *(const float4*)(p + k);
    float4 v = {0, 0, 0, 0};
    if (k < kmax) v.x = p[k];
    if (k + 1 < kmax) v.y = p[k + 1];
    if (k + 2 < kmax) v.z = p[k + 2];
    if (k + 3 < kmax) v.w = p[k + 3];
    return v;
}

// Factor of row r by which values are multiplied before they are rounded to f16 (norm and a power of two), by the whole
// block of 256 threads in one fixed order. Returns it; *undo is what the product is multiplied by afterwards.
__device__ __forceinline__ float row_factor(const float* xr, const float* gain, int k, int norm, float eps, bool scale, bool aligned,
                                            float* red, float* undo) {
    float ss = 0, am = 0;
    if (norm || scale) {
        const bool gained = norm && gain;
        for (int i0 = threadIdx.x * 4; i0 < k && threadIdx.x < MV_CANON; i0 += MV_CANON * 16) {
            float4 v[4], g[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                v[j] = load4(xr, i0 + j * MV_CANON * 4, k, aligned);
                if (gained) g[j] = load4(gain, i0 + j * MV_CANON * 4, k, true);
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                ss += v[j].x * v[j].x + v[j].y * v[j].y + v[j].z * v[j].z + v[j].w * v[j].w;
                if (gained) v[j].x *= g[j].x, v[j].y *= g[j].y, v[j].z *= g[j].z, v[j].w *= g[j].w;
                am = fmaxf(fmaxf(am, fmaxf(fabsf(v[j].x), fabsf(v[j].y))), fmaxf(fabsf(v[j].z), fabsf(v[j].w)));
            }
        }
        for (int o = 16; o; o >>= 1) {
            ss += __shfl_xor_sync(~0u, ss, o);
            am = fmaxf(am, __shfl_xor_sync(~0u, am, o));
        }
        if ((threadIdx.x & 31) == 0 && threadIdx.x < MV_CANON) red[threadIdx.x >> 5] = ss, red[8 + (threadIdx.x >> 5)] = am;
        __syncthreads();
        ss = 0, am = 0;
        for (int i = 0; i < 8; i++) ss += red[i], am = fmaxf(am, red[8 + i]);
        __syncthreads();
    }
    float f = norm ? 1.f / sqrtf(ss / (float)k + eps) : 1.f;
    *undo = 1.f;
    if (!scale) return f;
    int e = (int)(__float_as_uint(am * f) >> 23) - 127 - 14; // largest magnitude into [2^14, 2^15)
    if (!(am * f > 0.f) || e > 100) e = 0;                     // zeros, infinities and NaN as they are
    if (e < -100) e = -100;
    *undo = __uint_as_float((u32)(e + 127) << 23);
    return f * __uint_as_float((u32)(127 - e) << 23);
}

// Writes 4 values at column k of a row: f16, or bf16 and what is left of it.
template <int BF> __device__ __forceinline__ float4 round4(float4 v, uint2* hi, uint2* lo) {
    if (BF) {
        __nv_bfloat162 a = __floats2bfloat162_rn(v.x, v.y), b = __floats2bfloat162_rn(v.z, v.w);
        float2 fa = __bfloat1622float2(a), fb = __bfloat1622float2(b);
        __nv_bfloat162 c = __floats2bfloat162_rn(v.x - fa.x, v.y - fa.y), d = __floats2bfloat162_rn(v.z - fb.x, v.w - fb.y);
        *hi = make_uint2(*(u32*)&a, *(u32*)&b), *lo = make_uint2(*(u32*)&c, *(u32*)&d);
        return v;
    }
    __half2 a = __floats2half2_rn(v.x, v.y), b = __floats2half2_rn(v.z, v.w);
    *hi = make_uint2(*(u32*)&a, *(u32*)&b);
    float2 fa = __half22float2(a), fb = __half22float2(b);
    return make_float4(fa.x, fa.y, fb.x, fb.y);
}
// The odd pairs of 4-bit formats: two halves / 16.
__device__ __forceinline__ u32 by16(u32 v) {
    __half2 h = __hmul2(*(__half2*)&v, __float2half2_rn(0.0625f));
    return *(u32*)&h;
}

struct MvExpertArgs : TileArgs {
    static constexpr bool EXPERTS = true;
    ExpertArgs e;
};

struct Shared { // where things lie in dynamic shared memory; the host computes the same (mv_shared)
    u32 ring, part, sums, xs, xstride, plane, total;
};
__host__ __device__ inline Shared mv_shared(u32 warps, u32 stages, u32 stage, u32 planes, u32 sg, u32 nt, u32 rows, u32 kcols, bool reduce) {
    Shared s;
    s.ring = MV_HEAD;
    s.part = s.ring + warps * stages * ((stage + 127) & ~127u);
    s.sums = s.part + (reduce ? nt * warps * 1024 : 0);
    s.xs = s.sums + (sg ? kcols / sg * nt * 32 : 0);
    s.xstride = kcols * 2 + (kcols % 64 == 0 ? 64 : 0);
    s.plane = rows * s.xstride;
    s.total = s.xs + s.plane * planes;
    return s;
}

// With experts: the rows are those of the pairs of tile blockIdx.y, the weights their expert's.
template <class F, int NT, class A> __device__ __forceinline__ void mv_body(const A& a) {
    extern __shared__ __align__(128) u8 sm[];
    constexpr u32 STAGE = F::TILE * F::ST, SLOT = (STAGE + 127) & ~127u;
    const int stages = a.stages, threads = blockDim.x, warps = threads >> 5;
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int wk = a.wk, ck = a.ck, slices = wk * ck, wr = warps / wk;
    const int crank = ck > 1 ? blockIdx.x % ck : 0, unit0 = blockIdx.x / ck, ustride = gridDim.x / ck;
    const int tiles = (a.n + 15) >> 4, tk = (a.k + F::KT - 1) / F::KT, units = (tiles + wr - 1) / wr;
    const int slice = crank * wk + warp % wk;
    const int k0 = tk * slice / slices, k1 = tk * (slice + 1) / slices;
    const int kb0 = tk * (crank * wk) / slices, kb1 = tk * (crank * wk + wk) / slices; // the block's columns, in tiles
    const int kcmax = ((tk + ck - 1) / ck + (ck > 1)) * F::KT;
    const Shared L = mv_shared(warps, stages, STAGE, F::PLANES, F::SG, NT, a.rows, kcmax, slices > 1);
    int rows = a.rows;
    const u8* weights = a.w;
    Pairs pairs = {0, 0, 0};
    int64_t* places = (int64_t*)(sm + 1664); // of the pairs' outputs; 8 fit
    if constexpr (A::EXPERTS) {
        static_assert(NT == 1, "");
        pdl_launch();
        pdl_wait();
        if (!a.e.find(blockIdx.y, &pairs)) return; // alike in all blocks of a cluster
        rows = pairs.count;
        weights += (pairs.expert - a.e.low) * a.e.w_stride;
        if (tid < rows) places[tid] = a.e.place(pairs, tid, a.ldo, a.e.out_block);
    }

    // The ring, full of weights before anything else.
    Ring ring;
    ring.base = smem_addr(sm + L.ring) + warp * stages * SLOT;
    ring.bar = smem_addr(sm) + warp * stages * 8;
    ring.lane = lane, ring.stages = stages;
    ring.init();
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    int pu = unit0, pk = k0, slot = 0;
    u32 phase = 0;
    auto refill = [&](int at) {
        int rt = pu * wr + warp / wk, bytes = 0;
        const u8* src = weights;
        if (pu < units && rt < tiles && k0 < k1) {
            bytes = min((int)F::ST, k1 - pk) * F::TILE;
            src += ((size_t)rt * tk + pk) * F::TILE;
            pk += F::ST;
            if (pk >= k1) pk = k0, pu += ustride;
        }
        ring.load(at, SLOT, src, bytes, policy);
    };
    for (int i = 0; i < stages; i++) refill(i);
    pdl_launch();
    pdl_wait();

    // The input: this block's columns of every row, in the order of fragments, and the sums of its groups.
    float* red = (float*)(sm + 1024);
    float* undo = (float*)(sm + 1536);
    float* sums = (float*)(sm + L.sums);
    const int kbase = kb0 * F::KT, kcols = (kb1 - kb0) * F::KT;
    if (F::SG)
        for (int i = tid; i < kcols / (F::SG ? F::SG : 1) * 8 * NT; i += threads) sums[i] = 0;
    __syncthreads();
    if (!A::EXPERTS && a.xp) {
        const int kp = (a.k + 63) & ~63;
        if (tid < a.rows) undo[tid] = a.rscale[tid];
        const u32 chunks = kcols / 8, groups = F::SG ? kcols / (F::SG ? F::SG : 1) : 0;
#pragma unroll
        for (int pl = 0; pl < F::PLANES; pl++)
            for (u32 i0 = tid; i0 < a.rows * chunks; i0 += threads * 8) {
                uint4 v[8];
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    u32 i = i0 + j * threads, r = i / chunks;
                    if (r < a.rows) v[j] = ((const uint4*)a.xp)[((size_t)(pl * a.rows + r) * kp + kbase) / 8 + i - r * chunks];
                }
#pragma unroll
                for (int j = 0; j < 8; j++) {
                    u32 i = i0 + j * threads, r = i / chunks;
                    if (F::X16) v[j].y = by16(v[j].y), v[j].w = by16(v[j].w);
                    if (r < a.rows) ((uint4*)(sm + L.xs + pl * L.plane + r * L.xstride))[i - r * chunks] = v[j];
                }
            }
        for (u32 i0 = tid; i0 < a.rows * groups; i0 += threads * 4) {
            float s[4];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 i = i0 + j * threads, r = i / groups;
                const float* s16 = a.sums + ((size_t)r * kp + kbase) / 16 + (i - r * groups) * (F::SG / 16);
                s[j] = 0;
                if (r < a.rows) s[j] = F::SG == 32 ? s16[0] + s16[1] : s16[0];
            }
#pragma unroll
            for (int j = 0; j < 4; j++) {
                u32 i = i0 + j * threads, r = i / groups;
                if (r < a.rows) sums[(i - r * groups) * 8 * NT + r] = s[j] * F::SMUL;
            }
        }
    } else {
        bool aligned = a.ldx % 4 == 0;
        if constexpr (A::EXPERTS) aligned = aligned && a.e.x_block % 4 == 0 && (uint64_t)a.x % 16 == 0;
        for (int r = 0; r < rows; r++) {
            const float* xr = a.x + r * a.ldx;
            if constexpr (A::EXPERTS) xr = a.x + a.e.place(pairs, r, a.ldx, a.e.x_block);
            float u, f = row_factor(xr, a.gain, a.k, a.norm, a.eps, !F::BF, aligned, red, &u);
            if (tid == 0) undo[r] = u;
            u8* row = sm + L.xs + r * L.xstride;
            for (int i0 = tid * 4; i0 < (kcols + 127) / 128 * 128; i0 += threads * 16) {
                float4 vs[4], gs[4];
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int i = i0 + j * threads * 4;
                    vs[j] = make_float4(0, 0, 0, 0), gs[j] = make_float4(1, 1, 1, 1);
                    if (i < kcols) {
                        vs[j] = load4(xr, kbase + i, a.k, aligned);
                        if (a.norm && a.gain) gs[j] = load4(a.gain, kbase + i, a.k, true);
                    }
                }
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    int i = i0 + j * threads * 4;
                    float4 v = vs[j], g = gs[j];
                    v.x *= f * g.x, v.y *= f * g.y, v.z *= f * g.z, v.w *= f * g.w;
                    uint2 hi, lo;
                    v = round4<F::BF>(v, &hi, &lo);
                    if (F::SG) {
                        float s = (v.x + v.y) + (v.z + v.w);
                        s += __shfl_xor_sync(~0u, s, 1);
                        s += __shfl_xor_sync(~0u, s, 2);
                        if (F::SG == 32) s += __shfl_xor_sync(~0u, s, 4);
                        if (i < kcols && i % (F::SG ? F::SG : 1) == 0) sums[i / (F::SG ? F::SG : 1) * 8 * NT + r] = s * F::SMUL;
                    }
                    if (i < kcols) {
                        if (F::X16) hi.y = by16(hi.y);
                        u8* at = row + ((i & ~31) + pos32(i & 31)) * 2;
                        *(uint2*)at = hi;
                        if (F::PLANES == 2) *(uint2*)(at + L.plane) = lo;
                    }
                }
            }
        }
    }
    __syncthreads();

    Ctx<NT> c;
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) c.x[nt] = (const char*)sm + L.xs + min(nt * 8 + g, rows - 1) * L.xstride + t * 16;
    c.plane = L.plane;
    c.su = sums + 2 * t;
    const int half = a.n >> 1;
    const bool glu = a.act >= 0;
    const float* part0 = (const float*)(sm + L.part);
    int parity = 0;

    // One output: row of the tile (of the gate with glu), column, the sums.
    auto emit = [&](int rt, int row, int col, float v, float v2) {
        float u = undo[col] * F::FIN;
        v *= u, v2 *= u;
        int o;
        if constexpr (A::EXPERTS) {
            const float* bias = a.bias ? a.bias + (int64_t)pairs.expert * (glu ? half : a.n) : nullptr;
            o = rt * (glu ? 8 : 16) + row;
            if (o >= (glu ? half : a.n)) return;
            if (bias) v += bias[o];
            if (glu) {
                if (bias) v2 += bias[a.e.up_bias + o];
                v = gated(v, v2, a.act, a.e.alpha, a.e.limit);
            }
            a.out[places[col] + o] = v;
            return;
        }
        if (glu) {
            o = rt * 8 + row;
            if (o >= half) return;
            if (a.bias) v += a.bias[o], v2 += a.bias[half + o];
            v = activate(v, a.act) * v2;
        } else {
            o = rt * 16 + row;
            if (o >= a.n) return;
            if (a.bias) v += a.bias[o];
            if (a.add) v += a.add[col * a.ldadd + o];
        }
        a.out[col * a.ldo + o] = v;
    };

    for (int u = unit0; u < units; u += ustride) {
        const int rt = u * wr + warp / wk;
#pragma unroll
        for (int nt = 0; nt < NT; nt++) c.acc[nt][0] = c.acc[nt][1] = c.acc[nt][2] = c.acc[nt][3] = 0;
        if (rt < tiles)
            for (int kt = k0; kt < k1; kt += F::ST) {
                ring.wait(slot, phase);
                const u8* p = sm + L.ring + (warp * stages + slot) * SLOT;
                const int n = min((int)F::ST, k1 - kt);
#pragma unroll
                for (int i = 0; i < F::ST; i++)
                    if (F::ST == 1 || i < n) F::run(p + i * F::TILE, lane, (kt + i - kb0) * (F::KT / 32), c);
                __syncwarp();
                refill(slot);
                if (++slot == stages) slot = 0, phase ^= 1;
            }
        if (slices == 1) {
            if (rt < tiles) {
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        int col = nt * 8 + 2 * t + j;
                        if (col < rows) {
                            emit(rt, g, col, c.acc[nt][j], c.acc[nt][2 + j]);
                            if (!glu) emit(rt, g + 8, col, c.acc[nt][2 + j], 0);
                        }
                    }
            }
            continue;
        }
        // [warp][column][16 rows], two buffers so that one barrier a unit is enough.
        float* part = (float*)(sm + L.part) + parity * NT * 128 * warps;
#pragma unroll
        for (int nt = 0; nt < NT; nt++)
#pragma unroll
            for (int j = 0; j < 2; j++) {
                float* at = part + (warp * NT * 8 + nt * 8 + 2 * t + j) * 16;
                at[g] = c.acc[nt][j], at[g + 8] = c.acc[nt][2 + j];
            }
#if __CUDA_ARCH__ >= 900
        if (ck > 1)
            asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
        else
#endif
            __syncthreads();
        const int per = glu ? 8 : 16, total = wr * per * rows;
        auto sum = [&](int w0, int row, int col) {
            float v = 0;
            for (int cr = 0; cr < ck; cr++)
                for (int j = 0; j < wk; j++) {
                    const float* at = part0 + parity * NT * 128 * warps + ((w0 + j) * NT * 8 + col) * 16 + row;
#if __CUDA_ARCH__ >= 900
                    if (ck > 1) {
                        u32 ad;
                        float f;
                        asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(ad) : "r"(smem_addr(at)), "r"(cr));
                        asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(f) : "r"(ad) : "memory");
                        v += f;
                    } else
#endif
                        v += *at;
                }
            return v;
        };
        for (int e = tid + crank * threads; e < total; e += threads * ck) {
            int row = e % per, w = e / per % wr, col = e / (per * wr), tile = u * wr + w;
            if (tile >= tiles) continue;
            emit(tile, row, col, sum(w * wk, row, col), glu ? sum(w * wk, row + 8, col) : 0.f);
        }
        parity ^= 1;
    }
#if __CUDA_ARCH__ >= 900
    if (ck > 1) asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

#define MV_EXPERTS(NAME, FMT, PER)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256, PER) mvx_##NAME(const __grid_constant__ q::MvExpertArgs a) { q::mv_body<q::FMT, 1>(a); }

#define MV_KERNEL(NAME, FMT)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(512, 1) mv_##NAME##_8(const __grid_constant__ q::TileArgs a) { q::mv_body<q::FMT, 1>(a); }  \
    extern "C" __global__ void __launch_bounds__(256, 1) mv_##NAME##_16(const __grid_constant__ q::TileArgs a) { q::mv_body<q::FMT, 2>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 1) mv_##NAME##_32(const __grid_constant__ q::TileArgs a) { q::mv_body<q::FMT, 4>(a); }

} // namespace q
