// Products for many rows on Hopper: Y^T = W X^T by wgmma, W as the A operand in registers, so that a tile of tile.cuh goes
// from shared memory through a few integer operations straight into the tensor cores, whatever its type. X is B: prepared
// by mm_prep_* as the image of shared memory (k-blocks of 64, 8 rows, 128-byte swizzle), so bulk copies need no tensor maps.
// A block: 128 rows of W x NTOK rows of X; one warp copies, two warpgroups compute. Sharing X between two blocks by multicast
// was tried and was slower by half (docs/cuda-kernels.md).
#pragma once
#include "experts.cuh"
#include "tile.cuh"
#include "wgmma.cuh"

namespace q {

struct alignas(8) MmArgs {
    static constexpr bool EXPERTS = false;
    const u8* w;         // tiles
    const u8* x;         // image: [kp / 64][xrows / 8][1024 bytes]
    const float* rscale; // [rows]
    const float* bias;   // [n] or null
    const float* add;    // or null
    float* out;
    int64_t ldadd, ldo;
    int32_t n, k, rows;
    int32_t xrows;       // rows of the image, a multiple of NTOK and at least rows
    int32_t act;
    int32_t planes;      // of the image: 2 where bf16 inputs are followed by what rounding left of them
};

// The rows of a token tile are the pairs of a tile of experts; the image has NTOK rows for each.
struct MmExpertArgs : MmArgs {
    static constexpr bool EXPERTS = true;
    ExpertArgs e;
};

// ---- a group of 32 columns as f16 fragments, scaled; WS keeps small scales out of the subnormals ----

#define Q_WS 256.f
__device__ __forceinline__ __half2 as_h2(u32 v) { return *(__half2*)&v; }
__device__ __forceinline__ u32 as_u32(__half2 v) { return *(u32*)&v; }

// Codes (16 x where ODD16 and the pair is odd) to values: ((code) - BIAS) * s + m.
template <bool ODD16, int BIAS, bool MINS>
__device__ __forceinline__ void values(u32* a, float s0, float s1, float m0 = 0, float m1 = 0) {
    const __half2 s[2] = {__float2half2_rn(s0), __float2half2_rn(s1)}, m[2] = {__float2half2_rn(m0), __float2half2_rn(m1)};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        __half2 v = as_h2(a[i] | 0x64006400u);
        v = ODD16 && (i & 2) ? __hfma2(v, __float2half2_rn(0.0625f), __float2half2_rn(-64.f - BIAS))
                             : __hadd2(v, __float2half2_rn(-1024.f - BIAS));
        a[i] = as_u32(MINS ? __hfma2(v, s[i & 1], m[i & 1]) : __hmul2(v, s[i & 1]));
    }
}
// Groups of 16: a[0..4] and a[4..8] have scales of their own; s: row g (2), row g + 8 (2).
template <bool ODD16, int BIAS, bool MINS> __device__ __forceinline__ void values16(u32* a, const float* s, const float* mn = nullptr) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        int j = (i & 1) * 2 + (i >> 2);
        __half2 v = as_h2(a[i] | 0x64006400u), sc = __float2half2_rn(s[j]);
        v = ODD16 && (i & 2) ? __hfma2(v, __float2half2_rn(0.0625f), __float2half2_rn(-64.f - BIAS))
                             : __hadd2(v, __float2half2_rn(-1024.f - BIAS));
        a[i] = as_u32(MINS ? __hfma2(v, sc, __float2half2_rn(mn[j])) : __hmul2(v, sc));
    }
}

template <class F> struct Frag; // go(tile, lane, group, a[8]); FIN
#define Q_FRAG(FMT, ISBF, FINAL)                                                    \
    template <> struct Frag<FMT> {                                                  \
        static constexpr bool BF = ISBF;                                            \
        static constexpr float FIN = FINAL;                                         \
        static __device__ __forceinline__ void go(const u8* p, int lane, int j, u32* a)

#define Q_PLAIN                                                                     \
    {                                                                               \
        uint4 a0 = lds128(p + j * 1024 + lane * 16), a1 = lds128(p + j * 1024 + 512 + lane * 16); \
        a[0] = a0.x, a[1] = a0.y, a[2] = a0.z, a[3] = a0.w, a[4] = a1.x, a[5] = a1.y, a[6] = a1.z, a[7] = a1.w; \
    }                                                                               \
    }
