/* Threads: 200 of them with mutexes and condition variables, and the less usual parts of the library. */
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>

#define THREADS 200

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t turned = PTHREAD_COND_INITIALIZER;
static unsigned long counter, turn;
static __thread unsigned long mine = 17;
static pthread_barrier_t barrier;
static unsigned long arrived;

static void *count(void *argument)
{
    CHECK(mine == 17);
    for (int i = 0; i < 500; i++) {
        CHECK(pthread_mutex_lock(&mutex) == 0);
        unsigned long seen = counter;
        if (i % 50 == 0)
            sched_yield();
        counter = seen + 1;
        CHECK(pthread_mutex_unlock(&mutex) == 0);
        mine++;
    }
    CHECK(mine == 517);
    return (char *)argument + 1;
}

/* Thread i may go only when it is its turn: three rounds. */
static void *in_turn(void *argument)
{
    unsigned long me = (unsigned long)argument;
    for (unsigned long round = 0; round < 3; round++) {
        pthread_mutex_lock(&mutex);
        while (turn != round * THREADS + me)
            pthread_cond_wait(&turned, &mutex);
        turn++;
        pthread_cond_broadcast(&turned);
        pthread_mutex_unlock(&mutex);
    }
    return NULL;
}

static void *meet(void *argument)
{
    long serial = 0;
    for (unsigned long round = 1; round <= 20; round++) {
        __atomic_add_fetch(&arrived, 1, __ATOMIC_SEQ_CST);
        int got = pthread_barrier_wait(&barrier);
        CHECK(got == 0 || got == PTHREAD_BARRIER_SERIAL_THREAD);
        serial += got == PTHREAD_BARRIER_SERIAL_THREAD;
        CHECK(__atomic_load_n(&arrived, __ATOMIC_SEQ_CST) >= round * 16);
        pthread_barrier_wait(&barrier);
    }
    (void)argument;
    return (void *)serial;
}

static void all(void *(*body)(void *), unsigned number, void **results)
{
    pthread_t threads[THREADS];
    for (unsigned long i = 0; i < number; i++)
        CHECK(pthread_create(&threads[i], NULL, body, (void *)i) == 0);
    for (unsigned i = 0; i < number; i++)
        CHECK(pthread_join(threads[i], &results[i]) == 0);
}

static sem_t done;
static void *detached(void *argument)
{
    (void)argument;
    sem_post(&done);
    return NULL;
}

static volatile int cleaned;
static void cleanup(void *argument) { cleaned += *(int *)argument; }
static void *cancelled(void *argument)
{
    int amount = 5;
    (void)argument;
    pthread_cleanup_push(cleanup, &amount);
    sem_post(&done);
    for (;;)
        pause();
    pthread_cleanup_pop(0);
}

static void *spinning(void *argument)
{
    pthread_setcanceltype(PTHREAD_CANCEL_ASYNCHRONOUS, NULL);
    sem_post(&done);
    for (;;)
        __asm__ volatile("");
    return argument;
}

static pthread_mutex_t *robust;
static void *dies_with_lock(void *argument)
{
    pthread_mutex_lock(robust);
    return argument;
}

static volatile pthread_t handled_by;
static void on_usr1(int number) { (void)number, handled_by = pthread_self(); sem_post(&done); }
static void *waiting(void *argument)
{
    sem_post(&done);
    while (!*(volatile int *)argument)
        usleep(1000);
    return NULL;
}

static pthread_key_t key;
static int destroyed;
static void destroy(void *value) { __atomic_add_fetch(&destroyed, *(int *)value, __ATOMIC_SEQ_CST), free(value); }
static void *with_key(void *argument)
{
    int *value = malloc(sizeof *value);
    *value = 3;
    pthread_setspecific(key, value);
    return argument;
}

static pthread_once_t once = PTHREAD_ONCE_INIT;
static int initialised;
static void initialise(void) { initialised++; }
static void *call_once(void *argument) { pthread_once(&once, initialise); return argument; }

static pthread_rwlock_t rwlock = PTHREAD_RWLOCK_INITIALIZER;
static unsigned long pair[2];
static void *reads_and_writes(void *argument)
{
    for (unsigned i = 0; i < 300; i++) {
        if ((i + (unsigned long)argument) % 10 == 0) {
            pthread_rwlock_wrlock(&rwlock);
            pair[0]++;
            sched_yield();
            pair[1]++;
        } else {
            pthread_rwlock_rdlock(&rwlock);
            CHECK(pair[0] == pair[1]);
        }
        pthread_rwlock_unlock(&rwlock);
    }
    return NULL;
}

static void *lasts(void *argument)
{
    usleep(100000);
    puts("ok the last thread ends the process");
    fflush(stdout);
    return argument;
}

