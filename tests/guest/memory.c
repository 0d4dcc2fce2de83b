/* Address spaces: a seeded random sequence of mapping calls against a model of what every page must
 * hold, and the corners one by one. */
#include "check.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#define RW (PROT_READ | PROT_WRITE)
#define ANON (MAP_PRIVATE | MAP_ANONYMOUS)
#define MIB (1UL << 20)

static sigjmp_buf back;
static char *volatile fault_at;
static volatile int fault_code, fault_signal;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    fault_signal = number, fault_at = info->si_addr, fault_code = info->si_code;
    siglongjmp(back, 1);
}

/* The signal's code, and its address in fault_at, of touching `address`; 0 if that is no fault. */
static int touch(volatile char *address, int write)
{
    fault_at = NULL, fault_code = 0;
    if (sigsetjmp(back, 1) == 0) {
        if (write)
            *address = 1;
        else
            (void)*address;
        return 0;
    }
    return fault_code;
}

static int faults(char *address, int write, int code)
{
    return touch(address, write) == code && fault_at == address && fault_signal == SIGSEGV;
}

static char *map(size_t size)
{
    char *area = mmap(NULL, size, RW, ANON, -1, 0);
    CHECK(area != MAP_FAILED);
    return area;
}

/* ---- the model: an arena of pages, each unmapped, or of a protection and a number ---- */

#define ARENA 3072UL
enum state { GONE, NONE, READ, WRITE };
static char *arena;
static enum state state[ARENA];
static uint64_t holds[ARENA]; /* 0: all zero */
static uint64_t seed = 20260101, stamp;

static void verify_page(unsigned long i)
{
    char *page = arena + i * PAGE;
    switch (state[i]) {
    case GONE:
        CHECK(faults(page, 0, SEGV_MAPERR));
        break;
    case NONE:
        CHECK(faults(page + 5, 0, SEGV_ACCERR) && faults(page, 1, SEGV_ACCERR));
        break;
    case READ:
    case WRITE:
        CHECK(holds[i] ? page_has(page, holds[i]) : page_is_zero(page));
        if (state[i] == READ)
            CHECK(faults(page + 8, 1, SEGV_ACCERR));
    }
}

static unsigned long pick(unsigned long below) { return (unsigned long)(next_random(&seed) % below); }

static void step(void)
{
    unsigned long start = pick(ARENA), length = 1 + pick(pick(4) ? 24 : 1100);
    if (start + length > ARENA)
        length = ARENA - start;
    char *at = arena + start * PAGE;
    size_t size = length * PAGE;
    static const int protections[] = {0, PROT_NONE, PROT_READ, RW};
    unsigned kind = (unsigned)pick(8);
    if (kind == 0) {
        CHECK(munmap(at, size) == 0);
        for (unsigned long i = start; i < start + length; i++)
            state[i] = GONE;
    } else if (kind <= 2) {
        enum state to = (enum state)(1 + pick(3));
        CHECK(mmap(at, size, protections[to], ANON | MAP_FIXED, -1, 0) == at);
        for (unsigned long i = start; i < start + length; i++)
            state[i] = to, holds[i] = 0;
    } else if (kind == 3) {
        enum state to = (enum state)(1 + pick(3));
        unsigned long end = start;
        while (end < start + length && state[end] != GONE)
            end++;
        int result = mprotect(at, size, protections[to]);
        CHECK(end == start + length ? result == 0 : result == -1 && errno == ENOMEM);
        for (unsigned long i = start; i < end; i++)
            state[i] = to;
    } else if (kind == 4) {
        int whole = 1;
        for (unsigned long i = start; i < start + length; i++)
            whole &= state[i] != GONE;
        int result = madvise(at, size, MADV_DONTNEED);
        CHECK(whole ? result == 0 : result == -1 && errno == ENOMEM);
        for (unsigned long i = start; i < start + length; i++)
            holds[i] = 0;
    } else if (kind == 5) {
        /* Move a uniform run onto another place. */
        unsigned long run = 1;
        if (state[start] == GONE)
            return;
        while (run < length && state[start + run] == state[start])
            run++;
        unsigned long to = pick(ARENA - run);
        if (to < start + run && start < to + run)
            return;
        /* One call moves one mapping only: make it one. */
        char *result = mremap(at, run * PAGE, run * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, arena + to * PAGE);
        if (result == MAP_FAILED) {
            /* Linux may see two mappings where we see one; it has unmapped the target by then. */
            CHECK(errno == EFAULT);
            CHECK(munmap(arena + to * PAGE, run * PAGE) == 0);
            for (unsigned long i = 0; i < run; i++)
                state[to + i] = GONE;
            return;
        }
        CHECK(result == arena + to * PAGE);
        for (unsigned long i = 0; i < run; i++)
            state[to + i] = state[start + i], holds[to + i] = holds[start + i], state[start + i] = GONE;
    } else {
        for (unsigned long i = start; i < start + length; i++)
            if (state[i] == WRITE)
                number_page(arena + i * PAGE, holds[i] = ++stamp);
    }
    for (unsigned long i = start; i < start + length; i += 1 + pick(9))
        verify_page(i);
}

