/* What the ChaCha20 paths share: the rounds, and the form of a kernel that masks whole groups of blocks.
 * Only chacha20*.c include this; callers use mask_apply of kernels.h. */
#ifndef WHIMBREL_CHACHA20_H
#define WHIMBREL_CHACHA20_H

#include "kernels.h"

enum { BLOCK = 64, WIDEST_GROUP = 16 };

/* Adds to (or subtracts from) acc the keystream of `groups` groups of blocks, counters from start[12] on.
 * Masks are made in registers and added there: a mask never costs memory traffic. */
typedef void group_kernel(uint8_t *acc, size_t groups, const uint32_t start[16], bool subtract);

group_kernel mask_groups_portable; /* 4 blocks to a group */
#if defined(__x86_64__)
group_kernel mask_groups_avx2;   /* 8 */
group_kernel mask_groups_avx512; /* 16 */
#endif

/* RFC 8439, section 2.1; each x is a vector that holds the same word of several blocks. */
#define CHACHA20_QUARTER(ROTATE, a, b, c, d) \
    (a += b, d = ROTATE(d ^ a, 16),          \
     c += d, b = ROTATE(b ^ c, 12),          \
     a += b, d = ROTATE(d ^ a, 8),           \
     c += d, b = ROTATE(b ^ c, 7))

#define CHACHA20_DOUBLE_ROUND(ROTATE, x)                    \
    (CHACHA20_QUARTER(ROTATE, x[0], x[4], x[8], x[12]),     \
     CHACHA20_QUARTER(ROTATE, x[1], x[5], x[9], x[13]),     \
     CHACHA20_QUARTER(ROTATE, x[2], x[6], x[10], x[14]),    \
     CHACHA20_QUARTER(ROTATE, x[3], x[7], x[11], x[15]),    \
     CHACHA20_QUARTER(ROTATE, x[0], x[5], x[10], x[15]),    \
     CHACHA20_QUARTER(ROTATE, x[1], x[6], x[11], x[12]),    \
     CHACHA20_QUARTER(ROTATE, x[2], x[7], x[8], x[13]),     \
     CHACHA20_QUARTER(ROTATE, x[3], x[4], x[9], x[14]))

#endif
