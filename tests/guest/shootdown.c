/* Threads that share an address space while its mappings change: when munmap, mprotect or madvise has
 * returned, no thread reads or writes the old page any more, whoever has its frame then. */
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define THREADS 4
#define SPAN 64
/* More than any hole that is made in the area for a moment: nothing of these gets into one. */
#define OWN (SPAN + 1)
#define ROUNDS 400

static _Atomic(char *) area;
static _Atomic uint64_t stamp;
static atomic_int over;
static atomic_ulong seen, faulted;
static __thread sigjmp_buf back;

static void on_fault(int signal)
{
    (void)signal;
    siglongjmp(back, 1);
}

/* Reads pages all the time: each word is the stamp of a time when its page was mapped, or 0, or there
 * is a fault; never something of another's. */
static void *reader(void *argument)
{
    volatile uint64_t number = 7 + (uintptr_t)argument;
    while (!over) {
        if (sigsetjmp(back, 1)) {
            faulted++;
            continue;
        }
        char *base = area;
        uint64_t before = stamp;
        uint64_t seed = number++, word = *(volatile uint64_t *)(base + next_random(&seed) % SPAN * PAGE);
        CHECK(word == 0 || (word & 0xffffffff00000000) == 0x5eed000000000000);
        CHECK((word & 0xffffffff) <= (stamp & 0xffffffff) && before <= stamp);
        seen++;
    }
    return NULL;
}

/* Has frames that others have given up, and fills them with what no reader may see. */
static void *filler(void *argument)
{
    (void)argument;
    while (!over) {
        char *own = mmap(NULL, OWN * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(own != MAP_FAILED);
        for (int i = 0; i < OWN; i++) {
            CHECK(*(uint64_t *)(own + i * PAGE) == 0);
            memset(own + i * PAGE, 0xbb, PAGE);
        }
        CHECK(munmap(own, OWN * PAGE) == 0);
    }
    return NULL;
}

static void stamp_all(char *base, int prot)
{
    if (prot & PROT_WRITE)
        for (int i = 0; i < SPAN; i++)
            *(volatile uint64_t *)(base + i * PAGE) = stamp;
}

int main(void)
{
    struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    /* With a page before and behind it, so that a hole at its edge is not the end of a larger one. */
    char *base = mmap(NULL, (SPAN + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(base != MAP_FAILED);
    base += PAGE;
    CHECK(mprotect(base, SPAN * PAGE, PROT_READ | PROT_WRITE) == 0);
    area = base;
    stamp = 0x5eed000000000001;
    pthread_t threads[THREADS + 1];
    for (uintptr_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, reader, (void *)i) == 0);
    CHECK(pthread_create(&threads[THREADS], NULL, filler, NULL) == 0);
    uint64_t seed = 20261120;
    for (int round = 0; round < ROUNDS; round++) {
        stamp++;
        stamp_all(base, PROT_WRITE);
        unsigned long from = next_random(&seed) % SPAN, count = 1 + next_random(&seed) % (SPAN - from);
        switch (next_random(&seed) % 4) {
        case 0:
            CHECK(munmap(base + from * PAGE, count * PAGE) == 0);
            CHECK(mmap(base + from * PAGE, count * PAGE, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == base + from * PAGE);
            break;
        case 1:
            CHECK(madvise(base + from * PAGE, count * PAGE, MADV_DONTNEED) == 0);
            break;
        case 2:
            CHECK(mprotect(base + from * PAGE, count * PAGE, PROT_NONE) == 0);
            CHECK(mprotect(base + from * PAGE, count * PAGE, PROT_READ | PROT_WRITE) == 0);
            break;
        case 3: { /* The child has the old pages for itself; this process goes on with copies. */
            if (round % 8)
                break;
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                for (int i = 0; i < SPAN; i++)
                    memset(base + i * PAGE, 0xcc, PAGE);
                _exit(0);
            }
            stamp++;
            stamp_all(base, PROT_WRITE);
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        }
    }
    over = 1;
    for (int i = 0; i <= THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    CHECK(seen > 0);
    OK("readers never saw what was not theirs");
    return 0;
}
