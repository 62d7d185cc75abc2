// Attention of many rows of a sequence on tensor cores: tiles of 64 pairs of a row and a query head that share a key head, tokens of the
// cache in tiles of BN, softmax on the way (Dao et al. 2022). Queries and weights are rounded to the cache's 16 bits.
#include "common.cuh"

constexpr int WARPS = 4, M = 16 * WARPS;

struct FlashArgs {
  Step step;
  const int4* seqs;  // of sequences with many rows: first row, rows, first block, position of the first row
  const float* q;
  float* out;
  const uint8_t* pool;
  int64_t q_stride, out_stride, page, k_at, v_at;
  int32_t heads, kv_heads;
  int32_t window, chunked;
  float scale, softcap;
  const float* sinks;  // [heads] or null
  float alibi;         // 0: none
  int32_t pad;
};

template <class T> struct Half2;
template <> struct Half2<__half> {
  static __device__ __forceinline__ uint32_t pack(float a, float b) {
    __half2 h = __floats2half2_rn(a, b);
    return *(uint32_t*)&h;
  }
  static __device__ __forceinline__ void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};
template <> struct Half2<__nv_bfloat16> {
  static __device__ __forceinline__ uint32_t pack(float a, float b) {
    __nv_bfloat162 h = __floats2bfloat162_rn(a, b);
    return *(uint32_t*)&h;
  }
  static __device__ __forceinline__ void mma(float* d, const uint32_t* a, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
  }
};

__device__ __forceinline__ void ldmatrix(uint32_t* r, const void* p) {
  uint32_t a = (uint32_t)__cvta_generic_to_shared(p);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a));
}
__device__ __forceinline__ void ldmatrix_t(uint32_t* r, const void* p) {
  uint32_t a = (uint32_t)__cvta_generic_to_shared(p);
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(a));
}
// Sixteen bytes to shared memory, or zeros.
__device__ __forceinline__ void copy16(void* to, const void* from, bool there) {
  uint32_t a = (uint32_t)__cvta_generic_to_shared(to);
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(a), "l"(from), "r"(there ? 16 : 0));
}