static void model(void)
{
    /* Aligned to 2 MiB, so that big entries must be broken up. */
    char *space = mmap(NULL, ARENA * PAGE + 4 * MIB, PROT_NONE, ANON | MAP_NORESERVE, -1, 0);
    CHECK(space != MAP_FAILED);
    arena = (char *)(((uintptr_t)space + 2 * MIB - 1) & ~(2 * MIB - 1));
    CHECK(mmap(arena, ARENA * PAGE, RW, ANON | MAP_FIXED, -1, 0) == arena);
    for (unsigned long i = 0; i < ARENA; i++)
        state[i] = WRITE, holds[i] = 0;
    for (int round = 0; round < 400; round++) {
        step();
        if (round % 40 == 39) {
            for (unsigned long i = 0; i < ARENA; i++)
                verify_page(i);
        }
        if (round % 100 == 50) {
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                for (int more = 0; more < 20; more++)
                    step();
                for (unsigned long i = 0; i < ARENA; i++)
                    verify_page(i);
                _exit(0);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
            for (unsigned long i = 0; i < ARENA; i++)
                verify_page(i);
        }
    }
    CHECK(munmap(space, ARENA * PAGE + 4 * MIB) == 0);
    OK("400 random changes against a model");
}

static void remap(void)
{
    char *area = map(16 * PAGE);
    for (unsigned i = 0; i < 16; i++)
        number_page(area + i * PAGE, i + 1);
    char *bigger = mremap(area, 16 * PAGE, 4096 * PAGE, MREMAP_MAYMOVE);
    CHECK(bigger != MAP_FAILED);
    for (unsigned i = 0; i < 16; i++)
        CHECK(page_has(bigger + i * PAGE, i + 1));
    CHECK(page_is_zero(bigger + 16 * PAGE) && page_is_zero(bigger + 4095 * PAGE));
    for (unsigned i = 0; i < 4096; i++)
        number_page(bigger + i * PAGE, i + 1);
    CHECK(mremap(bigger, 4096 * PAGE, 1000 * PAGE, 0) == bigger);
    CHECK(page_has(bigger + 999 * PAGE, 1000) && faults(bigger + 1000 * PAGE, 0, SEGV_MAPERR));
    char *wall = mmap(bigger + 1000 * PAGE, PAGE, PROT_NONE, ANON | MAP_FIXED, -1, 0);
    CHECK(wall == bigger + 1000 * PAGE);
    CHECK(mremap(bigger, 1000 * PAGE, 1001 * PAGE, 0) == MAP_FAILED && errno == ENOMEM);
    char *moved = mremap(bigger, 1000 * PAGE, 2000 * PAGE, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && moved != bigger);
    for (unsigned i = 0; i < 1000; i++)
        CHECK(page_has(moved + i * PAGE, i + 1));
    CHECK(page_is_zero(moved + 1000 * PAGE) && faults(bigger, 1, SEGV_MAPERR));
    CHECK(munmap(moved, 2000 * PAGE) == 0 && munmap(wall, PAGE) == 0);
    CHECK(mremap(moved, PAGE, 2 * PAGE, MREMAP_MAYMOVE) == MAP_FAILED && errno == EFAULT);
    OK("mremap grows, shrinks and moves");
}

