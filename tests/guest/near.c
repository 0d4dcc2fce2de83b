/* Where threads may run, told while they keep asking home, which binds their deputies for a while. With an
 * argument: only so many calls. */
#define _GNU_SOURCE
#include "check.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static cpu_set_t all, one;
static char told[64];

static void ask(int count)
{
    for (int i = 0; i < count; i++)
        CHECK(syscall(SYS_getppid) > 0);
}

static void may_run_on(int tid, const cpu_set_t *want)
{
    cpu_set_t now;
    CHECK(sched_getaffinity(tid, sizeof now, &now) == 0 && CPU_EQUAL(&now, want));
}

static void read_status(char *line, int room)
{
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file != NULL);
    while (fgets(line, room, file) != NULL)
        if (strncmp(line, "Cpus_allowed_list:", 18) == 0)
            break;
    CHECK(fclose(file) == 0);
}

static void *thread(void *unused)
{
    (void)unused;
    may_run_on(0, &all);
    ask(200);
    may_run_on(0, &all);
    return NULL;
}

static void status_is_told(void)
{
    char line[64] = "";
    read_status(line, sizeof line);
    CHECK(strcmp(line, told) == 0);
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        ask(atoi(argv[1]));
        return 0;
    }
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    read_status(told, sizeof told);
    for (int cpu = CPU_SETSIZE; cpu-- > 0;) {
        if (CPU_ISSET(cpu, &all)) {
            CPU_ZERO(&one);
            CPU_SET(cpu, &one);
        }
    }

    for (int round = 0; round < 5; round++) {
        ask(200);
        may_run_on(0, &all);
        ask(20);
        may_run_on(getpid(), &all);
        ask(20);
        status_is_told();
        ask(20);
        pthread_t other;
        CHECK(pthread_create(&other, NULL, thread, NULL) == 0);
        ask(200);
        CHECK(pthread_join(other, NULL) == 0);
    }

    /* A child has its parent's set, and each sees the other's while that one asks. */
    ask(200);
    int ready[2];
    char byte;
    CHECK(pipe(ready) == 0);
    int pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        may_run_on(0, &all);
        status_is_told();
        for (int round = 0; round < 50; round++) {
            ask(20);
            may_run_on(getppid(), &all);
        }
        CHECK(write(ready[1], "", 1) == 1);
        /* Until it is killed, or its parent has found a fault. */
        for (int parent = getppid(); getppid() == parent;)
            ask(1);
        _exit(1);
    }
    for (int round = 0; round < 50; round++) {
        ask(20);
        may_run_on(pid, &all);
    }
    /* What is chosen for it holds too. */
    CHECK(close(ready[1]) == 0 && read(ready[0], &byte, 1) == 1);
    for (int round = 0; round < 10; round++) {
        CHECK(sched_setaffinity(pid, sizeof one, &one) == 0);
        ask(20);
        may_run_on(pid, &one);
        CHECK(sched_setaffinity(pid, sizeof all, &all) == 0);
        ask(20);
        may_run_on(pid, &all);
    }
    CHECK(kill(pid, SIGKILL) == 0 && waitpid(pid, NULL, 0) == pid);

    /* What is chosen holds. */
    ask(200);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    ask(200);
    may_run_on(0, &one);
    usleep(50000);
    may_run_on(0, &one);
    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        ask(200);
        may_run_on(0, &one);
        may_run_on(getppid(), &one);
        _exit(0);
    }
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && status == 0);
    ask(20);
    CHECK(sched_setaffinity(0, sizeof all, &all) == 0);
    ask(200);
    may_run_on(0, &all);
    puts("ok");
    return 0;
}
