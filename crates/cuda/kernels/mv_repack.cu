// GGUF blocks -> tiles of 16 rows (tile.cuh), once at load. A thread takes 32 columns of a row. The destination must be
// zeroed before the first part is written: words that two rows share are filled by atomicOr, and padding stays zero.
// With glu, a tile holds 8 rows of the gate above the same 8 rows of the other half.
#include "tile.cuh"

namespace q {

struct alignas(8) RepackArgs {
    const u8* src;   // `rows` rows of blocks as in the file
    u8* dst;         // the whole weight's tiles, 256-byte aligned
    int64_t n;       // rows of the whole weight (all parts)
    int64_t row0;    // first row of this part
    int32_t rows, k; // of this part
    int32_t glu, pad;
};

__device__ __forceinline__ uint16_t u16at(const u8* p) { return (uint16_t)(p[0] | p[1] << 8); }

struct Tile {
    u8* p;
    int row, g, r; // row of the tile, row % 8, row / 8
    __device__ void or32(int off, u32 v) const { atomicOr((u32*)(p + off), v); }
    __device__ void put16(int off, uint16_t v) const { *(uint16_t*)(p + off) = v; }
    // Codes q[32] of group `j` (of 32 columns): low 4 bits at `off`.
    __device__ void low4(int off, int j, const u8* q) const {
#pragma unroll
        for (int t = 0; t < 4; t++) {
            u32 w = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) w |= (u32)(q[i < 4 ? 4 * t + i : 12 + 4 * t + i] & 15) << (4 * (i / 2) + 16 * (i & 1));
            *(u32*)(p + off + (j / 2) * 512 + (g * 4 + t) * 16 + (j & 1) * 8 + r * 4) = w;
        }
    }
    // Nibbles in plain order, for tables.
    __device__ void table4(int off, int j, const u8* q) const {
#pragma unroll
        for (int t = 0; t < 4; t++) {
            u32 w = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) w |= (u32)(q[i < 4 ? 4 * t + i : 12 + 4 * t + i] & 15) << (4 * i);
            *(u32*)(p + off + (j / 2) * 512 + (g * 4 + t) * 16 + (j & 1) * 8 + r * 4) = w;
        }
    }
    // `bits` bits of each code from bit `from` on; `per` of them share a word, this one's being number `at`.
    __device__ void plane(int off, int lane_bytes, int word, int at, const u8* q, int from, int bits) const {
#pragma unroll
        for (int t = 0; t < 4; t++) {
            u32 w = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                u32 c = (u32)(q[i < 4 ? 4 * t + i : 12 + 4 * t + i] >> from) & ((1u << bits) - 1);
                w |= c << (bits * (at * 8 + r * 4 + i / 2) + 16 * (i & 1));
            }
            or32(off + (g * 4 + t) * lane_bytes + word * 4, w);
        }
    }
    __device__ void bytes(int off, int j, const u8* q) const {
#pragma unroll
        for (int t = 0; t < 4; t++)
#pragma unroll
            for (int i = 0; i < 8; i++)
                p[off + j * 512 + (g * 4 + t) * 16 + r * 8 + i] = q[i < 4 ? 4 * t + i : 12 + 4 * t + i];
    }
};

__device__ void nib_low(const u8* p, u8* q) { // 16 bytes: low nibbles are values 0..16
    for (int i = 0; i < 16; i++) q[i] = p[i] & 15, q[16 + i] = p[i] >> 4;
}

// Scale and minimum j of the 12 bytes of Q4_K and Q5_K.
__device__ void k4_scale(const u8* s, int j, u32* sc, u32* m) {
    if (j < 4) *sc = s[j] & 63, *m = s[j + 4] & 63;
    else *sc = (s[j + 4] & 15) | (s[j - 4] >> 6) << 4, *m = (s[j + 4] >> 4) | (s[j] >> 6) << 4;
}
// Adds (sc, m) as pair j of the streams of `six` in tile.cuh.
__device__ void put_six(const Tile& t, int off, int j, u32 sc, u32 m) {
    u32 v = sc | m << 16;
    if (j < 6) t.or32(off + 4 + 4 * (j / 2), v << (6 * (j & 1)));
    else {
        u32 lo = v & 0x000F000Fu, hi = (v >> 4) & 0x00030003u;
        t.or32(off + (j == 6 ? 4 : 12), lo << 12);
        t.or32(off + 8, hi << (j == 6 ? 12 : 14));
    }
}

enum Type { F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, MXFP4 };

