// The criss-cross kernels of one instruction-set level.
#include "common/cpu_gemm.h"
// each builds on the one before
#include "criss_cross/criss_cross_lines_simd.h"
// and on
#include "criss_cross/criss_cross_attention_simd.h"
// and on
#include "criss_cross/criss_cross_affinity_simd.h"
