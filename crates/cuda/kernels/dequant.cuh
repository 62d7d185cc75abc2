// The meaning of every tensor type: `unit32<T>(row, u, y)` gives values 32u..32u+32 of a row of blocks.
// The layouts are described in crates/formats/src/quant; the numbers of the types are the order of DType there.
#pragma once
#include "common.cuh"
#include "grids.cuh"

enum Type {
  F32, F16, BF16, F64, U8, I8, I16, I32, I64, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q8_1, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, Q8_K,
  IQ1_S, IQ1_M, IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS, IQ3_S, IQ4_NL, IQ4_XS, TQ1_0, TQ2_0, MXFP4, NVFP4
};

// X(name in kernels, type, values in a block, bytes of a block)
#define PLAIN_TYPES(X) X(f32, F32, 1, 4) X(f16, F16, 1, 2) X(bf16, BF16, 1, 2) X(f64, F64, 1, 8)
#define BLOCK_TYPES(X)                                                                                             \
  X(q4_0, Q4_0, 32, 18) X(q4_1, Q4_1, 32, 20) X(q5_0, Q5_0, 32, 22) X(q5_1, Q5_1, 32, 24) X(q8_0, Q8_0, 32, 34)     \
  X(q8_1, Q8_1, 32, 36) X(q2_k, Q2_K, 256, 84) X(q3_k, Q3_K, 256, 110) X(q4_k, Q4_K, 256, 144)                      \
  X(q5_k, Q5_K, 256, 176) X(q6_k, Q6_K, 256, 210) X(q8_k, Q8_K, 256, 292) X(iq1_s, IQ1_S, 256, 50)                  \
  X(iq1_m, IQ1_M, 256, 56) X(iq2_xxs, IQ2_XXS, 256, 66) X(iq2_xs, IQ2_XS, 256, 74) X(iq2_s, IQ2_S, 256, 82)         \
  X(iq3_xxs, IQ3_XXS, 256, 98) X(iq3_s, IQ3_S, 256, 110) X(iq4_nl, IQ4_NL, 32, 18) X(iq4_xs, IQ4_XS, 256, 136)      \
  X(tq1_0, TQ1_0, 256, 54) X(tq2_0, TQ2_0, 256, 66) X(mxfp4, MXFP4, 32, 17) X(nvfp4, NVFP4, 64, 36)
#define ALL_TYPES(X) PLAIN_TYPES(X) BLOCK_TYPES(X)

template <int T> struct Block;
#define X(NAME, T, VALUES, BYTES)                        \
  template <> struct Block<T> {                          \
    static constexpr int values = VALUES, bytes = BYTES; \
  };
ALL_TYPES(X)
#undef X

__device__ __forceinline__ uint32_t u16_at(const uint8_t* p) { return *(const uint16_t*)p; }
__device__ __forceinline__ uint32_t u32_at(const uint8_t* p) { return u16_at(p) | u16_at(p + 2) << 16; }
__device__ __forceinline__ float f16_at(const uint8_t* p) { return __half2float(*(const __half*)p); }

// One value of a plain type.
template <int T> __device__ __forceinline__ float plain(const uint8_t* row, int i) {
  if constexpr (T == F32) return ((const float*)row)[i];
  if constexpr (T == F16) return __half2float(((const __half*)row)[i]);
  if constexpr (T == BF16) return __bfloat162float(((const __nv_bfloat16*)row)[i]);
  if constexpr (T == F64) return (float)((const double*)row)[i];
  return 0.f;
}

__device__ __forceinline__ float iq4_value(int q) {
  // -127 -104 -83 -65 -49 -35 -22 -10 1 13 25 38 53 69 89 113
  uint64_t low = 0xf6eaddcfbfad9881ull, high = 0x7159453526190d01ull;
  return (float)(int8_t)((q & 8 ? high : low) >> (8 * (q & 7)));
}

__device__ __forceinline__ float fp4_value(int q) {
  float v = (float)((0x0c08060403020100ull >> (8 * (q & 7))) & 15);
  return q & 8 ? -v : v;
}

__device__ __forceinline__ float half_e8m0(int e) { return __uint_as_float(e < 2 ? 0x00200000u << e : (uint32_t)(e - 1) << 23); }

