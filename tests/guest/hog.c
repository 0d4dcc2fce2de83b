/* Takes memory and touches it: `once MIB` in one piece, `grow MIB` in pieces of 1 MiB. */
#include "check.h"

static int take(size_t pieces, size_t size)
{
    for (size_t i = 0; i < pieces; i++) {
        volatile char *piece = malloc(size);
        if (!piece)
            return 0;
        for (size_t at = 0; at < size; at += PAGE)
            piece[at] = 1;
    }
    return 1;
}

int main(int argc, char **argv)
{
    CHECK(argc == 3);
    size_t mib = strtoul(argv[2], 0, 10);
    int once = !strcmp(argv[1], "once");
    if (!take(once ? 1 : mib, (once ? mib : 1) << 20)) {
        printf("cannot have %zu MiB: %s\n", mib, errno == ENOMEM ? "ENOMEM" : strerror(errno));
        return 1;
    }
    printf("had %zu MiB\n", mib);
    return 0;
}
