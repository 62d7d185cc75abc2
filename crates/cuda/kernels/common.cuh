// What all kernels share: argument structs (mirrored by src/args.rs), reductions, activations.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#define KERNEL extern "C" __global__ void

// The inputs of a step, in device memory at addresses that do not change while a graph lives.
struct Step {
  const int32_t* n;        // [0] rows, [1] outputs
  const int4* row;         // by row: token, position, first block in `blocks`, unused
  const int32_t* outputs;  // rows with logits
  const int32_t* blocks;   // block tables, one after the other
};

struct PrepArgs {
  const float* x;
  const float* gain;
  const float* bias;
  void* out;
  int64_t x_stride;
  int32_t rows, k, group;
  int32_t kind;  // 0 no norm, 1 rms, 2 layer
  float eps;
  int32_t gain_step;  // from a group's gains to the next one's: 0 where they share them
};

struct MatArgs {
  const uint8_t* w;
  const uint8_t* w2;
  const void* x;
  const float* bias;
  const float* bias2;
  const float* add;
  float* out;
  void* work;
  int64_t add_stride, out_stride;
  int32_t rows, n, k;
  int32_t act;
};

struct RepackArgs {
  const uint8_t* src;
  uint8_t* dst;
  int32_t n, k;
};

// Programmatic dependent launch (Hopper): the next kernel may be placed while this one runs, and this one waits for those before it. A
// kernel of a file in `DEPENDENT` of src/kernels.rs must begin with it, or its inputs may not be there yet.
__device__ __forceinline__ void begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#include "seen.cuh"

// x * sigmoid(x), never overflowing.
__device__ __forceinline__ float silu(float x) {
  if (x >= 0.f) return x / (1.f + expf(-x));
  float e = expf(x);
  return x * e / (1.f + e);
}

__device__ __forceinline__ float activate(int act, float x) {
  switch (act) {
    case 0: return silu(x);
    // 0.5 (1 + tanh u) is sigmoid(2u), which loses nothing where tanh is near -1.
    case 1: {
      float u = 1.5957691216057308f * (x + 0.044715f * x * x * x);
      if (u >= 0.f) return x / (1.f + expf(-u));
      float e = expf(u);
      // Far out e is 0 and x * e must not become inf * 0.
      return e == 0.f ? (isnan(x) ? x : -0.f) : x * e / (1.f + e);
    }
    case 2: {
      float e = erfcf(-0.70710678118654752f * x);
      return e == 0.f ? (isnan(x) ? x : -0.f) : 0.5f * x * e;
    }
    default: return x < 0.f ? 0.f : x;
  }
}

// The gate over two products: an activation of the first times the second, or 4, bounds and a slope (GPT-OSS); NaN stays NaN.
__device__ __forceinline__ float gated(int act, float gate, float up, float alpha, float limit) {
  if (act != 4) return activate(act, gate) * up;
  float g = gate > limit ? limit : gate, u = up > limit ? limit : up < -limit ? -limit : up;
  return silu(alpha * g) / alpha * (u + 1.f);
}

__device__ __forceinline__ float warp_sum(float v) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) v += __shfl_xor_sync(0xffffffffu, v, i);
  return v;
}

// Maximum that keeps NaN: fmaxf would drop it.
__device__ __forceinline__ float max_nan(float a, float b) { return (a > b || isnan(a)) ? a : b; }

__device__ __forceinline__ float warp_max(float v) {
#pragma unroll
  for (int i = 16; i > 0; i >>= 1) v = max_nan(v, __shfl_xor_sync(0xffffffffu, v, i));
  return v;
}

// The sum over a block of up to 1024 threads, in an order that the block's size alone decides. `shared` holds 32 floats.
__device__ __forceinline__ float block_sum(float v, float* shared) {
  v = warp_sum(v);
  int warp = threadIdx.x >> 5, lane = threadIdx.x & 31, warps = (blockDim.x + 31) >> 5;
  __syncthreads();
  if (lane == 0) shared[warp] = v;
  __syncthreads();
  v = lane < warps ? shared[lane] : 0.f;
  return warp_sum(v);
}

template <class T> __device__ __forceinline__ float to_float(T x);
template <> __device__ __forceinline__ float to_float(float x) { return x; }
template <> __device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <> __device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T> __device__ __forceinline__ T from_float(float x);
template <> __device__ __forceinline__ float from_float(float x) { return x; }
template <> __device__ __forceinline__ __half from_float(float x) { return __float2half_rn(x); }
template <> __device__ __forceinline__ __nv_bfloat16 from_float(float x) { return __float2bfloat16_rn(x); }
