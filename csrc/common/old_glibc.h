// Included before everything else in the host sources of the libraries, so that what is built on a newer Linux loads on
// any with the glibc 2.28 and the libstdc++ of GCC 8 (manylinux_2_28), which PyTorch's own wheels ask for too.
#pragma once

#include <features.h>

#include <istream>
#include <ostream>

// String streams are instantiated in the libraries: before GCC 11 libstdc++ holds no C++20 members of them. Nothing
// else is: facets of a locale are known by the addresses of objects in libstdc++, and copies of them would not be
// found.
#if defined(__GLIBCXX__)
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 0
#include <sstream>
#undef _GLIBCXX_EXTERN_TEMPLATE
#define _GLIBCXX_EXTERN_TEMPLATE 1
#endif

#if defined(__GLIBC__) && (defined(__x86_64__) || defined(__aarch64__))

// Functions that later versions of glibc moved or replaced, by their first version, which every glibc still has.
#if defined(__x86_64__)
#define ATTNKERNELS_FIRST_GLIBC "GLIBC_2.2.5"
#else
#define ATTNKERNELS_FIRST_GLIBC "GLIBC_2.17"
#endif
__asm__(".symver dlsym, dlsym@" ATTNKERNELS_FIRST_GLIBC);
__asm__(".symver log, log@" ATTNKERNELS_FIRST_GLIBC);

// libstdc++ asks this variable of glibc 2.32 whether reference counts may do without atomics. A process that holds
// torch has threads, so the libraries answer by themselves: never.
extern "C" {
[[gnu::weak, gnu::visibility("hidden")]] char __libc_single_threaded = 0;
}

#endif
