// Attention of single rows over the paged cache, split along the context into chunks of CHUNK tokens at fixed places, so that a row's
// result depends on nothing but its own sequence. A block takes one row, one tile of query heads that share a key head, and one chunk.
#include "common.cuh"

constexpr int CHUNK = 256, THREADS = 128;

struct AttendArgs {
  Step step;
  const int32_t* list;  // the rows to attend; null: all
  const float* q;
  float* out;
  const uint8_t* pool;
  float* part;  // [row][head][chunk][v_dim + 2]: sum, maximum, total; null: a block walks all chunks of its row
  int64_t q_stride, out_stride, page, k_at, v_at;
  int32_t heads, kv_heads, head_dim, v_dim;
  int32_t window;  // 0: none
  int32_t chunks;  // the grid's, where `part` is not null
  float scale, softcap;
  const float* sinks;  // [heads] or null
  float alibi;         // 0: none
  int32_t chunked;
};

// The sum of two chunks' sums, each relative to its own maximum. Written once, so that it rounds the same wherever chunks are joined.
__device__ __forceinline__ float join(float a, float a_max, float b, float b_max) {
  float m = max_nan(a_max, b_max);
  return fmaf(expf(b_max - m), b, __fmul_rn(expf(a_max - m), a));
}

// Eight (or one) neighbouring elements of the cache as floats.
template <class T, int V> __device__ __forceinline__ void load(const T* p, float* y) {
  if constexpr (V == 1) {
    y[0] = to_float<T>(*p);
  } else if constexpr (sizeof(T) == 4) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    y[0] = a.x; y[1] = a.y; y[2] = a.z; y[3] = a.w; y[4] = b.x; y[5] = b.y; y[6] = b.z; y[7] = b.w;
  } else {
    uint4 raw = *(const uint4*)p;
    const T* e = (const T*)&raw;
#pragma unroll
    for (int i = 0; i < 8; i++) y[i] = to_float<T>(e[i]);
  }
}