static void guards(void)
{
    char *area = map(3 * PAGE);
    CHECK(mprotect(area + PAGE, PAGE, PROT_NONE) == 0);
    area[0] = area[2 * PAGE] = 1;
    CHECK(faults(area + PAGE, 0, SEGV_ACCERR) && faults(area + 2 * PAGE - 1, 1, SEGV_ACCERR));
    CHECK(mprotect(area + PAGE, PAGE, PROT_READ) == 0 && touch(area + PAGE, 0) == 0);
    CHECK(faults(area + PAGE + 123, 1, SEGV_ACCERR));
    CHECK(mprotect(area + PAGE, PAGE, RW) == 0 && touch(area + PAGE + 123, 1) == 0 && area[PAGE + 123] == 1);
    CHECK(munmap(area + PAGE, PAGE) == 0 && faults(area + PAGE, 0, SEGV_MAPERR));
    CHECK(faults((char *)16, 0, SEGV_MAPERR) && faults(NULL, 1, SEGV_MAPERR));
    /* An address that is none comes without its value. */
    CHECK(touch((char *)0x8000000000000000UL, 0) == SI_KERNEL && fault_at == NULL);
    /* System calls see the same: an error, not a signal. */
    int ends[2];
    CHECK(pipe(ends) == 0);
    CHECK(write(ends[1], area + PAGE, 10) == -1 && errno == EFAULT);
    CHECK(write(ends[1], "0123456789", 10) == 10);
    CHECK(read(ends[0], area + PAGE, 10) == -1 && errno == EFAULT);
    CHECK(mprotect(area, PAGE, PROT_READ) == 0);
    CHECK(write(ends[1], "0123456789", 10) == 10 && read(ends[0], area, 10) == -1 && errno == EFAULT);
    close(ends[0]), close(ends[1]);
    CHECK(mprotect(area + 1, PAGE, RW) == -1 && errno == EINVAL);
    CHECK(munmap(area + 1, PAGE) == -1 && errno == EINVAL);
    CHECK(mmap(NULL, 0, RW, ANON, -1, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(mmap(area, PAGE, RW, ANON | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
    CHECK(mmap(NULL, 1UL << 60, RW, ANON, -1, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(mmap(NULL, PAGE, RW, MAP_PRIVATE, 77, 0) == MAP_FAILED && errno == EBADF);
    OK("guard pages and errors");
}

static void code(void)
{
    unsigned char *area = (unsigned char *)map(PAGE);
    static const unsigned char returns[] = {0xb8, 42, 0, 0, 0, 0xc3}; /* mov eax, 42; ret */
    memcpy(area, returns, sizeof returns);
    int (*function)(void) = (int (*)(void))(void *)area;
    if (sigsetjmp(back, 1) == 0) {
        function();
        CHECK(!"code ran from a page that is not executable");
    }
    CHECK(fault_at == (char *)area && fault_code == SEGV_ACCERR);
    CHECK(mprotect(area, PAGE, PROT_READ | PROT_EXEC) == 0 && function() == 42);
    for (unsigned char n = 0; n < 50; n++) {
        CHECK(mprotect(area, PAGE, RW) == 0);
        area[1] = n;
        CHECK(mprotect(area, PAGE, PROT_READ | PROT_EXEC) == 0 && function() == n);
    }
    OK("code that is written, protected and run");
}

static void breaks(void)
{
    char *start = sbrk(0);
    CHECK(sbrk(3 * (long)MIB) == start);
    for (unsigned i = 0; i < 700; i++)
        CHECK(page_is_zero((char *)(((uintptr_t)start + PAGE - 1) & ~(PAGE - 1)) + i * PAGE));
    memset(start, 0xee, 3 * MIB);
    CHECK(brk(start + MIB) == 0 && sbrk(0) == start + MIB && start[MIB - 1] == (char)0xee);
    CHECK(faults((char *)(((uintptr_t)start + MIB + PAGE - 1) & ~(PAGE - 1)), 0, SEGV_MAPERR));
    CHECK(brk(start + 2 * MIB) == 0);
    CHECK(page_is_zero((char *)(((uintptr_t)start + MIB + PAGE - 1) & ~(PAGE - 1))));
    CHECK(brk(start) == 0 && sbrk(0) == start);
    OK("the break");
}

static void files(void)
{
    int file = open("pages", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0);
    static char page[PAGE];
    for (unsigned i = 0; i < 50; i++) {
        number_page(page, i + 1);
        CHECK(write(file, page, PAGE) == (ssize_t)PAGE);
    }
    CHECK(write(file, "tail", 4) == 4);
    char *private = mmap(NULL, 51 * PAGE, RW, MAP_PRIVATE, file, 0);
    char *part = mmap(NULL, 3 * PAGE, PROT_READ, MAP_PRIVATE, file, 7 * PAGE);
    CHECK(private != MAP_FAILED && part != MAP_FAILED);
    CHECK(close(file) == 0);
    for (unsigned i = 0; i < 50; i++)
        CHECK(page_has(private + i * PAGE, i + 1));
    CHECK(memcmp(private + 50 * PAGE, "tail\0\0\0", 8) == 0 && private[51 * PAGE - 1] == 0);
    CHECK(page_has(part + PAGE, 9) && faults(part, 1, SEGV_ACCERR));
    for (unsigned i = 0; i < 50; i += 2)
        number_page(private + i * PAGE, i + 1000);
    for (unsigned i = 0; i < 50; i++)
        CHECK(page_has(private + i * PAGE, i % 2 ? i + 1 : i + 1000));
    CHECK(madvise(private, 10 * PAGE, MADV_DONTNEED) == 0 && page_has(private, 1) && page_has(private + 2 * PAGE, 3));
    file = open("pages", O_RDONLY);
    CHECK(pread(file, page, PAGE, 20 * PAGE) == (ssize_t)PAGE && page_has(page, 21));
    char *past = mmap(NULL, 60 * PAGE, PROT_READ, MAP_PRIVATE, file, 0);
    CHECK(past != MAP_FAILED && page_has(past + 49 * PAGE, 50));
    CHECK(touch(past + 51 * PAGE, 0) == BUS_ADRERR && fault_signal == SIGBUS && fault_at == past + 51 * PAGE);
    CHECK(mmap(NULL, PAGE, RW, MAP_SHARED, file, 0) == MAP_FAILED && errno == EACCES);
    CHECK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 100) == MAP_FAILED && errno == EINVAL);
    CHECK(munmap(private, 51 * PAGE) == 0 && munmap(part, 3 * PAGE) == 0 && munmap(past, 60 * PAGE) == 0);
    close(file);
    OK("private mappings of a file");
}

static void shared(void)
{
    char *area = mmap(NULL, 600 * PAGE, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(area != MAP_FAILED);
    number_page(area, 1);
    volatile int *flag = (volatile int *)(area + 599 * PAGE);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(page_has(area, 1));
        for (unsigned i = 0; i < 599; i++)
            number_page(area + i * PAGE, i + 100);
        __atomic_store_n(flag, 1, __ATOMIC_SEQ_CST);
        while (__atomic_load_n(flag, __ATOMIC_SEQ_CST) != 2)
            usleep(1000);
        CHECK(page_has(area + 17 * PAGE, 5555));
        _exit(0);
    }
    while (__atomic_load_n(flag, __ATOMIC_SEQ_CST) != 1)
        usleep(1000);
    for (unsigned i = 0; i < 599; i++)
        CHECK(page_has(area + i * PAGE, i + 100));
    number_page(area + 17 * PAGE, 5555);
    __atomic_store_n(flag, 2, __ATOMIC_SEQ_CST);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(munmap(area, 600 * PAGE) == 0);
    OK("memory shared across fork");
}

static void big(void)
{
    size_t size = 1UL << 30;
    char *area = mmap(NULL, size, RW, ANON | MAP_NORESERVE, -1, 0);
    CHECK(area != MAP_FAILED);
    for (size_t at = 0; at < size; at += 13 * MIB) {
        CHECK(page_is_zero(area + at));
        number_page(area + at, at + 1);
    }
    for (size_t at = 0; at < size; at += 13 * MIB)
        CHECK(page_has(area + at, at + 1));
    /* Holes in areas that are mapped with big pages. */
    char *aligned = (char *)(((uintptr_t)area + 2 * MIB - 1) & ~(2 * MIB - 1));
    for (unsigned i = 0; i < 1024; i++)
        number_page(aligned + i * PAGE, i + 7);
    CHECK(munmap(aligned + 100 * PAGE, PAGE) == 0 && mprotect(aligned + 600 * PAGE, 3 * PAGE, PROT_READ) == 0);
    CHECK(madvise(aligned + 300 * PAGE, PAGE, MADV_DONTNEED) == 0);
    for (unsigned i = 0; i < 1024; i++) {
        if (i == 100)
            CHECK(faults(aligned + i * PAGE, 0, SEGV_MAPERR));
        else if (i == 300)
            CHECK(page_is_zero(aligned + i * PAGE));
        else
            CHECK(page_has(aligned + i * PAGE, i + 7));
        if (i >= 600 && i < 603)
            CHECK(faults(aligned + i * PAGE, 1, SEGV_ACCERR));
    }
    CHECK(munmap(area, size) == 0 && faults(area + size / 2, 0, SEGV_MAPERR));
    for (int i = 0; i < 40; i++) {
        char *again = map(8 * MIB);
        CHECK(page_is_zero(again) && page_is_zero(again + 5 * MIB));
        memset(again, i + 1, 8 * MIB);
        CHECK(munmap(again, 8 * MIB) == 0);
    }
    unsigned char present[4];
    char *area4 = map(4 * PAGE);
    area4[PAGE] = 1;
    CHECK(mincore(area4, 4 * PAGE, present) == 0 && (present[1] & 1));
    CHECK(mlock(area4, PAGE) == 0 && munlock(area4, PAGE) == 0);
    OK("a gibibyte, holes in big pages, and areas again and again");
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    guards();
    remap();
    code();
    breaks();
    files();
    shared();
    big();
    model();
    return 0;
}
