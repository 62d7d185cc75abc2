// Weights as tiles of 16 rows x KT columns, laid out so that one lane's 16-byte load is a fragment of mma.m16n8k16.
// Codes are unpacked to f16 subnormals (code * 2^-24, exact): no integer-to-float conversion and no bias to remove.
// Scales are applied to the f32 sums of a group. A tile is one contiguous run of bytes, so a bulk copy brings it in.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

namespace q {

typedef uint32_t u32;
typedef uint8_t u8;

struct alignas(8) TileArgs {
    static constexpr bool EXPERTS = false;
    const u8* w;         // tiles, 256-byte aligned
    const float* x;      // f32 input [rows, k], row stride ldx; 16-byte aligned rows; null when xp is given
    const void* xp;      // prepared input (mv_prep_*), or null
    const float* sums;   // prepared: [rows, kp / 16]
    const float* rscale; // prepared: [rows]
    const float* gain;   // RMS norm gain [k] or null
    const float* bias;   // [n] or null
    const float* add;    // residual, row stride ldadd, or null; may be out itself
    float* out;          // row stride ldo
    int64_t ldx, ldadd, ldo;
    int32_t n;           // rows of W (with glu: both halves together)
    int32_t k;           // columns of W
    int32_t rows;        // rows of x
    int32_t norm;        // 1: RMS norm of x folded into the load
    float eps;
    int32_t act;         // -1: none; glu: 0 silu, 1 gelu tanh, 2 gelu erf, 3 relu
    int32_t wk, ck;      // slices of K: warps of a block x blocks of a cluster
    int32_t stages, pad; // of each warp's ring, 2..6
};

// ---- instructions ----

__device__ __forceinline__ u32 smem_addr(const void* p) { return (u32)__cvta_generic_to_shared(p); }

__device__ __forceinline__ void mma_f16(float (&c)[4], const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ void mma_bf16(float (&c)[4], const u32* a, u32 b0, u32 b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ __forceinline__ uint4 lds128(const void* p) { return *(const uint4*)p; }
__device__ __forceinline__ float2 halves(u32 v) { return __half22float2(*(const __half2*)&v); }
__device__ __forceinline__ float half_lo(u32 v) { return halves(v).x; }
__device__ __forceinline__ u32 shr(u32 v, int by) { return by >= 0 ? v >> by : v << -by; }
// A biased byte of a word as a float: 2^23 + byte, less 2^23 + 128.
__device__ __forceinline__ float byte_minus128(u32 w, int i) {
    return __uint_as_float(__byte_perm(w, 0x4B000000u, 0x7540 | i)) - 8388736.f;
}

__device__ __forceinline__ void pdl_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void pdl_launch() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float activate(float x, int act) {
    switch (act) {
    case 0: return x / (1.f + __expf(-x));
    case 1: return 0.5f * x * (1.f + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
    case 2: return 0.5f * x * (1.f + erff(x * 0.7071067811865476f));
    default: return fmaxf(x, 0.f);
    }
}

// ---- the gate over two products: act 0..3 as above, or 4, bounds and a slope of its own (GPT-OSS); NaN stays NaN ----

__device__ __forceinline__ float gated(float gate, float up, int act, float alpha, float limit) {
    if (act != 4) return activate(gate, act) * up;
    const float g = gate > limit ? limit : gate, u = up > limit ? limit : up < -limit ? -limit : up;
    return g / (1.f + __expf(-alpha * g)) * (u + 1.f);
}

// ---- the place of a value within its group of 32 columns, in prepared inputs ----
// Lane t of a quad owns columns 4t..4t+3 and 16+4t..16+4t+3, stored as its 8 consecutive halves.
__host__ __device__ __forceinline__ int pos32(int k) { return ((k & 15) >> 2) * 8 + ((k >> 4) & 1) * 4 + (k & 3); }

// ---- one group of 32 (or 16) columns against NT blocks of 8 input rows ----

template <int NT> struct Ctx {
    const char* x[NT]; // this lane's input row, its 16 bytes of group 0
    int plane;         // bytes to the second plane of the input (bf16: the low parts)
    const float* su;   // sums of groups, times the format's constant; [group][8 NT] + 2t
    float acc[NT][4];
};

enum Kind { PLAIN, INIT, MIN }; // INIT: the bias enters as the accumulator's start; MIN: acc += m * sum

template <int NT, Kind KD>
__device__ __forceinline__ void step32(Ctx<NT>& c, int k32, const u32* a, float s0, float s1, float m0 = 0, float m1 = 0) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        uint4 b = lds128(c.x[nt] + k32 * 64);
        float2 su = KD == PLAIN ? make_float2(0, 0) : *(const float2*)(c.su + k32 * 8 * NT + nt * 8);
        float d[4] = {0, 0, 0, 0};
        if (KD == INIT) d[0] = d[2] = su.x, d[1] = d[3] = su.y;
        mma_f16(d, a, b.x, b.y);
        mma_f16(d, a + 4, b.z, b.w);
        c.acc[nt][0] += s0 * d[0], c.acc[nt][1] += s0 * d[1];
        c.acc[nt][2] += s1 * d[2], c.acc[nt][3] += s1 * d[3];
        if (KD == MIN) {
            c.acc[nt][0] += m0 * su.x, c.acc[nt][1] += m0 * su.y;
            c.acc[nt][2] += m1 * su.x, c.acc[nt][3] += m1 * su.y;
        }
    }
}
// Two groups of 16: s[0..2] of row g, s[2..4] of row g + 8.
template <int NT, Kind KD>
__device__ __forceinline__ void step16x2(Ctx<NT>& c, int k32, const u32* a, const float* s, const float* m = nullptr) {
#pragma unroll
    for (int nt = 0; nt < NT; nt++) {
        uint4 b = lds128(c.x[nt] + k32 * 64);
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float2 su = *(const float2*)(c.su + (k32 * 2 + h) * 8 * NT + nt * 8);
            float d[4] = {0, 0, 0, 0};
            if (KD == INIT) d[0] = d[2] = su.x, d[1] = d[3] = su.y;
            mma_f16(d, a + 4 * h, h ? b.z : b.x, h ? b.w : b.y);
            c.acc[nt][0] += s[h] * d[0], c.acc[nt][1] += s[h] * d[1];
            c.acc[nt][2] += s[2 + h] * d[2], c.acc[nt][3] += s[2 + h] * d[3];
            if (KD == MIN) {
                c.acc[nt][0] += m[h] * su.x, c.acc[nt][1] += m[h] * su.y;
                c.acc[nt][2] += m[2 + h] * su.x, c.acc[nt][3] += m[2 + h] * su.y;
            }
        }
    }
}

// ---- codes to fragments: a[0..4] for columns 4t.., a[4..8] for 16 + 4t..; R: 0 row g, 1 row g + 8 ----
// Pair p of a lane's 8 codes: nibble p of each 16-bit half. Odd pairs stay 4 bits up: the input is divided by 16 there.

template <int R> __device__ __forceinline__ void nibbles(u32 w, u32* a) {
    a[R] = w & 0x000F000Fu, a[2 + R] = w & 0x00F000F0u;
    w >>= 8;
    a[4 + R] = w & 0x000F000Fu, a[6 + R] = w & 0x00F000F0u;
}
// One more bit for each code: bit 8 G + 4 R + p of each half of h, G the group of 32 within 64 columns.
template <int R, int G> __device__ __forceinline__ void bit5(u32 h, u32* a) {
#pragma unroll
    for (int p = 0; p < 4; p++) {
        int q = G * 8 + R * 4 + p, to = p & 1 ? 8 : 4;
        a[2 * p + R] |= shr(h, q - to) & (p & 1 ? 0x01000100u : 0x00100010u);
    }
}
// Two more bits: bits 2 (4 R + p) of each half of h.
template <int R> __device__ __forceinline__ void bits56(u32 h, u32* a) {
#pragma unroll
    for (int p = 0; p < 4; p++) {
        int q = 2 * (R * 4 + p), to = p & 1 ? 8 : 4;
        a[2 * p + R] |= shr(h, q - to) & (p & 1 ? 0x03000300u : 0x00300030u);
    }
}
template <int R> __device__ __forceinline__ void bits2(u32 w, u32* a) {
#pragma unroll
    for (int p = 0; p < 4; p++) a[2 * p + R] = (w >> (2 * (R * 4 + p))) & 0x00030003u;
}
template <int R, int G> __device__ __forceinline__ void bit3(u32 h, u32* a) {
#pragma unroll
    for (int p = 0; p < 4; p++) a[2 * p + R] |= shr(h, G * 8 + R * 4 + p - 2) & 0x00040004u;
}
// Four bytes are two pairs.
template <int R> __device__ __forceinline__ void bytes4(u32 w0, u32 w1, u32* a) {
    a[R] = __byte_perm(w0, 0, 0x4140), a[2 + R] = __byte_perm(w0, 0, 0x4342);
    a[4 + R] = __byte_perm(w1, 0, 0x4140), a[6 + R] = __byte_perm(w1, 0, 0x4342);
}
// Four nibbles (the low 16 bits of w) through a table of 16 bytes.
__device__ __forceinline__ u32 table4(const u32* t, u32 w) {
    u32 s = w & 0x7777u;
    u32 lo = __byte_perm(t[0], t[1], s), hi = __byte_perm(t[2], t[3], s);
    return __byte_perm(lo, hi, ((w >> 1) & 0x4444u) | 0x3210u);
}
template <int R> __device__ __forceinline__ void table8(const u32* t, u32 w, u32* a) {
    bytes4<R>(table4(t, w), table4(t, w >> 16), a);
}

// ---- formats ----
// KT columns of a tile; TILE its bytes; ST tiles of a stage; PLANES of the input; X16: odd pairs of the input are /16;
// SG: columns of a sum; SMUL: what sums are multiplied by; FIN: what the product is multiplied by at the end.

struct FmtF16 {
    enum { KT = 64, TILE = 2048, ST = 1, PLANES = 1, X16 = 0, SG = 0, BF = 0 };
    static constexpr float SMUL = 0, FIN = 1;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 a0 = lds128(p + j * 1024 + lane * 16), a1 = lds128(p + j * 1024 + 512 + lane * 16);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 b = lds128(c.x[nt] + (k32 + j) * 64);
                mma_f16(c.acc[nt], &a0.x, b.x, b.y);
                mma_f16(c.acc[nt], &a1.x, b.z, b.w);
            }
        }
    }
};
struct FmtBF16 { // the input as two bf16 planes, so that only the weights' own precision counts
    enum { KT = 64, TILE = 2048, ST = 1, PLANES = 2, X16 = 0, SG = 0, BF = 1 };
    static constexpr float SMUL = 0, FIN = 1;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 a0 = lds128(p + j * 1024 + lane * 16), a1 = lds128(p + j * 1024 + 512 + lane * 16);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 b = lds128(c.x[nt] + (k32 + j) * 64), l = lds128(c.x[nt] + c.plane + (k32 + j) * 64);
                mma_bf16(c.acc[nt], &a0.x, b.x, b.y);
                mma_bf16(c.acc[nt], &a1.x, b.z, b.w);
                mma_bf16(c.acc[nt], &a0.x, l.x, l.y);
                mma_bf16(c.acc[nt], &a1.x, l.z, l.w);
            }
        }
    }
};
struct FmtF32 { // weights as two bf16 planes too: 16 bits of mantissa
    enum { KT = 64, TILE = 4096, ST = 1, PLANES = 2, X16 = 0, SG = 0, BF = 1 };
    static constexpr float SMUL = 0, FIN = 1;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
#pragma unroll
        for (int j = 0; j < 2; j++) {
            uint4 a0 = lds128(p + j * 1024 + lane * 16), a1 = lds128(p + j * 1024 + 512 + lane * 16);
            uint4 e0 = lds128(p + 2048 + j * 1024 + lane * 16), e1 = lds128(p + 2048 + j * 1024 + 512 + lane * 16);
#pragma unroll
            for (int nt = 0; nt < NT; nt++) {
                uint4 b = lds128(c.x[nt] + (k32 + j) * 64), l = lds128(c.x[nt] + c.plane + (k32 + j) * 64);
                mma_bf16(c.acc[nt], &a0.x, b.x, b.y);
                mma_bf16(c.acc[nt], &a1.x, b.z, b.w);
                mma_bf16(c.acc[nt], &a0.x, l.x, l.y);
                mma_bf16(c.acc[nt], &a1.x, l.z, l.w);
                mma_bf16(c.acc[nt], &e0.x, b.x, b.y);
                mma_bf16(c.acc[nt], &e1.x, b.z, b.w);
            }
        }
    }
};

