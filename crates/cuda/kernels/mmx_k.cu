// Products of experts with many rows: the types with blocks of 256.
#include "mm.cuh"
MM_EXPERTS(q4_k, FmtQ4K)
MM_EXPERTS(q6_k, FmtQ6K)
MM_EXPERTS(q5_k, FmtQ5K)
MM_EXPERTS(q3_k, FmtQ3K)
MM_EXPERTS(q2_k, FmtQ2K)
MM_EXPERTS(iq4_xs, FmtIQ4XS)
