// The input of the matrix-vector kernels, prepared once for all blocks: pays from about 3 rows on. A block a row.
// Bit for bit what mv_body does by itself with an f32 input.
#include "mv.cuh"

namespace q {

struct alignas(8) PrepArgs {
    const float* x;    // [rows, k], row stride ldx
    const float* gain; // [k] or null
    void* xp;          // f16 [rows, kp], or bf16 [2, rows, kp]: values, then what rounding left; kp = k rounded up to 64
    float* sums;       // [rows, kp / 16]
    float* rscale;     // [rows]
    int64_t ldx;
    int32_t rows, k, norm;
    float eps;
};

template <int BF> __device__ void prep(const PrepArgs& a) {
    __shared__ float red[16];
    pdl_launch();
    pdl_wait();
    const int r = blockIdx.x, kp = (a.k + 63) & ~63;
    const float* xr = a.x + r * a.ldx;
    const bool aligned = a.ldx % 4 == 0;
    float undo, f = row_factor(xr, a.gain, a.k, a.norm, a.eps, !BF, aligned, red, &undo);
    if (threadIdx.x == 0) a.rscale[r] = undo;
    u8* row = (u8*)a.xp + (size_t)r * kp * 2;
    for (int i = threadIdx.x * 4; i < (kp + 127) / 128 * 128; i += MV_CANON * 4) {
        float4 v = {0, 0, 0, 0};
        if (i < kp) {
            v = load4(xr, i, a.k, aligned);
            float4 g = {1, 1, 1, 1};
            if (a.norm && a.gain) g = load4(a.gain, i, a.k, true);
            v.x *= f * g.x, v.y *= f * g.y, v.z *= f * g.z, v.w *= f * g.w;
        }
        uint2 hi, lo;
        v = round4<BF>(v, &hi, &lo);
        float s = (v.x + v.y) + (v.z + v.w);
        s += __shfl_xor_sync(~0u, s, 1);
        s += __shfl_xor_sync(~0u, s, 2);
        if (i < kp) {
            if (!BF && i % 16 == 0) a.sums[((size_t)r * kp + i) / 16] = s;
            u8* at = row + ((i & ~31) + pos32(i & 31)) * 2;
            *(uint2*)at = hi;
            if (BF) *(uint2*)(at + (size_t)a.rows * kp * 2) = lo;
        }
    }
}

} // namespace q

extern "C" __global__ void __launch_bounds__(256) mv_prep_f16(const __grid_constant__ q::PrepArgs a) { q::prep<0>(a); }
extern "C" __global__ void __launch_bounds__(256) mv_prep_bf16(const __grid_constant__ q::PrepArgs a) { q::prep<1>(a); }
