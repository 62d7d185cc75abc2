// Every op that is neither a product nor attention: lookups, norms, rotations, the cache's writes, elementwise ops, inputs of products.
#include "dequant.cuh"

struct EmbedArgs {
  Step step;
  const uint8_t* w;   // rows first..last of the table
  float* out;
  int64_t stride;
  const float* add;   // added to the rows, or null; may be out itself
  int64_t add_stride;
  int32_t first, last, cols;
  float scale;
  int32_t by;         // the row of a token: -1 its id's, -2 its position's, else this one
  int32_t pad;
};

template <int T> __device__ __forceinline__ void embed(const EmbedArgs& a) {
  begin();
  int r = blockIdx.x;
  if (r >= a.step.n[0]) return;
  int id = a.by == -1 ? a.step.row[r].x : a.by == -2 ? a.step.row[r].y : a.by;
  if (id < a.first || id >= a.last) return;
  const float* add = a.add ? a.add + r * a.add_stride : nullptr;
  const uint8_t* row = a.w + (int64_t)(id - a.first) * ((int64_t)a.cols / Block<T>::values * Block<T>::bytes);
  float* out = a.out + r * a.stride;
  if constexpr (Block<T>::values == 1) {
    for (int i = threadIdx.x; i < a.cols; i += blockDim.x) {
      float y = plain<T>(row, i) * a.scale;
      out[i] = add ? add[i] + y : y;
    }
  } else {
    for (int u = threadIdx.x; u < a.cols / 32; u += blockDim.x) {
      float y[32];
      unit32<T>(row, u, y);
#pragma unroll
      for (int j = 0; j < 32; j++) out[32 * u + j] = add ? add[32 * u + j] + y[j] * a.scale : y[j] * a.scale;
    }
  }
}

#define X(NAME, T, VALUES, BYTES) \
  KERNEL embed_##NAME(const __grid_constant__ EmbedArgs a) { embed<T>(a); }
ALL_TYPES(X)
#undef X

// Mean (0 for rms) and inverse deviation of `n` values, by the whole block.
__device__ __forceinline__ float2 moments(const float* x, int n, int kind, float eps, float* shared) {
  float mean = 0.f;
  if (kind == 2) {
    float s = 0.f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) s += x[i];
    mean = block_sum(s, shared) / (float)n;
  }
  float s = 0.f;
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    float d = x[i] - mean;
    s = fmaf(d, d, s);
  }
  float var = block_sum(s, shared) / (float)n;
  return make_float2(mean, 1.f / sqrtf(var + eps));
}

struct NormArgs {
  const int32_t* n;  // the step's row counts
  const float* x;
  const float* gain;
  const float* bias;
  const float* add;
  float* out;
  int64_t x_stride, out_stride, add_stride;
  int32_t rows_kind, group, kind;
  float eps;
  int32_t gain_step, pad;  // from a group's gains to the next one's: 0 where they share them
};

// Grid: rows, groups.
KERNEL norm_rows(const __grid_constant__ NormArgs a) {
  begin();
  __shared__ float shared[32];
  int r = blockIdx.x, at = blockIdx.y * a.group;
  if (r >= a.n[a.rows_kind]) return;
  const float* x = a.x + r * a.x_stride + at;
  float* out = a.out + r * a.out_stride + at;
  const float* add = a.add ? a.add + r * a.add_stride + at : nullptr;
  float2 m = moments(x, a.group, a.kind, a.eps, shared);
  __syncthreads();
  for (int i = threadIdx.x; i < a.group; i += blockDim.x) {
    float y = (x[i] - m.x) * m.y;
    if (a.gain) y *= a.gain[blockIdx.y * a.gain_step + i];
    if (a.bias) y += a.bias[i];
    out[i] = add ? y + add[i] : y;
  }
}

// Grid: rows, groups (one group where nothing is normed).
template <class O> __device__ __forceinline__ void prep(const PrepArgs& a) {
  begin();
  __shared__ float shared[32];
  int64_t r = blockIdx.x, at = (int64_t)blockIdx.y * a.group;
  const float* x = a.x + r * a.x_stride + at;
  O* out = (O*)a.out + r * a.k + at;
  float2 m = make_float2(0.f, 1.f);
  if (a.kind) m = moments(x, a.group, a.kind, a.eps, shared);
  for (int i = threadIdx.x; i < a.group; i += blockDim.x) {
    float y = x[i];
    if (a.kind) {
      y = (y - m.x) * m.y;
      if (a.gain) y *= a.gain[blockIdx.y * a.gain_step + i];
      if (a.bias) y += a.bias[i];
    }
    out[i] = from_float<O>(y);
  }
}
KERNEL prep_f32(const __grid_constant__ PrepArgs a) { prep<float>(a); }
KERNEL prep_f16(const __grid_constant__ PrepArgs a) { prep<__half>(a); }
KERNEL prep_bf16(const __grid_constant__ PrepArgs a) { prep<__nv_bfloat16>(a); }

