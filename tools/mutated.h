// The switches of tools/mutate.py, included before every file of a mutated build: ATTNKERNELS_MUTANT is the number of
// the mutant that is active, 0 is none.
#pragma once

namespace mutated {

// Constant, so that ThreadSanitizer leaves the reads alone and loops may keep it in a register; mutated.cpp reads it.
extern const int mutant;

[[gnu::always_inline]] inline bool active(int number) { return mutant == number; }

// a < less(number) < b is a < b, or a <= b where the mutant is active; the precedence is that of a < b.
// a >= greater(number) >= b is a >= b, or a > b.
struct Less {
  int number;
};
struct Greater {
  int number;
};
template <class Left, class Kind>
struct Comparison {
  Left left;
  Kind kind;
};

[[gnu::always_inline]] inline Less less(int number) { return {number}; }
[[gnu::always_inline]] inline Greater greater(int number) { return {number}; }

template <class Left>
[[gnu::always_inline]] inline Comparison<Left, Less> operator<(Left left, Less kind) {
  return {left, kind};
}
template <class Left, class Right>
[[gnu::always_inline]] inline bool operator<(Comparison<Left, Less> a, Right b) {
  return active(a.kind.number) ? a.left <= b : a.left < b;
}
template <class Left>
[[gnu::always_inline]] inline Comparison<Left, Greater> operator>=(Left left, Greater kind) {
  return {left, kind};
}
template <class Left, class Right>
[[gnu::always_inline]] inline bool operator>=(Comparison<Left, Greater> a, Right b) {
  return active(a.kind.number) ? a.left > b : a.left >= b;
}

}  // namespace mutated
