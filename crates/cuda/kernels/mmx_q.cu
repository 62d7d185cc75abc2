// Products of experts with many rows: the types with blocks of 32.
#include "mm.cuh"
MM_EXPERTS(q8_0, FmtQ8_0)
MM_EXPERTS(q4_0, FmtQ4_0)
MM_EXPERTS(q4_1, FmtQ4_1)
MM_EXPERTS(q5_0, FmtQ5_0)
MM_EXPERTS(q5_1, FmtQ5_1)
MM_EXPERTS(iq4_nl, FmtIQ4NL)
MM_EXPERTS(mxfp4, FmtMXFP4)
