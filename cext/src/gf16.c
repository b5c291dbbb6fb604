/* Shamir sharing over GF(2^16) = GF(2)[x] / (x^16 + x^12 + x^3 + x + 1).
 *
 * Products are made by shifts and masks, not by log tables: a table's index would be a secret, and its
 * cache lines would tell it. Loops run over the bits of public factors only (points, Lagrange
 * coefficients); secrets are data in vectors of eight symbols. */
#include "kernels.h"

typedef uint16_t u16x8 __attribute__((vector_size(16)));

enum { LANES = 8, HALVES = GF16_ROW / 16 };

static inline u16x8 times_x(u16x8 a) { return (a << 1) ^ ((a >> 15) * 0x100B); }

static inline u16x8 splat(uint16_t a) { return a - (u16x8){0}; }

static u16x8 multiply(u16x8 a, u16x8 b) {
    u16x8 product = {0};
    for (int bit = 15; bit >= 0; bit--) product = times_x(product) ^ (a & -((b >> bit) & 1));
    return product;
}

uint16_t gf16_multiply(uint16_t a, uint16_t b) { return multiply(splat(a), splat(b))[0]; }

static void add_row(u16x8 row[HALVES], const uint8_t *bytes) {
    for (int half = 0; half < HALVES; half++) {
        u16x8 addend;
        memcpy(&addend, bytes + 16 * half, sizeof addend);
        row[half] ^= addend;
    }
}

/* factor is public and not 0: its length sets the number of steps. */
static void scale_row(u16x8 row[HALVES], uint16_t factor) {
    const int top = 31 - __builtin_clz(factor);
    u16x8 product[HALVES] = {row[0], row[1]};
    for (int bit = top - 1; bit >= 0; bit--) {
        const u16x8 chosen = splat((uint16_t) - (factor >> bit & 1));
        for (int half = 0; half < HALVES; half++) product[half] = times_x(product[half]) ^ (row[half] & chosen);
    }
    memcpy(row, product, sizeof product);
}

void gf16_share(uint8_t *shares, const uint8_t secret[GF16_ROW], const uint8_t *coefficients, size_t rows,
                size_t n) {
    for (size_t i = 0; i < n; i++) {
        u16x8 value[HALVES] = {{0}};
        for (size_t k = rows; k > 0; k--) { /* Horner's rule */
            add_row(value, coefficients + GF16_ROW * (k - 1));
            scale_row(value, (uint16_t)(i + 1));
        }
        add_row(value, secret);
        memcpy(shares + GF16_ROW * i, value, sizeof value);
    }
}

/* a^(2^16 - 2), by Fermat: the product of a^2, a^4, ..., a^32768. */
static u16x8 invert(u16x8 a) {
    u16x8 inverse = splat(1);
    for (int i = 0; i < 15; i++) {
        a = multiply(a, a);
        inverse = multiply(inverse, a);
    }
    return inverse;
}

/* For eight points: prod_{j != i} x_j / (x_j - x_i) = all / (x_i * prod_{j != i} (x_i - x_j)). */
static u16x8 lagrange_at_zero(u16x8 points, uint16_t all, const uint16_t *xs, size_t count) {
    u16x8 denominator = points;
    for (size_t j = 0; j < count; j++) {
        u16x8 difference = points ^ xs[j];
        difference -= (u16x8)(difference == 0); /* the factor of j = i is 1 */
        denominator = multiply(denominator, difference);
    }
    return multiply(splat(all), invert(denominator));
}

void gf16_combine(uint8_t secret[GF16_ROW], const uint16_t *xs, const uint8_t *shares, size_t count) {
    u16x8 sum[HALVES] = {{0}};
    uint16_t all = 1;
    for (size_t i = 0; i < count; i++) all = gf16_multiply(all, xs[i]);
    for (size_t start = 0; start < count; start += LANES) {
        const size_t here = count - start < LANES ? count - start : LANES;
        u16x8 points = {0};
        memcpy(&points, xs + start, here * sizeof *xs);
        const u16x8 coefficients = lagrange_at_zero(points, all, xs, count);
        for (size_t i = 0; i < here; i++) {
            u16x8 term[HALVES] = {{0}};
            add_row(term, shares + GF16_ROW * (start + i));
            scale_row(term, coefficients[i]);
            for (int half = 0; half < HALVES; half++) sum[half] ^= term[half];
        }
    }
    memcpy(secret, sum, sizeof sum);
}