// H: most query heads of a tile. Grid: chunks (one where `part` is null: then the block walks them), key heads * tiles, rows.
// Shared: q [H][head_dim], weights [H][CHUNK], sums of a chunk and of all [H][v_dim], their statistics.
template <class T, int V, int H> __device__ __forceinline__ void attend(const AttendArgs& a) {
  extern __shared__ float4 shared4[];
  begin();
  const int at = blockIdx.z;  // of the rows that are attended here
  if (!a.list && at >= a.step.n[0]) return;
  const int r = a.list ? a.list[at] : at;
  const int4 place = a.step.row[r];
  const int position = place.y;
  const int first = first_seen(position, a.window, a.chunked);
  const int chunk0 = a.part ? blockIdx.x : first / CHUNK, chunk1 = a.part ? chunk0 + 1 : position / CHUNK + 1;
  if (max(first, chunk0 * CHUNK) >= min(position + 1, chunk1 * CHUNK)) return;
  const int group = a.heads / a.kv_heads, tiles = (group + H - 1) / H;
  const int kv_head = blockIdx.y / tiles, head0 = kv_head * group + blockIdx.y % tiles * H;
  const int nh = min(H, kv_head * group + group - head0);
  const int hd = a.head_dim, vd = a.v_dim, qs = (hd + 3) & ~3, vs = (vd + 3) & ~3;
  float* q = (float*)shared4;
  float* w = q + H * qs;
  float* sums = w + H * CHUNK;
  float* all = sums + H * vs;
  float* stats = all + H * vs;  // [4][H]: maximum and total of a chunk, of all
  float* slopes = stats + 4 * H;
  const int32_t* blocks = a.step.blocks + place.z;
  for (int i = threadIdx.x; i < nh * hd; i += THREADS) q[i / hd * qs + i % hd] = a.q[r * a.q_stride + (int64_t)head0 * hd + i];
  for (int i = threadIdx.x; i < H * vs; i += THREADS) all[i] = 0.f;
  if (threadIdx.x < H) {
    stats[2 * H + threadIdx.x] = -INFINITY;
    stats[3 * H + threadIdx.x] = 0.f;
    slopes[threadIdx.x] = alibi_slope(a.alibi, a.heads, head0 + threadIdx.x);
  }
  __syncthreads();

  for (int chunk = chunk0; chunk < chunk1; chunk++) {
    const int from = max(first, chunk * CHUNK), to = min(position + 1, (chunk + 1) * CHUNK);
    // Scores: eight lanes share a token.
    const int sub = threadIdx.x / 8, lane = threadIdx.x % 8;
    for (int t0 = from; t0 < to; t0 += THREADS / 8) {
      int t = t0 + sub;
      float s[H] = {};
      if (t < to) {
        const T* k = (const T*)(a.pool + (int64_t)blocks[t / 16] * a.page + a.k_at) + (int64_t)(kv_head * 16 + t % 16) * hd;
        for (int d = lane * V; d < hd; d += 8 * V) {
          float y[V];
          load<T, V>(k + d, y);
#pragma unroll
          for (int h = 0; h < H; h++) {
            if (h < nh) {
#pragma unroll
              for (int i = 0; i < V; i++) s[h] = fmaf(y[i], q[h * qs + d + i], s[h]);
            }
          }
        }
      }
#pragma unroll
      for (int h = 0; h < H; h++) {
#pragma unroll
        for (int i = 4; i > 0; i >>= 1) s[h] += __shfl_xor_sync(0xffffffffu, s[h], i);
        if (lane == 0 && t < to && h < nh) {
          float v = s[h] * a.scale;
          if (a.softcap > 0.f) v = a.softcap * tanhf(v / a.softcap);
          w[h * CHUNK + t - from] = v - slopes[h] * (float)(position - t);
        }
      }
    }
    __syncthreads();

    // Weights: a warp takes a head.
    const int n = to - from, warp = threadIdx.x / 32, l = threadIdx.x % 32;
    for (int h = warp; h < nh; h += THREADS / 32) {
      float m = -INFINITY;
      for (int t = l; t < n; t += 32) m = max_nan(m, w[h * CHUNK + t]);
      m = warp_max(m);
      float total = 0.f;
      for (int t = l; t < n; t += 32) {
        float e = expf(w[h * CHUNK + t] - m);
        w[h * CHUNK + t] = e;
        total += e;
      }
      total = warp_sum(total);
      if (l == 0) {
        stats[h] = m;
        stats[H + h] = total;
      }
    }
    for (int i = threadIdx.x; i < H * vs; i += THREADS) sums[i] = 0.f;
    __syncthreads();

    // Values: threads are columns, in as many teams as there is room for; teams take tokens in turn.
    const int pieces = (vd + V - 1) / V, teams = pieces < THREADS ? THREADS / pieces : 1, team = threadIdx.x / pieces;
    for (int piece0 = 0; piece0 < pieces; piece0 += THREADS) {
      const int piece = teams > 1 ? threadIdx.x % pieces : piece0 + threadIdx.x;
      const bool busy = teams > 1 ? team < teams : piece < pieces;
      float acc[H][V] = {};
      if (busy) {
        for (int t = from + (teams > 1 ? team : 0); t < to; t += teams) {
          const T* v = (const T*)(a.pool + (int64_t)blocks[t / 16] * a.page + a.v_at) + (int64_t)(kv_head * 16 + t % 16) * vd;
          float y[V];
          load<T, V>(v + piece * V, y);
#pragma unroll
          for (int h = 0; h < H; h++) {
            if (h < nh) {
              float p = w[h * CHUNK + t - from];
#pragma unroll
              for (int i = 0; i < V; i++) acc[h][i] = fmaf(p, y[i], acc[h][i]);
            }
          }
        }
      }
      for (int turn = 0; turn < teams; turn++) {
        if (busy && (teams == 1 || team == turn)) {
#pragma unroll
          for (int h = 0; h < H; h++) {
#pragma unroll
            for (int i = 0; i < V; i++) sums[h * vs + piece * V + i] += acc[h][i];
          }
        }
        __syncthreads();
      }
    }
    if (a.part) break;

    for (int i = threadIdx.x; i < nh * vd; i += THREADS) {
      int h = i / vd, at = h * vs + i % vd;
      all[at] = join(all[at], stats[2 * H + h], sums[at], stats[h]);
    }
    __syncthreads();
    if (threadIdx.x < nh) {
      int h = threadIdx.x;
      stats[3 * H + h] = join(stats[3 * H + h], stats[2 * H + h], stats[H + h], stats[h]);
      stats[2 * H + h] = max_nan(stats[2 * H + h], stats[h]);
    }
    __syncthreads();
  }

  // A sink takes part in the sum of the weights and in nothing else.
  if (!a.part && a.sinks) {
    if (threadIdx.x < nh) stats[3 * H + threadIdx.x] += expf(a.sinks[head0 + threadIdx.x] - stats[2 * H + threadIdx.x]);
    __syncthreads();
  }
  for (int i = threadIdx.x; i < nh * vd; i += THREADS) {
    int h = i / vd, d = i % vd;
    if (a.part) {
      a.part[(((int64_t)at * a.heads + head0 + h) * a.chunks + chunk0) * (vd + 2) + d] = sums[h * vs + d];
    } else {
      a.out[r * a.out_stride + (int64_t)(head0 + h) * vd + d] = all[h * vs + d] / stats[3 * H + h];
    }
  }
  if (a.part && threadIdx.x < nh) {
    float* p = a.part + (((int64_t)at * a.heads + head0 + threadIdx.x) * a.chunks + chunk0) * (vd + 2) + vd;
    p[0] = stats[threadIdx.x];
    p[1] = stats[H + threadIdx.x];
  }
}

