// The plain product of every tensor type: a warp owns two outputs, its lanes walk the row in units of 32 values, f32 sums. The order of
// every sum depends on k alone, so this is also the product of the deterministic mode. f32 input, weights as in the file.
#include "dequant.cuh"

constexpr int WARPS = 8;

// Values 32u..32u+32 of a row; beyond k they are zero.
template <int T> __device__ __forceinline__ void load_unit(const uint8_t* row, int u, int k, float* y) {
  if (Block<T>::values == 1 && 32 * u + 32 > k) {
#pragma unroll
    for (int j = 0; j < 32; j++) y[j] = 32 * u + j < k ? plain<T>(row, 32 * u + j) : 0.f;
  } else {
    unit32<T>(row, u, y);
  }
}

template <int T, int R> __device__ __forceinline__ void product(const MatArgs& a) {
  begin();
  // Element j of unit u lies at [j][u], so that lanes read neighbours.
  __shared__ float xs[R][32][33];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool glu = a.w2 != nullptr;
  const int slot = blockIdx.x * WARPS + warp;
  const int o0 = glu ? slot : 2 * slot, o1 = glu ? slot : 2 * slot + 1;
  const int64_t row_bytes = (int64_t)a.k / Block<T>::values * Block<T>::bytes;
  const uint8_t* p0 = a.w + (int64_t)min(o0, a.n - 1) * row_bytes;
  const uint8_t* p1 = (glu ? a.w2 : a.w) + (int64_t)min(o1, a.n - 1) * row_bytes;
  const int units = (a.k + 31) / 32;
  for (int r0 = blockIdx.y * R; r0 < a.rows; r0 += gridDim.y * R) {
    float s0[R] = {}, s1[R] = {};
    for (int base = 0; base < units; base += 32) {
      __syncthreads();
      for (int i = threadIdx.x; i < R * 1024; i += WARPS * 32) {
        int r = i / 1024, e = i % 1024, at = base * 32 + e;
        bool in = r0 + r < a.rows && at < a.k;
        xs[r][e % 32][e / 32] = in ? ((const float*)a.x)[(int64_t)(r0 + r) * a.k + at] : 0.f;
      }
      __syncthreads();
      if (base + lane < units && o0 < a.n) {
        float y0[32], y1[32];
        load_unit<T>(p0, base + lane, a.k, y0);
        load_unit<T>(p1, base + lane, a.k, y1);
#pragma unroll
        for (int j = 0; j < 32; j++) {
#pragma unroll
          for (int r = 0; r < R; r++) {
            float x = xs[r][j][lane];
            s0[r] = fmaf(x, y0[j], s0[r]);
            s1[r] = fmaf(x, y1[j], s1[r]);
          }
        }
      }
    }
#pragma unroll
    for (int r = 0; r < R; r++) {
      float v0 = warp_sum(s0[r]), v1 = warp_sum(s1[r]);
      int row = r0 + r;
      if (lane != 0 || row >= a.rows || o0 >= a.n) continue;
      float* out = a.out + (int64_t)row * a.out_stride;
      if (glu) {
        v0 += a.bias ? a.bias[o0] : 0.f;
        v1 += a.bias2 ? a.bias2[o0] : 0.f;
        out[o0] = activate(a.act, v0) * v1;
      } else {
        const float* add = a.add ? a.add + (int64_t)row * a.add_stride : nullptr;
        v0 += a.bias ? a.bias[o0] : 0.f;
        out[o0] = add ? add[o0] + v0 : v0;
        if (o1 < a.n) {
          v1 += a.bias ? a.bias[o1] : 0.f;
          out[o1] = add ? add[o1] + v1 : v1;
        }
      }
    }
  }
}

#define X(NAME, T, VALUES, BYTES)                                                                              \
  KERNEL __launch_bounds__(WARPS * 32) simple_##NAME##_1(const __grid_constant__ MatArgs a) { product<T, 1>(a); } \
  KERNEL __launch_bounds__(WARPS * 32) simple_##NAME##_8(const __grid_constant__ MatArgs a) { product<T, 8>(a); }
ALL_TYPES(X)
