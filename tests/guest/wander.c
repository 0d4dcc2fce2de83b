/* A program that notices if anything of it is lost, repeated or torn while it moves about: threads that write
 * numbered pages and check each other's, counters that may not repeat, secrets that are only in memory and
 * in vector registers, signals each millisecond, a pipe, a child, and numbered lines in a file.
 *
 * wander SECONDS FILE [alone] [far]; SIGUSR1 ends it before its time. Alone, it has no children. Far away, what home's
 * clock shows is known less exactly than how long home waits. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <immintrin.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

#include "check.h"

enum { PAGES = 256, WRITERS = 3 };

static atomic_bool done;
static uint64_t inexact;
static volatile sig_atomic_t ticks, stopped;

static uint64_t now(void)
{
    struct timespec time;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &time) == 0);
    return time.tv_sec * 1000000000ull + time.tv_nsec;
}

/* Pages: each writer has its own, which hold their number and how often they were written, twice. The next
 * writer's pages are looked at: what was seen there may only grow. */
struct page {
    _Atomic uint64_t begun;
    uint64_t number;
    unsigned char body[PAGE - 32];
    uint64_t serial;
    _Atomic uint64_t ended;
};

static struct page *pages[WRITERS];

static void *writer(void *argument)
{
    int me = (int)(intptr_t)argument, next = (me + 1) % WRITERS;
    static uint64_t seen[WRITERS][PAGES];
    for (uint64_t serial = 1; !done; serial++) {
        for (int i = 0; i < PAGES && !done; i++) {
            struct page *page = &pages[me][i];
            CHECK(page->begun == serial - 1 && page->ended == serial - 1 && page->serial == serial - 1);
            page->begun = serial;
            page->number = (uint64_t)me << 32 | i;
            page->body[serial % sizeof page->body] = serial;
            page->serial = serial;
            page->ended = serial;
            struct page *other = &pages[next][i];
            uint64_t ended = other->ended, begun = other->begun;
            CHECK(begun >= ended && ended >= seen[me][i]);
            CHECK(ended == 0 || other->number == ((uint64_t)next << 32 | i));
            seen[me][i] = ended;
        }
    }
    return NULL;
}

/* Vector registers that only this thread has, through system calls and signals. */
__attribute__((target("avx2"))) static void *vectors(void *argument)
{
    (void)argument;
    __m256d value = _mm256_set_pd(1.5, -2.25, 3.125, 1e300), step = _mm256_set1_pd(0.0009765625);
    double plain[4] = { 1e300, 3.125, -2.25, 1.5 };
    while (!done) {
        for (int i = 0; i < 100000; i++) {
            value = _mm256_add_pd(value, step);
            __asm__ volatile("" : "+x"(value), "+x"(step));
        }
        for (int k = 0; k < 4; k++)
            for (int i = 0; i < 100000; i++)
                plain[k] += 0.0009765625;
        double got[4];
        _mm256_storeu_pd(got, value);
        for (int k = 0; k < 4; k++)
            CHECK(got[k] == plain[k]);
    }
    return NULL;
}

/* The clock goes on and never back. */
static void *clockwatch(void *argument)
{
    uint64_t *longest = argument, last = now();
    while (!done) {
        uint64_t time = now();
        CHECK(time >= last);
        if (time - last > *longest)
            *longest = time - last;
        last = time;
        for (volatile int i = 0; i < 1000; i++)
            ;
    }
    return NULL;
}

/* Two threads hand a number to each other by a condition variable and by a pipe. */
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static uint64_t ball;
static int wire[2];

static void *player(void *argument)
{
    uint64_t side = (uintptr_t)argument;
    for (;;) {
        CHECK(pthread_mutex_lock(&mutex) == 0);
        while (ball % 2 != side && !done)
            CHECK(pthread_cond_wait(&changed, &mutex) == 0);
        uint64_t mine = ball++;
        CHECK(pthread_cond_broadcast(&changed) == 0);
        CHECK(pthread_mutex_unlock(&mutex) == 0);
        if (done)
            return NULL;
        if (side == 0)
            CHECK(write(wire[1], &mine, sizeof mine) == sizeof mine);
    }
}

static void *receiver(void *argument)
{
    uint64_t *count = argument, expected = 0, got;
    ssize_t size;
    while ((size = read(wire[0], &got, sizeof got)) == sizeof got) {
        if (got != expected)
            break;
        expected += 2;
        ++*count;
    }
    CHECK(size == 0);
    return NULL;
}

/* Sleeps last as long as they should, wherever they end. */
static void *sleeper(void *argument)
{
    (void)argument;
    while (!done) {
        uint64_t before = now();
        struct timespec wait = { .tv_nsec = 30000000 };
        while (nanosleep(&wait, &wait) != 0)
            CHECK(errno == EINTR);
        uint64_t slept = now() - before;
        CHECK(slept >= 30000000);
        before = now();
        CHECK(poll(NULL, 0, 20) == 0);
        CHECK(now() - before + inexact >= 20000000);
    }
    return NULL;
}

