// Mixtures of experts around their products: the choice of each row, the order of rows by expert, columns that pass by, gates whose halves come
// from different products, and the weighted sum. Semantics: crates/ir/src/experts.rs and the reference.
#include "common.cuh"
#include "experts.cuh"

struct RouteArgs {
  const int32_t* n;  // the step's row counts
  const float* logits;
  const float* bias;  // [experts] or null
  float* out;         // [rows, 2 * used]
  int64_t logits_stride, out_stride;
  int32_t rows_kind, experts, used;
  int32_t scoring;                   // 0 softmax, 1 sigmoid, 2 sparse
  int32_t groups, kept, best;        // 0 groups: all experts are candidates
  int32_t normalize;
  float eps, scale;
};

struct Best {
  double score;
  int at;
};

// The first of the greatest scores over a warp; place 0 if none is greater than negative infinity.
__device__ __forceinline__ Best best_of(const double* score, int n, int lane) {
  Best b = {-INFINITY, INT32_MAX};
  for (int i = lane; i < n; i += 32) {
    if (score[i] > b.score) b = {score[i], i};
  }
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) {
    double s = __shfl_xor_sync(0xffffffffu, b.score, o);
    int at = __shfl_xor_sync(0xffffffffu, b.at, o);
    if (s > b.score || (s == b.score && at < b.at)) b = {s, at};
  }
  if (b.at == INT32_MAX) b.at = 0;
  return b;
}

__device__ __forceinline__ double warp_sum(double v) {
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
  return v;
}

// A warp a row, in double precision. Shared: scores and what is chosen by, [experts] each; then 128 groups.
KERNEL __launch_bounds__(32) experts_route(const __grid_constant__ RouteArgs a) {
  extern __shared__ double route_shared[];
  begin();
  const int r = blockIdx.x, lane = threadIdx.x, n = a.experts;
  if (r >= a.n[a.rows_kind]) return;
  double *score = route_shared, *choice = score + n, *group = choice + n;
  const float* logits = a.logits + r * a.logits_stride;
  float* out = a.out + r * a.out_stride;
  double top = -INFINITY;
  bool broken = false;
  for (int i = lane; i < n; i += 32) {
    double l = logits[i];
    broken |= isnan(l);
    top = fmax(top, l);
  }
#pragma unroll
  for (int o = 16; o > 0; o >>= 1) top = fmax(top, __shfl_xor_sync(0xffffffffu, top, o));
  broken = __any_sync(0xffffffffu, broken);
  double sum = 0.;
  for (int i = lane; i < n; i += 32) {
    double l = logits[i];
    double s = a.scoring == 0 ? exp(l - top) : a.scoring == 1 ? 1. / (1. + exp(-l)) : l;
    score[i] = s;
    sum += s;
  }
  sum = warp_sum(sum);
  for (int i = lane; i < n; i += 32) {
    if (a.scoring == 0) score[i] /= sum;
    choice[i] = score[i] + (a.bias ? (double)a.bias[i] : 0.);
  }
  __syncwarp();
  if (a.groups > 0) {
    const int of = n / a.groups;
    for (int g = lane; g < a.groups; g += 32) {
      // The sum of the group's best, equal ones from the last to the first.
      double total = 0., below = INFINITY;
      int below_at = INT32_MAX;
      for (int b = 0; b < a.best; b++) {
        double m = -INFINITY;
        int at = 0;
        for (int i = 0; i < of; i++) {
          double s = choice[g * of + i];
          bool next = s < below || (s == below && i < below_at);
          if (next && (s > m || (s == m && i > at))) m = s, at = i;
        }
        below = m, below_at = at, total += m;
      }
      group[g] = total;
    }
    __syncwarp();
    uint64_t kept[2] = {0, 0};
    for (int k = 0; k < a.kept; k++) {
      int g = best_of(group, a.groups, lane).at;
      kept[g >> 6] |= 1ull << (g & 63);
      __syncwarp();
      if (lane == 0) group[g] = -INFINITY;
      __syncwarp();
    }
    for (int i = lane; i < n; i += 32) {
      int g = i / of;
      if (!(kept[g >> 6] >> (g & 63) & 1)) choice[i] = -INFINITY;
    }
    __syncwarp();
  }
  double weights = 0.;
  for (int j = 0; j < a.used; j++) {
    const int at = best_of(choice, n, lane).at;
    double w = score[at];
    if (a.scoring == 2) {
      // Its part of a softmax over those near it that are left.
      double near = 0., best = score[at];
      for (int i = lane; i < n; i += 32) {
        bool is = choice[i] != -INFINITY && best - score[i] <= 2. * (double)a.eps * fmax(fabs(score[i]), best);
        if (is) near += exp(score[i] - best);
      }
      w = 1. / warp_sum(near);
    }
    float rounded = (float)w;
    weights += rounded;
    __syncwarp();
    if (lane == 0) {
      choice[at] = -INFINITY;
      out[j] = (float)at;
      out[a.used + j] = rounded;
    }
    __syncwarp();
  }
  // A sum of zero would divide by zero; transformers adds this much too.
  const double by = a.normalize ? weights + 1e-20 : 1.;
  if (lane == 0) {
    for (int j = 0; j < a.used; j++) {
      float w = out[a.used + j];
      out[a.used + j] = broken ? NAN : (float)((double)w / by * (double)a.scale);
    }
  }
}