struct AnglesArgs {
  Step step;
  const double* freq;  // [half]
  float* out;          // [rows][2 * half]: cosines, sines
  int32_t half;
  float mscale;
  float growth_tokens, growth_by, growth_ahead;  // no tokens: it does not grow
  int32_t pad;
};

KERNEL angles(const __grid_constant__ AnglesArgs a) {
  begin();
  int r = blockIdx.x;
  if (r >= a.step.n[0]) return;
  double position = (double)a.step.row[r].y;
  float mscale = a.mscale;
  if (a.growth_tokens > 0.f) {
    double steps = floor((position + (double)a.growth_ahead) / (double)a.growth_tokens);
    mscale *= (float)(log1p(steps) * (double)a.growth_by + 1.);
  }
  for (int i = threadIdx.x; i < a.half; i += blockDim.x) {
    double s, c;
    sincos(position * a.freq[i], &s, &c);
    a.out[(int64_t)r * 2 * a.half + i] = (float)c * mscale;
    a.out[(int64_t)r * 2 * a.half + a.half + i] = (float)s * mscale;
  }
}

struct RopeArgs {
  const int32_t* n;
  float* x;
  const float* angles;
  int64_t stride;
  int32_t heads, head_dim, half, interleaved;
};

// Grid: rows, pairs / 128.
KERNEL rope(const __grid_constant__ RopeArgs a) {
  begin();
  int r = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
  if (r >= a.n[0] || i >= a.heads * a.half) return;
  int head = i / a.half, p = i % a.half;
  float* x = a.x + r * a.stride + (int64_t)head * a.head_dim;
  const float* angle = a.angles + (int64_t)r * 2 * a.half;
  float c = angle[p], s = angle[a.half + p];
  int i0 = a.interleaved ? 2 * p : p, i1 = a.interleaved ? 2 * p + 1 : p + a.half;
  float x0 = x[i0], x1 = x[i1];
  x[i0] = x0 * c - x1 * s;
  x[i1] = x0 * s + x1 * c;
}

struct StoreArgs {
  const int32_t* n;     // how many entries of `list` there are
  const int4* list;     // of rows: token, position, first block; of copies: row, position, first block
  const int32_t* blocks;
  const float* k;
  const float* v;
  uint8_t* pool;
  int64_t k_stride, v_stride, page, k_at, v_at;  // bytes of a page, bytes from its start
  int32_t kv_heads, head_dim, v_dim;
  int32_t copies;
};

// A page holds, for each layer, keys [head][16][head_dim] and then values [head][16][v_dim].
template <class T> __device__ __forceinline__ void store(const StoreArgs& a) {
  begin();
  int i = blockIdx.x;
  if (i >= *a.n) return;
  int4 e = a.list[i];
  int64_t r = a.copies ? e.x : i;
  uint8_t* page = a.pool + (int64_t)a.blocks[e.z + e.y / 16] * a.page;
  T *k = (T*)(page + a.k_at), *v = (T*)(page + a.v_at);
  int token = e.y % 16;
  for (int c = threadIdx.x; c < a.kv_heads * a.head_dim; c += blockDim.x) {
    int head = c / a.head_dim, d = c % a.head_dim;
    k[(int64_t)(head * 16 + token) * a.head_dim + d] = from_float<T>(a.k[r * a.k_stride + c]);
  }
  for (int c = threadIdx.x; c < a.kv_heads * a.v_dim; c += blockDim.x) {
    int head = c / a.v_dim, d = c % a.v_dim;
    v[(int64_t)(head * 16 + token) * a.v_dim + d] = from_float<T>(a.v[r * a.v_stride + c]);
  }
}
KERNEL store_f32(const __grid_constant__ StoreArgs a) { store<float>(a); }
KERNEL store_f16(const __grid_constant__ StoreArgs a) { store<__half>(a); }
KERNEL store_bf16(const __grid_constant__ StoreArgs a) { store<__nv_bfloat16>(a); }

struct RopeStoreArgs {
  StoreArgs store;
  float* q;
  const float* angles;
  int64_t q_stride;
  int32_t heads, half, interleaved, pad;
};

// Rotates a pair of a head, and copies what is not rotated: pair `i` of `head_dim - half` of them.
template <class F> __device__ __forceinline__ void rotate(const float* x, int i, int head_dim, const float* angle, int half, int interleaved, F put) {
  if (i < half) {
    float c = angle[i], s = angle[half + i];
    int i0 = interleaved ? 2 * i : i, i1 = interleaved ? 2 * i + 1 : i + half;
    float x0 = x[i0], x1 = x[i1];
    put(i0, x0 * c - x1 * s);
    put(i1, x0 * s + x1 * c);
  } else {
    put(i + half, x[i + half]);
  }
}

