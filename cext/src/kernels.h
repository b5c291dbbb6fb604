/* The kernels in plain C11 (with GNU vectors): what they compute, free of Python.
 *
 * Here belong the declarations that module.c and the C tests share. Checks of arguments do not: a caller
 * in C keeps the stated sizes, a caller in Python is checked by module.c. Words are u64, little-endian, at
 * any address; two buffers of a call are the same or do not overlap.
 */
#ifndef WHIMBREL_KERNELS_H
#define WHIMBREL_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__GNUC__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels need GNU C vectors and a little-endian machine; elsewhere the NumPy twin runs"
#endif

/* memcpy is the one access that C allows at any alignment; compilers turn it into a plain load. */
static inline uint64_t load_word(const uint8_t *from) {
    uint64_t word;
    memcpy(&word, from, sizeof word);
    return word;
}

static inline void store_word(uint8_t *to, uint64_t word) { memcpy(to, &word, sizeof word); }

/* paths.c: variants of a kernel for one processor family, from the plainest to the widest. */
enum path { PATH_PORTABLE, PATH_AVX2, PATH_AVX512, PATHS };
bool path_runs_here(enum path path);
enum path path_best(void);

#if defined(__x86_64__)
/* Each such function is compiled for its own target, so that one library runs on every x86-64. */
#define TARGET_AVX2 __attribute__((target("avx2")))
#define TARGET_AVX512 __attribute__((target("avx512f")))
#endif
#define INLINED static inline __attribute__((always_inline))

/* ring.c: acc[i] += src[i], acc[i] -= src[i], modulo 2^64. */
void ring_add(enum path path, uint8_t *acc, const uint8_t *src, size_t words);
void ring_sub(enum path path, uint8_t *acc, const uint8_t *src, size_t words);

/* lanes.c: 64 / bits signed lanes to a word, 2 <= bits <= 32; `lanes` are int32 at any address. */
void lanes_pack(uint8_t *out, const uint8_t *lanes, size_t words, unsigned bits);
void lanes_unpack(uint8_t *lanes, const uint8_t *packed, size_t words, unsigned bits);

/* rotate.c: float32 values at any address. Value i is negated where bit i % 8 of signs[i / 8] is 1; each block
 * of `block` values (a power of two), and the rest in its binary powers of two, largest first, goes through
 * the Walsh-Hadamard transform in natural order times 1 / sqrt(its length). `unrotate` is the inverse. */
void rotate_values(uint8_t *values, const uint8_t *signs, size_t count, size_t block);
void unrotate_values(uint8_t *values, const uint8_t *signs, size_t count, size_t block);

/* chacha20.c: adds (or subtracts) words first_word, first_word + 1, ... of the ChaCha20 keystream with
 * nonce 0 whose word w lies in the block with counter 1 + w / 8; first_word + words <= MASK_WORDS. */
#define MASK_WORDS (8 * (uint64_t)0xFFFFFFFF)

void mask_apply(enum path path, uint8_t *acc, size_t words, const uint8_t key[32], uint64_t first_word,
                bool subtract);

/* gf16.c: GF(2)[x] / (x^16 + x^12 + x^3 + x + 1); a row is 32 bytes, sixteen little-endian symbols. */
enum { GF16_ROW = 32 };

uint16_t gf16_multiply(uint16_t a, uint16_t b);
/* n rows: row i holds secret + sum_k coefficients[k - 1] * (i + 1)^k, symbol by symbol; n <= 65535. */
void gf16_share(uint8_t *shares, const uint8_t secret[GF16_ROW], const uint8_t *coefficients, size_t rows,
                size_t n);
/* The values at 0 of the polynomials through the points (xs[i], row i); xs are distinct and not 0. */
void gf16_combine(uint8_t secret[GF16_ROW], const uint16_t *xs, const uint8_t *shares, size_t count);

#endif
