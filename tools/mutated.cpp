// Reads which mutant is active (mutated.h).
#include <cstdlib>

namespace mutated {

extern const int mutant;
const int mutant = [] {
  const char* number = std::getenv("ATTNKERNELS_MUTANT");
  return number ? std::atoi(number) : 0;
}();

}  // namespace mutated
