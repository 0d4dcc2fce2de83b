/* What a program may not do, and what it gets for trying: the same signal, code and address as natively. */
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>

static sigjmp_buf back;
static volatile int number_seen, code_seen, trap_seen;
static void *volatile address_seen;
static volatile uintptr_t ip_seen;

static void on_fault(int number, siginfo_t *info, void *context)
{
    ucontext_t *registers = context;
    number_seen = number, code_seen = info->si_code, address_seen = info->si_addr;
    ip_seen = (uintptr_t)registers->uc_mcontext.gregs[REG_RIP];
    trap_seen = (int)registers->uc_mcontext.gregs[REG_TRAPNO];
    siglongjmp(back, 1);
}

/* Prints what doing `body` brings; the address relative to the faulting instruction where it is one. */
#define TRY(name, body)                                                                            \
    do {                                                                                           \
        number_seen = 0;                                                                           \
        if (sigsetjmp(back, 1) == 0) {                                                             \
            body;                                                                                  \
            printf("%s: nothing\n", name);                                                         \
        } else {                                                                                   \
            printf("%s: signal %d code %d %s\n", name, number_seen, code_seen,                     \
                   address_seen == NULL                        ? "no address"                      \
                   : (uintptr_t)address_seen == ip_seen        ? "at the instruction"              \
                   : (uintptr_t)address_seen == ip_seen - 1    ? "before the instruction"          \
                                                               : "elsewhere");                     \
        }                                                                                          \
    } while (0)

static volatile int zero;
static volatile int smallest = -2147483647 - 1;

static void in_child(const char *name, void (*body)(void))
{
    fflush(stdout);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
        for (unsigned i = 0; i < 5; i++)
            signal(numbers[i], SIG_DFL);
        body();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status))
        printf("%s, unhandled: killed by %d\n", name, WTERMSIG(status));
    else
        printf("%s, unhandled: status %d\n", name, WEXITSTATUS(status));
}

static void calls_null(void) { ((void (*)(void))(uintptr_t)zero)(); }
static void halts(void) { __asm__ volatile("hlt"); }
static void undefined(void) { __asm__ volatile("ud2"); }
static void divides(void) { __asm__ volatile("cltd; idivl %0" ::"r"(zero), "a"(1) : "edx"); }
static void breaks(void) { __asm__ volatile("int3"); }
static void loses_stack(void) { __asm__ volatile("xor %%esp,%%esp; push %%rax" ::: "memory"); }

static volatile int went_on;
static void goes_on(int number, siginfo_t *info, void *context)
{
    (void)info;
    ucontext_t *registers = context;
    went_on = number;
    if (number == SIGILL)
        registers->uc_mcontext.gregs[REG_RIP] += 2; /* over the ud2 */
}

