// The card's own ceiling: 16-byte loads of a large buffer, nothing else.
#include <stdint.h>
struct alignas(8) ReadArgs { const uint4* p; uint32_t* out; int64_t n; };
extern "C" __global__ void __launch_bounds__(512) bench_read(const __grid_constant__ ReadArgs a) {
    uint32_t s = 0;
    int64_t step = (int64_t)gridDim.x * 512;
    int64_t i = (int64_t)blockIdx.x * 512 + threadIdx.x;
    for (; i + 7 * step < a.n; i += 8 * step) {
        uint4 v[8];
#pragma unroll
        for (int j = 0; j < 8; j++) v[j] = __ldcs(a.p + i + j * step);
#pragma unroll
        for (int j = 0; j < 8; j++) s ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
    }
    if (s == 0x12345678u) a.out[0] = s;
}
