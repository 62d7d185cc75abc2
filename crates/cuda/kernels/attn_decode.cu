// Attention of single rows over the paged cache on tensor cores, for f16 and bf16 caches: same arguments, chunks and partial
// results as attend.cu, so attend_join finishes it. A block takes a row, up to 16 query heads of one key head, and a chunk of
// 256 tokens at a fixed place; each of its 8 warps takes every eighth block of 16 tokens. Keys and values go from memory to
// fragments in registers: no shared memory, all loads 16 bytes wide. Queries and weights are split in two parts (high and what
// rounding left), so the cache's own precision is what counts.
#include "seen.cuh"
#include "tile.cuh"

namespace q {

struct Step {
    const int32_t* n;
    const int4* row;
    const int32_t* outputs;
    const int32_t* blocks;
};
struct AttendArgs {
    Step step;
    const int32_t* list;
    const float* q;
    float* out;
    const u8* pool;
    float* part;
    int64_t q_stride, out_stride, page, k_at, v_at;
    int32_t heads, kv_heads, head_dim, v_dim;
    int32_t window, chunks;
    float scale, softcap;
    const float* sinks;
    float alibi;
    int32_t chunked;
};

template <bool BF> __device__ __forceinline__ void mma(float (&c)[4], const u32* a, u32 b0, u32 b1) {
    if (BF) mma_bf16(c, a, b0, b1);
    else mma_f16(c, a, b0, b1);
}
// Two floats as a pair of the cache's type, and the pair of what is left.
template <bool BF> __device__ __forceinline__ u32 split2(float x, float y, u32* lo) {
    if (BF) {
        __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
        float2 f = __bfloat1622float2(h);
        __nv_bfloat162 l = __floats2bfloat162_rn(x - f.x, y - f.y);
        *lo = *(u32*)&l;
        return *(u32*)&h;
    }
    __half2 h = __floats2half2_rn(x, y);
    float2 f = __half22float2(h);
    __half2 l = __floats2half2_rn(x - f.x, y - f.y);
    *lo = *(u32*)&l;
    return *(u32*)&h;
}

template <bool BF, int HD> __device__ __forceinline__ void decode(const AttendArgs& a) {
    constexpr int CHUNK = 256, W = 8, J = 2, G = HD / 32, NV = HD / 8; // groups of 32 columns; tiles of 8 columns of the sums
    __shared__ uint4 sq[2][2 * G][32];                   // queries as fragments: part, 16 columns, lane
    __shared__ float stat[2][W][16];
    extern __shared__ float sums[]; // [W][heads of the tile][HD]
    pdl_launch();
    pdl_wait();
    const int at = blockIdx.z;
    if (!a.list && at >= a.step.n[0]) return;
    const int r = a.list ? a.list[at] : at;
    const int4 place = a.step.row[r];
    const int position = place.y, first = first_seen(position, a.window, a.chunked), chunk = blockIdx.x;
    const int from = max(first, chunk * CHUNK), to = min(position + 1, (chunk + 1) * CHUNK);
    if (from >= to) return;
    const int group = a.heads / a.kv_heads, tiles = (group + 15) / 16, kv = blockIdx.y / tiles, head0 = kv * group + blockIdx.y % tiles * 16;
    const int nh = min(16, kv * group + group - head0);
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;
    int page[J];
#pragma unroll
    for (int j = 0; j < J; j++) page[j] = a.step.blocks[place.z + min(max(chunk * (CHUNK / 16) + warp + W * j, from / 16), (to - 1) / 16)];

    // Lane t owns columns 8t..8t+7 of each 32: its keys are one 16-byte load, its queries four registers twice.
    for (int i = tid; i < 2 * G * 32; i += W * 32) {
        const int s = i / 32, l = i % 32, lg = l >> 2, c = s / 2 * 32 + (l & 3) * 8 + (s & 1) * 4;
        float4 v0 = {0, 0, 0, 0}, v1 = v0;
        const float* p = a.q + r * a.q_stride + (int64_t)head0 * HD + c;
        if (lg < nh) v0 = *(const float4*)(p + lg * HD);
        if (lg + 8 < nh) v1 = *(const float4*)(p + (lg + 8) * HD);
        uint4 hi, lo;
        hi.x = split2<BF>(v0.x, v0.y, &lo.x), hi.y = split2<BF>(v1.x, v1.y, &lo.y);
        hi.z = split2<BF>(v0.z, v0.w, &lo.z), hi.w = split2<BF>(v1.z, v1.w, &lo.w);
        sq[0][s][l] = hi, sq[1][s][l] = lo;
    }

    // Blocks outside the range are read as the last one inside it and masked: no load waits for a branch.
    float s[J][2][4];
    const u8* kvs[J];
#pragma unroll
    for (int j = 0; j < J; j++) kvs[j] = a.pool + (int64_t)page[j] * a.page;
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int tok = (chunk * (CHUNK / 16) + warp + W * j) * 16;
#pragma unroll
        for (int n = 0; n < 2; n++) s[j][n][0] = s[j][n][1] = s[j][n][2] = s[j][n][3] = 0;
        uint4 k[2][G];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int d = 0; d < G; d++) k[n][d] = *(const uint4*)(kvs[j] + a.k_at + ((int64_t)(kv * 16 + n * 8 + g) * HD + d * 32 + t * 8) * 2);
        if (j == 0) __syncthreads(); // the queries
#pragma unroll
        for (int d = 0; d < G; d++) {
            const uint4 h0 = sq[0][2 * d][lane], h1 = sq[0][2 * d + 1][lane], l0 = sq[1][2 * d][lane], l1 = sq[1][2 * d + 1][lane];
#pragma unroll
            for (int n = 0; n < 2; n++) {
                mma<BF>(s[j][n], &h0.x, k[n][d].x, k[n][d].y), mma<BF>(s[j][n], &l0.x, k[n][d].x, k[n][d].y);
                mma<BF>(s[j][n], &h1.x, k[n][d].z, k[n][d].w), mma<BF>(s[j][n], &l1.x, k[n][d].z, k[n][d].w);
            }
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int p = tok + n * 8 + 2 * t + (i & 1);
                float v = s[j][n][i] * a.scale;
                if (a.softcap > 0.f) v = a.softcap * tanhf(v / a.softcap);
                if (a.alibi > 0.f) v -= alibi_slope(a.alibi, a.heads, head0 + g + (i >> 1) * 8) * (float)(position - p);
                s[j][n][i] = p >= from && p < to ? v : -INFINITY;
            }
    }
    // Values of the first 64 columns are asked for before the maxima are exchanged.
    uint4 vn[J][4];
    auto values = [&](int j, int c, uint4* v) {
        const int tok = (chunk * (CHUNK / 16) + warp + W * j) * 16;
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int p = 2 * t + (i & 1) + (i >> 1) * 8;
            v[i] = *(const uint4*)(kvs[j] + a.v_at + ((int64_t)(kv * 16 + p) * HD + c * 64 + g * 8) * 2);
            if (tok + p < from || tok + p >= to) v[i] = make_uint4(0, 0, 0, 0);
        }
    };
