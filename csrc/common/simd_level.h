// One level: what simd_foreach.h repeats.
#include "common/simd_vector.h"
// The helpers come after the vectors that they are made of.
#include SIMD_FILE
#undef SIMD_LEVEL
#undef SIMD_LEVEL_NUMBER
