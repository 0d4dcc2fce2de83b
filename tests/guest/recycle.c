/* Memory that is handed out is zero, whoever had it before: this process, its parent, or others. */
#include "check.h"
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define MIB (1UL << 20)

static char *fresh(size_t size)
{
    char *area = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    for (size_t at = 0; at < size; at += PAGE)
        CHECK(page_is_zero(area + at));
    return area;
}

static char uninitialised[8 * MIB];

static void *dirties_its_stack(void *argument)
{
    volatile char here[128 << 10];
    memset((char *)here, 0xaa, sizeof here);
    return argument;
}

int main(int argc, char **argv)
{
    for (size_t at = 0; at < sizeof uninitialised; at++)
        if (uninitialised[at])
            CHECK(!"what is not initialised is zero");
    if (argc > 1) {
        /* Started after others had dirtied their memory; then dirties its own for the next. */
        char *area = fresh(64 * MIB);
        memset(area, 0xbb, 64 * MIB);
        memset(uninitialised, 0xcc, sizeof uninitialised);
        unsigned left = (unsigned)atoi(argv[1]);
        if (left == 0)
            return 33;
        char next[12];
        snprintf(next, sizeof next, "%u", left - 1);
        execl("/proc/self/exe", argv[0], next, NULL);
        return 1;
    }
    OK("what is not initialised is zero");
    for (int i = 0; i < 30; i++) {
        size_t size = (1UL + (size_t)i % 7) * MIB + (size_t)i * PAGE;
        char *area = fresh(size);
        memset(area, 0xdd, size);
        if (i % 3 == 0)
            CHECK(madvise(area, size / 2 & ~(PAGE - 1), MADV_DONTNEED) == 0 && page_is_zero(area));
        CHECK(munmap(area, size) == 0);
    }
    OK("after munmap");
    for (int i = 0; i < 30; i++) {
        char *block = calloc(1, 300000), *small = calloc(100, 40);
        for (int at = 0; at < 300000; at++)
            CHECK(block[at] == 0);
        for (int at = 0; at < 4000; at++)
            CHECK(small[at] == 0);
        memset(block, 1, 300000), memset(small, 1, 4000);
        free(block), free(small);
    }
    OK("after free");
    for (int i = 0; i < 10; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            char *area = fresh(32 * MIB);
            memset(area, 0xee, 32 * MIB);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        char *area = fresh(32 * MIB);
        memset(area, 0x11, 32 * MIB);
        CHECK(munmap(area, 32 * MIB) == 0);
    }
    OK("after a child's end");
    for (int i = 0; i < 50; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, dirties_its_stack, NULL) == 0 && pthread_join(thread, NULL) == 0);
    }
    CHECK(munmap(fresh(16 * MIB), 16 * MIB) == 0);
    OK("after threads");
    fflush(stdout);
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            execl("/proc/self/exe", argv[0], "6", NULL);
            _exit(1);
        }
    }
    for (int i = 0; i < 4; i++) {
        int status;
        CHECK(waitpid(children[i], &status, 0) == children[i]);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 33);
    }
    OK("after exec, in four processes at once");
    return 0;
}
