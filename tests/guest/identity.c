/* The IDs of process and thread, asked for again and again from one place, which a node may answer there:
 * they must be right for whoever asks, and the place must be what it is natively for whoever looks. */
#include "check.h"
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>

enum { MANY = 3000 };

/* As compilers and C libraries write it. `spin_pid` asks so often and returns the last answer. */
int own_pid(void);
int own_tid(void);
long spin_pid(long count);
struct call {
    uint64_t rax, rcx, r11, flags, rdi, rsi, rdx, r8, r9, r10, rbx;
};
typedef void full_call(struct call *call);
full_call full_pid, full_tid;
#define FULL_CALL(name, number)                                                                     \
    ".balign 64\n" name ":\n"                                                                      \
    "  push %rbx\n  push %rdi\n  pushq 24(%rdi)\n  popfq\n"                                         \
    "  mov 40(%rdi),%rsi\n  mov 48(%rdi),%rdx\n  mov 56(%rdi),%r8\n  mov 64(%rdi),%r9\n"            \
    "  mov 72(%rdi),%r10\n  mov 80(%rdi),%rbx\n  mov 32(%rdi),%rdi\n"                               \
    "  mov $" number ",%eax\n  syscall\n" name "_returns:\n"                                        \
    "  pushfq\n  push %rdi\n  mov 16(%rsp),%rdi\n"                                                 \
    "  mov %rax,0(%rdi)\n  mov %rcx,8(%rdi)\n  mov %r11,16(%rdi)\n"                                \
    "  mov %rsi,40(%rdi)\n  mov %rdx,48(%rdi)\n  mov %r8,56(%rdi)\n  mov %r9,64(%rdi)\n"            \
    "  mov %r10,72(%rdi)\n  mov %rbx,80(%rdi)\n"                                                   \
    "  popq 32(%rdi)\n  popq 24(%rdi)\n  cld\n  pop %rdi\n  pop %rbx\n  ret\n"
__asm__(".text\n"
        ".balign 64\n"
        "own_pid:\n  mov $39,%eax\nown_pid_call:\n  syscall\n  ret\n"
        ".balign 64\n"
        "own_tid:\n  mov $186,%eax\n  syscall\n  ret\n"
        ".balign 64\n"
        "spin_pid:\n1: mov $39,%eax\n  syscall\n  dec %rdi\n  jnz 1b\n"
        "spin_ends:\n  ret\n"
        FULL_CALL("full_pid", "39")
        FULL_CALL("full_tid", "186"));
extern const char own_pid_call[], spin_ends[], full_pid_returns[], full_tid_returns[];

/* The same in a way in which nobody writes it. */
static int call_after(long number)
{
    __asm__ volatile("inc %%eax\n\tnop\n\tsyscall" : "+a"(number) : : "rcx", "r11", "memory");
    return (int)number;
}

static int real_pid(void) { return call_after(SYS_getpid - 1); }
static int real_tid(void) { return call_after(SYS_gettid - 1); }

static void ask(void)
{
    int pid = real_pid(), tid = real_tid();
    for (int i = 0; i < MANY; i++) {
        CHECK(own_pid() == pid && getpid() == pid);
        CHECK(own_tid() == tid && gettid() == tid);
        CHECK(syscall(SYS_getpid) == pid && syscall(SYS_gettid) == tid);
    }
    CHECK(spin_pid(MANY) == pid);
}

static int reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void keep_registers(full_call *call, const char *returns, int id)
{
    /* CF PF AF ZF SF OF, and DF, which is kept but not shown in R11 everywhere. */
    const uint64_t shown = 0x8d5, flags = shown | 0x400;
    uint64_t random = 7;
    for (int i = 0; i < MANY; i++) {
        struct call before = {.flags = (next_random(&random) & flags) | 0x202};
        before.rdi = next_random(&random), before.rsi = next_random(&random), before.rdx = next_random(&random);
        before.r8 = next_random(&random), before.r9 = next_random(&random), before.r10 = next_random(&random);
        before.rbx = next_random(&random);
        struct call after = before;
        call(&after);
        CHECK(after.rax == (uint64_t)id && after.rcx == (uint64_t)returns);
        CHECK((after.r11 & ~0x400UL) == (before.flags & ~0x400UL) && after.flags == before.flags);
        CHECK(after.rdi == before.rdi && after.rsi == before.rsi && after.rdx == before.rdx);
        CHECK(after.r8 == before.r8 && after.r9 == before.r9 && after.r10 == before.r10);
        CHECK(after.rbx == before.rbx);
    }
}