// Grid: tiles of all sequences, key heads. Shared: q [M][D + 8], two buffers of keys and values [BN][D + 8].
template <class T, int D, int BN> __device__ __forceinline__ void flash(const FlashArgs& a) {
  begin();
  extern __shared__ uint4 shared16[];
  constexpr int S = D + 8, CHUNKS = D / 8;
  T* q = (T*)shared16;
  T* kv = q + M * S;  // [buffer][keys, values][BN][S]
  const int group = a.heads / a.kv_heads, tokens = M / group;
  // Which sequence's tile this is; the last tokens, which see most, go first.
  int tile = blockIdx.x, s = 0;
  int4 seq = a.seqs[0];
  while (tile >= (seq.y + tokens - 1) / tokens) {
    tile -= (seq.y + tokens - 1) / tokens;
    seq = a.seqs[++s];
  }
  tile = (seq.y + tokens - 1) / tokens - 1 - tile;
  const int token0 = tile * tokens, rows = min(tokens, seq.y - token0);
  const int pos0 = seq.w + token0, pos_last = pos0 + rows - 1;
  const int kv_head = blockIdx.y;
  const int32_t* blocks = a.step.blocks + seq.z;

  const float scale = a.softcap > 0.f ? a.scale : a.scale * 1.4426950408889634f;
  for (int i = threadIdx.x; i < M * (D / 2); i += WARPS * 32) {
    int m = i / (D / 2), d = 2 * (i % (D / 2)), token = m / group;
    float2 x = make_float2(0.f, 0.f);
    if (token < rows) {
      const float* row = a.q + (int64_t)(seq.x + token0 + token) * a.q_stride + (int64_t)(kv_head * group + m % group) * D;
      x = make_float2(row[d], row[d + 1]);
    }
    *(uint32_t*)(q + m * S + d) = Half2<T>::pack(x.x, x.y);
  }

  const int first = first_seen(pos0, a.window, a.chunked);
  const int tile0 = first / BN, tiles = pos_last / BN + 1;
  auto fetch = [&](int t, int buffer) {
    T* to = kv + buffer * 2 * BN * S;
    for (int i = threadIdx.x; i < BN * CHUNKS; i += WARPS * 32) {
      int n = i / CHUNKS, c = i % CHUNKS, token = t * BN + n;
      bool there = token <= pos_last;
      const uint8_t* page = a.pool + (int64_t)(there ? blocks[token / 16] : 0) * a.page;
      int64_t at = ((int64_t)(kv_head * 16 + token % 16) * D + 8 * c) * 2;
      copy16(to + n * S + 8 * c, page + a.k_at + at, there);
      copy16(to + (BN + n) * S + 8 * c, page + a.v_at + at, there);
    }
    asm volatile("cp.async.commit_group;");
  };

  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c2 = 2 * (lane % 4);
  float o[D / 8][4] = {};
  float m_run[2] = {-INFINITY, -INFINITY}, l_run[2] = {0.f, 0.f};
  int pos[2], low[2];
  float slope[2];  // of a position, in powers of two
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const int m = warp * 16 + g + 8 * h;
    pos[h] = pos0 + m / group;
    low[h] = first_seen(pos[h], a.window, a.chunked);
    slope[h] = alibi_slope(a.alibi, a.heads, kv_head * group + m % group) * 1.4426950408889634f;
  }

  fetch(tile0, 0);
  for (int t = tile0; t < tiles; t++) {
    const int buffer = (t - tile0) & 1;
    if (t + 1 < tiles) {
      fetch(t + 1, buffer ^ 1);
      asm volatile("cp.async.wait_group 1;");
    } else {
      asm volatile("cp.async.wait_group 0;");
    }
    __syncthreads();
    const T *keys = kv + buffer * 2 * BN * S, *values = keys + BN * S;

    float sc[BN / 8][4] = {};
#pragma unroll
    for (int kk = 0; kk < D / 16; kk++) {
      uint32_t qa[4];
      ldmatrix(qa, q + (warp * 16 + lane % 16) * S + 16 * kk + 8 * (lane / 16));
#pragma unroll
      for (int n = 0; n < BN / 16; n++) {
        uint32_t b[4];
        ldmatrix(b, keys + (16 * n + lane % 8 + 8 * (lane / 16)) * S + 16 * kk + 8 * (lane / 8 % 2));
        Half2<T>::mma(sc[2 * n], qa, b[0], b[1]);
        Half2<T>::mma(sc[2 * n + 1], qa, b[2], b[3]);
      }
    }

    // Scale, cap and mask; every row sees at least its own token in its last tile.
    const bool edge = t * BN + BN - 1 > pos0 || t * BN < first_seen(pos_last, a.window, a.chunked);
    float m_new[2] = {m_run[0], m_run[1]};
#pragma unroll
    for (int n = 0; n < BN / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float v = sc[n][i] * scale;
        if (a.softcap > 0.f) v = a.softcap * tanhf(v / a.softcap) * 1.4426950408889634f;
        const int token = t * BN + 8 * n + c2 + (i & 1);
        if (a.alibi > 0.f) v += slope[i / 2] * (float)(token - pos[i / 2]);
        if (edge && (token > pos[i / 2] || token < low[i / 2])) v = -INFINITY;
        sc[n][i] = v;
        m_new[i / 2] = fmaxf(m_new[i / 2], v);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
      m_new[h] = fmaxf(m_new[h], __shfl_xor_sync(0xffffffffu, m_new[h], 1));
      m_new[h] = fmaxf(m_new[h], __shfl_xor_sync(0xffffffffu, m_new[h], 2));
      float base = m_new[h] == -INFINITY ? 0.f : m_new[h];
      float shrink = exp2f(m_run[h] - base);
      m_run[h] = m_new[h];
      m_new[h] = base;
      l_run[h] *= shrink;
#pragma unroll
      for (int n = 0; n < D / 8; n++) {
        o[n][2 * h] *= shrink;
        o[n][2 * h + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < BN / 8; n++) {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        sc[n][i] = exp2f(sc[n][i] - m_new[i / 2]);
        l_run[i / 2] += sc[n][i];
      }
    }

#pragma unroll
    for (int kk = 0; kk < BN / 16; kk++) {
      uint32_t pa[4] = {Half2<T>::pack(sc[2 * kk][0], sc[2 * kk][1]), Half2<T>::pack(sc[2 * kk][2], sc[2 * kk][3]),
                        Half2<T>::pack(sc[2 * kk + 1][0], sc[2 * kk + 1][1]), Half2<T>::pack(sc[2 * kk + 1][2], sc[2 * kk + 1][3])};
#pragma unroll
      for (int n = 0; n < D / 16; n++) {
        uint32_t b[4];
        ldmatrix_t(b, values + (16 * kk + lane % 16) * S + 16 * n + 8 * (lane / 16));
        Half2<T>::mma(o[2 * n], pa, b[0], b[1]);
        Half2<T>::mma(o[2 * n + 1], pa, b[2], b[3]);
      }
    }
    __syncthreads();
  }

#pragma unroll
  for (int h = 0; h < 2; h++) {
    float l = l_run[h];
    l += __shfl_xor_sync(0xffffffffu, l, 1);
    l += __shfl_xor_sync(0xffffffffu, l, 2);
    int m = warp * 16 + g + 8 * h, token = m / group;
    if (token >= rows) continue;
    if (a.sinks) l += exp2f(a.sinks[kv_head * group + m % group] * 1.4426950408889634f - m_run[h]);
    float* out = a.out + (int64_t)(seq.x + token0 + token) * a.out_stride + (int64_t)(kv_head * group + m % group) * D;
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
      out[8 * n + c2] = o[n][2 * h] / l;
      out[8 * n + c2 + 1] = o[n][2 * h + 1] / l;
    }
  }
}

#define ONE(NAME, T, D, BN) \
  KERNEL __launch_bounds__(WARPS * 32) flash_##NAME##_##D(const __grid_constant__ FlashArgs a) { flash<T, D, BN>(a); }
#define ALL(NAME, T) ONE(NAME, T, 64, 64) ONE(NAME, T, 80, 64) ONE(NAME, T, 96, 64) ONE(NAME, T, 128, 64) ONE(NAME, T, 256, 32)
ALL(f16, __half)
ALL(bf16, __nv_bfloat16)
