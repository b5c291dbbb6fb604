/* ChaCha20 mask expansion for x86-64 with AVX2 (8 blocks at a time) and AVX-512 (16 blocks).
 *
 * A state vector holds one word of all blocks; after the rounds the words
 * of a block are brought together, by 32 bits, by 64, then by 128-bit lanes. */
#include "chacha20.h"

#if defined(__x86_64__)
#include <immintrin.h>

typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef uint32_t u32x16 __attribute__((vector_size(64)));

/* ---- AVX2 ---- */

/* Without a rotate instruction, a byte shuffle does in one step what two shifts and an or do. */
INLINED TARGET_AVX2 u32x8 rotate8(u32x8 x, const int n) {
    const int64_t low16 = 0x0504070601000302, high16 = 0x0D0C0F0E09080B0A;
    const int64_t low8 = 0x0605040702010003, high8 = 0x0E0D0C0F0A09080B;
    const __m256i by16 = _mm256_set_epi64x(high16, low16, high16, low16);
    const __m256i by8 = _mm256_set_epi64x(high8, low8, high8, low8);
    if (n == 16) return (u32x8)_mm256_shuffle_epi8((__m256i)x, by16);
    if (n == 8) return (u32x8)_mm256_shuffle_epi8((__m256i)x, by8);
    return (x << n) | (x >> (32 - n));
}

/* Four rows of eight blocks become, in row q, the four words of block q and of block 4 + q. */
INLINED TARGET_AVX2 void gather8(u32x8 x[4]) {
    const __m256i a = (__m256i)x[0], b = (__m256i)x[1], c = (__m256i)x[2], d = (__m256i)x[3];
    const __m256i ab = _mm256_unpacklo_epi32(a, b), cd = _mm256_unpacklo_epi32(c, d);
    const __m256i ab2 = _mm256_unpackhi_epi32(a, b), cd2 = _mm256_unpackhi_epi32(c, d);
    x[0] = (u32x8)_mm256_unpacklo_epi64(ab, cd);
    x[1] = (u32x8)_mm256_unpackhi_epi64(ab, cd);
    x[2] = (u32x8)_mm256_unpacklo_epi64(ab2, cd2);
    x[3] = (u32x8)_mm256_unpackhi_epi64(ab2, cd2);
}

INLINED TARGET_AVX2 void apply8(uint8_t *acc, __m256i mask, bool subtract) {
    const __m256i old = _mm256_loadu_si256((const __m256i *)acc);
    const __m256i sum = subtract ? _mm256_sub_epi64(old, mask) : _mm256_add_epi64(old, mask);
    _mm256_storeu_si256((__m256i *)acc, sum);
}

INLINED TARGET_AVX2 void apply_group8(uint8_t *acc, u32x8 x[16], bool subtract) {
    for (int i = 0; i < 16; i += 4) gather8(x + i);
    for (int q = 0; q < 4; q++) {
        for (int half = 0; half < 2; half++) {
            const __m256i a = (__m256i)x[8 * half + q], b = (__m256i)x[8 * half + 4 + q];
            apply8(acc + BLOCK * q + 32 * half, _mm256_permute2x128_si256(a, b, 0x20), subtract);
            apply8(acc + BLOCK * (4 + q) + 32 * half, _mm256_permute2x128_si256(a, b, 0x31), subtract);
        }
    }
}

TARGET_AVX2 void mask_groups_avx2(uint8_t *acc, size_t groups, const uint32_t start[16], bool subtract) {
    u32x8 from[16], x[16];
    for (int i = 0; i < 16; i++) from[i] = start[i] - (u32x8){0};
    from[12] += (u32x8){0, 1, 2, 3, 4, 5, 6, 7};
    for (; groups > 0; groups--, acc += 8 * BLOCK, from[12] += 8) {
        memcpy(x, from, sizeof x);
        for (int i = 0; i < 10; i++) CHACHA20_DOUBLE_ROUND(rotate8, x);
        for (int i = 0; i < 16; i++) x[i] += from[i];
        apply_group8(acc, x, subtract);
    }
}

/* ---- AVX-512 ---- */

#define ROTATE16(x, n) ((u32x16)_mm512_rol_epi32((__m512i)(x), n))

/* As gather8: row q gets the four words of the blocks q, 4 + q, 8 + q and 12 + q. */
INLINED TARGET_AVX512 void gather16(u32x16 x[4]) {
    const __m512i a = (__m512i)x[0], b = (__m512i)x[1], c = (__m512i)x[2], d = (__m512i)x[3];
    const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
    const __m512i ab2 = _mm512_unpackhi_epi32(a, b), cd2 = _mm512_unpackhi_epi32(c, d);
    x[0] = (u32x16)_mm512_unpacklo_epi64(ab, cd);
    x[1] = (u32x16)_mm512_unpackhi_epi64(ab, cd);
    x[2] = (u32x16)_mm512_unpacklo_epi64(ab2, cd2);
    x[3] = (u32x16)_mm512_unpackhi_epi64(ab2, cd2);
}

INLINED TARGET_AVX512 void apply16(uint8_t *acc, __m512i mask, bool subtract) {
    const __m512i old = _mm512_loadu_si512(acc);
    _mm512_storeu_si512(acc, subtract ? _mm512_sub_epi64(old, mask) : _mm512_add_epi64(old, mask));
}

INLINED TARGET_AVX512 void apply_group16(uint8_t *acc, u32x16 x[16], bool subtract) {
    for (int i = 0; i < 16; i += 4) gather16(x + i);
    for (int q = 0; q < 4; q++) {
        const __m512i a = (__m512i)x[q], b = (__m512i)x[4 + q], c = (__m512i)x[8 + q], d = (__m512i)x[12 + q];
        const __m512i even = _mm512_shuffle_i64x2(a, b, 0x88), even2 = _mm512_shuffle_i64x2(c, d, 0x88);
        const __m512i odd = _mm512_shuffle_i64x2(a, b, 0xDD), odd2 = _mm512_shuffle_i64x2(c, d, 0xDD);
        apply16(acc + BLOCK * q, _mm512_shuffle_i64x2(even, even2, 0x88), subtract);
        apply16(acc + BLOCK * (4 + q), _mm512_shuffle_i64x2(odd, odd2, 0x88), subtract);
        apply16(acc + BLOCK * (8 + q), _mm512_shuffle_i64x2(even, even2, 0xDD), subtract);
        apply16(acc + BLOCK * (12 + q), _mm512_shuffle_i64x2(odd, odd2, 0xDD), subtract);
    }
}

TARGET_AVX512 void mask_groups_avx512(uint8_t *acc, size_t groups, const uint32_t start[16], bool subtract) {
    u32x16 from[16], x[16];
    for (int i = 0; i < 16; i++) from[i] = start[i] - (u32x16){0};
    from[12] += (u32x16){0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    for (; groups > 0; groups--, acc += 16 * BLOCK, from[12] += 16) {
        memcpy(x, from, sizeof x);
        for (int i = 0; i < 10; i++) CHACHA20_DOUBLE_ROUND(ROTATE16, x);
        for (int i = 0; i < 16; i++) x[i] += from[i];
        apply_group16(acc, x, subtract);
    }
}
#else
typedef int no_x86_here; /* ISO C wants a declaration in each file */
#endif