#pragma unroll
    for (int j = 0; j < J; j++) values(j, 0, vn[j]);
    // The block's maximum of each head, then weights and their totals.
    float m[2] = {-INFINITY, -INFINITY}, total[2] = {0, 0};
#pragma unroll
    for (int j = 0; j < J; j++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) m[i >> 1] = fmaxf(m[i >> 1], s[j][n][i]);
#pragma unroll
    for (int h = 0; h < 2; h++) {
        m[h] = fmaxf(m[h], __shfl_xor_sync(~0u, m[h], 1));
        m[h] = fmaxf(m[h], __shfl_xor_sync(~0u, m[h], 2));
        if (t == 0) stat[0][warp][g + 8 * h] = m[h];
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < 2; h++)
#pragma unroll
        for (int w = 0; w < W; w++) m[h] = fmaxf(m[h], stat[0][w][g + 8 * h]);
    float acc[NV][4];
#pragma unroll
    for (int i = 0; i < NV; i++) acc[i][0] = acc[i][1] = acc[i][2] = acc[i][3] = 0;
#pragma unroll
    for (int j = 0; j < J; j++) {
        const int tok = (chunk * (CHUNK / 16) + warp + W * j) * 16;
        u32 hi[4], lo[4];
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float x = __expf(s[j][n][2 * h] - m[h]), y = __expf(s[j][n][2 * h + 1] - m[h]);
                total[h] += x + y;
                hi[2 * n + h] = split2<BF>(x, y, &lo[2 * n + h]);
            }
        // Columns 64 c + 8 g + i of tokens 2t, 2t+1, 2t+8, 2t+9; column tile i of these 64 takes column i of each lane.