int main(void)
{
    void *results[THREADS];
    all(count, THREADS, results);
    CHECK(counter == THREADS * 500);
    for (unsigned long i = 0; i < THREADS; i++)
        CHECK(results[i] == (void *)(i + 1));
    CHECK(mine == 17);
    OK("200 threads and a mutex");
    all(in_turn, THREADS, results);
    CHECK(turn == 3 * THREADS);
    OK("200 threads and a condition variable");
    CHECK(pthread_barrier_init(&barrier, NULL, 16) == 0);
    all(meet, 16, results);
    long serials = 0;
    for (int i = 0; i < 16; i++)
        serials += (long)results[i];
    CHECK(serials == 20);
    OK("a barrier");
    for (int round = 0; round < 300; round++)
        all(call_once, 2, results);
    CHECK(initialised == 1);
    OK("600 threads one after another");

    CHECK(sem_init(&done, 0, 0) == 0);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    for (int i = 0; i < 20; i++)
        CHECK(pthread_create(&thread, &attributes, detached, NULL) == 0);
    for (int i = 0; i < 20; i++)
        CHECK(sem_wait(&done) == 0);
    OK("detached threads");

    void *result;
    CHECK(pthread_create(&thread, NULL, cancelled, NULL) == 0);
    sem_wait(&done);
    CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
    CHECK(result == PTHREAD_CANCELED && cleaned == 5);
    CHECK(pthread_create(&thread, NULL, spinning, NULL) == 0);
    sem_wait(&done);
    CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0 && result == PTHREAD_CANCELED);
    OK("cancelling a blocked and a spinning thread");

    pthread_mutexattr_t kinds;
    pthread_mutexattr_init(&kinds);
    pthread_mutexattr_setrobust(&kinds, PTHREAD_MUTEX_ROBUST);
    pthread_mutexattr_setpshared(&kinds, PTHREAD_PROCESS_SHARED);
    robust = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(pthread_mutex_init(robust, &kinds) == 0);
    CHECK(pthread_create(&thread, NULL, dies_with_lock, NULL) == 0 && pthread_join(thread, NULL) == 0);
    CHECK(pthread_mutex_lock(robust) == EOWNERDEAD && pthread_mutex_consistent(robust) == 0);
    CHECK(pthread_mutex_unlock(robust) == 0);
    OK("a robust mutex of a dead thread");
    pid_t child = fork();
    if (child == 0) {
        pthread_mutex_lock(robust);
        _exit(0);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(pthread_mutex_lock(robust) == EOWNERDEAD && pthread_mutex_consistent(robust) == 0);
    CHECK(pthread_mutex_unlock(robust) == 0);
    OK("a robust mutex of a dead process");

    struct sigaction action = {.sa_handler = on_usr1};
    sigaction(SIGUSR1, &action, NULL);
    int stop = 0;
    CHECK(pthread_create(&thread, NULL, waiting, &stop) == 0);
    sem_wait(&done);
    CHECK(pthread_kill(thread, SIGUSR1) == 0);
    while (sem_wait(&done))
        CHECK(errno == EINTR);
    CHECK(pthread_equal(handled_by, thread));
    stop = 1;
    pthread_join(thread, NULL);
    CHECK(pthread_kill(pthread_self(), SIGUSR1) == 0 && pthread_equal(handled_by, pthread_self()));
    CHECK(sem_wait(&done) == 0 && sem_trywait(&done) == -1 && errno == EAGAIN);
    OK("a signal to one thread");

    CHECK(pthread_key_create(&key, destroy) == 0);
    all(with_key, 50, results);
    CHECK(destroyed == 150);
    OK("thread-specific data");
    all(reads_and_writes, 30, results);
    CHECK(pair[0] == 30 * 30 && pair[0] == pair[1]);
    OK("a read-write lock");

    struct timespec until;
    clock_gettime(CLOCK_REALTIME, &until);
    until.tv_nsec += 50000000;
    if (until.tv_nsec >= 1000000000)
        until.tv_sec++, until.tv_nsec -= 1000000000;
    pthread_mutex_lock(&mutex);
    CHECK(pthread_cond_timedwait(&turned, &mutex, &until) == ETIMEDOUT);
    CHECK(sem_timedwait(&done, &until) == -1 && errno == ETIMEDOUT);
    pthread_mutex_unlock(&mutex);
    OK("waits that time out");
    CHECK(getpid() == syscall(SYS_gettid));

    /* fork in a program of several threads: only the caller goes along. */
    stop = 0;
    CHECK(pthread_create(&thread, NULL, waiting, &stop) == 0);
    sem_wait(&done);
    child = fork();
    if (child == 0) {
        CHECK(syscall(SYS_gettid) == getpid());
        all(with_key, 5, results);
        _exit(destroyed == 165 ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    stop = 1;
    pthread_join(thread, NULL);
    OK("fork from among threads");
    CHECK(pthread_create(&thread, NULL, lasts, NULL) == 0);
    pthread_exit(NULL);
}
