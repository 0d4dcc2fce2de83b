/* Does whatever a program can do to the machine that it runs on: random system calls, wild jumps, every
 * encoding of instructions, ports, flags, selectors, forged signal frames, and each table filled up.
 *
 *   hostile SEED SECONDS [KIND]   the attack, in many short-lived processes; all have the same seed's numbers
 *   hostile watch                 numbers its pages and looks after them until SIGTERM
 *
 * What is forwarded acts at home: signals go to this program's own processes alone, and whoever starts it
 * confines its files. */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#define MIB (1UL << 20)
#define USER_END 0x7fffc0000000UL
#define ARENA (2 * MIB)

static uint64_t seed;
static char *arena, *readonly, *edge;

/* A system call by nothing but registers: the stack may be another's, or gone, when it returns. A new
 * process or thread ends at once. */
static inline long raw(long nr, long a, long b, long c, long d, long e, long f)
{
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    long made = nr == SYS_fork || nr == SYS_vfork || nr == SYS_clone || nr == SYS_clone3;
    __asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjne 1f\n\ttest %%rbx, %%rbx\n\tje 1f\n"
                     "2:\tmov $60, %%eax\n\txor %%edi, %%edi\n\tsyscall\n\tjmp 2b\n1:"
                     : "+a"(nr), "+r"(r10), "+r"(r8), "+r"(r9)
                     : "b"(made), "D"(a), "S"(b), "d"(c)
                     : "rcx", "r11", "memory", "cc");
    return nr;
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec * 1e-9;
}

/* ---- random system calls ---- */

static const char *const paths[] = {"f0", "f1", "f2", "d", "d/f3", "link", "fifo", "/proc/self/exe", "/dev/null",
                                    "/dev/zero", "/proc/self/maps", "/proc/self/status", ".", "nothing", "/dev/full", ""};

static long value(uint64_t *r)
{
    uint64_t n = next_random(r);
    switch (n >> 59) {
    case 0: case 1: case 2: return 0;
    case 3: case 4: case 5: return (long)(n % 64);
    case 6: case 7: case 8: case 9: return (long)(arena + n % (ARENA - 8 * PAGE));
    case 10: case 11: return (long)(arena + n % (ARENA / PAGE) * PAGE);
    case 12: return (long)(readonly + n % PAGE);
    case 13: return (long)(edge + PAGE - n % 64);
    case 14: return -(long)(n % 64);
    case 15: return (long)n;
    case 16: case 17: return 1L << n % 64;
    case 18: case 19: case 20: return (long)paths[n % (sizeof paths / sizeof *paths)];
    case 21: return (long)(0xffff800000000000UL + n % (64 * MIB));
    case 22: return (long)(USER_END - 64 + n % 128);
    case 23: return getpid();
    case 24: return (long)(n % 0x20000);
    case 25: return (long)(n % 4096);
    case 26: return (long)(n & 0xffffffff);
    case 27: return (long)(PAGE * (n % 64));
    default: return (long)(n % 16);
    }
}

/* Structures that make calls go further than a first look at their arguments: lengths and pointers. */
static void scribble(uint64_t *r)
{
    uint64_t *words = (uint64_t *)(void *)(arena + next_random(r) % (ARENA - PAGE) / 8 * 8);
    unsigned count = (unsigned)(next_random(r) % 64);
    for (unsigned i = 0; i < count; i++)
        words[i] = (uint64_t)value(r);
}