#pragma unroll
        for (int c = 0; c < HD / 64; c++) {
            uint4 v[4];
            if (c == 0) v[0] = vn[j][0], v[1] = vn[j][1], v[2] = vn[j][2], v[3] = vn[j][3];
            else values(j, c, v);
#pragma unroll
            for (int w = 0; w < 4; w++) {
                const u32 x0 = (&v[0].x)[w], x1 = (&v[1].x)[w], x2 = (&v[2].x)[w], x3 = (&v[3].x)[w];
                const u32 e0 = __byte_perm(x0, x1, 0x5410), e1 = __byte_perm(x2, x3, 0x5410);
                const u32 o0 = __byte_perm(x0, x1, 0x7632), o1 = __byte_perm(x2, x3, 0x7632);
                mma<BF>(acc[c * 8 + 2 * w], hi, e0, e1), mma<BF>(acc[c * 8 + 2 * w], lo, e0, e1);
                mma<BF>(acc[c * 8 + 2 * w + 1], hi, o0, o1), mma<BF>(acc[c * 8 + 2 * w + 1], lo, o0, o1);
            }
        }
        if (HD % 64) { // the last 32 columns: 4 a lane
            constexpr int C0 = HD / 64 * 64;
            uint2 v[4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int p = 2 * t + (i & 1) + (i >> 1) * 8;
                v[i] = *(const uint2*)(kvs[j] + a.v_at + ((int64_t)(kv * 16 + p) * HD + C0 + g * 4) * 2);
                if (tok + p < from || tok + p >= to) v[i] = make_uint2(0, 0);
            }
#pragma unroll
            for (int w = 0; w < 2; w++) {
                const u32 x0 = (&v[0].x)[w], x1 = (&v[1].x)[w], x2 = (&v[2].x)[w], x3 = (&v[3].x)[w];
                const u32 e0 = __byte_perm(x0, x1, 0x5410), e1 = __byte_perm(x2, x3, 0x5410);
                const u32 o0 = __byte_perm(x0, x1, 0x7632), o1 = __byte_perm(x2, x3, 0x7632);
                constexpr int B = HD % 64 ? C0 / 8 : 0;
                mma<BF>(acc[B + 2 * w], hi, e0, e1), mma<BF>(acc[B + 2 * w], lo, e0, e1);
                mma<BF>(acc[B + 2 * w + 1], hi, o0, o1), mma<BF>(acc[B + 2 * w + 1], lo, o0, o1);
            }
        }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        total[h] += __shfl_xor_sync(~0u, total[h], 1);
        total[h] += __shfl_xor_sync(~0u, total[h], 2);
        if (t == 0) stat[1][warp][g + 8 * h] = total[h];
    }
#pragma unroll
    for (int i = 0; i < NV; i++)
