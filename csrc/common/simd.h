// Instruction sets chosen when the program runs.
#pragma once

#include <cstdint>  // with glibc this also says that it is glibc

// Before a free function (external linkage, plain loops): compiled for the baseline, for AVX2 and
// for AVX-512, and the loader picks the widest that the machine has. Only what is inlined into the
// function is compiled with it. Contraction is off everywhere, so all of them round alike.
// Elsewhere than x86-64 Linux with glibc the macro is empty: the baseline (NEON on ARM) is used.
// So it is for ThreadSanitizer, which instruments the loader's choice and crashes in it.
#if !defined(__SANITIZE_THREAD__) && defined(__x86_64__) && defined(__linux__) && \
    defined(__GLIBC__) &&                                                         \
    ((defined(__clang__) && __clang_major__ >= 18) || (!defined(__clang__) && __GNUC__ >= 12))
#define MMAD_FAST_MULTIVERSION \
  __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define MMAD_FAST_MULTIVERSION
#endif

// Before an inline function that is part of such a loop: it is compiled with its caller.
#define MMAD_FAST_ALWAYS_INLINE __attribute__((always_inline))

namespace mmad_fast {

// The bit pattern of a float. Those of non-negative floats order like the floats, and compilers
// vectorise minima and maxima of integers without relaxed float rules.
inline int32_t float_bits(float value) { return __builtin_bit_cast(int32_t, value); }

}  // namespace mmad_fast
