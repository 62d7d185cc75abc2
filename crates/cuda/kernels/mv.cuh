// Matrix times 1..8 NT rows. A block is 8 warps; each warp streams the tiles of its 16 rows and its slice of K through a
// ring of its own in shared memory, filled by bulk copies (sm_90) or cp.async. The ring is filled before the input of the
// preceding kernel is waited for. Partial sums are added in the order of the slices, whatever warp or block held them, so
// the result depends on (n, k, type) alone.
#pragma once
#include "tile.cuh"

namespace q {

enum { MV_THREADS = 256, MV_HEAD = 1280 }; // head: 512 B barriers, 512 B reductions, 256 B scales

__host__ __device__ constexpr int mv_stages(int stage) { return stage > 2560 ? 3 : 4; } // of a warp's ring

template <int STAGES> struct Ring { // one warp's
    u32 base, bar;
    int lane;
    __device__ void init() {
#if __CUDA_ARCH__ >= 900
        if (lane == 0) {
            for (int i = 0; i < STAGES; i++) asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(bar + 8 * i));
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
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 1) : "memory");
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
        for (int i = threadIdx.x * 4; i < k; i += MV_THREADS * 4) {
            float4 v = load4(xr, i, k, aligned);
            ss += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
            if (norm && gain) {
                float4 g = load4(gain, i, k, true);
                v.x *= g.x, v.y *= g.y, v.z *= g.z, v.w *= g.w;
            }
            am = fmaxf(fmaxf(am, fmaxf(fabsf(v.x), fabsf(v.y))), fmaxf(fabsf(v.z), fabsf(v.w)));
        }
        for (int o = 16; o; o >>= 1) {
            ss += __shfl_xor_sync(~0u, ss, o);
            am = fmaxf(am, __shfl_xor_sync(~0u, am, o));
        }
        if ((threadIdx.x & 31) == 0) red[threadIdx.x >> 5] = ss, red[8 + (threadIdx.x >> 5)] = am;
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

struct Shared { // where things lie in dynamic shared memory; the host computes the same (mv_shared)
    u32 ring, part, sums, xs, xstride, plane, total;
};
__host__ __device__ inline Shared mv_shared(u32 stage, u32 planes, u32 sg, u32 nt, u32 rows, u32 kcols, bool reduce) {
    Shared s;
    s.ring = MV_HEAD;
    s.part = s.ring + 8 * mv_stages(stage) * ((stage + 127) & ~127u);
    s.sums = s.part + (reduce ? nt * 8192 : 0);
    s.xs = s.sums + (sg ? kcols / sg * nt * 32 : 0);
    s.xstride = kcols * 2 + (kcols % 64 == 0 ? 64 : 0);
    s.plane = rows * s.xstride;
    s.total = s.xs + s.plane * planes;
    return s;
}

template <class F, int NT> __device__ __forceinline__ void mv_body(const TileArgs& a) {
    extern __shared__ __align__(128) u8 sm[];
    constexpr u32 STAGE = F::TILE * F::ST, SLOT = (STAGE + 127) & ~127u;
    constexpr int STAGES = mv_stages(STAGE);
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31;
    const int wk = a.wk, ck = a.ck, slices = wk * ck, wr = 8 / wk;
    const int crank = ck > 1 ? blockIdx.x % ck : 0, unit0 = blockIdx.x / ck, ustride = gridDim.x / ck;
    const int tiles = (a.n + 15) >> 4, tk = (a.k + F::KT - 1) / F::KT, units = (tiles + wr - 1) / wr;
    const int slice = crank * wk + warp % wk;
    const int k0 = tk * slice / slices, k1 = tk * (slice + 1) / slices;
    const int kb0 = tk * (crank * wk) / slices, kb1 = tk * (crank * wk + wk) / slices; // the block's columns, in tiles
    const int kcmax = ((tk + ck - 1) / ck + (ck > 1)) * F::KT;
    const Shared L = mv_shared(STAGE, F::PLANES, F::SG, NT, a.rows, kcmax, slices > 1);

    // The ring, full of weights before anything else.
    Ring<STAGES> ring;
    ring.base = smem_addr(sm + L.ring) + warp * STAGES * SLOT;
    ring.bar = smem_addr(sm) + warp * STAGES * 8;
    ring.lane = lane;
    ring.init();
    uint64_t policy = 0;
#if __CUDA_ARCH__ >= 900
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
#endif
    int pu = unit0, pk = k0, slot = 0;
    u32 phase = 0;
    auto refill = [&](int at) {
        int rt = pu * wr + warp / wk, bytes = 0;
        const u8* src = a.w;
        if (pu < units && rt < tiles && k0 < k1) {
            bytes = min((int)F::ST, k1 - pk) * F::TILE;
            src += ((size_t)rt * tk + pk) * F::TILE;
            pk += F::ST;
            if (pk >= k1) pk = k0, pu += ustride;
        }
        ring.load(at, SLOT, src, bytes, policy);
    };
    for (int i = 0; i < STAGES; i++) refill(i);
    pdl_launch();
    pdl_wait();

    // The input: this block's columns of every row, in the order of fragments, and the sums of its groups.
    float* red = (float*)(sm + 512);
    float* undo = (float*)(sm + 1024);
    float* sums = (float*)(sm + L.sums);
    const int kbase = kb0 * F::KT, kcols = (kb1 - kb0) * F::KT;
    if (F::SG)
        for (int i = tid; i < kcols / (F::SG ? F::SG : 1) * 8 * NT; i += MV_THREADS) sums[i] = 0;
    __syncthreads();
    if (a.xp) {
        const int kp = (a.k + 63) & ~63;
        if (tid < a.rows) undo[tid] = a.rscale[tid];
        for (int r = 0; r < a.rows; r++) {
#pragma unroll
            for (int pl = 0; pl < F::PLANES; pl++) {
                const uint4* src = (const uint4*)a.xp + ((size_t)(pl * a.rows + r) * kp + kbase) / 8;
                uint4* dst = (uint4*)(sm + L.xs + pl * L.plane + r * L.xstride);
                for (int i = tid; i < kcols / 8; i += MV_THREADS) {
                    uint4 v = src[i];
                    if (F::X16) v.y = by16(v.y), v.w = by16(v.w);
                    dst[i] = v;
                }
            }
            if (F::SG) {
                const float* s16 = a.sums + ((size_t)r * kp + kbase) / 16;
                constexpr int M = F::SG / 16 ? F::SG / 16 : 1;
                for (int i = tid; i < kcols / (16 * M); i += MV_THREADS) {
                    float s = s16[i * M];
                    if (M == 2) s += s16[i * M + 1];
                    sums[i * 8 * NT + r] = s * F::SMUL;
                }
            }
        }
    } else {
        const bool aligned = a.ldx % 4 == 0;
        for (int r = 0; r < a.rows; r++) {
            const float* xr = a.x + r * a.ldx;
            float u, f = row_factor(xr, a.gain, a.k, a.norm, a.eps, !F::BF, aligned, red, &u);
            if (tid == 0) undo[r] = u;
            u8* row = sm + L.xs + r * L.xstride;
            for (int i = tid * 4; i < (kcols + 127) / 128 * 128; i += MV_THREADS * 4) {
                int k = kbase + i;
                float4 v = {0, 0, 0, 0};
                if (i < kcols) {
                    v = load4(xr, k, a.k, aligned);
                    float4 g = {1, 1, 1, 1};
                    if (a.norm && a.gain) g = load4(a.gain, k, a.k, true);
                    v.x *= f * g.x, v.y *= f * g.y, v.z *= f * g.z, v.w *= f * g.w;
                }
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
    __syncthreads();

    Ctx<NT> c;
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int nt = 0; nt < NT; nt++) c.x[nt] = (const char*)sm + L.xs + min(nt * 8 + g, a.rows - 1) * L.xstride + t * 16;
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
                const u8* p = sm + L.ring + (warp * STAGES + slot) * SLOT;
                const int n = min((int)F::ST, k1 - kt);
#pragma unroll
                for (int i = 0; i < F::ST; i++)
                    if (F::ST == 1 || i < n) F::run(p + i * F::TILE, lane, (kt + i - kb0) * (F::KT / 32), c);
                __syncwarp();
                refill(slot);
                if (++slot == STAGES) slot = 0, phase ^= 1;
            }
        if (slices == 1) {
            if (rt < tiles) {
#pragma unroll
                for (int nt = 0; nt < NT; nt++)
#pragma unroll
                    for (int j = 0; j < 2; j++) {
                        int col = nt * 8 + 2 * t + j;
                        if (col < a.rows) {
                            emit(rt, g, col, c.acc[nt][j], c.acc[nt][2 + j]);
                            if (!glu) emit(rt, g + 8, col, c.acc[nt][2 + j], 0);
                        }
                    }
            }
            continue;
        }
        // [warp][column][16 rows], two buffers so that one barrier a unit is enough.
        float* part = (float*)(sm + L.part) + parity * NT * 1024;
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
        const int per = glu ? 8 : 16, total = wr * per * a.rows;
        auto sum = [&](int w0, int row, int col) {
            float v = 0;
            for (int cr = 0; cr < ck; cr++)
                for (int j = 0; j < wk; j++) {
                    const float* at = part0 + parity * NT * 1024 + ((w0 + j) * NT * 8 + col) * 16 + row;
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
        for (int e = tid + crank * MV_THREADS; e < total; e += MV_THREADS * ck) {
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

#define MV_KERNEL(NAME, FMT)                                                                                                      \
    extern "C" __global__ void __launch_bounds__(256, 2) mv_##NAME##_8(const __grid_constant__ q::TileArgs a) { q::mv_body<q::FMT, 1>(a); }  \
    extern "C" __global__ void __launch_bounds__(256, 1) mv_##NAME##_16(const __grid_constant__ q::TileArgs a) { q::mv_body<q::FMT, 2>(a); } \
    extern "C" __global__ void __launch_bounds__(256, 1) mv_##NAME##_32(const __grid_constant__ q::TileArgs a) { q::mv_body<q::FMT, 4>(a); }

} // namespace q