static void keeps_registers(void)
{
    keep_registers(full_pid, full_pid_returns, real_pid());
    keep_registers(full_tid, full_tid_returns, real_tid());
    OK("all other registers are left alone");
}

static void goes_to_the_call(void)
{
    for (int i = 0; i < 100; i++) {
        long result = SYS_getppid;
        __asm__ volatile("call *%1" : "+a"(result) : "r"(own_pid_call) : "rcx", "r11", "memory");
        CHECK(result == getppid());
    }
    OK("a jump to the instruction itself makes any call");
}

static void leaves_other_calls_alone(void)
{
    char path[] = "identity-XXXXXX", buffer[8];
    int file = mkstemp(path);
    CHECK(file >= 0 && ftruncate(file, 3 * PAGE) == 0 && pwrite(file, "page two", 8, 2 * PAGE) == 8);
    for (int i = 0; i < 50; i++) {
        CHECK(syscall(SYS_getppid) == getppid() && syscall(SYS_gettid) == real_tid());
        char *page = (char *)syscall(SYS_mmap, NULL, PAGE, PROT_READ, MAP_PRIVATE, file, 2 * PAGE);
        CHECK(page != MAP_FAILED && memcmp(page, "page two", 8) == 0);
        CHECK(syscall(SYS_munmap, page, PAGE) == 0);
        CHECK(syscall(SYS_pread64, file, buffer, 8, 2 * PAGE) == 8 && memcmp(buffer, "page two", 8) == 0);
        CHECK(syscall(SYS_close, -1) == -1 && errno == EBADF);
        CHECK(syscall(-1) == -1 && errno == ENOSYS && syscall(SYS_getpid + (1 << 20)) == -1 && errno == ENOSYS);
    }
    CHECK(unlink(path) == 0 && close(file) == 0);
    OK("other calls of the library's function are made");
}

static atomic_int stop;

static void *asks(void *unused)
{
    (void)unused;
    do {
        ask();
        keep_registers(full_tid, full_tid_returns, real_tid());
    } while (!atomic_load(&stop) && real_tid() != real_pid());
    return NULL;
}

static void start(pthread_t *threads, int count)
{
    atomic_store(&stop, 0);
    for (int i = 0; i < count; i++)
        CHECK(pthread_create(&threads[i], NULL, asks, NULL) == 0);
}

