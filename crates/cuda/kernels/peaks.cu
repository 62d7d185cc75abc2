// What the card can do at best, for the shares of peak that benchmarks print: reading memory, and products of bf16 matrices in registers.
#include "common.cuh"

struct PeakArgs {
  const uint4* from;
  float* out;
  int64_t n;  // 16-byte words to read, or rounds of products
};

// Every word once; the sum keeps the loads alive.
KERNEL __launch_bounds__(512) peak_read(const __grid_constant__ PeakArgs a) {
  uint32_t sum = 0;
  int64_t stride = (int64_t)gridDim.x * blockDim.x;
  int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * stride < a.n; i += 4 * stride) {
    uint4 w[4];
#pragma unroll
    for (int j = 0; j < 4; j++) w[j] = __ldcs(a.from + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; j++) sum ^= w[j].x ^ w[j].y ^ w[j].z ^ w[j].w;
  }
  for (; i < a.n; i += stride) {
    uint4 w = __ldcs(a.from + i);
    sum ^= w.x ^ w.y ^ w.z ^ w.w;
  }
  if (sum == 0x12345678u) a.out[0] = 1.f;
}

// The input's bits: bf16 numbers near 1 with changing signs, because zeros run faster than real numbers do.
__device__ __forceinline__ uint32_t two_numbers(uint32_t seed) {
  seed = seed * 1664525u + 1013904223u;
  return 0x3f003f00u | (seed & 0x80ff80ffu);
}

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
// 64 x 256 x 16 products of warpgroups, both sides in shared memory, no swizzle.
KERNEL __launch_bounds__(256) peak_matrix(const __grid_constant__ PeakArgs a) {
  __shared__ __align__(1024) uint32_t tile[10240];
  for (int i = threadIdx.x; i < 10240; i += blockDim.x) tile[i] = two_numbers(i * 7919 + blockIdx.x);
  __syncthreads();
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
  float d[128] = {};
  uint64_t at = (uint64_t)((__cvta_generic_to_shared(tile) & 0x3ffff) >> 4);
  uint64_t da = at | (uint64_t)8 << 16 | (uint64_t)16 << 32, db = (at + 128) | (uint64_t)8 << 16 | (uint64_t)16 << 32;
  for (int64_t r = 0; r < a.n; r++) {
    asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#pragma unroll
    for (int j = 0; j < 4; j++) {
      asm volatile(
          "{wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 "
          "{%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
          "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,%61,%62,%63,"
          "%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,%90,%91,%92,%93,%94,%95,"
          "%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,%115,%116,%117,%118,%119,%120,%121,"
          "%122,%123,%124,%125,%126,%127}, %128, %129, 1, 1, 1, 0, 0;}"
          : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]),
            "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]), "+f"(d[16]),
            "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]),
            "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]), "+f"(d[32]),
            "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]),
            "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]),
            "+f"(d[49]), "+f"(d[50]), "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]),
            "+f"(d[57]), "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63]), "+f"(d[64]),
            "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]), "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]),
            "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]),
            "+f"(d[81]), "+f"(d[82]), "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]),
            "+f"(d[89]), "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]),
            "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]), "+f"(d[103]), "+f"(d[104]),
            "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]), "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]),
            "+f"(d[113]), "+f"(d[114]), "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]),
            "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]), "+f"(d[127])
          : "l"(da), "l"(db));
    }
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
  }
  float sum = 0.f;
#pragma unroll
  for (int i = 0; i < 128; i++) sum += d[i];
  if (sum == 12345.678f) a.out[0] = sum;
}
#else
// 16 x 8 x 16 products of warps: of 256 threads as many multiplications in a round as above.
KERNEL __launch_bounds__(256) peak_matrix(const __grid_constant__ PeakArgs a) {
  uint32_t x[4], y[2];
  for (int i = 0; i < 4; i++) x[i] = two_numbers(threadIdx.x * 8 + i);
  for (int i = 0; i < 2; i++) y[i] = two_numbers(threadIdx.x * 8 + 4 + i);
  float d[8][4] = {};
  for (int64_t r = 0; r < a.n; r++) {
#pragma unroll
    for (int j = 0; j < 128; j++) {
      float* e = d[j % 8];
      asm volatile(
          "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
          : "+f"(e[0]), "+f"(e[1]), "+f"(e[2]), "+f"(e[3])
          : "r"(x[0]), "r"(x[1]), "r"(x[2]), "r"(x[3]), "r"(y[0]), "r"(y[1]));
    }
  }
  float sum = 0.f;
  for (int j = 0; j < 8; j++) sum += d[j][0] + d[j][1] + d[j][2] + d[j][3];
  if (sum == 12345.678f) a.out[0] = sum;
}
#endif
