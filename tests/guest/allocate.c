/* Takes 100 MiB by malloc, in one piece or in pieces of 1 MiB, and touches all of it. */
#include "check.h"

int main(int argc, char **argv)
{
    size_t pieces = argc > 1 ? strtoul(argv[1], 0, 10) : 1, size = (100UL << 20) / pieces;
    uint64_t sum = 0;
    for (size_t i = 0; i < pieces; i++) {
        volatile char *piece = malloc(size);
        CHECK(piece);
        for (size_t at = 0; at < size; at += PAGE)
            piece[at] = 1;
        sum += piece[size - PAGE];
    }
    CHECK(sum == pieces);
    return 0;
}