static void join(pthread_t *threads, int count)
{
    atomic_store(&stop, 1);
    for (int i = 0; i < count; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
}

static void in_threads(void)
{
    pthread_t threads[3];
    start(threads, 3);
    ask();
    join(threads, 3);
    ask();
    OK("each thread is told its own");
}

static void in_children(void)
{
    for (int depth = 0; depth < 3; depth++) {
        int parent = real_pid();
        pid_t child = fork();
        if (child != 0) {
            ask();
            CHECK(real_pid() == parent && reap(child) == 0);
            if (depth > 0)
                _exit(0);
            break;
        }
        CHECK(own_pid() != parent && own_pid() == real_pid() && own_tid() == real_tid() && getppid() == parent);
        ask();
        if (depth == 2)
            _exit(0);
    }
    OK("children are told theirs");
}

static void in_children_that_share_memory(void)
{
    pthread_t threads[2];
    start(threads, 2);
    for (int i = 0; i < 20; i++) {
        int parent = own_pid();
        pid_t child = vfork();
        if (child == 0) {
            int pid = own_pid(), again = (int)spin_pid(200);
            _exit(pid == parent || pid != again || pid != real_pid() || own_tid() != pid);
        }
        CHECK(own_pid() == parent && reap(child) == 0);
    }
    join(threads, 2);
    ask();
    OK("so are those that share the memory");
}

static atomic_int signals, strays;
static volatile int spinning;

static void on_alarm(int signal, siginfo_t *info, void *context)
{
    (void)signal, (void)info;
    uintptr_t at = (uintptr_t)((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    atomic_fetch_add(&signals, 1);
    if (spinning && (at < (uintptr_t)spin_pid || at > (uintptr_t)spin_ends))
        atomic_fetch_add(&strays, 1);
    CHECK(own_pid() == real_pid());
}

/* From here on nothing but the loop runs until it is over. */
__attribute__((noinline)) static long spin(long count)
{
    long result;
    __asm__ volatile("movl $1,%1\n\tcall spin_pid\n\tmovl $0,%1"
                     : "=a"(result), "+m"(spinning), "+D"(count)
                     :
                     : "rcx", "r11", "memory", "cc");
    return result;
}

static void under_signals(void)
{
    struct sigaction action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO | SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    while (atomic_load(&signals) < 200) {
        CHECK(spin(100000) == real_pid());
        ask();
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    /* A signal may find the call of the loop, or what follows it: a few instructions of thousands. */
    CHECK(atomic_load(&strays) <= 20);
    OK("a handler finds the thread in the code that it ran");
}

/* The code of the object that holds `wanted`: where in its file, and where in memory. */
struct code {
    uintptr_t wanted, start, end;
    off_t offset;
};

static int find_code(struct dl_phdr_info *info, size_t size, void *data)
{
    (void)size;
    struct code *code = data;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *header = &info->dlpi_phdr[i];
        uintptr_t start = info->dlpi_addr + header->p_vaddr, end = start + header->p_filesz;
        if (header->p_type == PT_LOAD && code->wanted >= start && code->wanted < end) {
            code->start = start & ~(PAGE - 1), code->end = end;
            code->offset = (off_t)(header->p_offset & ~(PAGE - 1));
            return 1;
        }
    }
    return 0;
}

/* The page in which the library's code ends, if nothing of it that is used here lies there; or 0. */
static uintptr_t last_page(void)
{
    struct code code = {.wanted = (uintptr_t)getpid};
    CHECK(dl_iterate_phdr(find_code, &code) == 1);
    uintptr_t last = code.end & ~(PAGE - 1);
    const uintptr_t used[] = {(uintptr_t)own_pid, (uintptr_t)getpid, (uintptr_t)mprotect, (uintptr_t)syscall,
                              (uintptr_t)read};
    for (unsigned i = 0; i < sizeof used / sizeof *used; i++)
        if (last == (used[i] & ~(PAGE - 1)))
            return 0;
    return last;
}

/* Says that the last page of the code has no rights any more, and waits for the end of its input. */
static void waits_without_rights(int rights)
{
    char byte;
    ask();
    uintptr_t last = last_page();
    CHECK(last == 0 || mprotect((void *)last, PAGE, rights) == 0);
    puts(last ? "ready" : "in vain");
    fflush(stdout);
    CHECK(read(0, &byte, 1) == 0);
    int pid = getpid(), tid = gettid(), known = real_pid() == pid && real_tid() == tid;
    CHECK(last == 0 || mprotect((void *)last, PAGE, PROT_READ | PROT_EXEC) == 0);
    CHECK(known);
    ask();
}

static void while_rights_change(void)
{
    static const unsigned char site[] = {0xb8, 39, 0, 0, 0, 0x0f, 5, 0xc3};
    void *page = (void *)((uintptr_t)own_pid & ~(PAGE - 1));
    for (int i = 0; i < 3; i++) {
        ask();
        /* The code runs on meanwhile, so it stays executable. */
        CHECK(mprotect(page, PAGE, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
        CHECK(memcmp((const void *)own_pid, site, sizeof site) == 0);
        ask();
        CHECK(mprotect(page, PAGE, PROT_READ | PROT_EXEC) == 0);
    }
    OK("who may write the code reads what it was");
    ask();
    uintptr_t last = last_page();
    if (last) {
        CHECK(mprotect((void *)last, PAGE, PROT_READ) == 0);
        int pid = getpid(), tid = gettid(), known = real_pid() == pid && real_tid() == tid;
        CHECK(mprotect((void *)last, PAGE, PROT_READ | PROT_EXEC) == 0);
        CHECK(known);
    }
    ask();
    OK("other pages of the code may lose their rights");
}

typedef int asked(void);
static asked *elsewhere;

static void *asks_elsewhere(void *unused)
{
    (void)unused;
    for (int i = 0; i < 2000; i++)
        CHECK(elsewhere() == real_pid() || i % 7 != 0);
    return NULL;
}

static void in_a_second_mapping(void)
{
    struct code code = {.wanted = (uintptr_t)own_pid};
    CHECK(dl_iterate_phdr(find_code, &code) == 1);
    size_t size = (code.end - code.start + PAGE - 1) & ~(PAGE - 1);
    int file = open("/proc/self/exe", O_RDONLY);
    CHECK(file >= 0);
    char *room = mmap(NULL, size + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    uintptr_t within = (uintptr_t)own_pid - code.start;
    for (int round = 0; round < 30; round++) {
        char *copy = mmap(room, size, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, file, code.offset);
        CHECK(copy == room);
        elsewhere = (asked *)(copy + within);
        /* New threads, to which nothing has been answered yet. */
        pthread_t threads[2];
        for (int i = 0; i < 2; i++)
            CHECK(pthread_create(&threads[i], NULL, asks_elsewhere, NULL) == 0);
        for (int i = 0; i < 5; i++) {
            CHECK(elsewhere() == real_pid());
            CHECK(mprotect(copy, size, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
            CHECK(mprotect(copy, size, PROT_READ | PROT_EXEC) == 0);
            CHECK(madvise(copy, size, MADV_DONTNEED) == 0);
        }
        for (int i = 0; i < 2; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        CHECK(pthread_create(&threads[0], NULL, asks_elsewhere, NULL) == 0);
        CHECK(pthread_join(threads[0], NULL) == 0);
        switch (round % 3) {
        case 0: {
            char *moved = mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, room + PAGE);
            CHECK(moved == MAP_FAILED && errno == EINVAL);
            char *away = mmap(NULL, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(mremap(copy, size, size, MREMAP_MAYMOVE | MREMAP_FIXED, away) == away);
            elsewhere = (asked *)(away + within);
            CHECK(elsewhere() == real_pid());
            CHECK(munmap(away, size) == 0);
            CHECK(mmap(room, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == room);
            break;
        }
        case 1:
            if (within / PAGE != size / PAGE - 1) {
                CHECK(munmap(copy + size - PAGE, PAGE) == 0);
                CHECK(elsewhere() == real_pid());
            }
            CHECK(mmap(room, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == room);
            break;
        default:
            /* Another file's pages over all of it, or the same again. */
            break;
        }
    }
    CHECK(munmap(room, size + PAGE) == 0 && close(file) == 0);
    OK("code may be mapped twice, moved and dropped");
}

static void *loops(void *unused)
{
    int tid = own_tid();
    for (int i = 0; i < 100000; i++)
        CHECK(own_tid() == tid && tid == gettid());
    return unused;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "threads") == 0) {
        pthread_t threads[4];
        for (int i = 0; i < 4; i++)
            CHECK(pthread_create(&threads[i], NULL, loops, NULL) == 0);
        for (int i = 0; i < 4; i++)
            CHECK(pthread_join(threads[i], NULL) == 0);
        return 0;
    }
    if (argc > 1 && (strcmp(argv[1], "readable") == 0 || strcmp(argv[1], "closed") == 0)) {
        waits_without_rights(argv[1][0] == 'r' ? PROT_READ : PROT_NONE);
        return 0;
    }
    if (argc > 1 && strcmp(argv[1], "loop") == 0) {
        for (int i = 0; i < 100000; i++)
            CHECK(own_pid() == own_tid());
        return 0;
    }
    if (argc > 1) {
        CHECK(own_pid() == atoi(argv[1]) && own_tid() == atoi(argv[1]));
        ask();
        return 0;
    }
    ask();
    OK("the IDs stay what they are");
    keeps_registers();
    goes_to_the_call();
    leaves_other_calls_alone();
    in_threads();
    in_children();
    in_children_that_share_memory();
    under_signals();
    while_rights_change();
    in_a_second_mapping();
    pid_t child = fork();
    if (child == 0) {
        char pid[16];
        snprintf(pid, sizeof pid, "%d", own_pid());
        execl("/proc/self/exe", "identity", pid, NULL);
        _exit(100);
    }
    CHECK(reap(child) == 0);
    OK("a new program is asked anew");
    return 0;
}