static long a_call(uint64_t *r)
{
    long nr = (long)(next_random(r) % 472), arguments[6];
    if (next_random(r) % 64 == 0)
        nr = (long)next_random(r);
    for (int i = 0; i < 6; i++)
        arguments[i] = value(r);
    switch (nr) {
    /* What would reach beyond this program, or stop it for good. */
    case SYS_kill: case SYS_tkill: case SYS_rt_sigqueueinfo: case SYS_pidfd_open:
        arguments[0] = getpid();
        if (nr != SYS_pidfd_open && (arguments[1] == SIGKILL || arguments[1] == SIGSTOP))
            arguments[1] = SIGCONT;
        break;
    case SYS_tgkill: case SYS_rt_tgsigqueueinfo:
        arguments[0] = arguments[1] = getpid();
        break;
    case SYS_setpriority: case SYS_ioprio_set: case SYS_setpgid: case SYS_prlimit64:
        arguments[0] = arguments[1] = 0;
        break;
    case SYS_fcntl:
        if (arguments[1] == F_SETOWN || arguments[1] == 15)
            arguments[1] = F_GETFL;
        break;
    case SYS_ioctl:
        if ((arguments[1] & 0xffffffff) == 0x8901 || (arguments[1] & 0xffffffff) == 0x8902)
            arguments[1] = 0x541b;
        break;
    case SYS_pidfd_send_signal: case SYS_mknod: case SYS_mknodat: case SYS_chroot: case SYS_sync: case SYS_syncfs:
    case SYS_setsid: case SYS_exit: case SYS_exit_group: case SYS_pause: case SYS_setuid: case SYS_setreuid:
    case SYS_setresuid: case SYS_setfsuid: case SYS_capset: case SYS_fsync: case SYS_fdatasync: case SYS_rt_sigsuspend:
        nr = SYS_getpid;
        break;
    case SYS_close: case SYS_close_range:
        if (next_random(r) % 8)
            nr = SYS_dup;
        break;
    case SYS_fallocate: case SYS_ftruncate: case SYS_truncate:
        arguments[1] &= 0xfffff, arguments[2] &= 0xfffff, arguments[3] &= 0xfffff;
        break;
    case SYS_munmap: case SYS_mremap: case SYS_mprotect: case SYS_madvise:
        if (next_random(r) % 4)
            arguments[0] = (long)(arena + next_random(r) % (ARENA / PAGE) * PAGE), arguments[1] &= 0x1ffff;
        break;
    }
    return raw(nr, arguments[0], arguments[1], arguments[2], arguments[3], arguments[4], arguments[5]);
}

static void ignore(int number) { (void)number; }

static void *calls(void *argument)
{
    uint64_t r = (uint64_t)(uintptr_t)argument;
    for (;;) {
        scribble(&r);
        for (int i = 0; i < 16; i++)
            a_call(&r);
    }
    return NULL;
}

static void fill(void)
{
    arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    readonly = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    edge = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(arena != MAP_FAILED && readonly != MAP_FAILED && edge != MAP_FAILED && munmap(edge + PAGE, PAGE) == 0);
    /* What others had in it is gone. */
    for (size_t at = 0; at < ARENA; at += PAGE)
        CHECK(page_is_zero(arena + at));
    CHECK(page_is_zero(readonly) && page_is_zero(edge));
}

static void interrupted_often(void)
{
    struct sigaction action = {.sa_handler = ignore};
    for (int number = 1; number < 65; number++)
        if (number != SIGSEGV && number != SIGBUS && number != SIGILL && number != SIGFPE && number != SIGTRAP
            && number != SIGSYS && number != SIGTERM)
            sigaction(number, &action, NULL);
    struct itimerval often = {{0, 7000}, {0, 7000}};
    setitimer(ITIMER_REAL, &often, NULL);
}

static void attack_by_calls(uint64_t r)
{
    fill();
    interrupted_often();
    int fds[2];
    if (pipe(fds) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0 && open("f0", O_RDWR | O_CREAT, 0600) >= 0)
        open("f1", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 3; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, calls, (void *)(uintptr_t)next_random(&r));
    }
    calls((void *)(uintptr_t)next_random(&r));
}

/* ---- random code ---- */

extern char recovered[];
static volatile long saved_stack;
static volatile unsigned faults;

/* Uses neither the thread's own storage nor the stack of what it interrupts. */
static void recover(int number, siginfo_t *info, void *context)
{
    (void)info, (void)number;
    ucontext_t *registers = context;
    faults++;
    registers->uc_mcontext.gregs[REG_RIP] = (long)recovered;
    registers->uc_mcontext.gregs[REG_RSP] = saved_stack;
    registers->uc_mcontext.gregs[REG_EFL] = 0x202;
}

static unsigned long own_fs;

