// The vDSO of guest processes: the clocks, read without leaving the guest.
//
// Built without a C library. The time page lies directly before the image; `page.rs` has the
// same layout and says what each field means.

typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long s64;

struct time_page {
    u32 sequence;
    u32 usable;
    u64 tsc_base;
    u64 multiplier;
    u64 raw_multiplier;
    u64 monotonic;
    u64 realtime;
    u64 boottime;
    u64 raw;
    s64 tai_offset;
    u32 cpus;
    u32 reserved;
};

struct timespec {
    s64 sec;
    s64 nsec;
};

struct timeval {
    s64 sec;
    s64 usec;
};

struct timezone {
    int minutes_west;
    int dst_time;
};

enum {
    CLOCK_REALTIME = 0,
    CLOCK_MONOTONIC = 1,
    CLOCK_MONOTONIC_RAW = 4,
    CLOCK_REALTIME_COARSE = 5,
    CLOCK_MONOTONIC_COARSE = 6,
    CLOCK_BOOTTIME = 7,
    CLOCK_TAI = 11,
};

enum {
    SYS_gettimeofday = 96,
    SYS_time = 201,
    SYS_clock_gettime = 228,
    SYS_clock_getres = 229,
    SYS_getcpu = 309,
};

#define SECOND 1000000000ull
// The coarse clocks stand still this long, as on a kernel with 250 ticks a second.
#define COARSE 4000000ull
// Where the writer was interrupted in the middle of an update, the kernel knows the time.
#define MAX_SPINS (1 << 17)

// The linker defines it as the first byte of the image.
__asm__(".hidden __ehdr_start");

static inline const volatile struct time_page *time_page(void) {
    const volatile struct time_page *page;
    __asm__("leaq __ehdr_start - 4096(%%rip), %0" : "=r"(page));
    return page;
}

static inline long system_call(long number, long a, long b, long c) {
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

static inline u64 rdtsc(void) {
    u32 low, high;
    // Not before the loads before it.
    __asm__ volatile("lfence\n\trdtsc" : "=a"(low), "=d"(high) : : "memory");
    return (u64)high << 32 | low;
}

// Nanoseconds of `clock`, which is one of those above. 0: ask the kernel.
static inline int read_clock(int clock, u64 *result) {
    const volatile struct time_page *page = time_page();
    for (u32 spins = 0; spins < MAX_SPINS; spins++) {
        u32 sequence = page->sequence;
        if (sequence & 1) {
            __builtin_ia32_pause();
            continue;
        }
        // x86 loads in order; only the compiler must be told.
        __asm__ volatile("" : : : "memory");
        if (!page->usable)
            return 0;
        u64 multiplier = clock == CLOCK_MONOTONIC_RAW ? page->raw_multiplier : page->multiplier;
        u64 base = page->monotonic;
        if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)
            base = page->realtime;
        else if (clock == CLOCK_BOOTTIME)
            base = page->boottime;
        else if (clock == CLOCK_MONOTONIC_RAW)
            base = page->raw;
        else if (clock == CLOCK_TAI)
            base = page->realtime + page->tai_offset;
        u64 tsc_base = page->tsc_base;
        s64 ticks = rdtsc() - tsc_base;
        __asm__ volatile("" : : : "memory");
        if (page->sequence != sequence)
            continue;
        // Another CPU's counter may be a few ticks behind the writer's.
        if (ticks < 0)
            ticks = 0;
        u64 now = base + (u64)((unsigned __int128)(u64)ticks * multiplier >> 32);
        if (clock == CLOCK_REALTIME_COARSE || clock == CLOCK_MONOTONIC_COARSE)
            now -= now % COARSE;
        *result = now;
        return 1;
    }
    return 0;
}

int __vdso_clock_gettime(int clock, struct timespec *to) {
    u64 now;
    const u32 served = 1 << CLOCK_REALTIME | 1 << CLOCK_MONOTONIC | 1 << CLOCK_MONOTONIC_RAW |
                       1 << CLOCK_REALTIME_COARSE | 1 << CLOCK_MONOTONIC_COARSE | 1 << CLOCK_BOOTTIME | 1 << CLOCK_TAI;
    if ((u32)clock < 32 && served >> clock & 1 && read_clock(clock, &now)) {
        to->sec = now / SECOND;
        to->nsec = now % SECOND;
        return 0;
    }
    return system_call(SYS_clock_gettime, clock, (long)to, 0);
}

int __vdso_gettimeofday(struct timeval *to, struct timezone *zone) {
    u64 now;
    if (to) {
        if (!read_clock(CLOCK_REALTIME, &now))
            return system_call(SYS_gettimeofday, (long)to, (long)zone, 0);
        to->sec = now / SECOND;
        to->usec = now % SECOND / 1000;
    }
    if (zone) {
        zone->minutes_west = 0;
        zone->dst_time = 0;
    }
    return 0;
}

s64 __vdso_time(s64 *to) {
    u64 now;
    if (!read_clock(CLOCK_REALTIME, &now))
        return system_call(SYS_time, (long)to, 0, 0);
    s64 seconds = now / SECOND;
    if (to)
        *to = seconds;
    return seconds;
}

int __vdso_clock_getres(int clock, struct timespec *to) {
    u64 resolution;
    switch (clock) {
    case CLOCK_REALTIME:
    case CLOCK_MONOTONIC:
    case CLOCK_MONOTONIC_RAW:
    case CLOCK_BOOTTIME:
    case CLOCK_TAI:
        resolution = 1;
        break;
    case CLOCK_REALTIME_COARSE:
    case CLOCK_MONOTONIC_COARSE:
        resolution = COARSE;
        break;
    default:
        return system_call(SYS_clock_getres, clock, (long)to, 0);
    }
    if (to) {
        to->sec = 0;
        to->nsec = resolution;
    }
    return 0;
}

long __vdso_getcpu(u32 *cpu, u32 *node, void *unused) {
    (void)unused;
    u32 cpus = time_page()->cpus;
    if (!cpus)
        return system_call(SYS_getcpu, (long)cpu, (long)node, 0);
    // The low 12 bits of TSC_AUX are the number of the CPU, on Linux hosts and in guests alike.
    u32 low, high, aux;
    __asm__ volatile("rdtscp" : "=a"(low), "=d"(high), "=c"(aux));
    if (cpu)
        *cpu = (aux & 0xfff) % cpus;
    if (node)
        *node = 0;
    return 0;
}

int clock_gettime(int, struct timespec *) __attribute__((weak, alias("__vdso_clock_gettime")));
int gettimeofday(struct timeval *, struct timezone *) __attribute__((weak, alias("__vdso_gettimeofday")));
s64 time(s64 *) __attribute__((weak, alias("__vdso_time")));
int clock_getres(int, struct timespec *) __attribute__((weak, alias("__vdso_clock_getres")));
long getcpu(u32 *, u32 *, void *) __attribute__((weak, alias("__vdso_getcpu")));
