// Products of experts with few rows: the types with blocks of 32.
#include "mv.cuh"
MV_EXPERTS(q8_0, FmtQ8_0, 2)
MV_EXPERTS(q4_0, FmtQ4_0, 2)
MV_EXPERTS(q4_1, FmtQ4_1, 2)
MV_EXPERTS(q5_0, FmtQ5_0, 2)
MV_EXPERTS(q5_1, FmtQ5_1, 2)
MV_EXPERTS(iq4_nl, FmtIQ4NL, 2)
MV_EXPERTS(mxfp4, FmtMXFP4, 2)