static void catch_faults(int timer_too)
{
    static char alternate[1 << 17];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_sigaction = recover, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP, SIGSYS, SIGALRM};
    for (unsigned i = 0; i < 7; i++)
        sigaction(numbers[i], &action, NULL);
    raw(SYS_arch_prctl, 0x1003, (long)&own_fs, 0, 0, 0, 0);
    struct itimerval often = {{0, 3000}, {0, 3000}};
    if (timer_too)
        setitimer(ITIMER_REAL, &often, NULL);
}

static uint64_t wild[16];

/* Jumps to `code` with the registers of `wild` (0..14; 15 is the stack pointer, or 0 for a good one) and comes
 * back by way of a fault, a timer, or a return. */
__attribute__((noinline)) static void jump(const void *code, uint64_t flags)
{
    __asm__ volatile(
        "push %%rbx\n\tpush %%rbp\n\tpush %%r12\n\tpush %%r13\n\tpush %%r14\n\tpush %%r15\n\t"
        "mov %%rsp, saved_stack(%%rip)\n\t"
        "push %%rdi\n\tpush %%rsi\n\t"
        "mov 8(%%rax), %%rcx\n\tmov 16(%%rax), %%rdx\n\tmov 24(%%rax), %%rbx\n\tmov 32(%%rax), %%rbp\n\t"
        "mov 56(%%rax), %%r8\n\tmov 64(%%rax), %%r9\n\tmov 72(%%rax), %%r10\n\tmov 80(%%rax), %%r11\n\t"
        "mov 88(%%rax), %%r12\n\tmov 96(%%rax), %%r13\n\tmov 104(%%rax), %%r14\n\tmov 112(%%rax), %%r15\n\t"
        "mov 40(%%rax), %%rsi\n\tmov 48(%%rax), %%rdi\n\t"
        "mov (%%rax), %%rax\n\t"
        "popfq\n\t"
        "ret\n"
        ".globl recovered\nrecovered:\n\t"
        "mov saved_stack(%%rip), %%rsp\n\t"
        "cld\n\t"
        "mov $158, %%eax\n\tmov $0x1002, %%edi\n\tmov own_fs(%%rip), %%rsi\n\tsyscall\n\t"
        "pop %%r15\n\tpop %%r14\n\tpop %%r13\n\tpop %%r12\n\tpop %%rbp\n\tpop %%rbx\n\t"
        "emms\n\tfninit\n\tldmxcsr mxcsr(%%rip)"
        :
        : "D"(code), "S"(flags), "a"(wild)
        : "rcx", "rdx", "r8", "r9", "r10", "r11", "memory", "cc");
}
static const unsigned mxcsr __attribute__((used)) = 0x1f80;

static void wild_registers(uint64_t *r, char *data)
{
    for (int i = 0; i < 15; i++)
        wild[i] = next_random(r) % 3 ? (uint64_t)(uintptr_t)(data + next_random(r) % PAGE) : next_random(r);
    /* No system call of this number does anything. */
    wild[0] |= 1UL << 40;
}

static char *code_pages(void)
{
    char *pages = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(pages != MAP_FAILED);
    return pages;
}

/* Each opcode of each map, with prefixes, once for each kind of operand. */
static void attack_by_encodings(uint64_t r)
{
    static const unsigned char maps[][3] = {{0}, {1, 0x0f}, {2, 0x0f, 0x38}, {2, 0x0f, 0x3a}};
    static const unsigned char prefixes[] = {0, 0x66, 0xf2, 0xf3, 0x48, 0xf0, 0x67, 0x64, 0x2e};
    char *pages = code_pages(), *data = code_pages();
    catch_faults(1);
    for (;;) {
        unsigned opcode = (unsigned)(next_random(&r) % 256), map = (unsigned)(next_random(&r) % 6);
        unsigned prefix = prefixes[next_random(&r) % sizeof prefixes];
        if (map == 0 && opcode == 0x0f)
            continue;
        unsigned char *at = (unsigned char *)pages;
        memset(pages, 0xcc, 64);
        if (prefix)
            *at++ = (unsigned char)prefix;
        if (map < 4) {
            for (unsigned i = 0; i < maps[map][0]; i++)
                *at++ = maps[map][1 + i];
        } else if (map == 4) {
            *at++ = 0xc4, *at++ = (unsigned char)next_random(&r), *at++ = (unsigned char)next_random(&r);
        } else {
            *at++ = 0x62, *at++ = (unsigned char)next_random(&r), *at++ = (unsigned char)next_random(&r),
            *at++ = (unsigned char)next_random(&r);
        }
        *at++ = (unsigned char)opcode;
        for (int i = 0; i < 6; i++)
            *at++ = (unsigned char)next_random(&r);
        wild_registers(&r, data);
        jump(pages, 0x202);
    }
}