Q_FRAG(FmtBF16, true, 1.f) Q_PLAIN;
Q_FRAG(FmtF16, false, 1.f) Q_PLAIN;

template <int BITS, bool MINS> struct Frag<FmtQ<BITS, MINS>> {
    typedef FmtQ<BITS, MINS> F;
    static constexpr bool BF = false;
    static constexpr float FIN = 1.f / Q_WS;
    static __device__ __forceinline__ void go(const u8* p, int lane, int j, u32* a) {
        if (BITS == 8) {
            uint4 v = lds128(p + j * 512 + lane * 16);
            bytes4<0>(v.x, v.y, a), bytes4<1>(v.z, v.w, a);
        } else {
            uint2 v = *(const uint2*)(p + lane * 16 + j * 8);
            nibbles<0>(v.x, a), nibbles<1>(v.y, a);
            if (BITS == 5) {
                u32 h = *(const u32*)(p + 512 + lane * 4) >> (8 * j);
                bit5<0, 0>(h, a), bit5<1, 0>(h, a);
            }
        }
        const u8* s = p + F::CODES + F::HIGH;
        int g = lane >> 2;
        constexpr int BIAS = MINS ? 0 : 1 << (BITS - 1);
        if (MINS) {
            uint2 v = *(const uint2*)(s + g * 16 + j * 8);
            float2 s0 = halves(v.x), s1 = halves(v.y);
            values<BITS != 8, BIAS, true>(a, s0.x * Q_WS, s1.x * Q_WS, s0.y * Q_WS, s1.y * Q_WS);
        } else {
            float2 d = halves(*(const u32*)(s + g * 8 + j * 4));
            values<BITS != 8, BIAS, false>(a, d.x * Q_WS, d.y * Q_WS);
        }
    }
};
template <bool MX> struct Frag<FmtT<MX>> {
    static constexpr bool BF = false;
    static constexpr float FIN = 1.f / Q_WS;
    static __device__ __forceinline__ void go(const u8* p, int lane, int j, u32* a) {
        u32 t[4];
        if (MX) table_mx4(t);
        else table_iq4(t);
        uint2 v = *(const uint2*)(p + lane * 16 + j * 8);
        table8<0>(t, v.x, a), table8<1>(t, v.y, a);
        int g = lane >> 2;
        float2 d;
        if (MX) {
            u32 e = *(const uint16_t*)(p + 512 + g * 4 + j * 2);
            d.x = __uint_as_float(max((int)(e & 255) - 1, 0) << 23), d.y = __uint_as_float(max((int)(e >> 8) - 1, 0) << 23);
        } else d = halves(*(const u32*)(p + 512 + g * 8 + j * 4));
        values<false, 128, false>(a, d.x * Q_WS, d.y * Q_WS);
    }
};
// Scale and minimum j, j a compile-time constant after unrolling.
__device__ __forceinline__ u32 six_at(const uint4& r, int j) {
    switch (j) {
    case 0: return six<0>(r);
    case 1: return six<1>(r);
    case 2: return six<2>(r);
    case 3: return six<3>(r);
    case 4: return six<4>(r);
    case 5: return six<5>(r);
    case 6: return six<6>(r);
    default: return six<7>(r);
    }
}
template <bool FIVE> struct Frag<FmtK45<FIVE>> {
    typedef FmtK45<FIVE> F;
    static constexpr bool BF = false;
    static constexpr float FIN = 1.f / Q_WS;
    static __device__ __forceinline__ void go(const u8* p, int lane, int j, u32* a) {
        uint2 v = *(const uint2*)(p + (j >> 1) * 512 + lane * 16 + (j & 1) * 8);
        nibbles<0>(v.x, a), nibbles<1>(v.y, a);
        if (FIVE) {
            u32 h = *(const u32*)(p + 2048 + (j >> 1) * 128 + lane * 4) >> (8 * (j & 1));
            bit5<0, 0>(h, a), bit5<1, 0>(h, a);
        }
        const u8* s = p + 2048 + F::HIGH + (lane >> 2) * 16;
        uint4 r0 = lds128(s), r1 = lds128(s + 128);
        float2 d0 = halves(r0.x), d1 = halves(r1.x), e0 = halves(six_at(r0, j)), e1 = halves(six_at(r1, j));
        constexpr float K = Q_WS * Q_2F24;
        values<true, 0, true>(a, d0.x * K * e0.x, d1.x * K * e1.x, -d0.y * K * e0.y, -d1.y * K * e1.y);
    }
};
Q_FRAG(FmtQ6K, false, 1.f / Q_WS) {
    uint2 v = *(const uint2*)(p + (j >> 1) * 512 + lane * 16 + (j & 1) * 8);
    u32 h = *(const u32*)(p + 2048 + (j >> 1) * 256 + lane * 8 + (j & 1) * 4);
    nibbles<0>(v.x, a), nibbles<1>(v.y, a);
    bits56<0>(h, a), bits56<1>(h, a);
    int g = lane >> 2, b = 2 * j;
    float2 d = halves(*(const u32*)(p + 3328 + g * 4));
    d.x *= Q_WS, d.y *= Q_WS;
    u32 w0 = *(const uint16_t*)(p + 3072 + g * 16 + b), w1 = *(const uint16_t*)(p + 3200 + g * 16 + b);
    float s[4] = {d.x * byte_minus128(w0, 0), d.x * byte_minus128(w0, 1), d.y * byte_minus128(w1, 0), d.y * byte_minus128(w1, 1)};
    values16<true, 32, false>(a, s);
}
};
Q_FRAG(FmtQ3K, false, 1.f / Q_WS) {
    u32 v = *(const u32*)(p + (j >> 2) * 512 + lane * 16 + (j & 3) * 4);
    u32 h = *(const u32*)(p + 1024 + lane * 16 + (j >> 1) * 4) >> (8 * (j & 1));
    bits2<0>(v, a), bits2<1>(v, a);
    bit3<0, 0>(h, a), bit3<1, 0>(h, a);
    int g = lane >> 2, b = 2 * j;
    float2 d = halves(*(const u32*)(p + 1792 + g * 4));
    d.x *= Q_WS, d.y *= Q_WS;
    u32 w0 = *(const uint16_t*)(p + 1536 + g * 16 + b), w1 = *(const uint16_t*)(p + 1664 + g * 16 + b);
    float s[4] = {d.x * byte_minus128(w0, 0), d.x * byte_minus128(w0, 1), d.y * byte_minus128(w1, 0), d.y * byte_minus128(w1, 1)};
    values16<false, 4, false>(a, s);
}
};
Q_FRAG(FmtQ2K, false, 1.f / Q_WS) {
    u32 v = *(const u32*)(p + (j >> 2) * 512 + lane * 16 + (j & 3) * 4);
    bits2<0>(v, a), bits2<1>(v, a);
    int g = lane >> 2;
    uint2 dd = *(const uint2*)(p + 1280 + g * 8);
    float2 d0 = halves(dd.x), d1 = halves(dd.y);
    constexpr float K = Q_WS * Q_2F24;
    u32 w0 = *(const u32*)(p + 1024 + g * 16 + (j >> 1) * 4) >> (8 * (j & 1)), w1 = *(const u32*)(p + 1152 + g * 16 + (j >> 1) * 4) >> (8 * (j & 1));
    float2 e0 = halves(w0 & 0x000F000Fu), e1 = halves((w0 >> 4) & 0x000F000Fu), f0 = halves(w1 & 0x000F000Fu), f1 = halves((w1 >> 4) & 0x000F000Fu);
    float s[4] = {d0.x * K * e0.x, d0.x * K * e1.x, d1.x * K * f0.x, d1.x * K * f1.x};
    float m[4] = {-d0.y * K * e0.y, -d0.y * K * e1.y, -d1.y * K * f0.y, -d1.y * K * f1.y};
    values16<false, 0, true>(a, s, m);
}
};
Q_FRAG(FmtIQ4XS, false, 1.f / Q_WS) {
    u32 t[4];
    table_iq4(t);
    uint2 v = *(const uint2*)(p + (j >> 1) * 512 + lane * 16 + (j & 1) * 8);
    table8<0>(t, v.x, a), table8<1>(t, v.y, a);
    int g = lane >> 2;
    float2 d = halves(*(const u32*)(p + 2176 + g * 4));
    u32 w0 = p[2048 + g * 8 + j], w1 = p[2112 + g * 8 + j];
    values<false, 128, false>(a, d.x * Q_WS * byte_minus128(w0, 0), d.y * Q_WS * byte_minus128(w1, 0));
}
};