#define Q_2P24 5.9604644775390625e-8f // 2^-24
#define Q_2F24 16777216.f
#define Q_2F48 281474976710656.f

// Blocks of 32: 64 columns a tile. BITS 4, 5 or 8; MINS: a minimum beside the scale (else a bias).
template <int BITS, bool MINS> struct FmtQ {
    enum {
        KT = 64,
        CODES = BITS == 8 ? 1024 : 512,
        HIGH = BITS == 5 ? 128 : 0,
        TILE = CODES + HIGH + (MINS ? 128 : 64),
        ST = BITS == 8 ? 2 : 4,
        PLANES = 1,
        X16 = BITS != 8,
        SG = 32,
        BF = 0
    };
    static constexpr float SMUL = MINS ? Q_2P24 : -Q_2P24 * (1 << (BITS - 1)), FIN = Q_2F24;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        u32 a[2][8];
        if (BITS == 8) {
            uint4 v = lds128(p + lane * 16), w = lds128(p + 512 + lane * 16);
            bytes4<0>(v.x, v.y, a[0]), bytes4<1>(v.z, v.w, a[0]);
            bytes4<0>(w.x, w.y, a[1]), bytes4<1>(w.z, w.w, a[1]);
        } else {
            uint4 v = lds128(p + lane * 16);
            nibbles<0>(v.x, a[0]), nibbles<1>(v.y, a[0]);
            nibbles<0>(v.z, a[1]), nibbles<1>(v.w, a[1]);
            if (BITS == 5) {
                u32 h = *(const u32*)(p + 512 + lane * 4);
                bit5<0, 0>(h, a[0]), bit5<1, 0>(h, a[0]), bit5<0, 1>(h, a[1]), bit5<1, 1>(h, a[1]);
            }
        }
        const u8* s = p + CODES + HIGH;
        int g = lane >> 2;
        if (MINS) {
            uint4 v = lds128(s + g * 16); // (d, m) of row g, row g + 8; group 0, group 1
            float2 s0 = halves(v.x), s1 = halves(v.y), r0 = halves(v.z), r1 = halves(v.w);
            step32<NT, MIN>(c, k32, a[0], s0.x, s1.x, s0.y, s1.y);
            step32<NT, MIN>(c, k32 + 1, a[1], r0.x, r1.x, r0.y, r1.y);
        } else {
            uint2 v = *(const uint2*)(s + g * 8);
            float2 s0 = halves(v.x), s1 = halves(v.y);
            step32<NT, INIT>(c, k32, a[0], s0.x, s0.y);
            step32<NT, INIT>(c, k32 + 1, a[1], s1.x, s1.y);
        }
    }
};

