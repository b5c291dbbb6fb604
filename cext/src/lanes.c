/* Signed lanes in words: word = sum_k x_k * 2^(k * bits) modulo 2^64.
 *
 * Two's complement with borrows makes packing linear: the sum of packed words is the packed sum, and only
 * the sum has to fit its lanes. Choosing bits and clamping values belongs to the protocol. */
#include "kernels.h"

INLINED void pack(uint8_t *out, const uint8_t *lanes, size_t words, unsigned bits) {
    const unsigned per_word = 64 / bits;
    for (size_t w = 0; w < words; w++) {
        uint64_t word = 0;
        for (unsigned k = 0; k < per_word; k++, lanes += 4) {
            int32_t value;
            memcpy(&value, lanes, sizeof value);
            word += (uint64_t)(int64_t)value << (k * bits);
        }
        store_word(out + 8 * w, word);
    }
}

INLINED void unpack(uint8_t *lanes, const uint8_t *packed, size_t words, unsigned bits) {
    const unsigned per_word = 64 / bits, unused = 64 - bits;
    for (size_t w = 0; w < words; w++) {
        uint64_t rest = load_word(packed + 8 * w);
        for (unsigned k = 0; k < per_word; k++, lanes += 4) {
            const int64_t wide = (int64_t)(rest << unused) >> unused;
            const int32_t value = (int32_t)wide;
            memcpy(lanes, &value, sizeof value);
            /* Taking the lane away first gives back what it borrowed from the lane above. */
            rest = (rest - (uint64_t)wide) >> bits;
        }
    }
}

/* A constant width lets the compiler unroll a word; the widths named are those that waste fewest bits. */
#define FOR_WIDTH(run, bits, ...)             \
    switch (bits) {                           \
        case 8: run(__VA_ARGS__, 8); break;   \
        case 9: run(__VA_ARGS__, 9); break;   \
        case 10: run(__VA_ARGS__, 10); break; \
        case 12: run(__VA_ARGS__, 12); break; \
        case 16: run(__VA_ARGS__, 16); break; \
        case 21: run(__VA_ARGS__, 21); break; \
        case 32: run(__VA_ARGS__, 32); break; \
        default: run(__VA_ARGS__, bits);      \
    }

void lanes_pack(uint8_t *out, const uint8_t *lanes, size_t words, unsigned bits) {
    FOR_WIDTH(pack, bits, out, lanes, words)
}

void lanes_unpack(uint8_t *lanes, const uint8_t *packed, size_t words, unsigned bits) {
    FOR_WIDTH(unpack, bits, lanes, packed, words)
}