// Rope of queries and keys, and StoreKv, in one: keys and values go to their pages as they are rotated. Grid: rows, items / 128.
template <class T> __device__ __forceinline__ void rope_store(const RopeStoreArgs& a) {
  begin();
  const StoreArgs& s = a.store;
  int r = blockIdx.x, i = blockIdx.y * blockDim.x + threadIdx.x;
  if (r >= *s.n) return;
  const float* angle = a.angles + (int64_t)r * 2 * a.half;
  const int items = s.head_dim - a.half;
  if (i < a.heads * items) {
    float* x = a.q + r * a.q_stride + (int64_t)(i / items) * s.head_dim;
    rotate(x, i % items, s.head_dim, angle, a.half, a.interleaved, [&](int d, float y) { x[d] = y; });
    return;
  }
  i -= a.heads * items;
  int4 e = s.list[r];
  uint8_t* page = s.pool + (int64_t)s.blocks[e.z + e.y / 16] * s.page;
  int token = e.y % 16;
  if (i < s.kv_heads * items) {
    int head = i / items;
    float* x = (float*)s.k + r * s.k_stride + (int64_t)head * s.head_dim;
    T* k = (T*)(page + s.k_at) + (int64_t)(head * 16 + token) * s.head_dim;
    rotate(x, i % items, s.head_dim, angle, a.half, a.interleaved, [&](int d, float y) {
      x[d] = y;
      k[d] = from_float<T>(y);
    });
    return;
  }
  i -= s.kv_heads * items;
  if (i < s.kv_heads * s.v_dim) {
    T* v = (T*)(page + s.v_at) + (int64_t)(i / s.v_dim * 16 + token) * s.v_dim;
    v[i % s.v_dim] = from_float<T>(s.v[r * s.v_stride + i]);
  }
}
KERNEL rope_store_f32(const __grid_constant__ RopeStoreArgs a) { rope_store<float>(a); }
KERNEL rope_store_f16(const __grid_constant__ RopeStoreArgs a) { rope_store<__half>(a); }
KERNEL rope_store_bf16(const __grid_constant__ RopeStoreArgs a) { rope_store<__nv_bfloat16>(a); }

struct MapArgs {
  const int32_t* n;
  const float* a;
  const float* b;
  float* out;
  int64_t a_stride, b_stride, out_stride;
  int32_t rows_kind, cols, act;
  float by;
};

// Grid: columns / 256, rows.
template <class F> __device__ __forceinline__ void map(const MapArgs& m, F f) {
  begin();
  int64_t r = blockIdx.y;
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= m.n[m.rows_kind] || c >= m.cols) return;
  float x = m.a[r * m.a_stride + c], y = m.b ? m.b[r * m.b_stride + c] : 0.f;
  m.out[r * m.out_stride + c] = f(x, y);
}
KERNEL map_glu(const __grid_constant__ MapArgs m) {
  map(m, [&](float g, float u) { return activate(m.act, g) * u; });
}
KERNEL map_act(const __grid_constant__ MapArgs m) {
  map(m, [&](float x, float) { return activate(m.act, x); });
}
KERNEL map_add(const __grid_constant__ MapArgs m) {
  map(m, [](float x, float y) { return x + y; });
}
KERNEL map_scale(const __grid_constant__ MapArgs m) {
  map(m, [&](float x, float) { return x * m.by; });
}
KERNEL map_clip(const __grid_constant__ MapArgs m) {
  map(m, [&](float x, float) { return x > m.by ? m.by : x < -m.by ? -m.by : x; });
}
KERNEL map_softcap(const __grid_constant__ MapArgs m) {
  map(m, [&](float x, float) { return m.by * tanhf(x / m.by); });
}

struct PickArgs {
  Step step;
  const float* x;
  float* out;
  int64_t x_stride, out_stride;
  int32_t cols, pad;
};

// Grid: columns / 256, outputs.
KERNEL pick_rows(const __grid_constant__ PickArgs a) {
  begin();
  int64_t i = blockIdx.y;
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= a.step.n[1] || c >= a.cols) return;
  a.out[i * a.out_stride + c] = a.x[(int64_t)a.step.outputs[i] * a.x_stride + c];
}

struct CopyArgs {
  uint8_t* pool;
  const int2* pairs;
  int64_t page;
};

// Whole pages, 16 bytes at a time; a page is a multiple of 256 bytes. Grid: parts, pairs.
KERNEL copy_pages(const __grid_constant__ CopyArgs a) {
  begin();
  int2 p = a.pairs[blockIdx.y];
  const int4* from = (const int4*)(a.pool + p.x * a.page);
  int4* to = (int4*)(a.pool + p.y * a.page);
  int64_t n = a.page / 16;
  for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < n; i += (int64_t)gridDim.x * blockDim.x) to[i] = from[i];
}
