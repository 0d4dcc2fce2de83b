/* Writes to all pages of its memory, again and again, as fast as it can: in each round a number to each page, which
 * must be the last round's when the next comes.
 *
 * scribble MIB; SIGUSR1 ends it. Says how many rounds it has made. */
#include <signal.h>
#include <stdint.h>
#include <sys/mman.h>

#include "check.h"

static volatile sig_atomic_t stopped;

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

int main(int count, char **arguments)
{
    CHECK(count == 2);
    size_t bytes = (size_t)atol(arguments[1]) << 20;
    CHECK(signal(SIGUSR1, stop) != SIG_ERR);
    char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    uint64_t round = 0;
    while (!stopped) {
        for (size_t at = 0; at < bytes; at += PAGE) {
            uint64_t *word = (uint64_t *)(memory + at);
            CHECK(*word == (round == 0 ? 0 : round ^ at));
            *word = (round + 1) ^ at;
        }
        if (round++ == 0) {
            printf("here\n");
            fflush(stdout);
        }
    }
    printf("%lu\n", (unsigned long)round);
    return 0;
}
