/* Whoever changes the base of FS, by a call or without, is still told their own ID and not that of the thread to
 * which the base belongs. */
#include "check.h"
#include <asm/prctl.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { MANY = 2000, THREADS = 4 };

/* As compilers and C libraries write it. */
int own_tid(void);
__asm__(".text\n.balign 64\nown_tid:\n  mov $186,%eax\n  syscall\n  ret\n");

/* These need no data of the thread's own, as whose the base may be another's. */
static int real_tid(void)
{
    long number = SYS_gettid - 1;
    __asm__ volatile("inc %%eax\n\tnop\n\tsyscall" : "+a"(number) : : "rcx", "r11", "memory");
    return (int)number;
}

static long arch_prctl(long which, void *value)
{
    long result = SYS_arch_prctl;
    __asm__ volatile("syscall" : "+a"(result) : "D"(which), "S"(value) : "rcx", "r11", "memory");
    return result;
}

struct thread {
    pthread_t id;
    uint64_t base;
    atomic_int rounds;
};

static struct thread threads[THREADS];
static atomic_int wrong, stop;

/* Asks in one way alone, which is then answered without a call. */
static int are_right(int tid)
{
    int right = 1;
    for (int i = 0; i < MANY; i++)
        right &= own_tid() == tid;
    return right;
}

typedef void change(uint64_t base);

static void by_call(uint64_t base) { arch_prctl(ARCH_SET_FS, (void *)base); }

static change *call(void) { return by_call; }

/* `mov %rdi,%rdi; wrfsbase %rdi; ret` */
static const unsigned char code[] = {0x48, 0x89, 0xff, 0xf3, 0x48, 0x0f, 0xae, 0xd7, 0xc3};


static void *keeps_its_base(void *argument)
{
    struct thread *own = argument;
    CHECK(arch_prctl(ARCH_GET_FS, &own->base) == 0);
    int tid = real_tid();
    while (!atomic_load(&stop)) {
        if (!are_right(tid))
            atomic_fetch_add(&wrong, 1);
        atomic_fetch_add(&own->rounds, 1);
    }
    return NULL;
}

/* Until all others have asked so often that they are answered without a call, if they can be. */
static void wait_for_all(int tid)
{
    for (int i = 0; i < THREADS; i++)
        for (int seen = atomic_load(&threads[i].rounds); atomic_load(&threads[i].rounds) < seen + 3;)
            CHECK(are_right(tid));
}

/* Takes the others' bases in turn. */
static void take(change *change, uint64_t own)
{
    int tid = real_tid();
    for (int i = 0; i < THREADS; i++) {
        change(threads[i].base);
        int right = are_right(tid);
        change(own);
        CHECK(right && are_right(tid));
    }
}

static change *made_in_memory(void)
{
    void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(page != MAP_FAILED);
    memcpy(page, code, sizeof code);
    CHECK(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
    return (change *)page;
}

/* Where a page ends within the instruction. */
static change *mapped_from_a_file(void)
{
    char path[] = "bases-XXXXXX";
    int file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0 && ftruncate(file, 2 * PAGE) == 0);
    CHECK(pwrite(file, code, sizeof code, PAGE - 5) == (ssize_t)sizeof code);
    char *pages = mmap(NULL, 2 * PAGE, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0);
    CHECK(pages != MAP_FAILED && close(file) == 0);
    return (change *)(pages + PAGE - 5);
}

/* In a process of its own, in which nothing has changed a base yet. */
static void with(change *(*find)(void), const char *name)
{
    pid_t child = fork();
    if (child == 0) {
        uint64_t own;
        int tid = real_tid();
        CHECK(arch_prctl(ARCH_GET_FS, &own) == 0);
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_create(&threads[i].id, NULL, keeps_its_base, &threads[i]) == 0);
        wait_for_all(tid);
        take(find(), own);
        wait_for_all(tid);
        atomic_store(&stop, 1);
        for (int i = 0; i < THREADS; i++)
            CHECK(pthread_join(threads[i].id, NULL) == 0);
        CHECK(atomic_load(&wrong) == 0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    OK(name);
}

int main(void)
{
    with(call, "the base of another, by a call");
    if (!(getauxval(AT_HWCAP2) & 2)) {
        printf("the processor has no wrfsbase\n");
        return 0;
    }
    with(made_in_memory, "the base of another, by code made in memory");
    with(mapped_from_a_file, "the base of another, by code of a file");
    return 0;
}
