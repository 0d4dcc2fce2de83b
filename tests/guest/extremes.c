/* Much of one thing: address space, threads, generations; and the limits that keep it in bounds. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define GIB (1UL << 30)

static int reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void reservations(void)
{
    /* As runtimes do: reserve much, use a little here and there, give it back. */
    char *space = mmap(NULL, 40 * GIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    CHECK(space != MAP_FAILED);
    for (unsigned long i = 0; i < 40; i++) {
        char *at = space + i * GIB + i * 3 * PAGE;
        CHECK(i % 2 ? mprotect(at, 4 * PAGE, RW) == 0 : mmap(at, 4 * PAGE, RW, ANON | MAP_FIXED, -1, 0) == at);
        number_page(at, i + 1), number_page(at + 3 * PAGE, i + 100);
    }
    for (unsigned long i = 0; i < 40; i++) {
        char *at = space + i * GIB + i * 3 * PAGE;
        CHECK(page_has(at, i + 1) && page_is_zero(at + PAGE) && page_has(at + 3 * PAGE, i + 100));
    }
    CHECK(madvise(space, GIB, MADV_DONTNEED) == 0 && page_is_zero(space));
    char *moved = mremap(space + GIB + 3 * PAGE, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && page_has(moved, 2) && page_has(moved + 3 * PAGE, 101) && page_is_zero(moved + 7 * PAGE));
    CHECK(munmap(space + 8 * PAGE, 40 * GIB - 8 * PAGE) == 0 && munmap(space, 8 * PAGE) == 0);
    OK("40 GiB reserved");
    /* Writable, and more than any machine has, since nothing is charged. */
    space = mmap(NULL, 4096 * GIB, RW, ANON | MAP_NORESERVE, -1, 0);
    CHECK(space != MAP_FAILED);
    for (unsigned long i = 0; i < 16; i++)
        number_page(space + i * 256 * GIB + i * PAGE, i + 1);
    pid_t child = fork();
    if (child == 0) {
        for (unsigned long i = 0; i < 16; i++)
            CHECK(page_has(space + i * 256 * GIB + i * PAGE, i + 1));
        space[0] = 1;
        _exit(0);
    }
    CHECK(reap(child) == 0 && page_has(space, 1) && munmap(space, 4096 * GIB) == 0);
    OK("4 TiB, a page here and there");
}

#define THREADS 1000
static pthread_barrier_t barrier;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long total;
static __thread long own;

static void *work(void *number)
{
    own = (long)number;
    pthread_barrier_wait(&barrier);
    CHECK(pthread_mutex_lock(&mutex) == 0);
    total += own;
    CHECK(pthread_mutex_unlock(&mutex) == 0);
    return (void *)(own * 2);
}

static void threads(void)
{
    static pthread_t all[THREADS];
    pthread_attr_t small;
    CHECK(pthread_attr_init(&small) == 0 && pthread_attr_setstacksize(&small, 64 << 10) == 0);
    CHECK(pthread_barrier_init(&barrier, NULL, THREADS + 1) == 0);
    for (long i = 0; i < THREADS; i++)
        CHECK(pthread_create(&all[i], &small, work, (void *)i) == 0);
    pthread_barrier_wait(&barrier);
    for (long i = 0; i < THREADS; i++) {
        void *result;
        CHECK(pthread_join(all[i], &result) == 0 && (long)result == 2 * i);
    }
    CHECK(total == (long)THREADS * (THREADS - 1) / 2);
    OK("1,000 threads at once");
}

/* Each generation has the numbers of all before it, changes one and counts those below. */
static int descend(int depth, unsigned char *memory)
{
    if (depth == 0)
        return 0;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        for (int i = 50; i > depth; i--)
            CHECK(memory[i * PAGE] == i);
        memory[depth * PAGE] = (unsigned char)depth;
        _exit(descend(depth - 1, memory) + 1);
    }
    int status = reap(child);
    CHECK(WIFEXITED(status) && memory[depth * PAGE] == 0);
    return WEXITSTATUS(status);
}

static void generations(void)
{
    unsigned char *memory = mmap(NULL, 51 * PAGE, RW, ANON, -1, 0);
    CHECK(memory != MAP_FAILED && descend(50, memory) == 50);
    OK("50 generations");
}

static volatile int too_large;
static void on_signal(int number)
{
    too_large = number;
}

static void limits(void)
{
    struct rlimit space = {2 * GIB, 2 * GIB}, got;
    pid_t child = fork();
    if (child == 0) {
        CHECK(setrlimit(RLIMIT_AS, &space) == 0 && getrlimit(RLIMIT_AS, &got) == 0 && got.rlim_cur == 2 * GIB);
        CHECK(mmap(NULL, 3 * GIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0) == MAP_FAILED && errno == ENOMEM);
        CHECK(mmap(NULL, GIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0) != MAP_FAILED);
        CHECK(mmap(NULL, GIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0) == MAP_FAILED && errno == ENOMEM);
        pid_t grandchild = fork();
        if (grandchild == 0)
            _exit(mmap(NULL, GIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0) != MAP_FAILED);
        _exit(reap(grandchild));
    }
    CHECK(reap(child) == 0);
    child = fork();
    if (child == 0) {
        struct rlimit size = {10000, 10000};
        struct sigaction action = {.sa_handler = on_signal};
        int fd = open("limited", O_RDWR | O_CREAT | O_TRUNC, 0600);
        char block[8000] = {1};
        CHECK(sigaction(SIGXFSZ, &action, NULL) == 0 && setrlimit(RLIMIT_FSIZE, &size) == 0);
        CHECK(write(fd, block, 8000) == 8000 && write(fd, block, 8000) == 2000 && too_large == 0);
        CHECK(write(fd, block, 1) == -1 && errno == EFBIG && too_large == SIGXFSZ);
        signal(SIGXFSZ, SIG_DFL);
        write(fd, block, 1);
        _exit(1);
    }
    int status = reap(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ);
    OK("limits on memory and files");
}

static void death_signals(void)
{
    int ready[2];
    CHECK(pipe(ready) == 0);
    pid_t parent = fork();
    if (parent == 0) {
        pid_t child = fork();
        if (child == 0) {
            int mine = 0;
            CHECK(prctl(PR_SET_PDEATHSIG, SIGUSR1) == 0 && prctl(PR_GET_PDEATHSIG, &mine) == 0 && mine == SIGUSR1);
            sigset_t set;
            sigemptyset(&set), sigaddset(&set, SIGUSR1);
            CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0 && write(ready[1], "r", 1) == 1);
            CHECK(sigwait(&set, &mine) == 0 && mine == SIGUSR1 && write(ready[1], "d", 1) == 1);
            _exit(0);
        }
        char byte;
        CHECK(read(ready[0], &byte, 1) == 1 && byte == 'r');
        _exit(0);
    }
    CHECK(reap(parent) == 0);
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1 && byte == 'd');
    /* A subreaper inherits the orphans. */
    CHECK(prctl(PR_SET_CHILD_SUBREAPER, 1) == 0);
    parent = fork();
    if (parent == 0) {
        pid_t child = fork();
        if (child == 0) {
            usleep(20000);
            _exit(23);
        }
        _exit(0);
    }
    CHECK(reap(parent) == 0);
    int status;
    CHECK(wait(&status) > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 23);
    OK("death signals and orphans");
}

int main(void)
{
    reservations();
    threads();
    generations();
    limits();
    death_signals();
    return 0;
}
