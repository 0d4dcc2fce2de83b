/* What the kernel says that a process and its children used. */
#include "check.h"
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/times.h>
#include <sys/wait.h>
#include <time.h>

static double cpu(clockid_t clock)
{
    struct timespec now;
    CHECK(clock_gettime(clock, &now) == 0);
    return now.tv_sec + now.tv_nsec * 1e-9;
}

static double seconds(struct timeval time)
{
    return time.tv_sec + time.tv_usec * 1e-6;
}

static void burn(double much)
{
    double until = cpu(CLOCK_PROCESS_CPUTIME_ID) + much;
    volatile unsigned sink = 0;
    while (cpu(CLOCK_PROCESS_CPUTIME_ID) < until)
        for (int i = 0; i < 1000000; i++)
            sink = sink * 31 + i;
}

static struct rusage usage(int who)
{
    struct rusage usage;
    CHECK(getrusage(who, &usage) == 0);
    return usage;
}

static void own(void)
{
    struct tms before, after;
    CHECK(times(&before) != (clock_t)-1);
    burn(0.3);
    CHECK(times(&after) != (clock_t)-1);
    CHECK(after.tms_utime - before.tms_utime >= 15);
    CHECK(after.tms_cutime == 0 && after.tms_cstime == 0);
    /* Work for the kernel shows as such. */
    while (after.tms_stime < before.tms_stime + 3) {
        for (int i = 0; i < 1000; i++)
            getppid();
        CHECK(times(&after) != (clock_t)-1);
    }
    struct rusage self = usage(RUSAGE_SELF), thread = usage(RUSAGE_THREAD);
    CHECK(seconds(self.ru_utime) >= 0.15 && seconds(self.ru_stime) >= 0.02);
    CHECK(seconds(thread.ru_utime) >= 0.15 && seconds(thread.ru_stime) >= 0.02);
    CHECK(self.ru_maxrss >= 100 && self.ru_minflt > 0);
    OK("own");
}

static volatile sig_atomic_t alarms;

static void alarmed(int signal)
{
    (void)signal;
    alarms++;
}

/* What is left of a timer. */
static double left(int which)
{
    struct itimerval now;
    CHECK(getitimer(which, &now) == 0);
    return seconds(now.it_value);
}

static void timers(void)
{
    struct itimerval much = { .it_value = { 1000, 0 } }, none = { 0 }, little = { .it_value = { 0, 100000 } };
    CHECK(setitimer(ITIMER_VIRTUAL, &much, NULL) == 0 && setitimer(ITIMER_PROF, &much, NULL) == 0);
    /* One counts what the kernel did, the other does not. It does what nobody else can do for this process until that
       shows: pages are made. */
    double both;
    do {
        for (int i = 0; i < 10; i++) {
            size_t size = 64 * 4096;
            char *pages = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(pages != MAP_FAILED);
            for (size_t at = 0; at < size; at += 4096)
                pages[at] = 1;
            CHECK(munmap(pages, size) == 0);
        }
        both = 1000 - left(ITIMER_PROF);
    } while (left(ITIMER_VIRTUAL) - (1000 - both) < 0.1 && both < 10);
    CHECK(left(ITIMER_VIRTUAL) - left(ITIMER_PROF) >= 0.1);
    CHECK(setitimer(ITIMER_PROF, &none, NULL) == 0);
    CHECK(signal(SIGVTALRM, alarmed) != SIG_ERR && setitimer(ITIMER_VIRTUAL, &little, NULL) == 0);
    volatile unsigned sink = 0;
    while (alarms == 0)
        sink = sink * 31 + 1;
    CHECK(left(ITIMER_VIRTUAL) == 0);
    OK("timers of CPU time");
}

static void children(void)
{
    const size_t size = 32 << 20;
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        memset(malloc(size), 1, size);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            burn(0.2);
            _exit(0);
        }
        CHECK(waitpid(grandchild, 0, 0) == grandchild);
        burn(0.2);
        _exit(7);
    }
    struct rusage of;
    int status;
    CHECK(wait4(child, &status, 0, &of) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 7);
    double used = seconds(of.ru_utime) + seconds(of.ru_stime);
    CHECK(used >= 0.39 && used < 20);
    CHECK(of.ru_maxrss >= (long)(size >> 10));
    struct rusage all = usage(RUSAGE_CHILDREN);
    CHECK(seconds(all.ru_utime) + seconds(all.ru_stime) >= used - 0.01);
    CHECK(all.ru_maxrss >= of.ru_maxrss);
    struct tms now;
    CHECK(times(&now) != (clock_t)-1);
    CHECK(now.tms_cutime + now.tms_cstime >= 38);
    OK("children");
}

static void ignored(void)
{
    /* Whose end nobody waits for are not counted. */
    double before = seconds(usage(RUSAGE_CHILDREN).ru_utime);
    signal(SIGCHLD, SIG_IGN);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        burn(0.2);
        _exit(0);
    }
    CHECK(waitpid(child, 0, 0) == -1);
    CHECK(seconds(usage(RUSAGE_CHILDREN).ru_utime) == before);
    OK("ignored");
}

int main(void)
{
    own();
    timers();
    children();
    ignored();
    CHECK(getrusage(12345, &(struct rusage){ 0 }) == -1);
    OK("all");
    return 0;
}
