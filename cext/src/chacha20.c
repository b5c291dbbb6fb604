/* Mask expansion: ChaCha20 (RFC 8439) keystream added to words, the choice of path, and the path for any
 * machine. Code for one processor family belongs in a file of its own.
 *
 * Keys on the stack are not wiped: callers hold the same keys in Python objects, which nobody can wipe. */
#include "chacha20.h"

typedef uint32_t u32x4 __attribute__((vector_size(16)));

#define ROTATE4(x, n) (((x) << (n)) | ((x) >> (32 - (n))))

static void apply_word(uint8_t *acc, uint64_t mask, bool subtract) {
    store_word(acc, subtract ? load_word(acc) - mask : load_word(acc) + mask);
}

static void apply_group(uint8_t *acc, const u32x4 x[16], bool subtract) {
    for (int block = 0; block < 4; block++)
        for (int w = 0; w < 8; w++, acc += 8)
            apply_word(acc, x[2 * w][block] | (uint64_t)x[2 * w + 1][block] << 32, subtract);
}

void mask_groups_portable(uint8_t *acc, size_t groups, const uint32_t start[16], bool subtract) {
    u32x4 from[16], x[16];
    for (int i = 0; i < 16; i++) from[i] = start[i] - (u32x4){0};
    from[12] += (u32x4){0, 1, 2, 3};
    for (; groups > 0; groups--, acc += 4 * BLOCK, from[12] += 4) {
        memcpy(x, from, sizeof x);
        for (int i = 0; i < 10; i++) CHACHA20_DOUBLE_ROUND(ROTATE4, x);
        for (int i = 0; i < 16; i++) x[i] += from[i];
        apply_group(acc, x, subtract);
    }
}

struct variant {
    group_kernel *run;
    size_t blocks; /* to a group */
};

static const struct variant VARIANTS[PATHS] = {
    [PATH_PORTABLE] = {mask_groups_portable, 4},
#if defined(__x86_64__)
    [PATH_AVX2] = {mask_groups_avx2, 8},
    [PATH_AVX512] = {mask_groups_avx512, 16},
#endif
};

/* Part of one group: made beside acc, so that the wide kernels never see a partial block. */
static void apply_part(enum path path, uint8_t *acc, const uint32_t start[16], size_t skip, size_t words,
                       bool subtract) {
    uint8_t mask[WIDEST_GROUP * BLOCK] = {0};
    VARIANTS[path].run(mask, 1, start, false);
    (subtract ? ring_sub : ring_add)(path, acc, mask + 8 * skip, words);
}

void mask_apply(enum path path, uint8_t *acc, size_t words, const uint8_t key[32], uint64_t first_word,
                bool subtract) {
    const size_t blocks = VARIANTS[path].blocks, group_words = 8 * blocks, skip = first_word % 8;
    uint32_t start[16] = {0};
    memcpy(start, "expand 32-byte k", 16);
    memcpy(start + 4, key, 32);
    start[12] = (uint32_t)(1 + first_word / 8);
    if (skip != 0) { /* up to the group's end, after which a block begins */
        const size_t part = words < group_words - skip ? words : group_words - skip;
        apply_part(path, acc, start, skip, part, subtract);
        acc += 8 * part, words -= part, start[12] += (uint32_t)blocks;
    }
    const size_t groups = words / group_words, rest = words % group_words;
    VARIANTS[path].run(acc, groups, start, subtract);
    start[12] += (uint32_t)(groups * blocks);
    if (rest != 0) apply_part(path, acc + 8 * group_words * groups, start, 0, rest, subtract);
}