#pragma unroll
        for (int e = 0; e < 4; e++) {
            const int h = g + (e >> 1) * 8, n = 2 * t + (e & 1);
            const int d = HD % 64 && i >= HD / 64 * 8 ? HD / 64 * 64 + n * 4 + (i - HD / 64 * 8) : i / 8 * 64 + n * 8 + i % 8;
            if (h < nh) sums[(warp * nh + h) * HD + d] = acc[i][e];
        }
    __syncthreads();
    for (int i = tid; i < nh * HD; i += W * 32) {
        const int h = i / HD, d = i % HD;
        float v = 0, tot = 0, mx = -INFINITY;
#pragma unroll
        for (int w = 0; w < W; w++) v += sums[w * nh * HD + i], tot += stat[1][w][h], mx = fmaxf(mx, stat[0][w][h]);
        if (a.part) {
            float* p = a.part + (((int64_t)at * a.heads + head0 + h) * a.chunks + chunk) * (HD + 2);
            p[d] = v;
            if (d == 0) p[HD] = mx, p[HD + 1] = tot;
        } else {
            if (a.sinks) tot += __expf(a.sinks[head0 + h] - mx);
            a.out[r * a.out_stride + (int64_t)(head0 + h) * HD + d] = v / tot;
        }
    }
}

// Joins the chunks of a row's head, first to last; what each counts for is worked out beforehand, so no load waits for another.
// Grid: heads, rows; HD threads (at least 128).
template <int HD> __device__ __forceinline__ void join(const AttendArgs& a) {
    constexpr int MOST = 512;
    __shared__ float f[MOST], red[8];
    pdl_launch();
    pdl_wait();
    const int at = blockIdx.y, head = blockIdx.x, tid = threadIdx.x, warp = tid >> 5, warps = blockDim.x >> 5;
    if (!a.list && at >= a.step.n[0]) return;
    const int r = a.list ? a.list[at] : at, position = a.step.row[r].y;
    const int c0 = first_seen(position, a.window, a.chunked) / 256, c1 = position / 256 + 1;
    const float* p = a.part + ((int64_t)at * a.heads + head) * a.chunks * (HD + 2);
    float m = -INFINITY;
    for (int c = c0 + tid; c < c1; c += blockDim.x) m = fmaxf(m, p[c * (HD + 2) + HD]);
    for (int o = 16; o; o >>= 1) m = fmaxf(m, __shfl_xor_sync(~0u, m, o));
    if ((tid & 31) == 0) red[warp] = m;
    __syncthreads();
    for (int w = 0; w < warps; w++) m = fmaxf(m, red[w]);
    float total = 0, v = 0;
    for (int b = c0; b < c1; b += MOST) {
        const int n = min(MOST, c1 - b);
        __syncthreads();
        for (int c = tid; c < n; c += blockDim.x) f[c] = __expf(p[(b + c) * (HD + 2) + HD] - m);
        __syncthreads();
#pragma unroll 8
        for (int c = 0; c < n; c++) {
            const float* e = p + (b + c) * (HD + 2);
            total += f[c] * e[HD + 1];
            if (HD % 32 == 0 && tid < HD) v += f[c] * e[tid];
        }
    }
    if (a.sinks) total += __expf(a.sinks[head] - m);
    if (tid < HD) a.out[r * a.out_stride + (int64_t)head * HD + tid] = v / total;
}

} // namespace q

#define DECODE(HD)                                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) attn_decode_f16_##HD(const __grid_constant__ q::AttendArgs a) { q::decode<false, HD>(a); } \
    extern "C" __global__ void __launch_bounds__(256) attn_decode_bf16_##HD(const __grid_constant__ q::AttendArgs a) { q::decode<true, HD>(a); } \
    extern "C" __global__ void __launch_bounds__(256) attn_join_##HD(const __grid_constant__ q::AttendArgs a) { q::join<HD>(a); }
DECODE(64)
DECODE(96)
DECODE(128)
DECODE(256)
