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

struct path {
    group_kernel *run;
    size_t blocks; /* to a group */
};

static const struct path PATHS[MASK_PATHS] = {
    [MASK_PORTABLE] = {mask_groups_portable, 4},
#if defined(__x86_64__)
    [MASK_AVX2] = {mask_groups_avx2, 8},
    [MASK_AVX512] = {mask_groups_avx512, 16},
#endif
};

bool mask_path_runs_here(enum mask_path path) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (path == MASK_AVX2) return __builtin_cpu_supports("avx2");
    if (path == MASK_AVX512) return __builtin_cpu_supports("avx512f");
#endif
    return path == MASK_PORTABLE;
}

enum mask_path mask_best_path(void) {
    enum mask_path path = MASK_AVX512;
    while (!mask_path_runs_here(path)) path--;
    return path;
}

/* Part of one group: made beside acc, so that the wide kernels never see a partial block. */
static void apply_part(const struct path *path, uint8_t *acc, const uint32_t start[16], size_t skip,
                       size_t words, bool subtract) {
    uint8_t mask[WIDEST_GROUP * BLOCK] = {0};
    path->run(mask, 1, start, false);
    (subtract ? ring_sub : ring_add)(acc, mask + 8 * skip, words);
}

void mask_apply(enum mask_path path, uint8_t *acc, size_t words, const uint8_t key[32], uint64_t first_word,
                bool subtract) {
    const struct path *chosen = &PATHS[path];
    const size_t group_words = 8 * chosen->blocks, skip = first_word % 8;
    uint32_t start[16] = {0};
    memcpy(start, "expand 32-byte k", 16);
    memcpy(start + 4, key, 32);
    start[12] = (uint32_t)(1 + first_word / 8);
    if (skip != 0) { /* up to the group's end, after which a block begins */
        const size_t part = words < group_words - skip ? words : group_words - skip;
        apply_part(chosen, acc, start, skip, part, subtract);
        acc += 8 * part, words -= part, start[12] += (uint32_t)chosen->blocks;
    }
    const size_t groups = words / group_words, rest = words % group_words;
    chosen->run(acc, groups, start, subtract);
    start[12] += (uint32_t)(groups * chosen->blocks);
    if (rest != 0) apply_part(chosen, acc + 8 * group_words * groups, start, 0, rest, subtract);
}
