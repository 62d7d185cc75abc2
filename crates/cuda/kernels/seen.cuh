// What a token sees, and what is added to its scores: windows, chunks, ALiBi. Shared by all kernels of attention.
#pragma once
#include <stdint.h>

// The first position that a token sees. Chunked: the window begins at a multiple of its size.
__device__ __forceinline__ int first_seen(int position, int window, int chunked) {
  if (window <= 0) return 0;
  return chunked ? position - position % window : max(0, position + 1 - window);
}

// `alibi_slope` of crates/ir/src/op.rs; 0 without ALiBi, whose largest bias is never 0.
__device__ __forceinline__ float alibi_slope(float most, int heads, int head) {
  if (most == 0.f) return 0.f;
  const int n = 1 << (31 - __clz(heads));
  const float steps = head < n ? (float)(head + 1) : (float)(head - n) + 0.5f;
  return exp2f(-most * steps / (float)n);
}