static void tick(int signal)
{
    (void)signal;
    ticks++;
}

static void stop(int signal)
{
    (void)signal;
    stopped = 1;
}

int main(int count, char **arguments)
{
    CHECK(count >= 3);
    bool alone = false;
    for (int i = 3; i < count; i++) {
        if (strcmp(arguments[i], "alone") == 0)
            alone = true;
        else if (strcmp(arguments[i], "far") == 0)
            inexact = 15000000;
        else
            CHECK(!"an argument");
    }
    double seconds = atof(arguments[1]);
    uint64_t nonce[64], longest = 0, received = 0;
    CHECK(getentropy(nonce, 256) == 0 && getentropy(nonce + 32, 256) == 0);
    uint64_t *copy = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memcpy(copy + 4096, nonce, sizeof nonce);
    CHECK(mprotect(copy, 1 << 20, PROT_READ) == 0);
    /* Memory that areas of one process share. */
    uint64_t *shared = mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    shared[100] = nonce[0];
    /* With a child that has it too the process could not go alone. */
    CHECK(madvise(shared, 1 << 16, MADV_DONTFORK) == 0);
    pid_t self = getpid();
    for (int i = 0; i < WRITERS; i++)
        pages[i] = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pipe(wire) == 0);
    sigset_t mask, old;
    sigemptyset(&mask);
    sigaddset(&mask, SIGALRM);
    /* The other threads are not broken off. */
    CHECK(pthread_sigmask(SIG_BLOCK, &mask, &old) == 0);
    pthread_t threads[WRITERS + 6];
    int n = 0;
    for (int i = 0; i < WRITERS; i++)
        CHECK(pthread_create(&threads[n++], NULL, writer, (void *)(intptr_t)i) == 0);
    CHECK(pthread_create(&threads[n++], NULL, vectors, NULL) == 0);
    CHECK(pthread_create(&threads[n++], NULL, clockwatch, &longest) == 0);
    CHECK(pthread_create(&threads[n++], NULL, player, (void *)0) == 0);
    CHECK(pthread_create(&threads[n++], NULL, player, (void *)1) == 0);
    CHECK(pthread_create(&threads[n++], NULL, sleeper, NULL) == 0);
    pthread_t reader;
    CHECK(pthread_create(&reader, NULL, receiver, &received) == 0);
    struct sigaction action = { .sa_handler = tick, .sa_flags = SA_RESTART };
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    struct itimerval each = { { 0, 1000 }, { 0, 1000 } };
    CHECK(setitimer(ITIMER_REAL, &each, NULL) == 0);
    CHECK(signal(SIGUSR1, stop) != SIG_ERR);
    int file = open(arguments[2], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 0644);
    CHECK(file >= 0);
    uint64_t start = now(), lines = 0;
    int children = 0;
    while ((now() - start < seconds * 1e9 && !stopped) || lines < 10000) {
        char line[32];
        int length = snprintf(line, sizeof line, "%lu\n", (unsigned long)lines++);
        CHECK(write(file, line, length) == length);
        CHECK(memcmp(copy + 4096, nonce, sizeof nonce) == 0 && shared[100] == nonce[0] && getpid() == self);
        if (lines % 2000 == 0 && !alone) {
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                struct timespec wait = { .tv_nsec = 20000000 };
                nanosleep(&wait, NULL);
                _exit(memcmp(copy + 4096, nonce, sizeof nonce) == 0 && getppid() == self ? 7 : 1);
            }
            int status;
            pid_t got;
            while ((got = waitpid(child, &status, 0)) < 0)
                CHECK(errno == EINTR);
            CHECK(got == child && WIFEXITED(status) && WEXITSTATUS(status) == 7);
            children++;
        }
    }
    done = true;
    CHECK(pthread_mutex_lock(&mutex) == 0 && pthread_cond_broadcast(&changed) == 0 && pthread_mutex_unlock(&mutex) == 0);
    for (int i = 0; i < n; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    struct itimerval none = { 0 };
    CHECK(setitimer(ITIMER_REAL, &none, NULL) == 0);
    CHECK(close(wire[1]) == 0 && pthread_join(reader, NULL) == 0);
    CHECK(ticks > 0 && (children > 0 || alone));
    fprintf(stderr, "lines %lu longest gap %.1f ms ticks %d children %d balls %lu received %lu\n", (unsigned long)lines,
            longest / 1e6, (int)ticks, children, (unsigned long)ball, (unsigned long)received);
    printf("%lu\n", (unsigned long)lines);
    return 0;
}