#define ONE(NAME, T, V, H) \
  KERNEL __launch_bounds__(THREADS, H == 8 ? 4 : H == 4 ? 6 : 8) attend_##NAME##_##V##_##H(const __grid_constant__ AttendArgs a) { attend<T, V, H>(a); }
#define HEADS(NAME, T, V) ONE(NAME, T, V, 1) ONE(NAME, T, V, 4) ONE(NAME, T, V, 8)
#define WIDTHS(NAME, T) HEADS(NAME, T, 1) HEADS(NAME, T, 8)
WIDTHS(f32, float)
WIDTHS(f16, __half)
WIDTHS(bf16, __nv_bfloat16)

// Joins the chunks of a row's head, first to last. Grid: heads, rows.
KERNEL attend_join(const __grid_constant__ AttendArgs a) {
  begin();
  int at = blockIdx.y, head = blockIdx.x, vd = a.v_dim;
  if (!a.list && at >= a.step.n[0]) return;
  int r = a.list ? a.list[at] : at;
  int position = a.step.row[r].y;
  int first = first_seen(position, a.window, a.chunked);
  int from = first / CHUNK, to = position / CHUNK + 1;
  const float* p = a.part + ((int64_t)at * a.heads + head) * a.chunks * (vd + 2);
  for (int d = threadIdx.x; d < vd; d += blockDim.x) {
    float sum = 0.f, total = 0.f, m = -INFINITY;
    for (int c = from; c < to; c++) {
      const float* e = p + c * (vd + 2);
      sum = join(sum, m, e[d], e[vd]);
      total = join(total, m, e[vd + 1], e[vd]);
      m = max_nan(m, e[vd]);
    }
    if (a.sinks) total += expf(a.sinks[head] - m);
    a.out[r * a.out_stride + (int64_t)head * vd + d] = sum / total;
  }
}