// ---- barriers ----

__device__ __forceinline__ void bar_init(u32 b, int n) { asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(b), "r"(n)); }
__device__ __forceinline__ void bar_wait(u32 b, u32 phase) {
    u32 done = 0;
    while (!done)
        asm volatile("{.reg .pred p; mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2; selp.u32 %0, 1, 0, p;}"
                     : "=r"(done)
                     : "r"(b), "r"(phase)
                     : "memory");
}
__device__ __forceinline__ void bar_expect(u32 b, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(b), "r"(bytes) : "memory");
}
__device__ __forceinline__ void bar_arrive(u32 b) { asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(b) : "memory"); }
__device__ __forceinline__ void bulk(u32 dst, const void* src, int bytes, u32 bar) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(dst), "l"(src), "r"(bytes), "r"(bar)
                 : "memory");
}
__host__ __device__ constexpr int mm_bstages(int ntok) { return ntok == 256 ? 4 : ntok == 128 ? 5 : ntok == 64 ? 6 : 5; }
__host__ __device__ constexpr int mm_astages(int kt, int tile) { return kt == 64 ? (tile > 1500 ? 4 : 6) : tile > 2400 ? 2 : 3; }

#if __CUDA_ARCH_FEAT_SM90_ALL

// One output of a tile of 16 rows (8 with glu: v of the gate, v2 of the other half).
__device__ __forceinline__ void mm_emit(const MmArgs& a, int rt, int row, int r, float v, float v2, float u) {
    v *= u, v2 *= u;
    if (a.act >= 0) {
        const int half = a.n >> 1, o = rt * 8 + row;
        if (o >= half || r >= a.rows) return;
        if (a.bias) v += a.bias[o], v2 += a.bias[half + o];
        a.out[r * a.ldo + o] = activate(v, a.act) * v2;
    } else {
        const int o = rt * 16 + row;
        if (o >= a.n || r >= a.rows) return;
        if (a.bias) v += a.bias[o];
        if (a.add) v += a.add[r * a.ldadd + o];
        a.out[r * a.ldo + o] = v;
    }
}

