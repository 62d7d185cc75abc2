// Attention of many rows of one sequence over the paged cache (f16 or bf16), Hopper: S = Q K^T and O += P V by wgmma, softmax
// in registers between them (Dao 2023). A block takes one query head and a tile of up to 64 WGS neighbouring rows, 64 for each
// warpgroup; tiles of 64 tokens of keys and values come through a ring of three in shared memory, 128-byte swizzled.
// Tokens outside what any row may see are filled with zeros, so memory never written is never used.
#include "seen.cuh"
#include "tile.cuh"
#include "wgmma.cuh"

namespace q {

struct alignas(8) PrefillArgs {
    const int4* tiles;     // first row, rows (0: nothing to do), position of the first row, place of its block table in `blocks`
    const int32_t* blocks;
    const float* q;
    float* out;
    const u8* pool;
    int64_t q_stride, out_stride, page, k_at, v_at;
    int32_t heads, kv_heads;
    int32_t window, chunked;
    float scale, softcap;
    const float* sinks; // [heads] or null
    float alibi;        // 0: none
    int32_t pad;
};

#if __CUDA_ARCH_FEAT_SM90_ALL

// The compiler must not move arithmetic on sums across the wait for them.
template <int N> __device__ __forceinline__ void settle(float (&v)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) asm volatile("" : "+f"(v[i])::"memory");
}

template <bool BF> __device__ __forceinline__ u32 pair(float x, float y) {
    if (BF) {
        __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
        return *(u32*)&h;
    }
    __half2 h = __floats2half2_rn(x, y);
    return *(u32*)&h;
}

template <bool BF, int HD, int WGS> __device__ __forceinline__ void prefill(const PrefillArgs& a) {
    constexpr int PARTS = (HD + 63) / 64, SIDE = PARTS * 8192, STAGE = 2 * SIDE, THREADS = WGS * 128; // bytes of 64 keys, of both
    extern __shared__ __align__(1024) u8 sm[];
    pdl_launch();
    pdl_wait();
    const int4 tile = a.tiles[gridDim.y - 1 - blockIdx.y]; // the longest first
    if (tile.y <= 0) return;
    const int tid = threadIdx.x, wg = tid >> 7, warp = (tid >> 5) & 3, lane = tid & 31, g = lane >> 2, t = lane & 3;
    const int head = blockIdx.x, kv = head / (a.heads / a.kv_heads);
    const int last = tile.z + tile.y - 1, first = first_seen(tile.z, a.window, a.chunked);
    const int j0 = first / 64, j1 = last / 64 + 1;
    const int32_t* blocks = a.blocks + tile.w;
    const u32 ring = smem_addr(sm);

    auto load = [&](int j, int slot) {
        constexpr int CHUNKS = PARTS * 8; // 16 bytes of a token's row
#pragma unroll
        for (int i = 0; i < 64 * CHUNKS / THREADS + (64 * CHUNKS % THREADS != 0); i++) {
            const int c = tid + i * THREADS, tok = c / CHUNKS, ch = c % CHUNKS, p = j * 64 + tok;
            if (64 * CHUNKS % THREADS != 0 && tok >= 64) break;
            const bool in = p >= first && p <= last && ch * 8 < HD;
            const int b = blocks[min(max(p, first), last) / 16];
            const u8* src = a.pool + (int64_t)b * a.page + ((int64_t)(kv * 16 + (p & 15)) * HD + (ch * 8 < HD ? ch * 8 : 0)) * 2;
            const u32 dst = ring + slot * STAGE + (ch >> 3) * 8192 + tok * 128 + ((ch ^ tok) & 7) * 16;
            const int bytes = in ? 16 : 0;
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst), "l"(src + a.k_at), "r"(bytes) : "memory");
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(dst + SIDE), "l"(src + a.v_at), "r"(bytes) : "memory");
        }
    };
    load(j0, 0);
    asm volatile("cp.async.commit_group;" ::: "memory");
    if (j0 + 1 < j1) load(j0 + 1, 1);
    asm volatile("cp.async.commit_group;" ::: "memory");

    const int r0 = wg * 64 + warp * 16 + g; // this lane's rows of the tile: r0, r0 + 8
    const int pos0 = tile.z + r0, pos1 = pos0 + 8, wlast = min(last, tile.z + wg * 64 + 63), wfirst = tile.z + wg * 64;
    const int low0 = first_seen(pos0, a.window, a.chunked), low1 = first_seen(pos1, a.window, a.chunked);
    const int wlow = first_seen(wfirst, a.window, a.chunked);
    const float slope = alibi_slope(a.alibi, a.heads, head) * 1.4426950408889634f;
    u32 qf[PARTS * 4][4];
#pragma unroll
    for (int s = 0; s < PARTS * 4; s++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int row = min(r0 + (i & 1) * 8, tile.y - 1), d = s * 16 + (i >> 1) * 8 + 2 * t;
            float2 v = {0, 0};
            if (d < HD) v = *(const float2*)(a.q + (tile.x + row) * a.q_stride + (int64_t)head * HD + d);
            qf[s][i] = pair<BF>(v.x, v.y);
        }

    // With 64 columns the compiler (13.0) gives the weights below the registers of the queries and loses these after the first
    // step, so they are kept in shared memory, each lane its own.
    uint4* const kept = (uint4*)(sm + 3 * STAGE) + (tid >> 5) * PARTS * 4 * 32 + lane;
    if (PARTS == 1)
#pragma unroll
        for (int i = 0; i < PARTS * 4; i++) kept[i * 32] = make_uint4(qf[i][0], qf[i][1], qf[i][2], qf[i][3]);

    float o[PARTS][32], m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
#pragma unroll
    for (int p = 0; p < PARTS; p++)
