/* The stack: it grows as it is used, its end is a fault, and the handler may stand elsewhere. */
#include "check.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>

static uint64_t __attribute__((noinline)) dive(unsigned depth)
{
    volatile uint64_t here[64];
    for (unsigned i = 0; i < 64; i++)
        here[i] = depth * 64ULL + i;
    uint64_t below = depth ? dive(depth - 1) : 0;
    for (unsigned i = 0; i < 64; i++)
        CHECK(here[i] == depth * 64ULL + i);
    return below + here[5];
}

static sigjmp_buf back;
static char *volatile fault_at;
static volatile int code, on_alternate;
static char alternate[1 << 16];

static void overflowed(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    char here;
    fault_at = info->si_addr;
    code = info->si_code;
    on_alternate = &here >= alternate && &here < alternate + sizeof alternate;
    stack_t now;
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_flags == SS_ONSTACK);
    siglongjmp(back, 1);
}

static volatile unsigned bottomless = 1;
static uint64_t __attribute__((noinline)) forever(uint64_t n)
{
    volatile char waste[3000];
    waste[0] = (char)n;
    if (!bottomless)
        return n;
    return forever(n + 1) + (unsigned char)waste[0];
}

static void *in_thread(void *argument)
{
    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    CHECK(sigaltstack(&stack, NULL) == 0);
    fault_at = NULL;
    if (sigsetjmp(back, 1) == 0)
        forever(0);
    CHECK(on_alternate);
    return argument;
}

int main(void)
{
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_STACK, &limit) == 0);
    printf("%lu\n", (unsigned long)dive(12000));
    OK("six mebibytes of recursion");
    volatile char *far = __builtin_alloca(4 << 20);
    far[0] = 1, far[4 << 19] = 2;
    CHECK(far[0] == 1 && far[4 << 19] == 2);
    OK("the far end of a big frame first");

    stack_t stack = {.ss_sp = alternate, .ss_size = sizeof alternate};
    CHECK(sigaltstack(&stack, NULL) == 0);
    struct sigaction action = {.sa_sigaction = overflowed, .sa_flags = SA_SIGINFO | SA_ONSTACK};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        on_alternate = 0;
        if (sigsetjmp(back, 1) == 0)
            forever(0);
        CHECK(on_alternate);
        char here;
        CHECK(fault_at < &here && fault_at > &here - (limit.rlim_cur == RLIM_INFINITY ? 1L << 40 : (long)limit.rlim_cur + (1 << 20)));
        CHECK(code == SEGV_MAPERR || code == SEGV_ACCERR);
    }
    CHECK(sigaltstack(NULL, &stack) == 0 && stack.ss_flags == 0);
    OK("overflow is handled on another stack, and again");

    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    CHECK(pthread_attr_setstacksize(&attributes, 256 << 10) == 0);
    pthread_t thread;
    void *result;
    CHECK(pthread_create(&thread, &attributes, in_thread, &action) == 0);
    CHECK(pthread_join(thread, &result) == 0 && result == &action);
    OK("overflow of a thread's stack meets its guard page");

    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        forever(0);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    OK("overflow without a handler kills");

    stack.ss_flags = SS_DISABLE;
    CHECK(sigaltstack(&stack, NULL) == 0);
    stack.ss_flags = 0, stack.ss_size = 100;
    CHECK(sigaltstack(&stack, NULL) == -1 && errno == ENOMEM);
    OK("a stack too small is refused");
    return 0;
}
