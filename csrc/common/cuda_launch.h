// What the CUDA launchers of every op take and give; no CUDA and no torch header.
#pragma once
#include <cstdint>

namespace attnkernels {

enum class DataType : int { kFloat, kDouble, kHalf, kBFloat16 };

inline int64_t element_bytes(DataType type) { return type == DataType::kDouble ? 8 : type == DataType::kFloat ? 4 : 2; }

struct Result {
  const char* kernel = nullptr;  // the kernel whose launch failed; null: none
  const char* error = nullptr;
};

}  // namespace attnkernels
