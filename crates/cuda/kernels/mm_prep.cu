// The input of the mm_* kernels: norm, a power of two per row, f16 or bf16, in the image that wgmma reads. A block a row.
#include "mv.cuh"

namespace q {

struct alignas(8) MmPrepArgs {
    static constexpr bool EXPERTS = false;
    const float* x;    // [rows, k], row stride ldx
    const float* gain; // [k] or null
    u8* image;         // [kp / 64][xrows / 8][1024]
    float* rscale;     // [rows]
    int64_t ldx;
    int32_t rows, k, norm;
    float eps;
    int32_t xrows;
    int32_t planes;    // 2: what rounding left follows, as k-blocks of its own
};

// `ntok` rows of the image for each tile of pairs; a block takes one of them.
struct MmPrepExpertArgs : MmPrepArgs {
    static constexpr bool EXPERTS = true;
    ExpertArgs e;
    int32_t ntok, pad2;
};

template <int BF, class A> __device__ void mm_prep(const A& a) {
    __shared__ float red[16];
    pdl_launch();
    pdl_wait();
    const int r = blockIdx.x, kp = (a.k + 63) & ~63;
    const float* xr = a.x + r * a.ldx;
    bool aligned = a.ldx % 4 == 0;
    if constexpr (A::EXPERTS) {
        Pairs pairs;
        if (!a.e.find(r / a.ntok, &pairs) || r % a.ntok >= pairs.count) return;
        xr = a.x + a.e.place(pairs, r % a.ntok, a.ldx, a.e.x_block);
        aligned = aligned && a.e.x_block % 4 == 0 && (uint64_t)a.x % 16 == 0;
    }
    float undo, f = row_factor(xr, a.gain, a.k, a.norm, a.eps, !BF, aligned, red, &undo);
    if (threadIdx.x == 0) a.rscale[r] = undo;
    // Column 16 c + 4 t + e is element 2 t + e (e < 2) or 8 + 2 t + e - 2 of its 16: a quad of lanes holds 16 columns, twice,
    // and turns its words so that each lane stores 16 bytes.
    u8* rowp = a.image + (size_t)(r >> 3) * 1024 + (r & 7) * 128;
    const int t = threadIdx.x & 3;
    for (int i0 = threadIdx.x * 4; i0 < (kp + 127) / 128 * 128; i0 += MV_CANON * 16) {
        float4 vs[4], gs[4];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int i = i0 + j * MV_CANON * 4;
            vs[j] = load4(xr, i, a.k, aligned), gs[j] = make_float4(1, 1, 1, 1);
            if (a.norm && a.gain) gs[j] = load4(a.gain, i, a.k, true);
        }
#pragma unroll
        for (int j = 0; j < 4; j += 2) {
            uint2 high[2], low[2];
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float4 v = vs[j + h], g = gs[j + h];
                v.x *= f * g.x, v.y *= f * g.y, v.z *= f * g.z, v.w *= f * g.w;
                round4<BF>(v, &high[h], &low[h]);
            }
            for (int plane = 0; plane < a.planes; plane++) {
                const bool rest = BF && plane;
                u32 w0 = rest ? low[0].x : high[0].x, w1 = rest ? low[0].y : high[0].y;
                u32 w2 = rest ? low[1].x : high[1].x, w3 = rest ? low[1].y : high[1].y;
                const u32 p = __shfl_xor_sync(~0u, t & 2 ? w0 : w2, 2), q_ = __shfl_xor_sync(~0u, t & 2 ? w1 : w3, 2);
                if (t & 2) w0 = p, w1 = q_;
                else w2 = p, w3 = q_;
                const u32 m = __shfl_xor_sync(~0u, t & 1 ? w0 : w1, 1), n = __shfl_xor_sync(~0u, t & 1 ? w2 : w3, 1);
                const uint4 out = t & 1 ? make_uint4(m, w1, n, w3) : make_uint4(w0, m, w2, n);
                const int i = i0 + (j + (t >> 1)) * MV_CANON * 4;
                const int chunk = (i & 63) / 16 * 2 + (t & 1);
                if (i < kp) *(uint4*)(rowp + (size_t)((i >> 6) + plane * (kp >> 6)) * (a.xrows >> 3) * 1024 + ((chunk ^ (r & 7)) << 4)) = out;
            }
        }
    }
}

} // namespace q

extern "C" __global__ void __launch_bounds__(256) mm_prep_f16(const __grid_constant__ q::MmPrepArgs a) { q::mm_prep<0>(a); }
extern "C" __global__ void __launch_bounds__(256) mm_prep_bf16(const __grid_constant__ q::MmPrepArgs a) { q::mm_prep<1>(a); }
extern "C" __global__ void __launch_bounds__(256) mmx_prep_f16(const __grid_constant__ q::MmPrepExpertArgs a) { q::mm_prep<0>(a); }
extern "C" __global__ void __launch_bounds__(256) mmx_prep_bf16(const __grid_constant__ q::MmPrepExpertArgs a) { q::mm_prep<1>(a); }