static void attack_by_code(uint64_t r)
{
    char *pages = code_pages(), *data = code_pages();
    catch_faults(1);
    for (;;) {
        for (int i = 0; i < 64; i += 8)
            memcpy(pages + i, &(uint64_t){next_random(&r)}, 8);
        wild_registers(&r, data);
        jump(pages + next_random(&r) % 8, 0x202 | (next_random(&r) & 0xcd5));
    }
}

/* ---- ports, flags, selectors, the shim's own places ---- */

static unsigned put(unsigned char *at, const char *bytes, unsigned length)
{
    memcpy(at, bytes, length);
    return length;
}

static void attack_by_tricks(uint64_t r)
{
    unsigned char *pages = (unsigned char *)code_pages();
    char *data = code_pages();
    catch_faults(1);
    for (;;) {
        unsigned at = 0;
        uint64_t flags = 0x202, n = next_random(&r);
        const void *target = pages;
        memset(pages, 0xcc, 64);
        wild_registers(&r, data);
        switch (n % 12) {
        case 0: /* ports by number; 0x10 and what follows are the shim's */
            pages[at++] = (unsigned char)("\xe4\xe5\xe6\xe7"[n >> 8 & 3]);
            pages[at++] = (unsigned char)(n & 1UL << 20 ? 0x10 + (n >> 24) % 0x30 : n >> 24);
            wild[0] |= 1UL << 40;
            break;
        case 1: /* ports by register, strings too */
            if (n & 1UL << 16)
                pages[at++] = 0xf3;
            pages[at++] = (unsigned char)("\xec\xed\xee\xef\x6c\x6d\x6e\x6f"[n >> 8 & 7]);
            wild[2] = n & 1UL << 20 ? 0x10 + (n >> 24) % 0x30 : n >> 24;
            wild[1] = n >> 32 & 15;
            wild[5] = wild[6] = (uint64_t)(uintptr_t)data;
            break;
        case 2: /* flags, then a fault, a call or a breakpoint under them */
            flags = n >> 8;
            at += put(pages + at, (const char *[]){"\x0f\x05", "\x0f\x0b", "\xcc\x90", "\x90\x90"}[n >> 4 & 3], 2);
            break;
        case 3: /* the shim's window */
            target = (const void *)(USER_END + (n >> 8) % 0x6000);
            wild[1] = n & 16 ? (uint64_t)(uintptr_t)recovered : next_random(&r);
            break;
        case 4: /* its very places: stubs, editor, trampoline */
            target = (const void *)(USER_END + ((n >> 8 & 1) ? 0x2000 + (n >> 16) % 8 : 0x1000 + (n >> 16) % 0x400));
            wild[1] = n & 16 ? (uint64_t)(uintptr_t)recovered : next_random(&r);
            wild[10] = next_random(&r);
            break;
        case 5: /* reads and writes of places that are not the program's */
            wild[6] = n & 16 ? USER_END + (n >> 8) % (64 * MIB) : 0xffff800000000000UL + (n >> 8) % (1UL << 34);
            if (n & 32)
                wild[6] = 0xffffffffff600000UL + (n >> 8) % PAGE;
            at += put(pages + at, n & 64 ? "\x88\x07" : "\x8a\x07", 2);
            break;
        case 6: /* selectors */
            wild[0] = n >> 8 & 0x7f;
            at += put(pages + at, (const char *[]){"\x8e\xd8", "\x8e\xc0", "\x8e\xe0", "\x8e\xe8"}[n >> 4 & 3], 2);
            if (n & 1UL << 30)
                at += put(pages + at, "\x0f\x05", 2);
            wild[0] |= n & 1UL << 31 ? 1UL << 40 : 0;
            break;
        case 7: /* far returns and iretq to any selector */
            at += put(pages + at, "\x53\x51\x48\xcb", n & 16 ? 4 : 2);
            at += put(pages + at, "\x48\xcf", 2);
            wild[3] = n >> 8 & 0x7f;
            wild[1] = n & 32 ? (uint64_t)(uintptr_t)pages + 32 : next_random(&r);
            break;
        case 8: /* bases of FS and GS, then a call, a fault or a fork */
            at += put(pages + at, n & 16 ? "\xf3\x48\x0f\xae\xd7" : "\xf3\x48\x0f\xae\xdf", 5);
            at += put(pages + at, n & 32 ? "\x0f\x05" : "\x0f\x0b", 2);
            wild[6] = n & 64 ? next_random(&r) : USER_END - 8 + (n >> 8) % 16;
            wild[0] = n & 1UL << 40 ? SYS_fork : 1UL << 40;
            at += put(pages + at, "\x85\xc0\x75\x07\xb8\xe7\x00\x00\x00\x0f\x05", 11);
            break;
        case 9: /* what only looks */
            at += put(pages + at, (const char *[]){"\x0f\x01\x07", "\x0f\x01\x0f", "\x0f\x00\x07", "\x0f\x00\x0f",
                                                   "\x0f\x01\x27", "\x0f\x02\xc7", "\x0f\x03\xc7", "\x0f\x00\xe7"}[n >> 4 & 7], 3);
            break;
        case 10: /* a stack nowhere, and then something that needs one */
            at += put(pages + at, "\x48\x89\xcc", 3);
            at += put(pages + at, (const char *[]){"\x0f\x0b", "\x0f\x05", "\x50\x90", "\xcd\x80"}[n >> 4 & 3], 2);
            wild[1] = n & 64 ? next_random(&r) : (n & 128 ? USER_END + 0x100800 : 8);
            break;
        default: /* protection keys, extended state, and what may be undefined */
            at += put(pages + at, (const char *[]){"\x0f\x01\xef", "\x0f\x01\xee", "\x0f\x01\xd0", "\x0f\x01\xd1",
                                                   "\x0f\xae\x27", "\x0f\xae\x2f", "\x0f\x01\xc1", "\x0f\x01\xd9"}[n >> 4 & 7], 3);
            wild[1] = 0, wild[2] = 0;
            wild[0] = n & 1UL << 40 ? 0xffffffff : n;
            break;
        }
        jump(target, flags);
    }
}