struct SortArgs {
  const int32_t* n;
  const float* route;  // null: the j-th of a row has expert j
  int32_t* tile_count;
  int4* tiles;
  int32_t* order;
  int64_t route_stride;
  int32_t rows_kind, experts, used;
  int32_t of_tile;  // most pairs of a tile
};

// Pairs by expert, and tiles of them: count, running sums, place. One block. Shared: [2][experts] numbers.
KERNEL __launch_bounds__(1024) experts_sort(const __grid_constant__ SortArgs a) {
  extern __shared__ int32_t sort_shared[];
  begin();
  const int tid = threadIdx.x, lane = tid & 31;
  int32_t *count = sort_shared, *next = count + a.experts;
  const int pairs = a.n[a.rows_kind] * a.used, rounds = (pairs + 1023) / 1024;
  auto expert = [&](int p) { return a.route ? (int)a.route[p / a.used * a.route_stride + p % a.used] : p % a.used; };
  for (int e = tid; e < a.experts; e += 1024) count[e] = 0;
  __syncthreads();
  for (int i = 0; i < rounds; i++) {
    const int p = i * 1024 + tid, e = p < pairs ? expert(p) : -1;
    const unsigned same = __match_any_sync(0xffffffffu, e);
    if (e >= 0 && lane == __ffs(same) - 1) atomicAdd(count + e, __popc(same));
  }
  __syncthreads();
  if (tid < 32) {
    int pairs0 = 0, tiles0 = 0;
    for (int e0 = 0; e0 < a.experts; e0 += 32) {
      const int e = e0 + lane, c = e < a.experts ? count[e] : 0, t = (c + a.of_tile - 1) / a.of_tile;
      int cs = c, ts = t;
#pragma unroll
      for (int o = 1; o < 32; o <<= 1) {
        const int x = __shfl_up_sync(0xffffffffu, cs, o), y = __shfl_up_sync(0xffffffffu, ts, o);
        if (lane >= o) cs += x, ts += y;
      }
      const int first = pairs0 + cs - c, tile = tiles0 + ts - t;
      if (e < a.experts) next[e] = first;
      for (int i = 0; i < t; i++) a.tiles[tile + i] = make_int4(e, first + i * a.of_tile, min(a.of_tile, c - i * a.of_tile), 0);
      pairs0 += __shfl_sync(0xffffffffu, cs, 31), tiles0 += __shfl_sync(0xffffffffu, ts, 31);
    }
    if (lane == 0) *a.tile_count = tiles0;
  }
  __syncthreads();
  for (int i = 0; i < rounds; i++) {
    const int p = i * 1024 + tid, e = p < pairs ? expert(p) : -1;
    const unsigned same = __match_any_sync(0xffffffffu, e);
    const int leader = __ffs(same) - 1;
    int at = 0;
    if (e >= 0 && lane == leader) at = atomicAdd(next + e, __popc(same));
    at = __shfl_sync(0xffffffffu, at, leader) + __popc(same & ((1u << lane) - 1));
    if (e >= 0) a.order[at] = p;
  }
}

struct BlocksArgs {
  const int32_t* n;
  const float* x;
  float* out;
  int64_t x_stride, out_stride, x_block, out_block;
  int32_t rows_kind, cols, used;
  int32_t act;
  float alpha, limit;
};

// Columns that no matrix reads, behind each block's product. Grid: columns / 256, blocks, rows.
KERNEL experts_rest(const __grid_constant__ BlocksArgs a) {
  begin();
  int64_t r = blockIdx.z, j = blockIdx.y;
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= a.n[a.rows_kind] || c >= a.cols) return;
  a.out[r * a.out_stride + j * a.out_block + c] = a.x[r * a.x_stride + j * a.x_block + c];
}

// Gates two products that lie side by side in each block of x.
KERNEL experts_gate(const __grid_constant__ BlocksArgs a) {
  begin();
  int64_t r = blockIdx.z, j = blockIdx.y;
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= a.n[a.rows_kind] || c >= a.cols) return;
  const float* x = a.x + r * a.x_stride + j * a.x_block;
  a.out[r * a.out_stride + j * a.out_block + c] = gated(a.act, x[c], x[a.cols + c], a.alpha, a.limit);
}

struct CombineArgs {
  const int32_t* n;
  const float* x;
  const float* weights;
  const float* add;  // or null
  float* out;
  int64_t x_stride, weights_stride, add_stride, out_stride;
  int32_t rows_kind, cols, used, pad;
};

// Grid: columns / 256, rows.
KERNEL experts_combine(const __grid_constant__ CombineArgs a) {
  begin();
  int64_t r = blockIdx.y;
  int c = blockIdx.x * blockDim.x + threadIdx.x;
  if (r >= a.n[a.rows_kind] || c >= a.cols) return;
  const float* x = a.x + r * a.x_stride + c;
  const float* w = a.weights + r * a.weights_stride;
  float sum = 0.f;
  for (int j = 0; j < a.used; j++) sum = fmaf(w[j], x[(int64_t)j * a.cols], sum);
  a.out[r * a.out_stride + c] = a.add ? a.add[r * a.add_stride + c] + sum : sum;
}
