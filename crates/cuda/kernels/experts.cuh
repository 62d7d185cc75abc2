// Which rows a product of experts has, found on the device: a pair is a row of the step and one of its experts, `row * used + j`.
// A tile is some pairs of one expert. Mirrored by src/args.rs.
#pragma once
#include <stdint.h>

// A tile: its expert, the place of its first pair in the order, how many they are.
struct Pairs {
  int expert, first, count;
};

struct alignas(8) ExpertArgs {
  const int32_t* n;           // the step's row counts
  const float* route;         // [rows, 2 * used], the experts first; null: the j-th of a row has expert j
  const int4* tiles;          // of `experts_sort`: expert, first, count; null: each pair is a tile
  const int32_t* order;       // pairs, those of an expert side by side
  const int32_t* tile_count;  // how many tiles there are
  int64_t route_stride;
  int64_t w_stride;           // bytes of an expert's weights
  int64_t x_block, out_block; // floats from one expert's columns to the next one's; x_block 0: they share the input
  int64_t up_bias;            // from a gate's bias to that of the other half
  int32_t used, rows_kind;
  int32_t low, high;          // experts that have their weights here; the others' tiles are left out
  int32_t tile0, pad;         // first tile of the launch
  float alpha, limit;         // of gate 4

#ifdef __CUDACC__
  // Tile `t` of this launch, unless there is none or its weights are elsewhere.
  __device__ __forceinline__ bool find(int t, Pairs* p) const {
    t += tile0;
    if (tiles) {
      if (t >= *tile_count) return false;
      const int4 e = tiles[t];
      p->expert = e.x, p->first = e.y, p->count = e.z;
    } else {
      if (t >= n[rows_kind] * used) return false;
      p->expert = route ? (int)route[t / used * route_stride + t % used] : t % used;
      p->first = t, p->count = 1;
    }
    return p->expert >= low && p->expert < high;
  }
  // Where the row of pair `i` of a tile begins, in floats.
  __device__ __forceinline__ int64_t place(const Pairs& p, int i, int64_t stride, int64_t block) const {
    const int pair = tiles ? order[p.first + i] : p.first;
    return pair / used * stride + pair % used * block;
  }
#endif
};