/* ---- forged signal frames ---- */

static uint64_t frame_random;

static void forge(int number, siginfo_t *info, void *context)
{
    (void)number, (void)info;
    ucontext_t *frame = context;
    for (unsigned count = 1 + (unsigned)(next_random(&frame_random) % 4); count > 0; count--) {
        uint64_t n = next_random(&frame_random), w = next_random(&frame_random);
        uint64_t near = (uint64_t)(uintptr_t)frame + w % 4096;
        switch (n % 10) {
        case 0: frame->uc_mcontext.gregs[REG_EFL] = (long)w; break;
        case 1: frame->uc_mcontext.gregs[REG_RIP] = (long)(n & 16 ? w : USER_END - 4 + w % 8); break;
        case 2: frame->uc_mcontext.gregs[REG_RSP] = (long)w; break;
        case 3: frame->uc_mcontext.gregs[REG_CSGSFS] = (long)w; break;
        case 4: frame->uc_mcontext.fpregs = (void *)(uintptr_t)(n & 16 ? w : near & ~63UL); break;
        case 5: frame->uc_flags = w; break;
        case 6: frame->uc_stack.ss_sp = (void *)(uintptr_t)w, frame->uc_stack.ss_size = w >> 16; break;
        case 7: memset(&frame->uc_sigmask, (int)w & 0x11, 8); break;
        case 8:
            if (frame->uc_mcontext.fpregs != NULL && n & 16)
                ((unsigned char *)frame->uc_mcontext.fpregs)[w % 700] = (unsigned char)(w >> 32);
            break;
        default: ((uint64_t *)(void *)frame)[w % 40] = next_random(&frame_random);
        }
    }
}

