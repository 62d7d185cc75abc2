// The plain product of experts, of every tensor type: as simple.cu, for tiles of up to four pairs of a row and an expert.
#include "dequant.cuh"
#include "experts.cuh"

constexpr int WARPS = 8, R = 4;

struct PlainExpertArgs {
  const uint8_t* w;
  const uint8_t* w2;  // of the other half, with a gate; or null
  const float* x;
  const float* bias;
  float* out;
  int64_t x_stride, out_stride;
  int32_t n, k;
  int32_t act, pad;
  ExpertArgs e;
};

template <int T> __device__ __forceinline__ void load_unit(const uint8_t* row, int u, int k, float* y) {
  if (Block<T>::values == 1 && 32 * u + 32 > k) {
#pragma unroll
    for (int j = 0; j < 32; j++) y[j] = 32 * u + j < k ? plain<T>(row, 32 * u + j) : 0.f;
  } else {
    unit32<T>(row, u, y);
  }
}

// Grid: outputs, tiles.
template <int T> __device__ __forceinline__ void product(const PlainExpertArgs& a) {
  begin();
  Pairs pairs;
  if (!a.e.find(blockIdx.y, &pairs)) return;
  __shared__ float xs[R][32][33];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const bool glu = a.w2 != nullptr;
  const int slot = blockIdx.x * WARPS + warp;
  const int o0 = glu ? slot : 2 * slot, o1 = glu ? slot : 2 * slot + 1;
  const int64_t row_bytes = (int64_t)a.k / Block<T>::values * Block<T>::bytes, from = (pairs.expert - a.e.low) * a.e.w_stride;
  const uint8_t* p0 = a.w + from + (int64_t)min(o0, a.n - 1) * row_bytes;
  const uint8_t* p1 = (glu ? a.w2 : a.w) + from + (int64_t)min(o1, a.n - 1) * row_bytes;
  const float* bias = a.bias ? a.bias + (int64_t)pairs.expert * a.n : nullptr;
  const int units = (a.k + 31) / 32;
  float s0[R] = {}, s1[R] = {};
  for (int base = 0; base < units; base += 32) {
    __syncthreads();
    for (int i = threadIdx.x; i < R * 1024; i += WARPS * 32) {
      int r = i / 1024, e = i % 1024, at = base * 32 + e;
      bool in = r < pairs.count && at < a.k;
      xs[r][e % 32][e / 32] = in ? a.x[a.e.place(pairs, r, a.x_stride, a.e.x_block) + at] : 0.f;
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
    if (lane != 0 || r >= pairs.count || o0 >= a.n) continue;
    float* out = a.out + a.e.place(pairs, r, a.out_stride, a.e.out_block);
    if (bias) v0 += bias[o0];
    if (glu) {
      if (bias) v1 += bias[a.e.up_bias + o0];
      out[o0] = gated(a.act, v0, v1, a.e.alpha, a.e.limit);
    } else {
      out[o0] = v0;
      if (o1 < a.n) out[o1] = bias ? v1 + bias[o1] : v1;
    }
  }
}

#define X(NAME, T, VALUES, BYTES) \
  KERNEL __launch_bounds__(WARPS * 32) experts_##NAME(const __grid_constant__ PlainExpertArgs a) { product<T>(a); }
ALL_TYPES(X)
