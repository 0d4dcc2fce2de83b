/* Time: it never goes back, sleeps are not short, and all clocks tell the same story. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/times.h>
#include <time.h>

static double seconds(clockid_t clock)
{
    struct timespec now;
    CHECK(clock_gettime(clock, &now) == 0);
    CHECK(now.tv_nsec >= 0 && now.tv_nsec < 1000000000);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static uint64_t latest;

/* Each thread takes a time and compares it with the latest that any other had published before. */
static void *never_back(void *argument)
{
    for (int i = 0; i < 200000; i++) {
        uint64_t before = __atomic_load_n(&latest, __ATOMIC_SEQ_CST);
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        uint64_t time = (uint64_t)now.tv_sec * 1000000000ULL + (uint64_t)now.tv_nsec;
        CHECK(time >= before);
        while (before < time && !__atomic_compare_exchange_n(&latest, &before, time, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
            ;
    }
    return argument;
}

int main(void)
{
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, never_back, NULL) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    OK("monotonic over four threads");

    static const clockid_t clocks[] = {CLOCK_REALTIME, CLOCK_MONOTONIC, CLOCK_MONOTONIC_RAW, CLOCK_REALTIME_COARSE,
                                       CLOCK_MONOTONIC_COARSE, CLOCK_BOOTTIME, CLOCK_PROCESS_CPUTIME_ID,
                                       CLOCK_THREAD_CPUTIME_ID, CLOCK_TAI};
    for (unsigned i = 0; i < sizeof clocks / sizeof *clocks; i++) {
        struct timespec resolution;
        CHECK(clock_getres(clocks[i], &resolution) == 0 && resolution.tv_sec == 0);
        CHECK(resolution.tv_nsec > 0 && resolution.tv_nsec <= 10000000);
        CHECK(seconds(clocks[i]) >= 0);
    }
    struct timespec none;
    CHECK(clock_gettime(12345, &none) == -1 && errno == EINVAL);
    OK("nine clocks");
    double real = seconds(CLOCK_REALTIME), coarse = seconds(CLOCK_REALTIME_COARSE);
    CHECK(coarse > real - 0.1 && coarse < real + 1);
    struct timeval day;
    CHECK(gettimeofday(&day, NULL) == 0);
    double of_day = (double)day.tv_sec + (double)day.tv_usec * 1e-6;
    CHECK(of_day >= real - 1e-5 && of_day < real + 1);
    time_t now = time(NULL);
    CHECK((double)now >= real - 1.1 && (double)now < real + 2);
    int file = open("made now", O_WRONLY | O_CREAT, 0644);
    struct stat status;
    CHECK(file >= 0 && write(file, "x", 1) == 1 && fstat(file, &status) == 0 && close(file) == 0);
    double made = (double)status.st_mtim.tv_sec + (double)status.st_mtim.tv_nsec * 1e-9;
    CHECK(made > real - 0.1 && made < real + 5);
    OK("the clocks and a file's time agree");

    static const long naps[] = {0, 1000, 1000000, 20000000, 250000000};
    for (unsigned i = 0; i < 5; i++) {
        struct timespec nap = {0, naps[i]};
        double start = seconds(CLOCK_MONOTONIC), start_real = seconds(CLOCK_REALTIME);
        CHECK(nanosleep(&nap, NULL) == 0);
        double took = seconds(CLOCK_MONOTONIC) - start, took_real = seconds(CLOCK_REALTIME) - start_real;
        CHECK(took >= (double)naps[i] * 1e-9 && took < (double)naps[i] * 1e-9 + 3);
        CHECK(took_real > took - 0.5 && took_real < took + 0.5);
    }
    struct timespec until;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &until) == 0);
    until.tv_sec += 1;
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == 0);
    CHECK(seconds(CLOCK_MONOTONIC) >= (double)until.tv_sec + (double)until.tv_nsec * 1e-9);
    struct timespec wrong = {0, 1000000000};
    CHECK(nanosleep(&wrong, NULL) == -1 && errno == EINVAL);
    OK("sleeps");

    double cpu = seconds(CLOCK_PROCESS_CPUTIME_ID), thread = seconds(CLOCK_THREAD_CPUTIME_ID), wall = seconds(CLOCK_MONOTONIC);
    usleep(200000);
    CHECK(seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu < 0.15);
    volatile uint64_t spin = 0;
    while (seconds(CLOCK_THREAD_CPUTIME_ID) - thread < 0.2)
        spin++;
    CHECK(seconds(CLOCK_PROCESS_CPUTIME_ID) - cpu >= 0.19 && seconds(CLOCK_MONOTONIC) - wall > 0.39);
    struct tms used;
    CHECK(times(&used) != (clock_t)-1 && used.tms_utime + used.tms_stime >= 15);
    CHECK(clock() > 100000);
    OK("CPU time is time of work");
    return 0;
}