int main(void)
{
    static char alternate[1 << 16];
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    CHECK(sigaltstack(&stack, NULL) == 0);
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
    for (unsigned i = 0; i < 5; i++)
        CHECK(sigaction(numbers[i], &action, NULL) == 0);
    char *data = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(data != MAP_FAILED);

    TRY("a call of address 0", calls_null());
    TRY("a jump into data", ((void (*)(void))(void *)data)());
    TRY("a jump to nowhere", ((void (*)(void))0x123456789000)());
    TRY("a jump to no address", __asm__ volatile("jmp *%0" ::"r"(0xdead000000000000UL)));
    TRY("a read of the kernel's half", (void)*(volatile char *)0xffff800000000000UL);
    TRY("a read of the last page", (void)*(volatile char *)0xfffffffffffff000UL);
    TRY("a write to code", *(volatile char *)(void *)on_fault = 0);
    TRY("hlt", halts());
    TRY("cli", __asm__ volatile("cli"));
    TRY("sti", __asm__ volatile("sti"));
    TRY("out to port 0x80", __asm__ volatile("outb %%al,$0x80" ::"a"(0)));
    TRY("in from port 0x60", __asm__ volatile("inb $0x60,%%al" ::: "eax"));
    TRY("mov to cr3", __asm__ volatile("mov %%rax,%%cr3" ::"a"(0UL)));
    TRY("mov from cr0", __asm__ volatile("mov %%cr0,%%rax" ::: "rax"));
    TRY("rdmsr", __asm__ volatile("rdmsr" ::"c"(0xc0000080) : "eax", "edx"));
    TRY("wrmsr", __asm__ volatile("wrmsr" ::"c"(0xc0000080), "a"(0), "d"(0)));
    TRY("lgdt", __asm__ volatile("lgdt %0" ::"m"(*data)));
    TRY("invlpg", __asm__ volatile("invlpg %0" ::"m"(*data)));
    TRY("wbinvd", __asm__ volatile("wbinvd"));
    TRY("ud2", undefined());
    TRY("int3", breaks());
    TRY("division by zero", divides());
    TRY("a division that overflows", __asm__ volatile("cltd; idivl %0" ::"r"(-1), "a"(smallest) : "edx"));
    TRY("a software interrupt 0x20", __asm__ volatile("int $0x20"));
    TRY("a software interrupt 0xd", __asm__ volatile("int $0xd"));
    TRY("a far jump through data", __asm__ volatile("ljmp *%0" ::"m"(*data)));
    TRY("iretq to garbage", __asm__ volatile("pushq $0; pushq $0; pushq $0; pushq $0; pushq $0; iretq"));
    TRY("a selector of ring 0", __asm__ volatile("mov %0,%%ds" ::"r"(0x10)));
    TRY("an unaligned movaps", __asm__ volatile("movaps (%0),%%xmm0" ::"r"(data + 1) : "xmm0"));
    TRY("a stack at 0", loses_stack());
    TRY("a trap flag", __asm__ volatile("pushfq; orq $0x100,(%%rsp); popfq; nop; nop" ::: "cc", "memory"));

    in_child("a call of address 0", calls_null);
    in_child("hlt", halts);
    in_child("ud2", undefined);
    in_child("int3", breaks);
    in_child("division by zero", divides);
    in_child("a stack at 0", loses_stack);

    action.sa_sigaction = goes_on;
    CHECK(sigaction(SIGILL, &action, NULL) == 0 && sigaction(SIGTRAP, &action, NULL) == 0);
    undefined();
    CHECK(went_on == SIGILL);
    breaks();
    CHECK(went_on == SIGTRAP);
    OK("a handler goes on after ud2 and int3");

    CHECK(syscall(100000) == -1 && errno == ENOSYS);
    CHECK(syscall(-1L) == -1 && errno == ENOSYS);
    CHECK(syscall(SYS_write, 1, (void *)1, 10) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_write, 1, (void *)0xffff800000000000UL, 10) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_read, 0, (void *)-1L, ~0UL >> 1) <= 0);
    CHECK(syscall(SYS_nanosleep, (void *)8, NULL) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_rt_sigaction, SIGUSR1, (void *)8, NULL, 8) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_open, (void *)8, 0) == -1 && errno == EFAULT);
    OK("system calls with nonsense are errors");

    /* rcx and r11 are what syscall spoils; everything else stays. */
    uint64_t rbx = 1, rdx = 3, rsi = 4, rdi = 5, r8 = 8, r9 = 9, r10 = 10, r12 = 12, result = SYS_getpid;
    register uint64_t v8 __asm__("r8") = r8;
    register uint64_t v9 __asm__("r9") = r9;
    register uint64_t v10 __asm__("r10") = r10;
    register uint64_t v12 __asm__("r12") = r12;
    __asm__ volatile("syscall"
                     : "+a"(result), "+b"(rbx), "+d"(rdx), "+S"(rsi), "+D"(rdi), "+r"(v8), "+r"(v9), "+r"(v10), "+r"(v12)
                     :: "rcx", "r11", "memory");
    /* Copied at once: a call would use these registers. */
    int kept = (v8 == r8) & (v9 == r9) & (v10 == r10) & (v12 == r12);
    CHECK(kept);
    CHECK(result == (uint64_t)getpid() && rbx == 1 && rdx == 3 && rsi == 4 && rdi == 5);
    OK("a system call spoils nothing but rcx and r11");
    return 0;
}