#pragma unroll
        for (int i = 0; i < 32; i++) o[p][i] = 0;
    const uint64_t desc0 = (uint64_t)1 << 62 | (uint64_t)64 << 32 | (uint64_t)1 << 16;
    const float LOG2E = 1.4426950408889634f;
    int slot = 0;
    for (int j = j0; j < j1; j++) {
        asm volatile("cp.async.wait_group 1;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
        __syncthreads();
        if (j + 2 < j1) load(j + 2, slot == 0 ? 2 : slot - 1);
        asm volatile("cp.async.commit_group;" ::: "memory");
        const u32 base = ring + slot * STAGE;
        if (++slot == 3) slot = 0;
        if (j * 64 > wlast || j * 64 + 63 < wlow) continue; // nothing for this warpgroup

        float s[32];
#pragma unroll
        for (int i = 0; i < 32; i++) s[i] = 0;
        settle(s);
        if (PARTS == 1)
#pragma unroll
            for (int i = 0; i < PARTS * 4; i++) {
                const uint4 v = kept[i * 32];
                qf[i][0] = v.x, qf[i][1] = v.y, qf[i][2] = v.z, qf[i][3] = v.w;
            }
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < PARTS * 4; k++) Wgmma<BF, 64>::go(s, qf[k], desc0 | ((base + (k >> 2) * 8192 + (k & 3) * 32) >> 4));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
        settle(s);

        const float mul = a.softcap > 0.f || slope > 0.f ? 1.f : a.scale * LOG2E;
        if (a.softcap > 0.f)
#pragma unroll
            for (int i = 0; i < 32; i++) s[i] = a.softcap * LOG2E * tanhf(s[i] * a.scale / a.softcap);
        if (slope > 0.f) {
            const float by = a.softcap > 0.f ? 1.f : a.scale * LOG2E;
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int p = j * 64 + (i >> 2) * 8 + 2 * t + (i & 1);
                s[i] = s[i] * by + slope * (float)(p - (i & 2 ? pos1 : pos0));
            }
        }
        if (j * 64 + 63 > wfirst || a.window > 0)
#pragma unroll
            for (int i = 0; i < 32; i++) {
                const int p = j * 64 + (i >> 2) * 8 + 2 * t + (i & 1), at = i & 2 ? pos1 : pos0;
                if (p > at || p < (i & 2 ? low1 : low0)) s[i] = -INFINITY;
            }
        float mx[2] = {-INFINITY, -INFINITY};
#pragma unroll
        for (int i = 0; i < 32; i++) mx[i >> 1 & 1] = fmaxf(mx[i >> 1 & 1], s[i]);
        float fix[2], neg[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            mx[h] = fmaxf(mx[h], __shfl_xor_sync(~0u, mx[h], 1));
            mx[h] = fmaxf(mx[h], __shfl_xor_sync(~0u, mx[h], 2));
            const float now = fmaxf(m[h], mx[h] * mul);
            fix[h] = now == -INFINITY ? 1.f : exp2f(m[h] - now);
            neg[h] = now == -INFINITY ? 0.f : now;
            m[h] = now;
            l[h] *= fix[h];
        }
        u32 pf[4][4];
#pragma unroll
        for (int i = 0; i < 32; i += 2) {
            const int h = i >> 1 & 1;
            const float x = exp2f(s[i] * mul - neg[h]), y = exp2f(s[i + 1] * mul - neg[h]);
            l[h] += x + y;
            pf[i >> 3][(i >> 2 & 1) * 2 + h] = pair<BF>(x, y);
        }
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int i = 0; i < 32; i++) o[p][i] *= fix[i >> 1 & 1];
#pragma unroll
        for (int p = 0; p < PARTS; p++) settle(o[p]);
        asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
        for (int k = 0; k < 4; k++)
#pragma unroll
            for (int p = 0; p < PARTS; p++) WgmmaT<BF>::go(o[p], pf[k], desc0 | ((base + SIDE + p * 8192 + k * 2048) >> 4));
        asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
        asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
        for (int p = 0; p < PARTS; p++) settle(o[p]);
    }
    asm volatile("cp.async.wait_group 0;" ::: "memory");
#pragma unroll
    for (int h = 0; h < 2; h++) {
        l[h] += __shfl_xor_sync(~0u, l[h], 1);
        l[h] += __shfl_xor_sync(~0u, l[h], 2);
        const int row = r0 + 8 * h;
        if (row >= tile.y) continue;
        if (a.sinks) l[h] += exp2f(a.sinks[head] * LOG2E - m[h]);
        const float inv = 1.f / l[h];
        float* out = a.out + (tile.x + row) * a.out_stride + (int64_t)head * HD;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int n = 0; n < 8; n++) {
                const int d = p * 64 + n * 8 + 2 * t;
                if (d < HD) *(float2*)(out + d) = make_float2(o[p][4 * n + 2 * h] * inv, o[p][4 * n + 2 * h + 1] * inv);
            }
    }
}

#define PREFILL(HD, WGS)                                                                                                     \
    extern "C" __global__ void __launch_bounds__(WGS * 128, 1) attn_prefill_f16_##HD(const __grid_constant__ q::PrefillArgs a) { \
        q::prefill<false, HD, WGS>(a);                                                                                       \
    }                                                                                                                        \
    extern "C" __global__ void __launch_bounds__(WGS * 128, 1) attn_prefill_bf16_##HD(const __grid_constant__ q::PrefillArgs a) { \
        q::prefill<true, HD, WGS>(a);                                                                                        \
    }
#else
#define PREFILL(HD, WGS)
#endif

} // namespace q

PREFILL(64, 3)
PREFILL(96, 3)
PREFILL(128, 3)
PREFILL(256, 2)