static void attack_by_frames(uint64_t r)
{
    char *pages = code_pages();
    memset(pages, 0x90, PAGE), memset(pages + PAGE, 0xcc, PAGE);
    for (;;) {
        fflush(stdout);
        /* A forged frame may be the last; each is a process's own. */
        pid_t child = fork();
        if (child < 0)
            continue;
        if (child == 0) {
            frame_random = r ^ 0x55;
            catch_faults(1);
            struct sigaction action = {.sa_sigaction = forge, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
            sigaction(SIGUSR1, &action, NULL);
            sigaction(SIGTRAP, &action, NULL);
            wild_registers(&r, pages);
            for (int i = 0; i < 50; i++) {
                wild[0] = SYS_tkill, wild[6] = (uint64_t)getpid(), wild[5] = SIGUSR1;
                memcpy(pages + 64, "\x0f\x05\xf4", 3);
                jump(pages + (i & 1 ? 64 : PAGE - 8), 0x202);
            }
            _exit(0);
        }
        int status;
        for (int i = 0; i < 200 && waitpid(child, &status, WNOHANG) == 0; i++)
            usleep(5000);
        kill(child, SIGKILL);
        waitpid(child, &status, 0);
        next_random(&r);
    }
}

/* ---- each table, until it is full ---- */

static void *sleeps(void *argument)
{
    for (;;)
        sleep(10);
    return argument;
}

static void attack_by_tables(uint64_t r)
{
    struct rlimit limit = {400, 400};
    switch (next_random(&r) % 8) {
    case 0: { /* threads */
        pthread_attr_t small;
        pthread_attr_init(&small);
        pthread_attr_setstacksize(&small, 1 << 16);
        pthread_t thread;
        for (int i = 0; i < 300 && pthread_create(&thread, &small, sleeps, NULL) == 0; i++)
            ;
        break;
    }
    case 1: /* processes */
        for (int i = 0; i < 60; i++) {
            pid_t child = fork();
            if (child == 0)
                sleeps(NULL);
            if (child < 0)
                break;
        }
        break;
    case 2: /* descriptors, each file mapped too */
        setrlimit(RLIMIT_NOFILE, &limit);
        for (int i = 0;; i++) {
            char name[32];
            snprintf(name, sizeof name, "many%d", i % 500);
            int file = open(name, O_RDWR | O_CREAT, 0600);
            if (file < 0)
                break;
            if (write(file, name, sizeof name) > 0)
                mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 0);
        }
        break;
    case 3: { /* mappings, none joined with its neighbour */
        char *area = mmap(NULL, 1UL << 32, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (unsigned long i = 0; i < 200000; i++)
            if (mprotect(area + i * 2 * PAGE, PAGE, PROT_READ) != 0)
                break;
        break;
    }
    case 4: { /* signals that wait */
        sigset_t all;
        sigfillset(&all);
        sigprocmask(SIG_SETMASK, &all, NULL);
        for (int i = 0; i < 100000; i++)
            if (sigqueue(getpid(), SIGRTMIN + i % 8, (union sigval){.sival_int = i}) != 0)
                break;
        break;
    }
    case 5: { /* timers: many, and one armed again and again */
        timer_t timer;
        struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN};
        struct itimerspec far = {{0, 1}, {100000, 0}}, soon = {{0, 1}, {0, 1}};
        signal(SIGRTMIN, SIG_IGN);
        for (int i = 0; i < 5000 && timer_create(CLOCK_MONOTONIC, &event, &timer) == 0; i++)
            timer_settime(timer, 0, i % 64 ? &far : &soon, NULL);
        for (int i = 0; i < 20000; i++)
            timer_settime(timer, 0, &far, NULL);
        break;
    }
    case 6: { /* address space, and questions about all of it */
        char *area = mmap(NULL, 1UL << 44, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        unsigned char *answer = mmap(NULL, 16 * MIB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        raw(SYS_mincore, (long)area, 1L << 44, (long)answer, 0, 0, 0);
        msync(area, 1UL << 44, MS_SYNC);
        mprotect(area, 1UL << 44, PROT_READ | PROT_WRITE);
        madvise(area, 1UL << 44, MADV_DONTNEED);
        int file = open("sparse", O_RDWR | O_CREAT, 0600);
        if (file >= 0 && ftruncate(file, 100) == 0) {
            char *shared = mmap(NULL, 1UL << 43, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
            if (shared != MAP_FAILED) {
                shared[0] = 1;
                msync(shared, 1UL << 43, MS_SYNC);
                munmap(shared, 1UL << 43);
            }
        }
        for (long nr = 0; nr < 100000; nr++)
            raw(nr + 5000 * (long)(next_random(&r) % 100000), 0, 0, 0, 0, 0, 0);
        break;
    }
    default: { /* memory, page tables first, then all of it */
        char *area = mmap(NULL, 1UL << 40, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        for (unsigned long i = 0; i < 4000; i++) {
            area[i << 25] = 1;
            munmap(area + (i << 25), PAGE);
        }
        for (unsigned long i = 0; i < 48; i++) {
            CHECK(page_is_zero(area + (i << 30) + PAGE));
            memset(area + (i << 30) + PAGE, 0x5a, 2 * MIB);
            munmap(area + (i << 30) + 7 * PAGE, PAGE * (next_random(&r) % 64 + 1));
        }
    }
    }
}

/* ---- descriptors opened and closed under calls that use them ---- */

static void *closes(void *argument)
{
    uint64_t r = (uint64_t)(uintptr_t)argument;
    for (;;) {
        int fd = 3 + (int)(next_random(&r) % 12);
        switch (next_random(&r) % 6) {
        case 0: close(fd); break;
        case 1: dup2(3 + (int)(next_random(&r) % 12), fd); break;
        case 2: { int two[2]; if (pipe(two) == 0 && two[1] > 40) close(two[0]), close(two[1]); break; }
        case 3: { int two[2]; if (socketpair(AF_UNIX, SOCK_STREAM, 0, two) == 0 && two[1] > 40) close(two[0]), close(two[1]); break; }
        case 4: { int one = open("f2", O_RDWR | O_CREAT, 0600); if (one > 40) close(one); break; }
        default: raw(SYS_close_range, 20, ~0U, 0, 0, 0, 0);
        }
    }
    return NULL;
}

static void *uses(void *argument)
{
    uint64_t r = (uint64_t)(uintptr_t)argument;
    char buffer[4096] = {0};
    for (;;) {
        int fd = 3 + (int)(next_random(&r) % 12);
        switch (next_random(&r) % 7) {
        case 0: if (read(fd, buffer, sizeof buffer) < 0) break; break;
        case 1: if (write(fd, buffer, next_random(&r) % sizeof buffer) < 0) break; break;
        case 2: { struct pollfd poll_one = {.fd = fd, .events = POLLIN}; poll(&poll_one, 1, 3); break; }
        case 3: { struct stat about; fstat(fd, &about); break; }
        case 4: { void *map = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, fd, 0); if (map != MAP_FAILED) munmap(map, PAGE); break; }
        case 5: raw(SYS_sendfile, fd, 3 + (long)(next_random(&r) % 12), 0, 4096, 0, 0); break;
        default: fcntl(fd, F_SETFL, O_NONBLOCK);
        }
    }
    return NULL;
}

static void attack_by_descriptors(uint64_t r)
{
    interrupted_often();
    for (int i = 0; i < 4; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, i & 1 ? closes : uses, (void *)(uintptr_t)next_random(&r));
    }
    uses((void *)(uintptr_t)next_random(&r));
}

/* ---- who attacks, and who is not to notice ---- */

static const struct {
    const char *name;
    void (*attack)(uint64_t);
} kinds[] = {
    {"calls", attack_by_calls},   {"encodings", attack_by_encodings}, {"code", attack_by_code},
    {"tricks", attack_by_tricks}, {"frames", attack_by_frames},       {"tables", attack_by_tables},
    {"calls", attack_by_calls},   {"descriptors", attack_by_descriptors},
};
#define KINDS (sizeof kinds / sizeof *kinds)

static pid_t start(uint64_t number, const char *kind)
{
    pid_t child = fork();
    if (child != 0)
        return child;
    setpgid(0, 0);
    int null = open("/dev/null", O_RDWR);
    for (int fd = 0; fd < 3; fd++)
        dup2(null, fd);
    close(null);
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    struct rlimit files = {16 * MIB, 16 * MIB};
    setrlimit(RLIMIT_FSIZE, &files);
    signal(SIGXFSZ, SIG_IGN);
    uint64_t r = seed + number * 0x9e3779b97f4a7c15ULL;
    unsigned which = (unsigned)(number % KINDS);
    for (unsigned i = 0; kind && i < KINDS; i++)
        if (strcmp(kind, kinds[i].name) == 0)
            which = i;
    kinds[which].attack(next_random(&r));
    _exit(0);
}

#define PARALLEL 4

static int attack(double seconds, const char *kind)
{
    struct { pid_t pid; double until; } running[PARALLEL] = {0};
    double end = now() + seconds;
    uint64_t number = 0;
    unsigned ended = 0, killed = 0, signalled = 0;
    int busy = 0;
    while (now() < end || busy) {
        busy = 0;
        if (now() > end + 60) {
            printf("processes that were killed do not end\n");
            return 1;
        }
        for (int i = 0; i < PARALLEL; i++) {
            int status;
            if (running[i].pid > 0 && waitpid(running[i].pid, &status, WNOHANG) == running[i].pid) {
                ended++;
                signalled += WIFSIGNALED(status);
                if (WIFEXITED(status) && WEXITSTATUS(status) == 99) {
                    printf("a check failed in process %d\n", running[i].pid);
                    return 1;
                }
                kill(-running[i].pid, SIGKILL);
                running[i].pid = 0;
            }
            if (running[i].pid > 0 && now() > running[i].until) {
                kill(-running[i].pid, SIGKILL);
                kill(running[i].pid, SIGKILL);
                killed++;
                running[i].until = now() + 20;
            }
            if (running[i].pid <= 0 && now() < end) {
                running[i].pid = start(number++, kind);
                running[i].until = now() + 2.5;
            }
            busy |= running[i].pid > 0;
        }
        usleep(10000);
    }
    /* What the attackers left behind is this process's now, or of who reaps at home. */
    while (waitpid(-1, NULL, WNOHANG) > 0)
        ;
    printf("seed %llu: %u attackers ended, %u of them by a signal, %u when their time was over\n",
           (unsigned long long)seed, ended, signalled, killed);
    return ended > 0 ? 0 : 1;
}

static volatile sig_atomic_t over;
static void stop(int number) { (void)number; over = 1; }

#define LARGE (16 * MIB)
#define SMALL 256

static int watch(void)
{
    signal(SIGTERM, stop);
    char *large = mmap(NULL, LARGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *small[SMALL];
    CHECK(large != MAP_FAILED);
    for (unsigned i = 0; i < LARGE / PAGE; i++)
        number_page(large + i * PAGE, i);
    for (unsigned i = 0; i < SMALL; i++) {
        small[i] = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(small[i] != MAP_FAILED);
        number_page(small[i], 1000000 + i);
        CHECK(mprotect(small[i], PAGE, i & 1 ? PROT_READ : PROT_READ | PROT_WRITE) == 0);
    }
    OK("watching");
    unsigned long rounds = 0;
    while (!over) {
        for (unsigned i = 0; i < LARGE / PAGE; i++)
            CHECK(page_has(large + i * PAGE, i));
        for (unsigned i = 0; i < SMALL; i++)
            CHECK(page_has(small[i], 1000000 + i));
        /* It changes its own pages too: what is written stays written. */
        unsigned again = (unsigned)(rounds % (LARGE / PAGE));
        number_page(large + again * PAGE, again);
        rounds++;
        usleep(20000);
    }
    CHECK(rounds > 0);
    OK("nothing has changed");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "watch") == 0)
        return watch();
    if (argc < 3)
        return 2;
    seed = strtoull(argv[1], NULL, 0);
    printf("seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    mkdir("d", 0700);
    return attack(atof(argv[2]), argc > 3 ? argv[3] : NULL);
}
