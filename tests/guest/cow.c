/* fork with copy-on-write: after writes on both sides each process sees its own numbers, and only those. */
#include "check.h"
#include <sys/mman.h>
#include <sys/wait.h>

#define PAGES (100UL * 1024 * 1024 / PAGE)

static char *area;

static char *page(unsigned long i) { return area + i * PAGE; }

static void reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* What page i shall hold in a process that rewrote each `step`th page at depth d. */
static uint64_t number(unsigned long i, int depth) { return i + (uint64_t)depth * 1000000007ULL; }

static int owner[8];

static uint64_t expected(unsigned long i, int depth)
{
    for (int d = depth; d > 0; d--)
        if (i % (unsigned)owner[d] == 0)
            return number(i, d);
    return number(i, 0);
}

static void verify(int depth)
{
    for (unsigned long i = 0; i < PAGES; i++)
        CHECK(page_has(page(i), expected(i, depth)));
}

/* Each process writes its own pages, has a child do the same, and sees none of the child's. */
static void nest(int depth, int deepest)
{
    for (unsigned long i = 0; i < PAGES; i += (unsigned)owner[depth])
        number_page(page(i), number(i, depth));
    if (depth < deepest) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            nest(depth + 1, deepest);
            _exit(0);
        }
        reap(child);
    }
    verify(depth);
}

static void both_sides(void)
{
    int to_child[2], to_parent[2];
    CHECK(pipe(to_child) == 0 && pipe(to_parent) == 0);
    for (unsigned long i = 0; i < 4096; i++)
        number_page(page(i), i);
    pid_t child = fork();
    CHECK(child >= 0);
    char token = 0;
    if (child == 0) {
        for (int round = 1; round < 6; round++) {
            CHECK(read(to_child[0], &token, 1) == 1);
            for (unsigned long i = 0; i < 4096; i++)
                CHECK(page_has(page(i), round == 1 ? i : i + 500000UL * (unsigned)(round - 1)));
            for (unsigned long i = 0; i < 4096; i++)
                number_page(page(i), i + 500000UL * (unsigned)round);
            CHECK(write(to_parent[1], &token, 1) == 1);
        }
        _exit(0);
    }
    for (int round = 1; round < 6; round++) {
        for (unsigned long i = 0; i < 4096; i++)
            number_page(page(i), i + 900000000UL * (unsigned)round);
        CHECK(write(to_child[1], &token, 1) == 1);
        CHECK(read(to_parent[0], &token, 1) == 1);
        for (unsigned long i = 0; i < 4096; i++)
            CHECK(page_has(page(i), i + 900000000UL * (unsigned)round));
    }
    reap(child);
    for (int i = 0; i < 2; i++)
        close(to_child[i]), close(to_parent[i]);
    for (unsigned long i = 0; i < 4096; i++)
        number_page(page(i), number(i, 0));
}

static int variable = 1;

static void many_children(void)
{
    pid_t children[20];
    for (int c = 0; c < 20; c++) {
        variable = c;
        children[c] = fork();
        CHECK(children[c] >= 0);
        if (children[c] == 0) {
            CHECK(variable == c);
            for (unsigned long i = (unsigned)c; i < PAGES; i += 97)
                number_page(page(i), 77 + (unsigned)c);
            for (unsigned long i = (unsigned)c; i < PAGES; i += 97)
                CHECK(page_has(page(i), 77 + (unsigned)c));
            variable = -1;
            _exit(0);
        }
    }
    for (int c = 0; c < 20; c++)
        reap(children[c]);
    CHECK(variable == 19);
    for (unsigned long i = 0; i < PAGES; i++)
        CHECK(page_has(page(i), number(i, 0)));
}

/* The kernel writes into copied pages too: a read() must not show in the other process. */
static void reads_into_shared_pages(void)
{
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        static char bytes[3 * PAGE];
        memset(bytes, 0x5a, sizeof bytes);
        CHECK(write(ends[1], bytes, sizeof bytes) == (ssize_t)sizeof bytes);
        size_t got = 0;
        while (got < sizeof bytes) {
            ssize_t n = read(ends[0], page(10) + got, sizeof bytes - got);
            CHECK(n > 0);
            got += (size_t)n;
        }
        CHECK(memcmp(page(10), bytes, sizeof bytes) == 0);
        _exit(0);
    }
    reap(child);
    for (unsigned long i = 9; i < 15; i++)
        CHECK(page_has(page(i), number(i, 0)));
    close(ends[0]), close(ends[1]);
}

int main(void)
{
    owner[1] = 3, owner[2] = 5, owner[3] = 7, owner[4] = 11;
    area = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    for (unsigned long i = 0; i < PAGES; i++)
        number_page(page(i), number(i, 0));
    both_sides();
    OK("parent and child write in turn");
    many_children();
    OK("twenty children write at once");
    reads_into_shared_pages();
    OK("read() into copied pages");
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        nest(1, 4);
        _exit(0);
    }
    reap(child);
    verify(0);
    OK("nested forks");
    return 0;
}
