/* Tests of the C kernels without Python, to be run under the address and undefined-behaviour sanitizers.
 *
 * Here belong known answers, comparisons with slow references, and what only C can try: each path by name,
 * every alignment, buffers that end where the allocation ends. Checks of arguments are tested in Python. */
#include <stdio.h>
#include <stdlib.h>

#include "kernels.h"

static int checks, failures;

#define CHECK(condition)                                                      \
    do {                                                                      \
        checks++;                                                             \
        if (!(condition)) {                                                   \
            failures++;                                                       \
            printf("%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition); \
        }                                                                     \
    } while (0)

/* xorshift64: reproducible, and no secret. */
static uint64_t random_word(void) {
    static uint64_t state = 0x9E3779B97F4A7C15;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
}

/* `size` bytes that start `offset` bytes behind an aligned address and end with the allocation. */
struct region {
    uint8_t *allocation, *bytes;
};

static struct region region_new(size_t size, size_t offset) {
    struct region region;
    region.allocation = malloc(size + offset + (size + offset == 0));
    if (region.allocation == NULL) abort();
    region.bytes = region.allocation + offset;
    for (size_t i = 0; i < size; i++) region.bytes[i] = (uint8_t)random_word();
    return region;
}

static void from_hex(uint8_t *out, const char *hex) {
    for (unsigned byte; sscanf(hex, "%2x", &byte) == 1; hex += 2) *out++ = (uint8_t)byte;
}

/* ---- ring ---- */

static void test_ring_carries(void) {
    const uint64_t a[] = {UINT64_MAX, 0x00000000FFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0, 5};
    const uint64_t b[] = {1, 1, 1, 1, UINT64_MAX};
    const uint64_t sum[] = {0, 0x100000000, 0x8000000000000000, 1, 4};
    const uint64_t difference[] = {UINT64_MAX - 1, 0xFFFFFFFE, 0x7FFFFFFFFFFFFFFE, UINT64_MAX, 6};
    for (enum path path = 0; path < PATHS; path++) {
        if (!path_runs_here(path)) continue;
        uint8_t acc[sizeof a];
        memcpy(acc, a, sizeof a);
        ring_add(path, acc, (const uint8_t *)b, 5);
        CHECK(memcmp(acc, sum, sizeof sum) == 0);
        memcpy(acc, a, sizeof a);
        ring_sub(path, acc, (const uint8_t *)b, 5);
        CHECK(memcmp(acc, difference, sizeof difference) == 0);
        ring_sub(path, acc, acc, 5);
        CHECK(load_word(acc) == 0 && load_word(acc + 32) == 0);
    }
}

static void check_ring(enum path path, size_t words, size_t acc_offset, size_t src_offset) {
    struct region acc = region_new(8 * words, acc_offset), src = region_new(8 * words, src_offset);
    struct region before = region_new(8 * words, 0);
    if (words > 0) memcpy(before.bytes, acc.bytes, 8 * words);
    ring_add(path, acc.bytes, src.bytes, words);
    for (size_t i = 0; i < 8 * words; i += 8)
        CHECK(load_word(acc.bytes + i) == load_word(before.bytes + i) + load_word(src.bytes + i));
    ring_sub(path, acc.bytes, src.bytes, words);
    CHECK(words == 0 || memcmp(acc.bytes, before.bytes, 8 * words) == 0);
    free(before.allocation), free(src.allocation), free(acc.allocation);
}

static void test_ring_at_any_alignment_and_length(void) {
    for (enum path path = 0; path < PATHS; path++)
        for (size_t words = 0; path_runs_here(path) && words < 40; words++)
            for (size_t offset = 0; offset < 64; offset++) check_ring(path, words, offset % 8, offset / 8);
}

/* ---- lanes ---- */

static void check_round_trip(const int32_t *lanes, unsigned bits) {
    const unsigned per_word = 64 / bits;
    uint8_t packed[9], back[1 + sizeof(int32_t) * 32], unaligned[1 + sizeof(int32_t) * 32];
    uint64_t expected = 0;
    for (unsigned k = 0; k < per_word; k++) expected += (uint64_t)(int64_t)lanes[k] << (bits * k);
    memcpy(unaligned + 1, lanes, sizeof *lanes * per_word);
    lanes_pack(packed + 1, unaligned + 1, 1, bits);
    CHECK(load_word(packed + 1) == expected);
    lanes_unpack(back + 1, packed + 1, 1, bits);
    CHECK(memcmp(back + 1, lanes, sizeof *lanes * per_word) == 0);
}

static void test_lanes_of_8_bits_exhaustively(void) {
    for (int32_t low = -128; low < 128; low++)
        for (int32_t high = -127; high < 127; high++) {
            const int32_t bottom[8] = {low, high}, top[8] = {0, 0, 0, 0, 0, -1, low, high};
            check_round_trip(bottom, 8);
            check_round_trip(top, 8);
        }
}

static void test_lanes_of_every_width(void) {
    for (unsigned bits = 2; bits <= 32; bits++)
        for (int turn = 0; turn < 500; turn++) {
            const int64_t limit = ((int64_t)1 << (bits - 1)) - 1;
            int32_t lanes[32];
            for (int k = 0; k < 32; k++) {
                const uint64_t random = random_word();
                const int64_t extreme = random & 4 ? limit : -limit;
                lanes[k] = (int32_t)(random & 2 ? extreme : (int64_t)(random >> 8) % (limit + 1));
            }
            check_round_trip(lanes, bits);
        }
}

static void test_unpacking_ignores_what_is_above_the_lanes(void) {
    int32_t with[3], without[3];
    for (int turn = 0; turn < 1000; turn++) {
        const uint64_t word = random_word(), low = word & ~((uint64_t)1 << 63);
        lanes_unpack((uint8_t *)with, (const uint8_t *)&word, 1, 21);
        lanes_unpack((uint8_t *)without, (const uint8_t *)&low, 1, 21);
        CHECK(memcmp(with, without, sizeof with) == 0);
    }
}

/* ---- mask ---- */

static void quarter(uint32_t x[16], int a, int b, int c, int d) {
#define STEP(total, addend, target, n)                     \
    x[total] += x[addend], x[target] ^= x[total];          \
    x[target] = x[target] << (n) | x[target] >> (32 - (n))
    STEP(a, b, d, 16);
    STEP(c, d, b, 12);
    STEP(a, b, d, 8);
    STEP(c, d, b, 7);
#undef STEP
}

/* RFC 8439, section 2.3, for any nonce, one block at a time. */
static void slow_block(uint8_t out[64], const uint8_t key[32], uint32_t counter, const uint8_t nonce[12]) {
    uint32_t start[16], x[16];
    memcpy(start, "expand 32-byte k", 16), memcpy(start + 4, key, 32);
    start[12] = counter, memcpy(start + 13, nonce, 12);
    memcpy(x, start, sizeof x);
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < 4; i++) quarter(x, i, 4 + i, 8 + i, 12 + i);
        for (int i = 0; i < 4; i++) quarter(x, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4);
    }
    for (int i = 0; i < 16; i++) x[i] += start[i];
    memcpy(out, x, sizeof x);
}

static void test_reference_is_rfc_8439(void) { /* section 2.3.2 */
    uint8_t key[32], nonce[12], expected[64], block[64];
    for (int i = 0; i < 32; i++) key[i] = (uint8_t)i;
    from_hex(nonce, "000000090000004a00000000");
    from_hex(expected, "10f1e7e4d13b5915500fdd1fa32071c4c7d1f4c733c068030422aa9ac3d46c4e"
                       "d2826446079faa0914c2d705d98b02a2b5129cd1de164eb9cbd083e8a2503c4e");
    slow_block(block, key, 1, nonce);
    CHECK(memcmp(block, expected, 64) == 0);
}

static void test_mask_is_rfc_8439(void) { /* appendix A.1, vectors 2 and 4 */
    static const struct {
        uint8_t key[32];
        uint64_t first_word;
        const char *stream;
    } known[] = {
        {{0}, 0, "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
                 "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"},
        {{0, 0xFF}, 8, "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
                       "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"},
    };
    for (enum path path = 0; path < PATHS; path++)
        for (size_t i = 0; path_runs_here(path) && i < sizeof known / sizeof *known; i++) {
            uint8_t acc[64] = {0}, expected[64];
            from_hex(expected, known[i].stream);
            mask_apply(path, acc, 8, known[i].key, known[i].first_word, false);
            CHECK(memcmp(acc, expected, 64) == 0);
        }
}

static uint64_t slow_mask_word(const uint8_t key[32], uint64_t word) {
    static const uint8_t nonce[12];
    uint8_t block[64];
    slow_block(block, key, (uint32_t)(1 + word / 8), nonce);
    return load_word(block + 8 * (word % 8));
}

static void check_mask(enum path path, size_t words, uint64_t first_word, size_t offset, bool subtract) {
    struct region acc = region_new(8 * words, offset), before = region_new(8 * words, 0);
    uint8_t key[32];
    for (int i = 0; i < 32; i++) key[i] = (uint8_t)random_word();
    if (words > 0) memcpy(before.bytes, acc.bytes, 8 * words);
    mask_apply(path, acc.bytes, words, key, first_word, subtract);
    for (size_t w = 0; w < words; w++) {
        const uint64_t mask = slow_mask_word(key, first_word + w), old = load_word(before.bytes + 8 * w);
        CHECK(load_word(acc.bytes + 8 * w) == (subtract ? old - mask : old + mask));
    }
    free(before.allocation), free(acc.allocation);
}

/* Lengths around one and several groups of each width, from each word of a block, at each alignment. */
static void test_mask_on_every_path_length_start_and_alignment(void) {
    static const size_t lengths[] = {0, 1, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 200, 300, 389};
    for (enum path path = 0; path < PATHS; path++)
        for (size_t i = 0; path_runs_here(path) && i < sizeof lengths / sizeof *lengths; i++)
            for (uint64_t first = 0; first < 18; first++)
                check_mask(path, lengths[i], first, (size_t)(first + i) % 8, first % 2);
}

static void test_mask_far_out_and_at_the_last_counter(void) {
    static const uint64_t starts[] = {8 * (uint64_t)0x7FFFFFFE + 3, 8 * (uint64_t)0xFFFFFF00, MASK_WORDS - 150};
    for (enum path path = 0; path < PATHS; path++)
        for (int i = 0; path_runs_here(path) && i < 3; i++) check_mask(path, 150, starts[i], 1, false);
}

static void test_mask_in_pieces_is_the_mask(void) {
    const uint8_t key[32] = {7};
    for (enum path path = 0; path < PATHS; path++) {
        if (!path_runs_here(path)) continue;
        uint8_t whole[8 * 1000] = {0}, pieces[8 * 1000] = {0};
        mask_apply(path, whole, 1000, key, 5, false);
        for (size_t done = 0, step; done < 1000; done += step) {
            step = random_word() % 200;
            step = step < 1000 - done ? step : 1000 - done;
            mask_apply(path, pieces + 8 * done, step, key, 5 + done, false);
        }
        CHECK(memcmp(whole, pieces, sizeof whole) == 0);
    }
}

/* ---- GF(2^16) ---- */

static uint16_t slow_multiply(uint16_t a, uint16_t b) {
    uint32_t product = 0;
    for (int bit = 0; bit < 16; bit++)
        if (b >> bit & 1) product ^= (uint32_t)a << bit;
    for (int bit = 30; bit >= 16; bit--)
        if (product >> bit & 1) product ^= (uint32_t)0x1100B << (bit - 16);
    return (uint16_t)product;
}

static void test_field(void) {
    for (int turn = 0; turn < 100000; turn++) {
        const uint64_t random = random_word();
        const uint16_t a = (uint16_t)random, b = (uint16_t)(random >> 16), c = (uint16_t)(random >> 32);
        CHECK(gf16_multiply(a, b) == slow_multiply(a, b));
        CHECK(gf16_multiply(a, b) == gf16_multiply(b, a));
        CHECK(gf16_multiply(gf16_multiply(a, b), c) == gf16_multiply(a, gf16_multiply(b, c)));
        CHECK(gf16_multiply(a, b ^ c) == (gf16_multiply(a, b) ^ gf16_multiply(a, c)));
    }
}

/* Powers of x pass through all 65535 non-zero elements: so the polynomial is irreducible, and each of them
 * has an inverse. */
static void test_x_generates_the_field(void) {
    uint16_t power = 1;
    unsigned order = 0;
    do {
        CHECK(gf16_multiply(power, 1) == power && gf16_multiply(power, 0) == 0);
        power = gf16_multiply(power, 2);
        order++;
    } while (power != 1 && order < 65536);
    CHECK(order == 65535);
}

static uint16_t symbol(const uint8_t *row, int i) { return (uint16_t)(row[2 * i] | row[2 * i + 1] << 8); }

static void check_share(const uint8_t *secret, const uint8_t *coefficients, size_t rows, const uint8_t *share,
                        uint16_t x) {
    for (int i = 0; i < 16; i++) {
        uint16_t value = symbol(secret, i), power = 1;
        for (size_t k = 0; k < rows; k++) {
            power = slow_multiply(power, x);
            value ^= slow_multiply(symbol(coefficients + GF16_ROW * k, i), power);
        }
        CHECK(symbol(share, i) == value);
    }
}

static void check_sharing(size_t threshold, size_t n) {
    const size_t rows = threshold - 1;
    struct region secret = region_new(GF16_ROW, 1), coefficients = region_new(GF16_ROW * rows, 3);
    struct region shares = region_new(GF16_ROW * n, 5), chosen = region_new(GF16_ROW * threshold, 7);
    uint16_t *xs = malloc(threshold * sizeof *xs);
    uint8_t recovered[GF16_ROW];
    if (xs == NULL) abort();
    gf16_share(shares.bytes, secret.bytes, coefficients.bytes, rows, n);
    for (size_t i = 0; i < n; i += 1 + n / 9)
        check_share(secret.bytes, coefficients.bytes, rows, shares.bytes + GF16_ROW * i, (uint16_t)(i + 1));
    for (size_t i = 0; i < threshold; i++) { /* the last ones, backwards: xs need no order */
        xs[i] = (uint16_t)(n - i);
        memcpy(chosen.bytes + GF16_ROW * i, shares.bytes + GF16_ROW * (n - i - 1), GF16_ROW);
    }
    gf16_combine(recovered, xs, chosen.bytes, threshold);
    CHECK(memcmp(recovered, secret.bytes, GF16_ROW) == 0);
    chosen.bytes[0] ^= 1;
    gf16_combine(recovered, xs, chosen.bytes, threshold);
    CHECK(memcmp(recovered, secret.bytes, GF16_ROW) != 0);
    free(xs), free(chosen.allocation), free(shares.allocation);
    free(coefficients.allocation), free(secret.allocation);
}

static void test_sharing(void) {
    for (size_t threshold = 1; threshold <= 20; threshold++)
        for (size_t n = threshold; n <= 24; n++) check_sharing(threshold, n);
    check_sharing(86, 128);
    check_sharing(2, 65535);
}

/* ---- rotation ---- */

/* By the definition: entry (i, j) of the Hadamard matrix is the parity of i AND j. */
static double rotated_by_definition(const float *block, size_t length, size_t row) {
    double sum = 0;
    for (size_t j = 0; j < length; j++) sum += __builtin_parityll(row & j) ? -(double)block[j] : (double)block[j];
    return sum;
}

static void check_blocks(const float *before, const uint8_t *after, size_t count, size_t block) {
    while (count > 0) {
        while (block > count) block /= 2;
        for (size_t row = 0; row < block; row++) {
            float value;
            memcpy(&value, after + 4 * row, sizeof value);
            /* Squared, so that no square root is needed here: value^2 * length = sum^2, signs alike. */
            const double sum = rotated_by_definition(before, block, row);
            const double error = value * (double)value * (double)block - sum * sum;
            CHECK(error < 1e-2 && error > -1e-2 && value * sum >= 0);
        }
        count -= block, before += block, after += 4 * block;
    }
}

static void check_rotation(size_t count, size_t block, size_t offset) {
    struct region values = region_new(4 * count, offset), signs = region_new((count + 7) / 8, 0);
    float *before = malloc(4 * count + 4), *flipped = malloc(4 * count + 4);
    if (before == NULL || flipped == NULL) abort();
    for (size_t i = 0; i < count; i++) {
        before[i] = (float)(int)(random_word() % 2001 - 1000) / 1024;
        flipped[i] = signs.bytes[i / 8] >> (i % 8) & 1 ? -before[i] : before[i];
    }
    if (count > 0) memcpy(values.bytes, before, 4 * count);
    rotate_values(values.bytes, signs.bytes, count, block);
    check_blocks(flipped, values.bytes, count, block);
    unrotate_values(values.bytes, signs.bytes, count, block);
    for (size_t i = 0; i < count; i++) {
        float back;
        memcpy(&back, values.bytes + 4 * i, sizeof back);
        CHECK(back - before[i] < 1e-5f && before[i] - back < 1e-5f);
    }
    free(flipped), free(before), free(signs.allocation), free(values.allocation);
}

static void test_rotation_is_hadamards_at_every_length_and_alignment(void) {
    for (size_t count = 0; count < 70; count++)
        for (size_t block = 1; block <= 64; block *= 2) check_rotation(count, block, count % 8);
    check_rotation(4096 + 1994, 4096, 3);
}

int main(void) {
    test_ring_carries();
    test_ring_at_any_alignment_and_length();
    test_lanes_of_8_bits_exhaustively();
    test_lanes_of_every_width();
    test_unpacking_ignores_what_is_above_the_lanes();
    test_reference_is_rfc_8439();
    test_mask_is_rfc_8439();
    test_mask_on_every_path_length_start_and_alignment();
    test_mask_far_out_and_at_the_last_counter();
    test_mask_in_pieces_is_the_mask();
    test_field();
    test_x_generates_the_field();
    test_sharing();
    test_rotation_is_hadamards_at_every_length_and_alignment();
    printf("%d checks, %d failed; paths run: portable%s%s\n", checks, failures,
           path_runs_here(PATH_AVX2) ? ", avx2" : "", path_runs_here(PATH_AVX512) ? ", avx512" : "");
    return failures == 0 ? EXIT_SUCCESS : EXIT_FAILURE;
}