__device__ __forceinline__ void table_iq4(u32* t) { // kvalues_iq4nl + 128
    t[0] = 0x3F2D1801u, t[1] = 0x766A5D4Fu, t[2] = 0xA6998D81u, t[3] = 0xF1D9C5B5u;
}
__device__ __forceinline__ void table_mx4(u32* t) { // doubled e2m1 values + 128
    t[0] = 0x83828180u, t[1] = 0x8C888684u, t[2] = 0x7D7E7F80u, t[3] = 0x74787A7Cu;
}
// 4-bit tables in blocks of 32: IQ4_NL (f16 scale) and MXFP4 (power of two).
template <bool MX> struct FmtT {
    enum { KT = 64, TILE = MX ? 544 : 576, ST = 4, PLANES = 1, X16 = 0, SG = 32, BF = 0 };
    static constexpr float SMUL = -Q_2P24 * 128, FIN = Q_2F24;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        u32 t[4], a[2][8];
        if (MX) table_mx4(t);
        else table_iq4(t);
        uint4 v = lds128(p + lane * 16);
        table8<0>(t, v.x, a[0]), table8<1>(t, v.y, a[0]), table8<0>(t, v.z, a[1]), table8<1>(t, v.w, a[1]);
        int g = lane >> 2;
        float2 s0, s1;
        if (MX) { // 2^(e - 128); e = 0 and 1 are subnormal and too small to matter
            u32 e = *(const u32*)(p + 512 + g * 4);
            s0.x = __uint_as_float(max((int)(e & 255) - 1, 0) << 23), s0.y = __uint_as_float(max((int)(e >> 8 & 255) - 1, 0) << 23);
            s1.x = __uint_as_float(max((int)(e >> 16 & 255) - 1, 0) << 23), s1.y = __uint_as_float(max((int)(e >> 24) - 1, 0) << 23);
        } else {
            uint2 d = *(const uint2*)(p + 512 + g * 8);
            s0 = halves(d.x), s1 = halves(d.y);
        }
        step32<NT, INIT>(c, k32, a[0], s0.x, s0.y);
        step32<NT, INIT>(c, k32 + 1, a[1], s1.x, s1.y);
    }
};

