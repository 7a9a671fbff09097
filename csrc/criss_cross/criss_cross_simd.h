// The criss-cross kernels of one instruction-set level.
#include "common/cpu_gemm.h"
// made of products and transposes
#include "criss_cross/criss_cross_lines_simd.h"
// made of lines
#include "criss_cross/criss_cross_affinity_simd.h"
#include "criss_cross/criss_cross_attention_simd.h"
