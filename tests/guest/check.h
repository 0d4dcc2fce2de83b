/* What the guest programs share: a check that names itself, and numbered pages. */
#ifndef CHECK_H
#define CHECK_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE 4096UL

/* Ends the program, and says where and why, unless `condition` holds. */
#define CHECK(condition)                                                                           \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            int saved_ = errno;                                                                    \
            fflush(stdout);                                                                        \
            fprintf(stderr, "%s:%d: not so: %s (errno %d: %s)\n", __FILE__, __LINE__, #condition,  \
                    saved_, strerror(saved_));                                                     \
            _exit(99);                                                                             \
        }                                                                                          \
    } while (0)

#define OK(name)                                                                                   \
    do {                                                                                           \
        printf("ok %s\n", name);                                                                   \
        fflush(stdout);                                                                            \
    } while (0)

/* SplitMix64: the same numbers everywhere for one seed. */
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t z = (*state += 0x9e3779b97f4a7c15ULL);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ULL;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebULL;
    return z ^ (z >> 31);
}

/* Writes `number` all over a page, each word different, so that no part of another page passes. */
static inline void number_page(void *page, uint64_t number)
{
    volatile uint64_t *words = page;
    for (unsigned i = 0; i < PAGE / 8; i += 31)
        words[i] = number * 0x9e3779b97f4a7c15ULL + i;
}

static inline int page_has(const void *page, uint64_t number)
{
    const volatile uint64_t *words = page;
    for (unsigned i = 0; i < PAGE / 8; i += 31)
        if (words[i] != number * 0x9e3779b97f4a7c15ULL + i)
            return 0;
    return 1;
}

static inline int page_is_zero(const void *page)
{
    const volatile uint64_t *words = page;
    for (unsigned i = 0; i < PAGE / 8; i++)
        if (words[i])
            return 0;
    return 1;
}
#endif