template <int T> __device__ void repack(const RepackArgs& a) {
    constexpr int KT = T == Q2_K || T == Q3_K || T == Q4_K || T == Q5_K || T == Q6_K || T == IQ4_XS ? 256 : 64;
    constexpr int TILE = T == F32    ? 4096
                         : T == F16 || T == BF16 ? 2048
                         : T == Q4_0 || T == IQ4_NL ? 576
                         : T == Q4_1 ? 640
                         : T == Q5_0 ? 704
                         : T == Q5_1 ? 768
                         : T == Q8_0 ? 1088
                         : T == MXFP4 ? 544
                         : T == Q2_K ? 1344
                         : T == Q3_K ? 1824
                         : T == Q4_K ? 2304
                         : T == Q5_K ? 2816
                         : T == Q6_K ? 3360
                                     : 2208;
    const int groups = (a.k + 31) / 32, tk = (a.k + KT - 1) / KT;
    int64_t id = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (id >= (int64_t)groups * a.rows) return;
    const int64_t row = id / groups;
    const int g32 = (int)(id % groups);
    int64_t r = a.row0 + row;
    Tile t;
    int64_t tile;
    if (a.glu) {
        int64_t half = a.n / 2, o = r < half ? r : r - half;
        tile = o / 8, t.row = (int)(o % 8) + (r < half ? 0 : 8);
    } else tile = r / 16, t.row = (int)(r % 16);
    t.g = t.row & 7, t.r = t.row >> 3;
    const int kt = g32 * 32 / KT, j = g32 - kt * (KT / 32); // group within the tile
    t.p = a.dst + (tile * tk + kt) * (int64_t)TILE;
    u8 q[32];

    if (T == F32 || T == F16 || T == BF16) {
        for (int i = 0; i < 32; i++) {
            int k = g32 * 32 + i, h = (i >> 4), tq = (i & 15) >> 2, e = i & 3;
            if (k >= a.k) break;
            // 16 columns: lane (g, t), word r + 2 (e / 2), half e & 1
            int off = (j * 2 + h) * 512 + (t.g * 4 + tq) * 16 + (t.r + 2 * (e >> 1)) * 4 + (e & 1) * 2;
            if (T == F32) {
                float v = ((const float*)a.src)[row * a.k + k];
                __nv_bfloat16 hi = __float2bfloat16_rn(v), lo = __float2bfloat16_rn(v - __bfloat162float(hi));
                *(__nv_bfloat16*)(t.p + off) = hi, *(__nv_bfloat16*)(t.p + 2048 + off) = lo;
            } else *(uint16_t*)(t.p + off) = ((const uint16_t*)a.src)[row * a.k + k];
        }
    } else if (KT == 64) {
        constexpr int B = T == Q4_0 || T == IQ4_NL ? 18 : T == Q4_1 ? 20 : T == Q5_0 ? 22 : T == Q5_1 ? 24 : T == Q8_0 ? 34 : 17;
        const u8* b = a.src + (row * groups + g32) * (int64_t)B;
        constexpr int SC = T == Q8_0 ? 1024 : T == Q5_0 || T == Q5_1 ? 640 : 512;
        if (T == Q8_0) {
            for (int i = 0; i < 32; i++) q[i] = b[2 + i] ^ 128;
            t.bytes(0, j, q);
        } else if (T == IQ4_NL || T == MXFP4) {
            nib_low(b + (T == MXFP4 ? 1 : 2), q);
            t.table4(0, j, q);
        } else {
            constexpr int H = T == Q4_1 || T == Q5_1 ? 4 : 2;
            constexpr bool FIVE = T == Q5_0 || T == Q5_1;
            nib_low(b + H + (FIVE ? 4 : 0), q);
            if (FIVE)
                for (int i = 0; i < 32; i++) q[i] |= ((b[H + i / 8] >> (i & 7)) & 1) << 4;
            t.low4(0, j, q);
            if (FIVE) t.plane(512, 4, 0, j, q, 4, 1);
        }
        if (T == Q4_1 || T == Q5_1) {
            t.put16(SC + t.g * 16 + j * 8 + t.r * 4, u16at(b));
            t.put16(SC + t.g * 16 + j * 8 + t.r * 4 + 2, u16at(b + 2));
        } else if (T == MXFP4) t.p[SC + t.g * 4 + j * 2 + t.r] = b[0];
        else t.put16(SC + t.g * 8 + j * 4 + t.r * 2, u16at(b));
    } else {
        constexpr int B = T == Q2_K ? 84 : T == Q3_K ? 110 : T == Q4_K ? 144 : T == Q5_K ? 176 : T == Q6_K ? 210 : 136;
        const u8* b = a.src + (row * (a.k / 256) + kt) * (int64_t)B;
        if (T == Q4_K || T == Q5_K) {
            const u8* qs = b + (T == Q5_K ? 48 : 16) + (j / 2) * 32;
            for (int i = 0; i < 32; i++) {
                q[i] = j & 1 ? qs[i] >> 4 : qs[i] & 15;
                if (T == Q5_K) q[i] |= ((b[16 + i] >> j) & 1) << 4;
            }
            t.low4(0, j, q);
            if (T == Q5_K) t.plane(2048 + (j / 2) * 128, 4, 0, j & 1, q, 4, 1);
            const int at = (T == Q5_K ? 2560 : 2048) + t.row * 16;
            u32 sc, m;
            k4_scale(b + 4, j, &sc, &m);
            put_six(t, at, j, sc, m);
            if (j == 0) t.put16(at, u16at(b)), t.put16(at + 2, u16at(b + 2));
        } else if (T == Q6_K) {
            const u8 *ql = b + (j / 4) * 64 + (j & 1) * 32, *qh = b + 128 + (j / 4) * 32;
            for (int i = 0; i < 32; i++)
                q[i] = ((j & 2 ? ql[i] >> 4 : ql[i] & 15) | ((qh[i] >> (2 * (j & 3))) & 3) << 4);
            t.low4(0, j, q);
            t.plane(2048 + (j / 2) * 256, 8, j & 1, 0, q, 4, 2);
            t.p[3072 + t.row * 16 + 2 * j] = b[192 + 2 * j] ^ 128, t.p[3072 + t.row * 16 + 2 * j + 1] = b[192 + 2 * j + 1] ^ 128;
            if (j == 0) t.put16(3328 + t.g * 4 + t.r * 2, u16at(b + 208));
        } else if (T == Q3_K) {
            const u8* qs = b + 32 + (j / 4) * 32;
            for (int i = 0; i < 32; i++) q[i] = ((qs[i] >> (2 * (j & 3))) & 3) | ((b[i] >> j) & 1) << 2;
            t.plane((j / 4) * 512, 16, j & 3, 0, q, 0, 2);
            t.plane(1024, 16, j / 2, j & 1, q, 2, 1);
            for (int h = 0; h < 2; h++) {
                int s = 2 * j + h; // scale s of 16
                int lo = s < 8 ? b[96 + s] & 15 : b[96 + s - 8] >> 4, hi = (b[104 + (s & 3)] >> (2 * (s / 4))) & 3;
                t.p[1536 + t.row * 16 + s] = (u8)((lo | hi << 4) - 32 + 128);
            }
            if (j == 0) t.put16(1792 + t.g * 4 + t.r * 2, u16at(b + 108));
        } else if (T == Q2_K) {
            const u8* qs = b + 16 + (j / 4) * 32;
            for (int i = 0; i < 32; i++) q[i] = (qs[i] >> (2 * (j & 3))) & 3;
            t.plane((j / 4) * 512, 16, j & 3, 0, q, 0, 2);
            for (int h = 0; h < 2; h++) {
                int s = 2 * j + h;
                u32 v = (b[s] & 15u) | (u32)(b[s] >> 4) << 16;
                t.or32(1024 + t.row * 16 + (s / 4) * 4, v << (4 * (s & 3)));
            }
            if (j == 0) t.put16(1280 + t.g * 8 + t.r * 4, u16at(b + 80)), t.put16(1280 + t.g * 8 + t.r * 4 + 2, u16at(b + 82));
        } else { // IQ4_XS
            nib_low(b + 8 + j * 16, q);
            t.table4(0, j, q);
            int ls = (j & 1 ? b[4 + j / 2] >> 4 : b[4 + j / 2] & 15) | ((u16at(b + 2) >> (2 * j)) & 3) << 4;
            t.p[2048 + t.row * 8 + j] = (u8)(ls - 32 + 128);
            if (j == 0) t.put16(2176 + t.g * 4 + t.r * 2, u16at(b));
        }
    }
}

} // namespace q

#define REPACK(NAME, T) \
    extern "C" __global__ void __launch_bounds__(256) repack_##NAME(const __grid_constant__ q::RepackArgs a) { q::repack<q::T>(a); }
REPACK(f32, F32)
REPACK(f16, F16)
REPACK(bf16, BF16)
REPACK(q4_0, Q4_0)
REPACK(q4_1, Q4_1)
REPACK(q5_0, Q5_0)
REPACK(q5_1, Q5_1)
REPACK(q8_0, Q8_0)
REPACK(q2_k, Q2_K)
REPACK(q3_k, Q3_K)
REPACK(q4_k, Q4_K)
REPACK(q5_k, Q5_K)
REPACK(q6_k, Q6_K)
REPACK(iq4_nl, IQ4_NL)
REPACK(iq4_xs, IQ4_XS)
REPACK(mxfp4, MXFP4)