// Scale and minimum j of a row's 16 bytes {d, dmin | streams of 6 bits: scales in low halves, minima in high halves}.
template <int J> __device__ __forceinline__ u32 six(const uint4& r) {
    if (J == 0) return r.y & 0x003F003Fu;
    if (J == 1) return (r.y >> 6) & 0x003F003Fu;
    if (J == 2) return r.z & 0x003F003Fu;
    if (J == 3) return (r.z >> 6) & 0x003F003Fu;
    if (J == 4) return r.w & 0x003F003Fu;
    if (J == 5) return (r.w >> 6) & 0x003F003Fu;
    if (J == 6) return ((r.y >> 12) & 0x000F000Fu) | ((r.z >> 8) & 0x00300030u);
    return ((r.w >> 12) & 0x000F000Fu) | ((r.z >> 10) & 0x00300030u);
}

template <bool FIVE> struct FmtK45 { // Q4_K, Q5_K
    enum { KT = 256, HIGH = FIVE ? 512 : 0, TILE = 2304 + HIGH, ST = 1, PLANES = 1, X16 = 1, SG = 32, BF = 0 };
    static constexpr float SMUL = -Q_2P24, FIN = Q_2F48;
    template <int NT, int J> static __device__ __forceinline__ void two(const u8* p, int lane, int k32, Ctx<NT>& c, const uint4& r0,
                                                                        const uint4& r1, float2 d0, float2 d1) {
        u32 a[2][8];
        uint4 v = lds128(p + J * 512 + lane * 16);
        nibbles<0>(v.x, a[0]), nibbles<1>(v.y, a[0]), nibbles<0>(v.z, a[1]), nibbles<1>(v.w, a[1]);
        if (FIVE) {
            u32 h = *(const u32*)(p + 2048 + J * 128 + lane * 4);
            bit5<0, 0>(h, a[0]), bit5<1, 0>(h, a[0]), bit5<0, 1>(h, a[1]), bit5<1, 1>(h, a[1]);
        }
        float2 e0 = halves(six<2 * J>(r0)), e1 = halves(six<2 * J>(r1));
        step32<NT, MIN>(c, k32 + 2 * J, a[0], d0.x * e0.x, d1.x * e1.x, d0.y * e0.y, d1.y * e1.y);
        e0 = halves(six<2 * J + 1>(r0)), e1 = halves(six<2 * J + 1>(r1));
        step32<NT, MIN>(c, k32 + 2 * J + 1, a[1], d0.x * e0.x, d1.x * e1.x, d0.y * e0.y, d1.y * e1.y);
    }
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        const u8* s = p + 2048 + HIGH + (lane >> 2) * 16;
        uint4 r0 = lds128(s), r1 = lds128(s + 128);
        float2 d0 = halves(r0.x), d1 = halves(r1.x);
        two<NT, 0>(p, lane, k32, c, r0, r1, d0, d1);
        two<NT, 1>(p, lane, k32, c, r0, r1, d0, d1);
        two<NT, 2>(p, lane, k32, c, r0, r1, d0, d1);
        two<NT, 3>(p, lane, k32, c, r0, r1, d0, d1);
    }
};

