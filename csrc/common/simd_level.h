// One level: what simd_foreach.h repeats.
#include "common/simd_vector.h"
// each builds on the one before
#include "common/simd_rows.h"
// and on
#include "common/simd_linear.h"
// and on
#include SIMD_FILE
#undef SIMD_LEVEL
#undef SIMD_LEVEL_NUMBER