__device__ __forceinline__ float half_ue4m3(int x) {
  int exponent = x >> 3 & 15;
  float mantissa = (float)(x & 7);
  if (x == 0x7f) return 0.f;
  if (exponent == 0) return mantissa * 0x1p-10f;
  return (1.f + mantissa / 8.f) * __uint_as_float((uint32_t)(exponent - 8 + 127) << 23);
}

__device__ __forceinline__ uint32_t even_signs(uint32_t seven) { return seven | (__popc(seven) & 1) << 7; }

__device__ __forceinline__ float iq2_value(uint32_t word, int j) {
  int c = word >> (2 * j) & 3;
  return (float)(8 + 17 * c + (c == 2));
}

// Eight values of a 2-bit codebook with signs.
__device__ __forceinline__ void put_iq2(float* y, float scale, uint32_t word, uint32_t signs) {
#pragma unroll
  for (int j = 0; j < 8; j++) {
    float v = scale * iq2_value(word, j);
    y[j] = signs >> j & 1 ? -v : v;
  }
}

template <int T> __device__ __forceinline__ void unit32(const uint8_t* __restrict__ row, int u, float* y) {
  if constexpr (Block<T>::values == 1) {
#pragma unroll
    for (int j = 0; j < 32; j++) y[j] = plain<T>(row, 32 * u + j);
    return;
  }
  constexpr int per = Block<T>::values >= 32 ? Block<T>::values / 32 : 1;
  const uint8_t* b = row + (int64_t)(u / per) * Block<T>::bytes;
  const int s = u % per;
  if constexpr (T == Q4_0 || T == Q4_1 || T == IQ4_NL) {
    float d = f16_at(b), m = T == Q4_1 ? f16_at(b + 2) : 0.f;
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int q = b[(T == Q4_1 ? 4 : 2) + j];
      if constexpr (T == Q4_0) { y[j] = d * (float)((q & 15) - 8); y[j + 16] = d * (float)((q >> 4) - 8); }
      if constexpr (T == Q4_1) { y[j] = d * (float)(q & 15) + m; y[j + 16] = d * (float)(q >> 4) + m; }
      if constexpr (T == IQ4_NL) { y[j] = d * iq4_value(q & 15); y[j + 16] = d * iq4_value(q >> 4); }
    }
  } else if constexpr (T == Q5_0 || T == Q5_1) {
    constexpr int head = T == Q5_1 ? 4 : 2;
    float d = f16_at(b), m = T == Q5_1 ? f16_at(b + 2) : 0.f;
    uint32_t qh = u32_at(b + head);
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int q = b[head + 4 + j];
      int lo = (q & 15) | (qh >> j & 1) << 4, hi = (q >> 4) | (qh >> (j + 16) & 1) << 4;
      if constexpr (T == Q5_0) { y[j] = d * (float)(lo - 16); y[j + 16] = d * (float)(hi - 16); }
      if constexpr (T == Q5_1) { y[j] = d * (float)lo + m; y[j + 16] = d * (float)hi + m; }
    }
  } else if constexpr (T == Q8_0 || T == Q8_1) {
    float d = f16_at(b);
#pragma unroll
    for (int j = 0; j < 32; j++) y[j] = d * (float)(int8_t)b[(T == Q8_1 ? 4 : 2) + j];
  } else if constexpr (T == Q8_K) {
    float d = __uint_as_float(u32_at(b));
#pragma unroll
    for (int j = 0; j < 32; j++) y[j] = d * (float)(int8_t)b[4 + 32 * s + j];
  } else if constexpr (T == Q2_K) {
    float d = f16_at(b + 80), dmin = f16_at(b + 82);
    const uint8_t* qs = b + 16 + 32 * (s / 4);
    int shift = 2 * (s % 4);
#pragma unroll
    for (int j = 0; j < 32; j++) {
      int sc = b[2 * s + j / 16];
      y[j] = d * (float)(sc & 15) * (float)(qs[j] >> shift & 3) - dmin * (float)(sc >> 4);
    }
  } else if constexpr (T == Q3_K) {
    float d = f16_at(b + 108);
    const uint8_t* qs = b + 32 + 32 * (s / 4);
    int shift = 2 * (s % 4);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int g = 2 * s + h;
      int sc = (b[96 + g % 8] >> (4 * (g / 8)) & 15) | (b[104 + g % 4] >> (2 * (g / 4)) & 3) << 4;
      float scale = d * (float)(sc - 32);
#pragma unroll
      for (int j = 16 * h; j < 16 * h + 16; j++) {
        int q = (qs[j] >> shift & 3) | (b[j] >> s & 1) << 2;
        y[j] = scale * (float)(q - 4);
      }
    }
  } else if constexpr (T == Q4_K || T == Q5_K) {
    float d = f16_at(b), dmin = f16_at(b + 2);
    const uint8_t* c = b + 4;
    int sc = s < 4 ? c[s] & 63 : (c[s + 4] & 15) | c[s - 4] >> 6 << 4;
    int mn = s < 4 ? c[s + 4] & 63 : c[s + 4] >> 4 | c[s] >> 6 << 4;
    float scale = d * (float)sc, min = dmin * (float)mn;
    const uint8_t* qs = b + (T == Q4_K ? 16 : 48) + 32 * (s / 2);
    int shift = 4 * (s % 2);
#pragma unroll
    for (int j = 0; j < 32; j++) {
      int q = qs[j] >> shift & 15;
      if constexpr (T == Q5_K) q |= (b[16 + j] >> s & 1) << 4;
      y[j] = scale * (float)q - min;
    }
  } else if constexpr (T == Q6_K) {
    float d = f16_at(b + 208);
    int half = s / 4, k = s % 4;
    const uint8_t *ql = b + 64 * half + 32 * (k % 2), *qh = b + 128 + 32 * half;
    const int8_t* sc = (const int8_t*)(b + 192 + 8 * half + 2 * k);
#pragma unroll
    for (int j = 0; j < 32; j++) {
      int q = (ql[j] >> (4 * (k / 2)) & 15) | (qh[j] >> (2 * k) & 3) << 4;
      y[j] = d * (float)sc[j / 16] * (float)(q - 32);
    }
  } else if constexpr (T == IQ1_S || T == IQ1_M) {
    float d;
    if constexpr (T == IQ1_S) {
      d = f16_at(b);
    } else {
      uint32_t h = u16_at(b + 48) >> 12 | u16_at(b + 50) >> 12 << 4 | u16_at(b + 52) >> 12 << 8 | u16_at(b + 54) >> 12 << 12;
      d = __half2float(__ushort_as_half((unsigned short)h));
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int g = 4 * s + i;
      uint32_t index, negative;
      float scale;
      if constexpr (T == IQ1_S) {
        uint32_t qh = u16_at(b + 34 + 2 * s);
        index = b[2 + g] | (qh >> (3 * i) & 7) << 8;
        scale = d * (float)(2 * (qh >> 12 & 7) + 1);
        negative = qh >> 15;
      } else {
        uint32_t high = b[32 + g / 2] >> (4 * (g % 2));
        index = b[g] | (high & 7) << 8;
        scale = d * (float)(2 * (u16_at(b + 48 + 2 * (g / 8)) >> (3 * (g / 2 % 4)) & 7) + 1);
        negative = high >> 3 & 1;
      }
      uint32_t word = GRID_IQ1_S[index];
      float shift = negative ? -0.125f : 0.125f;
#pragma unroll
      for (int j = 0; j < 8; j++) y[8 * i + j] = scale * ((float)((int)(word >> (2 * j) & 3) - 1) + shift);
    }
  } else if constexpr (T == IQ2_XXS) {
    const uint8_t* part = b + 2 + 8 * s;
    uint32_t bits = u32_at(part + 4);
    float scale = f16_at(b) * (0.5f + (float)(bits >> 28)) * 0.25f;
#pragma unroll
    for (int g = 0; g < 4; g++) put_iq2(y + 8 * g, scale, GRID_IQ2_XXS[part[g]], even_signs(bits >> (7 * g) & 127));
  } else if constexpr (T == IQ2_XS || T == IQ2_S) {
    float d = f16_at(b);
    int scales = b[(T == IQ2_XS ? 66 : 74) + s];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int g = 4 * s + i;
      float scale = d * (0.5f + (float)(scales >> (4 * (i / 2)) & 15)) * 0.25f;
      if constexpr (T == IQ2_XS) {
        uint32_t q = u16_at(b + 2 + 2 * g);
        put_iq2(y + 8 * i, scale, GRID_IQ2_XS[q & 511], even_signs(q >> 9));
      } else {
        uint32_t index = b[2 + g] | (b[66 + s] >> (2 * i) & 3) << 8;
        put_iq2(y + 8 * i, scale, GRID_IQ2_S[index], b[34 + g]);
      }
    }
  } else if constexpr (T == IQ3_XXS) {
    uint32_t bits = u32_at(b + 66 + 4 * s);
    float scale = f16_at(b) * (0.5f + (float)(bits >> 28)) * 0.5f;
#pragma unroll
    for (int g = 0; g < 8; g++) {
      uint32_t word = GRID_IQ3_XXS[b[2 + 8 * s + g]], signs = even_signs(bits >> (7 * (g / 2)) & 127) >> (4 * (g % 2));
#pragma unroll
      for (int j = 0; j < 4; j++) {
        int c = word >> (4 * j) & 15;
        float v = scale * (float)(4 + 8 * c + 2 * (c == 7));
        y[4 * g + j] = signs >> j & 1 ? -v : v;
      }
    }
  } else if constexpr (T == IQ3_S) {
    float scale = f16_at(b) * (float)(1 + 2 * (b[106 + s / 2] >> (4 * (s % 2)) & 15));
#pragma unroll
    for (int c = 0; c < 8; c++) {
      uint32_t word = GRID_IQ3_S[b[2 + 8 * s + c] | (b[66 + s] >> c & 1) << 8];
      uint32_t signs = b[74 + 4 * s + c / 2] >> (4 * (c % 2));
#pragma unroll
      for (int j = 0; j < 4; j++) {
        float v = scale * (float)(1 + 2 * (word >> (4 * j) & 15));
        y[4 * c + j] = signs >> j & 1 ? -v : v;
      }
    }
  } else if constexpr (T == IQ4_XS) {
    int sc = (b[4 + s / 2] >> (4 * (s % 2)) & 15) | (u16_at(b + 2) >> (2 * s) & 3) << 4;
    float d = f16_at(b) * (float)(sc - 32);
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int q = b[8 + 16 * s + j];
      y[j] = d * iq4_value(q & 15);
      y[j + 16] = d * iq4_value(q >> 4);
    }
  } else if constexpr (T == TQ1_0) {
    float d = f16_at(b + 52);
#pragma unroll
    for (int j = 0; j < 32; j++) {
      int v = 32 * s + j, byte, n;
      if (v < 160) { byte = b[v % 32]; n = v / 32; }
      else if (v < 240) { byte = b[32 + (v - 160) % 16]; n = (v - 160) / 16; }
      else { byte = b[48 + (v - 240) % 4]; n = (v - 240) / 4; }
      int power = n == 0 ? 1 : n == 1 ? 3 : n == 2 ? 9 : n == 3 ? 27 : 81;
      y[j] = d * (float)(((byte * power & 255) * 3 >> 8) - 1);
    }
  } else if constexpr (T == TQ2_0) {
    float d = f16_at(b + 64);
#pragma unroll
    for (int j = 0; j < 32; j++) y[j] = d * (float)((b[32 * (s / 4) + j] >> (2 * (s % 4)) & 3) - 1);
  } else if constexpr (T == MXFP4) {
    float d = half_e8m0(b[0]);
#pragma unroll
    for (int j = 0; j < 16; j++) {
      int q = b[1 + j];
      y[j] = d * fp4_value(q & 15);
      y[j + 16] = d * fp4_value(q >> 4);
    }
  } else if constexpr (T == NVFP4) {
#pragma unroll
    for (int g = 0; g < 2; g++) {
      float d = half_ue4m3(b[2 * s + g]);
#pragma unroll
      for (int j = 0; j < 8; j++) {
        int q = b[4 + 8 * (2 * s + g) + j];
        y[16 * g + j] = d * fp4_value(q & 15);
        y[16 * g + j + 8] = d * fp4_value(q >> 4);
      }
    }
  }
}
