/* Which variants of the kernels this processor can run; the variants themselves are not here. */
#include "kernels.h"

bool path_runs_here(enum path path) {
#if defined(__x86_64__)
    __builtin_cpu_init(); /* needed where nobody has run constructors yet, as with a static musl */
    if (path == PATH_AVX2) return __builtin_cpu_supports("avx2");
    if (path == PATH_AVX512) return __builtin_cpu_supports("avx512f");
#endif
    return path == PATH_PORTABLE;
}

enum path path_best(void) {
    enum path path = PATH_AVX512;
    while (!path_runs_here(path)) path--;
    return path;
}
