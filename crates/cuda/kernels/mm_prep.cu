// The input of the mm_* kernels: norm, a power of two per row, f16 or bf16, in the image that wgmma reads. A block a row.
#include "mv.cuh"

namespace q {

struct alignas(8) MmPrepArgs {
    const float* x;    // [rows, k], row stride ldx
    const float* gain; // [k] or null
    u8* image;         // [kp / 64][xrows / 8][1024]
    float* rscale;     // [rows]
    int64_t ldx;
    int32_t rows, k, norm;
    float eps;
    int32_t xrows, pad;
};

template <int BF> __device__ void mm_prep(const MmPrepArgs& a) {
    __shared__ float red[16];
    pdl_launch();
    pdl_wait();
    const int r = blockIdx.x, kp = (a.k + 63) & ~63;
    const float* xr = a.x + r * a.ldx;
    const bool aligned = a.ldx % 4 == 0;
    float undo, f = row_factor(xr, a.gain, a.k, a.norm, a.eps, !BF, aligned, red, &undo);
    if (threadIdx.x == 0) a.rscale[r] = undo;
    for (int i = threadIdx.x * 4; i < kp; i += MV_CANON * 4) {
        float4 v = load4(xr, i, a.k, aligned), g = {1, 1, 1, 1};
        if (a.norm && a.gain) g = load4(a.gain, i, a.k, true);
        v.x *= f * g.x, v.y *= f * g.y, v.z *= f * g.z, v.w *= f * g.w;
        uint2 hi, lo;
        round4<BF>(v, &hi, &lo);
        // Column 16 c + 4 t + e is element 2 t + e (e < 2) or 8 + 2 t + e - 2 of its 16.
        u8* atom = a.image + ((size_t)(i >> 6) * (a.xrows >> 3) + (r >> 3)) * 1024 + (r & 7) * 128;
        int c = (i & 63) >> 4, t = (i & 15) >> 2, byte = c * 32 + t * 4;
        *(u32*)(atom + ((byte >> 4 ^ (r & 7)) << 4) + (byte & 15)) = hi.x;
        byte += 16;
        *(u32*)(atom + ((byte >> 4 ^ (r & 7)) << 4) + (byte & 15)) = hi.y;
    }
}

} // namespace q

extern "C" __global__ void __launch_bounds__(256) mm_prep_f16(const __grid_constant__ q::MmPrepArgs a) { q::mm_prep<0>(a); }
extern "C" __global__ void __launch_bounds__(256) mm_prep_bf16(const __grid_constant__ q::MmPrepArgs a) { q::mm_prep<1>(a); }
