// Products of experts with few rows: the types with blocks of 256.
#include "mv.cuh"
MV_EXPERTS(q4_k, FmtQ4K, 2)
MV_EXPERTS(q6_k, FmtQ6K, 2)
MV_EXPERTS(q5_k, FmtQ5K, 2)
MV_EXPERTS(q3_k, FmtQ3K, 1)
MV_EXPERTS(q2_k, FmtQ2K, 2)
MV_EXPERTS(iq4_xs, FmtIQ4XS, 2)