__device__ __forceinline__ u32 pick(const uint4& v, int i) { return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w; }

struct FmtQ6K {
    enum { KT = 256, TILE = 3360, ST = 1, PLANES = 1, X16 = 1, SG = 16, BF = 0 };
    static constexpr float SMUL = -Q_2P24 * 32, FIN = Q_2F24;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        int g = lane >> 2;
        uint4 r0 = lds128(p + 3072 + g * 16), r1 = lds128(p + 3200 + g * 16);
        float2 d = halves(*(const u32*)(p + 3328 + g * 4));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 a[2][8];
            uint4 v = lds128(p + j * 512 + lane * 16);
            uint2 h = *(const uint2*)(p + 2048 + j * 256 + lane * 8);
            nibbles<0>(v.x, a[0]), nibbles<1>(v.y, a[0]), nibbles<0>(v.z, a[1]), nibbles<1>(v.w, a[1]);
            bits56<0>(h.x, a[0]), bits56<1>(h.x, a[0]), bits56<0>(h.y, a[1]), bits56<1>(h.y, a[1]);
            u32 w0 = pick(r0, j), w1 = pick(r1, j);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float s[4] = {d.x * byte_minus128(w0, 2 * i), d.x * byte_minus128(w0, 2 * i + 1), d.y * byte_minus128(w1, 2 * i),
                              d.y * byte_minus128(w1, 2 * i + 1)};
                step16x2<NT, INIT>(c, k32 + 2 * j + i, a[i], s);
            }
        }
    }
};
struct FmtQ3K {
    enum { KT = 256, TILE = 1824, ST = 2, PLANES = 1, X16 = 0, SG = 16, BF = 0 };
    static constexpr float SMUL = -Q_2P24 * 4, FIN = Q_2F24;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        int g = lane >> 2;
        uint4 r0 = lds128(p + 1536 + g * 16), r1 = lds128(p + 1664 + g * 16), h = lds128(p + 1024 + lane * 16);
        float2 d = halves(*(const u32*)(p + 1792 + g * 4));
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 a[2][8];
            uint2 v = *(const uint2*)(p + (j >> 1) * 512 + lane * 16 + (j & 1) * 8);
            u32 hj = pick(h, j);
            bits2<0>(v.x, a[0]), bits2<1>(v.x, a[0]), bits2<0>(v.y, a[1]), bits2<1>(v.y, a[1]);
            bit3<0, 0>(hj, a[0]), bit3<1, 0>(hj, a[0]), bit3<0, 1>(hj, a[1]), bit3<1, 1>(hj, a[1]);
            u32 w0 = pick(r0, j), w1 = pick(r1, j);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                float s[4] = {d.x * byte_minus128(w0, 2 * i), d.x * byte_minus128(w0, 2 * i + 1), d.y * byte_minus128(w1, 2 * i),
                              d.y * byte_minus128(w1, 2 * i + 1)};
                step16x2<NT, INIT>(c, k32 + 2 * j + i, a[i], s);
            }
        }
    }
};
struct FmtQ2K {
    enum { KT = 256, TILE = 1344, ST = 2, PLANES = 1, X16 = 0, SG = 16, BF = 0 };
    static constexpr float SMUL = -Q_2P24, FIN = Q_2F48;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        int g = lane >> 2;
        uint4 r0 = lds128(p + 1024 + g * 16), r1 = lds128(p + 1152 + g * 16);
        uint2 dd = *(const uint2*)(p + 1280 + g * 8);
        float2 d0 = halves(dd.x), d1 = halves(dd.y);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            u32 a[8];
            u32 v = *(const u32*)(p + (j >> 2) * 512 + lane * 16 + (j & 3) * 4);
            bits2<0>(v, a), bits2<1>(v, a);
            u32 w0 = pick(r0, j >> 1) >> (8 * (j & 1)), w1 = pick(r1, j >> 1) >> (8 * (j & 1));
            float2 e0 = halves(w0 & 0x000F000Fu), e1 = halves((w0 >> 4) & 0x000F000Fu);
            float2 f0 = halves(w1 & 0x000F000Fu), f1 = halves((w1 >> 4) & 0x000F000Fu);
            float s[4] = {d0.x * e0.x, d0.x * e1.x, d1.x * f0.x, d1.x * f1.x};
            float m[4] = {d0.y * e0.y, d0.y * e1.y, d1.y * f0.y, d1.y * f1.y};
            step16x2<NT, MIN>(c, k32 + j, a, s, m);
        }
    }
};
struct FmtIQ4XS {
    enum { KT = 256, TILE = 2208, ST = 1, PLANES = 1, X16 = 0, SG = 32, BF = 0 };
    static constexpr float SMUL = -Q_2P24 * 128, FIN = Q_2F24;
    template <int NT> static __device__ __forceinline__ void run(const u8* p, int lane, int k32, Ctx<NT>& c) {
        int g = lane >> 2;
        uint2 r0 = *(const uint2*)(p + 2048 + g * 8), r1 = *(const uint2*)(p + 2112 + g * 8);
        float2 d = halves(*(const u32*)(p + 2176 + g * 4));
        u32 t[4];
        table_iq4(t);
#pragma unroll
        for (int j = 0; j < 4; j++) {
            u32 a[2][8];
            uint4 v = lds128(p + j * 512 + lane * 16);
            table8<0>(t, v.x, a[0]), table8<1>(t, v.y, a[0]), table8<0>(t, v.z, a[1]), table8<1>(t, v.w, a[1]);
            u32 w0 = j < 2 ? r0.x : r0.y, w1 = j < 2 ? r1.x : r1.y;
            int b = (j & 1) * 2;
            step32<NT, INIT>(c, k32 + 2 * j, a[0], d.x * byte_minus128(w0, b), d.y * byte_minus128(w1, b));
            step32<NT, INIT>(c, k32 + 2 * j + 1, a[1], d.x * byte_minus128(w0, b + 1), d.y * byte_minus128(w1, b + 1));
        }
    }
};

typedef FmtQ<4, false> FmtQ4_0;
typedef FmtQ<4, true> FmtQ4_1;
typedef FmtQ<5, false> FmtQ5_0;
typedef FmtQ<5, true> FmtQ5_1;
typedef FmtQ<8, false> FmtQ8_0;
typedef FmtT<false> FmtIQ4NL;
typedef FmtT<true> FmtMXFP4;
typedef FmtK45<false> FmtQ4K;
typedef FmtK45<true> FmtQ5K;

} // namespace q
