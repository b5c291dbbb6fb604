/* Sums of words modulo 2^64: the whole of aggregation. Bound by memory, hence left to the compiler's
 * vectors; nothing that unpacks or interprets a word belongs here. */
#include "kernels.h"

void ring_add(uint8_t *acc, const uint8_t *src, size_t words) {
    for (size_t i = 0; i < 8 * words; i += 8) store_word(acc + i, load_word(acc + i) + load_word(src + i));
}

void ring_sub(uint8_t *acc, const uint8_t *src, size_t words) {
    for (size_t i = 0; i < 8 * words; i += 8) store_word(acc + i, load_word(acc + i) - load_word(src + i));
}
