/* Each table that a process can fill has an end, with the errno that Linux gives, and goes on after it. */
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>

static void limit(int resource, rlim_t most)
{
    struct rlimit limit;
    CHECK(getrlimit(resource, &limit) == 0);
    limit.rlim_cur = most;
    CHECK(setrlimit(resource, &limit) == 0);
}

/* Areas: cut one up until there are too many. */
static void mappings(void)
{
    FILE *file = fopen("/proc/sys/vm/max_map_count", "r");
    unsigned long most = 0;
    CHECK(file && fscanf(file, "%lu", &most) == 1);
    fclose(file);
    size_t length = (most + 16) * 2 * PAGE;
    char *area = mmap(0, length, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(area != MAP_FAILED);
    size_t cut = 0;
    while (mprotect(area + (2 * cut + 1) * PAGE, PAGE, PROT_NONE) == 0)
        CHECK(++cut <= most);
    CHECK(errno == ENOMEM && cut > 1000);
    /* No call that needs another area gets one. */
    CHECK(munmap(area + length - 3 * PAGE, PAGE) == -1 && errno == ENOMEM);
    CHECK(madvise(area + length - 3 * PAGE, PAGE, MADV_DONTFORK) == -1 && errno == EAGAIN);
    /* What makes fewer of them works, and then there is room again. */
    CHECK(munmap(area, 64 * PAGE) == 0);
    CHECK(mprotect(area + length - 3 * PAGE, PAGE, PROT_NONE) == 0);
    CHECK(munmap(area, length) == 0);
    CHECK(mmap(0, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
    OK("mappings");
}

static void address_space(void)
{
    limit(RLIMIT_AS, 1UL << 30);
    CHECK(mmap(0, 2UL << 30, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == ENOMEM);
    void *area = mmap(0, 256 << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    CHECK(mremap(area, 256 << 20, 2UL << 30, MREMAP_MAYMOVE) == MAP_FAILED && errno == ENOMEM);
    CHECK(munmap(area, 256 << 20) == 0);
    limit(RLIMIT_AS, RLIM_INFINITY);
    OK("address space");
}

static void queued_signals(void)
{
    limit(RLIMIT_SIGPENDING, 100);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGRTMIN + 1);
    sigaddset(&set, SIGUSR1);
    CHECK(sigprocmask(SIG_BLOCK, &set, 0) == 0);
    int queued = 0;
    while (sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ .sival_int = queued }) == 0)
        CHECK(++queued <= 100);
    CHECK(errno == EAGAIN && queued > 0);
    /* Standard signals are never refused. */
    CHECK(kill(getpid(), SIGUSR1) == 0);
    for (int i = 0; i < queued; i++) {
        siginfo_t info;
        sigset_t one;
        sigemptyset(&one);
        sigaddset(&one, SIGRTMIN + 1);
        CHECK(sigwaitinfo(&one, &info) == SIGRTMIN + 1 && info.si_value.sival_int == i);
    }
    CHECK(sigqueue(getpid(), SIGRTMIN + 1, (union sigval){ 0 }) == 0);
    siginfo_t info;
    CHECK(sigwaitinfo(&set, &info) > 0 && sigwaitinfo(&set, &info) > 0);
    OK("queued signals");
}

static void timers(void)
{
    limit(RLIMIT_SIGPENDING, 100);
    timer_t timer[101];
    struct sigevent event = { .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 1 };
    int made = 0;
    while (timer_create(CLOCK_MONOTONIC, &event, &timer[made]) == 0)
        CHECK(++made <= 100);
    CHECK(errno == EAGAIN && made > 0);
    CHECK(timer_delete(timer[--made]) == 0);
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer[made++]) == 0);
    /* Arming one again and again leaves nothing behind. */
    struct itimerspec hour = { .it_value.tv_sec = 3600 };
    for (int i = 0; i < 2000; i++)
        CHECK(timer_settime(timer[i % made], 0, &hour, 0) == 0);
    while (made)
        CHECK(timer_delete(timer[--made]) == 0);
    OK("timers");
}

static void descriptors(void)
{
    limit(RLIMIT_NOFILE, 64);
    int opened = 0, last = -1, fd;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0) {
        last = fd;
        CHECK(++opened <= 64);
    }
    CHECK(errno == EMFILE && opened > 40 && last == 63);
    CHECK(dup(0) == -1 && errno == EMFILE);
    int ends[2];
    CHECK(close(last) == 0 && pipe(ends) == -1 && errno == EMFILE);
    CHECK(dup(0) == last);
    OK("descriptors");
}

int main(void)
{
    mappings();
    address_space();
    queued_signals();
    timers();
    descriptors();
    return 0;
}
