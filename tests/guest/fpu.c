/* Register contents across signals: SSE, AVX, x87 and general registers hold their values while a
 * handler that spoils them all runs a thousand times a second, in several threads at once. */
#include "check.h"
#include <immintrin.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

static volatile sig_atomic_t signals;
static volatile int wide;

__attribute__((target("avx2"))) static void spoil_avx(void)
{
    __asm__ volatile("vpcmpeqd %%ymm0,%%ymm0,%%ymm0; vmovdqa %%ymm0,%%ymm1; vmovdqa %%ymm0,%%ymm2; vmovdqa %%ymm0,%%ymm3;"
                     "vmovdqa %%ymm0,%%ymm4; vmovdqa %%ymm0,%%ymm5; vmovdqa %%ymm0,%%ymm6; vmovdqa %%ymm0,%%ymm7;"
                     "vmovdqa %%ymm0,%%ymm8; vmovdqa %%ymm0,%%ymm9; vmovdqa %%ymm0,%%ymm10; vmovdqa %%ymm0,%%ymm11;"
                     "vmovdqa %%ymm0,%%ymm12; vmovdqa %%ymm0,%%ymm13; vmovdqa %%ymm0,%%ymm14; vmovdqa %%ymm0,%%ymm15"
                     ::: "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                         "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
}

static void handler(int number)
{
    (void)number;
    /* A handler starts with the default rounding and may change it: it must not leak out. */
    volatile double x = 1.5;
    for (int i = 0; i < 20; i++)
        x = sqrt(x * 3.7 + i);
    unsigned csr = 0x7f80; /* round towards zero, all exceptions masked */
    __asm__ volatile("ldmxcsr %0" ::"m"(csr));
    __asm__ volatile("pcmpeqd %%xmm0,%%xmm0; movdqa %%xmm0,%%xmm7; movdqa %%xmm0,%%xmm15; fninit; fldpi; fldpi" ::
                         : "xmm0", "xmm7", "xmm15");
    if (wide)
        spoil_avx();
    signals++;
}

/* Fills all sixteen ymm registers, spins, and compares: one asm block, so that the compiler
 * cannot reload them meanwhile. Returns a mask of those that changed. */
__attribute__((target("avx2"))) static unsigned hold_avx(const uint8_t *values, uint8_t *after, uint64_t spins)
{
#define LOAD(n) "vmovdqu " #n "*32(%[values]),%%ymm" #n ";"
#define STORE(n) "vmovdqu %%ymm" #n "," #n "*32(%[after]);"
    __asm__ volatile(LOAD(0) LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5) LOAD(6) LOAD(7) LOAD(8) LOAD(9) LOAD(10) LOAD(11)
                         LOAD(12) LOAD(13) LOAD(14) LOAD(15) "1: dec %[spins]; jnz 1b;" STORE(0) STORE(1) STORE(2)
                             STORE(3) STORE(4) STORE(5) STORE(6) STORE(7) STORE(8) STORE(9) STORE(10) STORE(11)
                                 STORE(12) STORE(13) STORE(14) STORE(15) "vzeroupper"
                     : [spins] "+r"(spins)
                     : [values] "r"(values), [after] "r"(after)
                     : "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9",
                       "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
    unsigned changed = 0;
    for (unsigned i = 0; i < 16; i++)
        changed |= (unsigned)(memcmp(values + i * 32, after + i * 32, 32) != 0) << i;
    return changed;
}

static unsigned hold_sse(const uint8_t *values, uint8_t *after, uint64_t spins)
{
#define LOADX(n) "movdqu " #n "*32(%[values]),%%xmm" #n ";"
#define STOREX(n) "movdqu %%xmm" #n "," #n "*32(%[after]);"
    __asm__ volatile(LOADX(0) LOADX(1) LOADX(5) LOADX(7) LOADX(8) LOADX(14) LOADX(15) "1: dec %[spins]; jnz 1b;" STOREX(0)
                         STOREX(1) STOREX(5) STOREX(7) STOREX(8) STOREX(14) STOREX(15)
                     : [spins] "+r"(spins)
                     : [values] "r"(values), [after] "r"(after)
                     : "memory", "cc", "xmm0", "xmm1", "xmm5", "xmm7", "xmm8", "xmm14", "xmm15");
    unsigned changed = 0;
    static const unsigned used[] = {0, 1, 5, 7, 8, 14, 15};
    for (unsigned i = 0; i < 7; i++)
        changed |= (unsigned)(memcmp(values + used[i] * 32, after + used[i] * 32, 16) != 0) << used[i];
    return changed;
}

/* Values on the x87 stack and in the general registers, the red zone included. */
static void hold_x87_and_integers(uint64_t seed)
{
    double a = (double)(seed & 0xffff) + 0.25, b = (double)(seed >> 48) + 0.5, ra, rb;
    uint64_t spins = 20000, flags;
    uint64_t r8 = seed, r9 = ~seed, r10 = seed * 3, r15 = seed ^ 0x5555;
    register uint64_t v8 __asm__("r8") = r8;
    register uint64_t v9 __asm__("r9") = r9;
    register uint64_t v10 __asm__("r10") = r10;
    register uint64_t v15 __asm__("r15") = r15;
    __asm__ volatile("fldl %[a]; fldl %[b]; std; 1: lea -1(%[spins]),%[spins]; test %[spins],%[spins]; jnz 1b;"
                     "pushfq; popq %[flags]; cld; fstpl %[rb]; fstpl %[ra]"
                     : [spins] "+r"(spins), "+r"(v8), "+r"(v9), "+r"(v10), "+r"(v15), [ra] "=m"(ra), [rb] "=m"(rb),
                       [flags] "=r"(flags)
                     : [a] "m"(a), [b] "m"(b)
                     : "cc", "memory");
    CHECK(ra == a && rb == b);
    CHECK(v8 == r8 && v9 == r9 && v10 == r10 && v15 == r15);
    CHECK(flags & 0x400); /* the direction flag stayed set though handlers start with it clear */
}

static void run_for(double seconds, uint64_t seed)
{
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    static __thread uint8_t values[16 * 32], after[16 * 32];
    unsigned csr = 0x1fa0, seen; /* a flag of our own in MXCSR */
    __asm__ volatile("ldmxcsr %0" ::"m"(csr));
    do {
        for (unsigned i = 0; i < sizeof values; i += 8) {
            uint64_t number = next_random(&seed);
            memcpy(values + i, &number, 8);
        }
        if (wide)
            CHECK(hold_avx(values, after, 100000) == 0);
        CHECK(hold_sse(values, after, 100000) == 0);
        hold_x87_and_integers(seed);
        double sum = 0, want = 0;
        for (int i = 1; i < 2000; i++)
            sum += 1.0 / i, want = want + 1.0 / i;
        CHECK(sum == want && sum > 8.17 && sum < 8.18);
        __asm__ volatile("stmxcsr %0" : "=m"(seen));
        CHECK((seen & 0xff80) == (csr & 0xff80));
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((double)(now.tv_sec - start.tv_sec) + (double)(now.tv_nsec - start.tv_nsec) * 1e-9 < seconds);
}

static void *thread(void *argument)
{
    run_for(1.0, (uintptr_t)argument);
    return NULL;
}

int main(void)
{
    wide = __builtin_cpu_supports("avx2");
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && sigaction(SIGPROF, &action, NULL) == 0);
    struct itimerval every = {{0, 1000}, {0, 1000}};
    CHECK(setitimer(ITIMER_REAL, &every, NULL) == 0);
    run_for(2.0, 1);
    CHECK(signals > 100);
    OK("registers across timer signals");
    pthread_t threads[4];
    for (uintptr_t i = 0; i < 4; i++)
        CHECK(pthread_create(&threads[i], NULL, thread, (void *)(i + 2)) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    OK("registers across timer signals in four threads");
    setitimer(ITIMER_REAL, &(struct itimerval){{0, 0}, {0, 0}}, NULL);
    printf("%.17g %.17g %.17g\n", sin(1.0), exp(2.5), pow(1.1, 100));
    return 0;
}
