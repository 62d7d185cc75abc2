// The best of each row of logits and the sum over all of them, so that a row of half a megabyte need not cross the bus.
//
// `top_groups` reads the row once: the largest of each 128 columns, and of each 4096 the sum relative to their own largest. The k best lie in
// the k groups of the largest maxima, so `top_pick` looks into few groups. Ids decide between equal logits, so the order in which
// threads find them does not matter; sums have one order.
#include "common.cuh"

constexpr int GROUP = 128, PART = 4096, GROUPS_MAX = 4096, FOUND_MAX = 2048, HEAD = 4;

struct TopArgs {
  Step step;
  const float* x;
  float* out;
  float* largest;  // [outputs][groups]
  float4* parts;   // [outputs][parts]: largest, sum relative to it, NaNs
  int64_t x_stride, out_stride;
  int32_t cols, k, groups, part_count;
};

// Floats in an order that unsigned numbers have; 0 is below all. Zeros of both signs are one.
__device__ __forceinline__ uint32_t rank(float v) {
  uint32_t b = __float_as_uint(v + 0.f);
  return b & 0x80000000u ? ~b : b | 0x80000000u;
}

__device__ __forceinline__ float unrank(uint32_t r) {
  return __uint_as_float(r & 0x80000000u ? r & 0x7fffffffu : ~r);
}

// Columns `at..at + 4` of a row; behind its end there is nothing.
__device__ __forceinline__ float4 load4(const float* x, int at, int cols) {
  const float none = -INFINITY;
  if (at + 4 <= cols) return *(const float4*)(x + at);
  return make_float4(at < cols ? x[at] : none, at + 1 < cols ? x[at + 1] : none, at + 2 < cols ? x[at + 2] : none, none);
}

KERNEL __launch_bounds__(256) top_groups(const __grid_constant__ TopArgs a) {
  begin();
  __shared__ float shared[32];
  const int row = blockIdx.y, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= a.step.n[1]) return;
  const float* x = a.x + (int64_t)row * a.x_stride;
  const int base = blockIdx.x * PART + warp * 4 * GROUP;
  float v[16];
  float most = -INFINITY, nan = 0.f;
#pragma unroll
  for (int g = 0; g < 4; g++) {
    float4 f = load4(x, base + g * GROUP + 4 * lane, a.cols);
    float* w = v + 4 * g;
    w[0] = f.x, w[1] = f.y, w[2] = f.z, w[3] = f.w;
    float m = -INFINITY;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      nan += isnan(w[i]) ? 1.f : 0.f;
      m = fmaxf(m, w[i]);
    }
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) m = fmaxf(m, __shfl_xor_sync(0xffffffffu, m, i));
    int group = base / GROUP + g;
    if (lane == 0 && group < a.groups) a.largest[(int64_t)row * a.groups + group] = m;
    most = fmaxf(most, m);
  }
  if (lane == 0) shared[warp] = most;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++) most = fmaxf(most, shared[i]);
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 16; i++) sum += v[i] > -INFINITY ? expf(v[i] - most) : 0.f;
  sum = block_sum(sum, shared);
  nan = block_sum(nan, shared);
  if (threadIdx.x == 0) a.parts[(int64_t)row * a.part_count + blockIdx.x] = make_float4(most, sum, nan, 0.f);
}

KERNEL __launch_bounds__(1024) top_pick(const __grid_constant__ TopArgs a) {
  begin();
  __shared__ uint64_t found[FOUND_MAX];
  __shared__ int groups[GROUPS_MAX];
  __shared__ float shared[32];
  __shared__ int group_count, found_count;
  const int row = blockIdx.x, t = threadIdx.x, warp = t / 32, lane = t % 32;
  if (row >= a.step.n[1]) return;
  if (t == 0) group_count = found_count = 0;
  // What all the parts come to: at most 128 of them, as there are at most 4096 groups.
  float4 part = t < a.part_count ? a.parts[(int64_t)row * a.part_count + t] : make_float4(-INFINITY, 0.f, 0.f, 0.f);
  float most = part.x;
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
  if (lane == 0) shared[warp] = most;
  __syncthreads();
  most = shared[lane];
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, i));
  float sum = block_sum(part.y > 0.f ? part.y * expf(part.x - most) : 0.f, shared);
  float nan = block_sum(part.z, shared);
  // The largest rank that k groups reach, bit by bit; without so many groups all that is above -inf.
  uint32_t ranks[4];
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int g = t + 1024 * i;
    ranks[i] = g < a.groups ? rank(a.largest[(int64_t)row * a.groups + g]) : 0u;
  }
  uint32_t floor = 0;
  const int turns = (a.groups + 1023) / 1024;
  for (int bit = 31; bit >= 0; bit--) {
    uint32_t with = floor | 1u << bit;
    int reach = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
      if (i < turns) reach += __syncthreads_count(ranks[i] >= with);
    if (reach >= a.k) floor = with;
  }
  floor = max(floor, rank(-INFINITY) + 1);
#pragma unroll
  for (int i = 0; i < 4; i++)
    if (ranks[i] >= floor) groups[atomicAdd(&group_count, 1)] = t + 1024 * i;
  __syncthreads();
  const float* x = a.x + (int64_t)row * a.x_stride;
  for (int g = warp; g < group_count; g += 32) {
    int at = groups[g] * GROUP + 4 * lane;
    float4 f = load4(x, at, a.cols);
    float v[4] = {f.x, f.y, f.z, f.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      if (isnan(v[i]) || rank(v[i]) < floor) continue;
      int place = atomicAdd(&found_count, 1);
      if (place < FOUND_MAX) found[place] = (uint64_t)rank(v[i]) << 32 | (0xffffffffu - (uint32_t)(at + i));
    }
  }
  __syncthreads();
  const int n = found_count;
  float* out = a.out + (int64_t)row * a.out_stride;
  // So many equal ones that there is no room: the host looks at the whole row.
  const bool full = n > FOUND_MAX;
  const int count = full ? 0 : min(n, a.k);
  if (t == 0) out[0] = nan, out[1] = most, out[2] = sum, out[3] = (float)count;
  int size = 2;
  while (size < n) size *= 2;
  if (full) size = 0;
  for (int i = n + t; i < size; i += 1024) found[i] = 0;
  __syncthreads();
  // Bitonic, largest first.
  for (int span = 2; span <= size; span *= 2) {
    for (int step = span / 2; step > 0; step /= 2) {
      for (int i = t; i < size / 2; i += 1024) {
        int lo = i / step * 2 * step + i % step, hi = lo + step;
        bool down = (lo & span) == 0;
        uint64_t p = found[lo], q = found[hi];
        if ((p < q) == down) found[lo] = q, found[hi] = p;
      }
      __syncthreads();
    }
  }
  for (int i = t; i < a.k; i += 1024) {
    out[HEAD + i] = i < count ? unrank((uint32_t)(found[i] >> 32)) : 0.f;
    out[HEAD + a.k + i] = i < count ? (float)(0xffffffffu - (uint32_t)found[i]) : 0.f;
  }
}
