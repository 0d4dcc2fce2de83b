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

/* Frames that held page tables: a page here and there makes many, and each holds addresses of frames. */
static void after_page_tables(void)
{
    for (int round = 0; round < 3; round++) {
        char *area = mmap(NULL, 256UL << 30, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(area != MAP_FAILED);
        for (unsigned long i = 0; i < 250; i++)
            area[(i << 30) + PAGE + (i << 21)] = (char)0xa5;
        if (round < 2)
            CHECK(munmap(area, 256UL << 30) == 0);
        char *pages = fresh(16 * MIB);
        memset(pages, 0x77, 16 * MIB);
        CHECK(munmap(pages, 16 * MIB) == 0);
    }
}

/* Frames that held a file's pages, and those that hold its last one, of which the file fills a part. */
static void after_files(void)
{
    static char bytes[40 * PAGE];
    memset(bytes, 0xf1, sizeof bytes);
    char name[] = "recycled-XXXXXX";
    int file = mkstemp(name);
    CHECK(file >= 0 && unlink(name) == 0);
    for (int i = 0; i < 40; i++) {
        size_t size = (size_t)(i + 1) * PAGE - 17 * (size_t)(i + 1);
        CHECK(ftruncate(file, 0) == 0 && pwrite(file, bytes, size, 0) == (ssize_t)size);
        int private = i & 1 ? MAP_PRIVATE : MAP_SHARED;
        char *map = mmap(NULL, size, i & 2 ? PROT_READ | PROT_WRITE : PROT_READ, private, file, 0);
        CHECK(map != MAP_FAILED);
        size_t end = (size + PAGE - 1) & ~(PAGE - 1);
        for (size_t at = 0; at < end; at++)
            CHECK(map[at] == (at < size ? (char)0xf1 : 0));
        if (i & 2)
            memset(map, 0xf2, size);
        CHECK(munmap(map, size) == 0);
        char *pages = fresh(MIB);
        memset(pages, 0x78, MIB);
        CHECK(munmap(pages, MIB) == 0);
    }
    close(file);
}

static void after_shared_memory(void)
{
    for (int i = 0; i < 20; i++) {
        char *shared = mmap(NULL, 2 * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(shared != MAP_FAILED);
        for (size_t at = 0; at < 2 * MIB; at += PAGE)
            CHECK(page_is_zero(shared + at));
        memset(shared, 0x9a, 2 * MIB);
        CHECK(munmap(shared, 2 * MIB) == 0);
        char *pages = fresh(2 * MIB);
        memset(pages, 0x79, 2 * MIB);
        CHECK(munmap(pages, 2 * MIB) == 0);
    }
}

/* A copy that a write has made of a page that was shared after fork, given up by one of the two. */
static void after_copies(void)
{
    for (int i = 0; i < 5; i++) {
        char *area = fresh(4 * MIB);
        memset(area, 0x3c, 4 * MIB);
        fflush(stdout);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (size_t at = 0; at < 4 * MIB; at += 3 * PAGE)
                area[at] = 0x3d;
            _exit(0);
        }
        for (size_t at = 0; at < 4 * MIB; at += 5 * PAGE)
            area[at] = 0x3e;
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0 && munmap(area, 4 * MIB) == 0);
        CHECK(munmap(fresh(8 * MIB), 8 * MIB) == 0);
    }
}

static void *looks_at_its_stack(void *argument)
{
    /* The page that a thread starts on is in use; below it nothing has been. */
    char *here = (char *)((uintptr_t)__builtin_frame_address(0) & ~(PAGE - 1));
    for (int i = 4; i < 200; i++)
        CHECK(page_is_zero(here - (size_t)i * PAGE));
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
    for (int i = 0; i < 8; i++) {
        pthread_attr_t own;
        char *stack = fresh(MIB);
        pthread_t thread;
        CHECK(pthread_attr_init(&own) == 0 && pthread_attr_setstack(&own, stack, MIB) == 0);
        CHECK(pthread_create(&thread, &own, looks_at_its_stack, NULL) == 0 && pthread_join(thread, NULL) == 0);
        memset(stack, 0x66, MIB);
        CHECK(munmap(stack, MIB) == 0);
    }
    OK("stacks");
    after_page_tables();
    OK("after page tables");
    after_files();
    OK("after files, and behind their ends");
    after_shared_memory();
    OK("after shared memory");
    after_copies();
    OK("after copies");
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
