// Matrix-vector kernels of the types with blocks of 32.
#include "mv.cuh"
MV_KERNEL(q8_0, FmtQ8_0)
MV_KERNEL(q4_0, FmtQ4_0)
MV_KERNEL(q4_1, FmtQ4_1)
MV_KERNEL(q5_0, FmtQ5_0)
MV_KERNEL(q5_1, FmtQ5_1)
MV_KERNEL(iq4_nl, FmtIQ4NL)
MV_KERNEL(mxfp4, FmtMXFP4)