// Whether rows rt*16.. of W are whole, and four outputs in a row can be stored, and added to, at once.
__device__ __forceinline__ bool mm_by_four(const MmArgs& a, int rt) {
    return a.act < 0 && rt * 16 + 16 <= a.n && !((a.ldo | a.ldadd) & 3) && !(((uint64_t)a.out | (uint64_t)a.add) & 15);
}
// Four outputs of token r from row o of W on. What is added was loaded before: a load here would be waited for every time.
__device__ __forceinline__ void mm_emit4(const MmArgs& a, int o, int r, float4 v, float4 add, float u) {
    v.x *= u, v.y *= u, v.z *= u, v.w *= u;
    if (a.bias) v.x += a.bias[o], v.y += a.bias[o + 1], v.z += a.bias[o + 2], v.w += a.bias[o + 3];
    v.x += add.x, v.y += add.y, v.z += add.z, v.w += add.w;
    *(float4*)(a.out + r * a.ldo + o) = v;
}
__device__ __forceinline__ float4 mm_added(const MmArgs& a, int o, int r) {
    return a.add && r < a.rows ? *(const float4*)(a.add + r * a.ldadd + o) : make_float4(0, 0, 0, 0);
}

// The sums of a tile of pairs, 32 at a time through shared memory, each to its pair's place.
template <int NTOK, class A>
__device__ __forceinline__ void mm_emit_pairs(const A& a, const Pairs& pairs, float* stage, const float* acc, int tok, int rt, float fin, int lane) {
    const int g = lane >> 2, t = lane & 3, half = a.n >> 1;
    const bool glu = a.act >= 0;
    const int n = glu ? half : a.n;
    const float* bias = a.bias ? a.bias + (int64_t)pairs.expert * n : nullptr;
    const bool four = !glu && rt * 16 + 16 <= n && !((a.ldo | a.e.out_block) & 3) && !((uint64_t)a.out & 15) && !(bias && (uint64_t)(bias + rt * 16) & 15);
#pragma unroll
    for (int c = 0; c < NTOK / 32; c++) {
        __syncwarp();
#pragma unroll
        for (int i = 0; i < 16; i++) {
            const int token = i / 4 * 8 + 2 * t + (i & 1), row = g + (i & 2) * 4;
            stage[token * 16 + (row ^ (token >> 1 & 3) << 2)] = acc[c * 16 + i];
        }
        __syncwarp();
        const int left = pairs.count - c * 32;
        if (left <= 0) continue;
        const float mine = lane < left ? a.rscale[tok * NTOK + c * 32 + lane] * fin : 0.f;
        const long long place = lane < left ? a.e.place(pairs, c * 32 + lane, a.ldo, a.e.out_block) : 0;
        if (four) {
            const int quad = (lane & 3) * 4, o = rt * 16 + quad;
            float4 b = {0, 0, 0, 0};
            if (bias) b = *(const float4*)(bias + o);
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int token = i * 8 + (lane >> 2);
                float4 v = *(const float4*)(stage + token * 16 + (quad ^ (token >> 1 & 3) << 2));
                const float u = __shfl_sync(~0u, mine, token);
                float* out = a.out + __shfl_sync(~0u, place, token);
                v.x = v.x * u + b.x, v.y = v.y * u + b.y, v.z = v.z * u + b.z, v.w = v.w * u + b.w;
                if (token < left) *(float4*)(out + o) = v;
            }
            continue;
        }
        const int rows = glu ? 8 : 16, at = lane & (rows - 1), o = rt * rows + at;
#pragma unroll 1
        for (int i = 0; i < 32; i += 32 / rows) {
            const int token = i + lane / rows, x = (token >> 1 & 3) << 2;
            const float u = __shfl_sync(~0u, mine, token);
            float* out = a.out + __shfl_sync(~0u, place, token);
            if (o >= n || token >= left) continue;
            float v = stage[token * 16 + (at ^ x)] * u;
            if (bias) v += bias[o];
            if (glu) {
                float up = stage[token * 16 + (at + 8 ^ x)] * u;
                if (bias) up += bias[a.e.up_bias + o];
                v = gated(v, up, a.act, a.e.alpha, a.e.limit);
            }
            out[o] = v;
        }
    }
}

