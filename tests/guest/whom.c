/* Which thread a signal reaches: those of CPU time the ones that use it, and those that one thread
 * has come to block another. */
#include "check.h"
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>

#ifndef sigev_notify_thread_id
#define sigev_notify_thread_id _sigev_un._tid
#endif

static _Thread_local volatile int burns;
static volatile int in_idle, in_burner;
static int tids[2];
static sem_t started, ended;

static void tick(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info, (void)context;
    __atomic_add_fetch(burns ? &in_burner : &in_idle, 1, __ATOMIC_SEQ_CST);
}

static void wait_for(sem_t *semaphore)
{
    while (sem_wait(semaphore) != 0)
        CHECK(errno == EINTR);
}

static void *burn(void *unused)
{
    (void)unused;
    burns = 1;
    for (volatile unsigned n = 0; in_burner < 25; n++)
        ;
    burns = 0;
    return NULL;
}

static void arm(int tid, clockid_t clock)
{
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_THREAD_ID, .sigev_signo = SIGUSR1};
    event.sigev_notify_thread_id = tid;
    struct itimerspec every = {{0, 10000000}, {0, 10000000}};
    CHECK(timer_create(clock, &event, &timer) == 0 && timer_settime(timer, 0, &every, NULL) == 0);
}

static void *idle(void *unused)
{
    (void)unused;
    tids[0] = (int)syscall(SYS_gettid);
    arm(tids[0], CLOCK_THREAD_CPUTIME_ID);
    sem_post(&started);
    wait_for(&ended);
    return NULL;
}

static void *busy(void *unused)
{
    (void)unused;
    tids[1] = (int)syscall(SYS_gettid);
    arm(tids[1], CLOCK_THREAD_CPUTIME_ID);
    return burn(NULL);
}

static void cpu_time(void)
{
    pthread_t threads[2];
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGPROF, &action, NULL) == 0);
    CHECK(pthread_create(&threads[0], NULL, idle, NULL) == 0);
    wait_for(&started);
    CHECK(pthread_create(&threads[1], NULL, busy, NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    CHECK(in_idle == 0);
    OK("a thread's timer counts that thread's CPU time");

    // The main thread waits, and so does the idle one: the ticks are the burner's.
    in_burner = 0;
    struct itimerval every = {{0, 10000}, {0, 10000}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_PROF, &every, NULL) == 0);
    CHECK(pthread_create(&threads[1], NULL, burn, NULL) == 0 && pthread_join(threads[1], NULL) == 0);
    CHECK(setitimer(ITIMER_PROF, &never, NULL) == 0);
    CHECK(in_idle <= 5);
    OK("a profile's ticks reach the thread that runs");
    sem_post(&ended);
    CHECK(pthread_join(threads[0], NULL) == 0);
}

static sem_t second;
static volatile int rounds;

static void on_second(int signal)
{
    (void)signal;
    sem_post(&second);
}

/* Runs with the second signal blocked until another thread has had it. */
static void on_first(int signal)
{
    (void)signal;
    wait_for(&second);
    rounds++;
}

static void *sleeper(void *unused)
{
    (void)unused;
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR2);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &set, NULL) == 0);
    sem_post(&started);
    wait_for(&ended);
    return NULL;
}

/* Both signals at once, to a main thread that computes. */
static void *sender(void *unused)
{
    (void)unused;
    for (int i = 0; i < 200; i++) {
        CHECK(kill(getpid(), SIGUSR1) == 0 && kill(getpid(), SIGUSR2) == 0);
        while (rounds == i)
            usleep(100);
    }
    return NULL;
}

static void blocked(void)
{
    pthread_t threads[2];
    struct sigaction first = {.sa_handler = on_first}, other = {.sa_handler = on_second};
    sigset_t both, old;
    sigemptyset(&both), sigaddset(&both, SIGUSR1), sigaddset(&both, SIGUSR2);
    first.sa_mask = both;
    CHECK(sigaction(SIGUSR1, &first, NULL) == 0 && sigaction(SIGUSR2, &other, NULL) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &both, &old) == 0);
    CHECK(pthread_create(&threads[0], NULL, sleeper, NULL) == 0);
    wait_for(&started);
    CHECK(pthread_create(&threads[1], NULL, sender, NULL) == 0);
    CHECK(pthread_sigmask(SIG_SETMASK, &old, NULL) == 0);
    while (rounds < 200)
        ;
    CHECK(pthread_join(threads[1], NULL) == 0);
    sem_post(&ended);
    CHECK(pthread_join(threads[0], NULL) == 0);
    OK("what a handler blocks, another thread gets");
}

int main(void)
{
    CHECK(sem_init(&started, 0, 0) == 0 && sem_init(&ended, 0, 0) == 0 && sem_init(&second, 0, 0) == 0);
    cpu_time();
    blocked();
    return 0;
}
