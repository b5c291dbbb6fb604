/* Sums of words modulo 2^64: the whole of aggregation. Bound by memory, hence left to the compiler's
 * vectors: AVX2 gains a little in the caches, AVX-512 nothing more. Nothing that interprets a word
 * belongs here. */
#include "kernels.h"

INLINED void add(uint8_t *acc, const uint8_t *src, size_t words) {
    for (size_t i = 0; i < 8 * words; i += 8) store_word(acc + i, load_word(acc + i) + load_word(src + i));
}

INLINED void sub(uint8_t *acc, const uint8_t *src, size_t words) {
    for (size_t i = 0; i < 8 * words; i += 8) store_word(acc + i, load_word(acc + i) - load_word(src + i));
}

#if defined(__x86_64__)
TARGET_AVX2 static void add_avx2(uint8_t *acc, const uint8_t *src, size_t words) { add(acc, src, words); }
TARGET_AVX2 static void sub_avx2(uint8_t *acc, const uint8_t *src, size_t words) { sub(acc, src, words); }
#else
#define add_avx2 add
#define sub_avx2 sub
#endif

void ring_add(enum path path, uint8_t *acc, const uint8_t *src, size_t words) {
    if (path == PATH_PORTABLE) {
        add(acc, src, words);
    } else {
        add_avx2(acc, src, words);
    }
}

void ring_sub(enum path path, uint8_t *acc, const uint8_t *src, size_t words) {
    if (path == PATH_PORTABLE) {
        sub(acc, src, words);
    } else {
        sub_avx2(acc, src, words);
    }
}