// SPLIT: not persistent; the blocks of a cluster (its size is the launch's) take slices of K of one tile, whose sums are added
// in the order of the slices. Otherwise a block takes tiles in turn, all of K.
template <class F, int NTOK, bool SPLIT, class A> __device__ __forceinline__ void mm_body(const A& a) {
    extern __shared__ __align__(1024) u8 sm[];
    typedef Frag<F> G;
    constexpr int SB = mm_bstages(NTOK), SA = mm_astages(F::KT, F::TILE), ABYTES = 8 * F::TILE, BBYTES = NTOK * 128, KB = F::KT / 64;
    u8 *bring = sm + 1024, *aring = bring + SB * BBYTES;
    const u32 bars = smem_addr(sm), bfull = bars, bempty = bars + 8 * SB, afull = bars + 16 * SB, aempty = afull + 8 * SA;
    const int tid = threadIdx.x, wg = tid >> 7, lane = tid & 31;
    u32 rank = 0, slices = 1;
    if (SPLIT) {
        asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
        asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(slices));
    }
    const int tiles = (a.n + 15) >> 4, along = (a.k + F::KT - 1) / F::KT, tk = along * a.planes, xblocks = a.xrows >> 3;
    const int k0 = tk * rank / slices, k1 = tk * (rank + 1) / slices, nk = min((a.k + 63) / 64 * a.planes, k1 * KB) - k0 * KB;
    if constexpr (A::EXPERTS) {
        pdl_launch();
        pdl_wait();
    }
    int tokens = (a.rows + NTOK - 1) / NTOK;
    if constexpr (A::EXPERTS) tokens = *a.e.tile_count;
    const int groups = (tiles + 7) / 8, work = tokens * groups;
    const int first = blockIdx.x / slices, step_ = gridDim.x / slices;
    if (tid == 0) {
        for (int i = 0; i < SB; i++) bar_init(bfull + 8 * i, 1), bar_init(bempty + 8 * i, 8);
        for (int i = 0; i < SA; i++) bar_init(afull + 8 * i, 1), bar_init(aempty + 8 * i, 8);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    pdl_launch();

    constexpr bool MOVE = !SPLIT && NTOK >= 128; // registers from the copying warpgroup to the others
    if (wg == 0) {
        if (MOVE) asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (tid == 0) {
            int bs = 0, as = 0;
            u32 bp = 1, ap = 1; // empty barriers: the first pass does not wait
            bool waited = false;
            for (int w = first; w < work; w += step_) {
                const int tok = w % tokens, base = w / tokens * 8;
                const u8* weights = a.w;
                if constexpr (A::EXPERTS) {
                    Pairs pairs;
                    if (!a.e.find(tok, &pairs)) continue;
                    weights += (pairs.expert - a.e.low) * a.e.w_stride;
                }
                int kb = k0 * KB;
                for (int kt = k0; kt < k1; kt++) {
                    bar_wait(aempty + 8 * as, ap);
                    bar_expect(afull + 8 * as, ABYTES);
                    for (int i = 0; i < 8; i++)
                        bulk(smem_addr(aring) + as * ABYTES + i * F::TILE, weights + ((size_t)min(base + i, tiles - 1) * along + kt % along) * F::TILE, F::TILE,
                             afull + 8 * as);
                    if (++as == SA) as = 0, ap ^= 1;
                    if (!waited) pdl_wait(), waited = true; // the weights do not depend on the kernel before, the input does
                    for (int i = 0; i < KB; i++, kb++) {
                        bar_wait(bempty + 8 * bs, bp);
                        bar_expect(bfull + 8 * bs, BBYTES);
                        bulk(smem_addr(bring) + bs * BBYTES, a.x + ((size_t)kb * xblocks + tok * (NTOK / 8)) * 1024, BBYTES, bfull + 8 * bs);
                        if (++bs == SB) bs = 0, bp ^= 1;
                    }
                }
            }
        }
    } else {
        if (MOVE) asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        pdl_wait();
        const int warp = (tid >> 5) - 4, g = lane >> 2, t = lane & 3;
        int bs = 0, as = 0;
        u32 bp = 0, ap = 0;
        const u8* mine = aring + warp * F::TILE;
        const uint64_t desc0 = (uint64_t)(1) << 62 | (uint64_t)64 << 32 | (uint64_t)1 << 16;
        for (int w = first; w < work; w += step_) {
            const int tok = w % tokens, rt = w / tokens * 8 + warp;
            Pairs pairs = {0, 0, 0};
            if constexpr (A::EXPERTS) {
                if (!a.e.find(tok, &pairs)) continue;
            }
            float acc[NTOK / 2];
#pragma unroll
            for (int i = 0; i < NTOK / 2; i++) acc[i] = 0;
            u32 f0[16], f1[16];
            // Fragments of a k-block, which waits for its tile if it is the first of it and gives it back if it is the last.
            auto fetch = [&](u32* f, int sub) {
                if (sub == 0) bar_wait(afull + 8 * as, ap);
                const u8* p = mine + as * ABYTES;
                G::go(p, lane, sub * 2, f);
                G::go(p, lane, sub * 2 + 1, f + 8);
                if (sub == KB - 1) {
                    __syncwarp();
                    if (lane == 0) bar_arrive(aempty + 8 * as);
                    if (++as == SA) as = 0, ap ^= 1;
                }
            };
            auto step = [&](u32* cur, u32* nxt, bool more, int nsub) {
                bar_wait(bfull + 8 * bs, bp);
                const uint64_t desc = desc0 | ((smem_addr(bring) + bs * BBYTES) >> 4);
                asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
                for (int j = 0; j < 4; j++) Wgmma<G::BF, NTOK>::go(acc, cur + 4 * j, desc + 2 * j);
                asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
                if (more) fetch(nxt, nsub);
                asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
                if (lane == 0) bar_arrive(bempty + 8 * bs);
                if (++bs == SB) bs = 0, bp ^= 1;
            };
            if (nk > 0) fetch(f0, 0);
            if (KB == 1) {
                for (int i = 0; i < nk; i += 2) {
                    step(f0, f1, i + 1 < nk, 0);
                    if (i + 1 < nk) step(f1, f0, i + 2 < nk, 0);
                }
            } else {
                for (int i = 0; i < nk; i += 4) { // k is a multiple of 256
                    step(f0, f1, true, 1 % KB), step(f1, f0, true, 2 % KB);
                    step(f0, f1, true, 3 % KB), step(f1, f0, i + 4 < nk, 0);
                }
            }
#pragma unroll
            for (int i = 0; i < NTOK / 2; i++) asm volatile("" : "+f"(acc[i])::"memory"); // nothing moves above the last wait
            // Sums go through shared memory so that the outputs are written in long runs by a short loop.
            if (SPLIT) {
                float* part = (float*)bring + warp * 16; // [token][128 rows + 4]; the ring is idle now
                asm volatile("bar.sync 1, 256;" ::: "memory");
#pragma unroll
                for (int i = 0; i < NTOK / 2; i++) part[(i / 4 * 8 + 2 * t + (i & 1)) * 132 + g + (i & 2) * 4] = acc[i];
                continue;
            }
            float* stage = (float*)(aring + SA * ABYTES) + warp * 512; // 32 tokens of 16 rows
            if constexpr (A::EXPERTS) {
                mm_emit_pairs<NTOK>(a, pairs, stage, acc, tok, rt, G::FIN, lane);
                continue;
            }
            const bool four = mm_by_four(a, rt);
            const int quad = (lane & 3) * 4, o4 = rt * 16 + quad;
            float4 add[4];
            if (four) {
#pragma unroll
                for (int i = 0; i < 4; i++) add[i] = mm_added(a, o4, tok * NTOK + i * 8 + (lane >> 2));
            }
#pragma unroll
            for (int c = 0; c < NTOK / 32; c++) {
                __syncwarp();
#pragma unroll
                for (int i = 0; i < 16; i++) {
                    const int token = i / 4 * 8 + 2 * t + (i & 1), row = g + (i & 2) * 4;
                    stage[token * 16 + (row ^ (token >> 1 & 3) << 2)] = acc[c * 16 + i];
                }
                __syncwarp();
                const int t0 = tok * NTOK + c * 32;
                if (rt >= tiles || t0 >= a.rows) continue;
                const float undo = t0 + lane < a.rows ? a.rscale[t0 + lane] * G::FIN : 0.f;
                if (four) {
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int token = i * 8 + (lane >> 2), r = t0 + token;
                        const float4 v = *(const float4*)(stage + token * 16 + (quad ^ (token >> 1 & 3) << 2));
                        const float u = __shfl_sync(~0u, undo, token);
                        const float4 now = add[i];
                        if (c + 1 < NTOK / 32) add[i] = mm_added(a, o4, r + 32); // the next 32 tokens'
                        if (r < a.rows) mm_emit4(a, o4, r, v, now, u);
                    }
                } else if (a.act >= 0) {
#pragma unroll 1
                    for (int i = 0; i < 32; i += 4) {
                        const int token = i + (lane >> 3), row = lane & 7, x = (token >> 1 & 3) << 2;
                        mm_emit(a, rt, row, t0 + token, stage[token * 16 + (row ^ x)], stage[token * 16 + (row + 8 ^ x)], __shfl_sync(~0u, undo, token));
                    }
                } else {
#pragma unroll 4
                    for (int i = 0; i < 32; i += 2) {
                        const int token = i + (lane >> 4), row = lane & 15;
                        mm_emit(a, rt, row, t0 + token, stage[token * 16 + (row ^ (token >> 1 & 3) << 2)], 0.f, __shfl_sync(~0u, undo, token));
                    }
                }
            }
        }
    }
    if (SPLIT) {
        asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
        const int tok = first % tokens, base = first / tokens * 8, per = a.act >= 0 ? 64 : 128;
        const bool four = mm_by_four(a, min(base + 7, tiles - 1));
        if (four) {
#pragma unroll 2
            for (int e = tid + rank * 384; e < 32 * NTOK; e += 384 * slices) {
                const int i = (e & 31) * 4, token = e >> 5, r = tok * NTOK + token, o = base * 16 + i;
                if (r >= a.rows || o >= a.n) continue;
                const float4 add = mm_added(a, o, r);
                const float u = a.rscale[r] * G::FIN;
                float4 v = make_float4(0, 0, 0, 0);
                const u32 at = smem_addr((float*)bring + token * 132 + i);
                for (u32 c = 0; c < slices; c++) {
                    float4 x;
                    u32 there;
                    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(c));
                    asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];" : "=f"(x.x), "=f"(x.y), "=f"(x.z), "=f"(x.w) : "r"(there) : "memory");
                    v.x += x.x, v.y += x.y, v.z += x.z, v.w += x.w;
                }
                mm_emit4(a, o, r, v, add, u);
            }
        }
        for (int e = tid + rank * 384; !four && e < per * NTOK; e += 384 * slices) {
            const int i = e % per, token = e / per, r = tok * NTOK + token;
            const int row = a.act >= 0 ? i & 7 : i & 15, tile = a.act >= 0 ? i >> 3 : i >> 4;
            if (r >= a.rows || base + tile >= tiles) continue;
            float v = 0, v2 = 0;
            const u32 at = smem_addr((float*)bring + token * 132 + tile * 16 + row);
            for (u32 c = 0; c < slices; c++) {
                float x, y = 0;
                u32 there;
                asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(at), "r"(c));
                asm volatile("ld.shared::cluster.f32 %0, [%1];" : "=f"(x) : "r"(there) : "memory");
                if (a.act >= 0) asm volatile("ld.shared::cluster.f32 %0, [%1+32];" : "=f"(y) : "r"(there) : "memory");
                v += x, v2 += y;
            }
            mm_emit(a, base + tile, row, r, v, v2, a.rscale[r] * G::FIN);
        }
        asm volatile("barrier.cluster.arrive.release.aligned; barrier.cluster.wait.acquire.aligned;" ::: "memory");
    }
}
#define MM_ONE(NAME, FMT, N)                                                                                               \
    extern "C" __global__ void __launch_bounds__(384, 1) mm_##NAME##_##N(const __grid_constant__ q::MmArgs a) { q::mm_body<q::FMT, N, false>(a); }
#define MM_SPLIT(NAME, FMT, N, PER)                                                                                        \
    extern "C" __global__ void __launch_bounds__(384, PER) mm_##NAME##_##N##s(const __grid_constant__ q::MmArgs a) { q::mm_body<q::FMT, N, true>(a); }
#define MM_EXPERTS_ONE(NAME, FMT, N)                                                                                       \
    extern "C" __global__ void __launch_bounds__(384, 1) mmx_##NAME##_##N(const __grid_constant__ q::MmExpertArgs a) { q::mm_body<q::FMT, N, false>(a); }
#define MM_EXPERTS(NAME, FMT) MM_EXPERTS_ONE(NAME, FMT, 64) MM_EXPERTS_ONE(NAME, FMT, 128)
#define MM_KERNEL(NAME, FMT) MM_ONE(NAME, FMT, 256) MM_ONE(NAME, FMT, 128) MM_ONE(NAME, FMT, 64) MM_SPLIT(NAME, FMT, 128, 1) MM_SPLIT(NAME, FMT, 64, 1) MM_SPLIT(NAME, FMT, 32, 2)
#else
#define MM_KERNEL(NAME, FMT)
#define MM_EXPERTS(NAME, FMT)
#endif

} // namespace q
