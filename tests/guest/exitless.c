/* Many short calls one after the other, which a node may serve without taking the thread out of the
 * guest: everything about them must be as if each were made by itself. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

enum { RECORDS = 4000, BLOCK = 512 };

static char path[] = "exitless-XXXXXX";
static int file;

/* A call as the instruction alone makes it: what it returns, and all registers that it must leave. */
struct call {
    uint64_t rax, rdi, rsi, rdx, r10, r8, r9, rbx, rbp, r12, r13, r14, r15, rcx, r11, flags;
};

void make_call(struct call *call);
__asm__(".text\n"
        ".globl make_call\n"
        "make_call:\n"
        "  push %rbx\n  push %rbp\n  push %r12\n  push %r13\n  push %r14\n  push %r15\n  push %rdi\n"
        "  pushq 120(%rdi)\n  popfq\n"
        "  mov 0(%rdi),%rax\n  mov 16(%rdi),%rsi\n  mov 24(%rdi),%rdx\n  mov 32(%rdi),%r10\n"
        "  mov 40(%rdi),%r8\n  mov 48(%rdi),%r9\n  mov 56(%rdi),%rbx\n  mov 64(%rdi),%rbp\n"
        "  mov 72(%rdi),%r12\n  mov 80(%rdi),%r13\n  mov 88(%rdi),%r14\n  mov 96(%rdi),%r15\n"
        "  mov 8(%rdi),%rdi\n"
        "  syscall\n"
        "call_returns:\n"
        "  pushfq\n  push %rdi\n  mov 16(%rsp),%rdi\n"
        "  mov %rax,0(%rdi)\n  mov %rsi,16(%rdi)\n  mov %rdx,24(%rdi)\n  mov %r10,32(%rdi)\n"
        "  mov %r8,40(%rdi)\n  mov %r9,48(%rdi)\n  mov %rbx,56(%rdi)\n  mov %rbp,64(%rdi)\n"
        "  mov %r12,72(%rdi)\n  mov %r13,80(%rdi)\n  mov %r14,88(%rdi)\n  mov %r15,96(%rdi)\n"
        "  mov %rcx,104(%rdi)\n  mov %r11,112(%rdi)\n"
        "  popq 8(%rdi)\n  popq 120(%rdi)\n  cld\n"
        "  pop %rdi\n  pop %r15\n  pop %r14\n  pop %r13\n  pop %r12\n  pop %rbp\n  pop %rbx\n"
        "  ret\n");
extern const char call_returns[];

static void checks_registers(uint64_t *random)
{
    /* CF PF AF ZF SF DF OF, each by chance. */
    const uint64_t flags = 0xcd5;
    for (int i = 0; i < 3000; i++) {
        static char buffer[64];
        struct call before = {.rdi = (uint64_t)file, .rsi = (uint64_t)buffer, .rdx = 64, .r10 = 0};
        switch (next_random(random) % 6) {
        case 0: before.rax = SYS_getpid; break;
        case 1: before.rax = SYS_gettid; break;
        case 2: before.rax = SYS_pread64; before.r10 = next_random(random) % 100000; break;
        case 3: before.rax = SYS_lseek; before.rsi = 0, before.rdx = SEEK_CUR; break;
        case 4: before.rax = SYS_getppid; break;
        default: before.rax = SYS_read; before.rdx = 0; break;
        }
        before.r8 = next_random(random), before.r9 = next_random(random), before.rbx = next_random(random);
        before.rbp = next_random(random), before.r12 = next_random(random), before.r13 = next_random(random);
        before.r14 = next_random(random), before.r15 = next_random(random);
        before.flags = (next_random(random) & flags) | 0x202;
        struct call after = before;
        make_call(&after);
        CHECK((int64_t)after.rax >= 0);
        CHECK(before.rax != SYS_getpid || after.rax == (uint64_t)getpid());
        CHECK(after.rdi == before.rdi && after.rsi == before.rsi && after.rdx == before.rdx);
        CHECK(after.r10 == before.r10 && after.r8 == before.r8 && after.r9 == before.r9);
        CHECK(after.rbx == before.rbx && after.rbp == before.rbp && after.r12 == before.r12);
        CHECK(after.r13 == before.r13 && after.r14 == before.r14 && after.r15 == before.r15);
        CHECK(after.rcx == (uint64_t)call_returns && after.r11 == before.flags);
        CHECK(after.flags == before.flags);
    }
    OK("registers and flags are left alone");
}

static void checks_offsets(uint64_t *random)
{
    uint64_t at = 0;
    static uint64_t words[BLOCK];
    for (int i = 0; i < 6000; i++) {
        uint64_t count = 1 + next_random(random) % BLOCK;
        uint64_t left = (uint64_t)RECORDS * BLOCK - at;
        if (count > left)
            count = left;
        switch (next_random(random) % 5) {
        case 0:
        case 1:
            CHECK(read(file, words, count * 8) == (ssize_t)count * 8);
            for (uint64_t k = 0; k < count; k++)
                CHECK(words[k] == at + k);
            at += count;
            break;
        case 2: {
            struct iovec parts[3] = {{words, count * 4}, {words, 0}, {(char *)words + count * 4, count * 4}};
            CHECK(readv(file, parts, 3) == (ssize_t)count * 8);
            CHECK(words[0] == at && words[count - 1] == at + count - 1);
            at += count;
            break;
        }
        case 3: {
            uint64_t place = next_random(random) % (RECORDS * BLOCK - count);
            CHECK(pread(file, words, count * 8, (off_t)place * 8) == (ssize_t)count * 8);
            CHECK(words[0] == place && words[count - 1] == place + count - 1);
            break;
        }
        default: {
            struct stat status;
            CHECK(fstat(file, &status) == 0 && status.st_size == (off_t)RECORDS * BLOCK * 8);
            CHECK(lseek(file, 0, SEEK_CUR) == (off_t)at * 8);
            break;
        }
        }
        if (at == (uint64_t)RECORDS * BLOCK) {
            CHECK(read(file, words, 8) == 0);
            CHECK(lseek(file, 0, SEEK_SET) == 0);
            at = 0;
        }
    }
    OK("reads go on where the last one ended");
}

static volatile sig_atomic_t alarms;

static void counts(int number)
{
    int saved = errno;
    char byte;
    /* Calls of a handler, between those that it breaks into. */
    CHECK(pread(file, &byte, 1, 0) == 1 && byte == 0);
    CHECK(syscall(SYS_getpid) == getpid());
    alarms += number == SIGALRM;
    errno = saved;
}

static void set_timer(long microseconds)
{
    struct itimerval timer = {{0, microseconds}, {0, microseconds}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
}

/* A signal each millisecond, and each record is written and read once. */
static void checks_signals(void)
{
    struct sigaction action = {.sa_handler = counts, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    char name[] = "exitless-XXXXXX";
    int other = mkstemp(name);
    CHECK(other >= 0 && unlink(name) == 0);
    set_timer(1000);
    uint64_t number = 0;
    while (alarms < 200 || number < 20000) {
        CHECK(write(other, &number, 8) == 8);
        number++;
    }
    CHECK(lseek(other, 0, SEEK_SET) == 0);
    for (uint64_t i = 0, word; i < number; i++)
        CHECK(read(other, &word, 8) == 8 && word == i);
    uint64_t rest;
    CHECK(read(other, &rest, 8) == 0);
    set_timer(0);
    close(other);
    OK("no record is lost or doubled by a signal");
}

/* More than a pipe holds, to a reader that takes its time, with signals: the numbers come in order. */
static void checks_pipes(void)
{
    enum { WORDS = 1 << 20, AT_ONCE = 20000 };
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(ends[0]);
        set_timer(700);
        static uint32_t words[AT_ONCE];
        for (uint32_t at = 0; at < WORDS;) {
            uint32_t count = WORDS - at < AT_ONCE ? WORDS - at : AT_ONCE;
            for (uint32_t k = 0; k < count; k++)
                words[k] = at + k;
            /* A handler may run in the middle: then the call ends early, and goes on from there. */
            for (uint32_t done = 0; done < count * 4;) {
                ssize_t put = write(ends[1], (char *)words + done, count * 4 - done);
                CHECK(put > 0);
                done += (uint32_t)put;
            }
            at += count;
        }
        _exit(0);
    }
    close(ends[1]);
    uint32_t next = 0, left = 0;
    static char buffer[7001];
    uint64_t random = 3;
    for (;;) {
        ssize_t got = read(ends[0], buffer + left, 1 + next_random(&random) % (sizeof buffer - left));
        CHECK(got >= 0);
        if (got == 0)
            break;
        uint32_t have = left + (uint32_t)got, at = 0, word;
        for (; at + 4 <= have; at += 4) {
            memcpy(&word, buffer + at, 4);
            CHECK(word == next);
            next++;
        }
        left = have - at;
        memmove(buffer, buffer + at, left);
    }
    CHECK(next == WORDS && left == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    close(ends[0]);
    OK("a pipe carries each number once");
}

enum { THREADS = 6, EACH = 3000 };
static int shared;
static atomic_int running;

static void *writes(void *argument)
{
    uint64_t thread = (uint64_t)argument;
    pid_t tid = (pid_t)syscall(SYS_gettid);
    for (uint64_t i = 0; i < EACH; i++) {
        uint64_t word = thread << 32 | i;
        CHECK(write(shared, &word, 8) == 8);
        CHECK(syscall(SYS_gettid) == tid && syscall(SYS_getpid) == getpid());
        if (i % 512 == 0) {
            /* Memory that the calls use is unmapped by its thread and mapped anew. */
            void *page = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(page != MAP_FAILED);
            CHECK(pread(file, page, PAGE, 0) == PAGE && ((uint64_t *)page)[5] == 5);
            CHECK(munmap(page, PAGE) == 0);
        }
    }
    running--;
    return NULL;
}

static void checks_threads(void)
{
    char name[] = "exitless-XXXXXX";
    shared = mkostemp(name, O_APPEND);
    CHECK(shared >= 0 && unlink(name) == 0);
    pthread_t threads[THREADS];
    running = THREADS;
    for (uint64_t i = 0; i < THREADS; i++)
        CHECK(pthread_create(&threads[i], NULL, writes, (void *)i) == 0);
    /* Each fork needs all threads out of the guest for a moment. */
    while (running > 0) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            for (int i = 0; i < 20; i++)
                if (syscall(SYS_getpid) != getpid() || syscall(SYS_gettid) != getpid())
                    _exit(1);
            _exit(getppid() == 0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    for (int i = 0; i < THREADS; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    static uint64_t words[THREADS * EACH + 1];
    CHECK(pread(shared, words, sizeof words, 0) == THREADS * EACH * 8);
    uint64_t next[THREADS] = {0};
    for (int i = 0; i < THREADS * EACH; i++) {
        uint64_t thread = words[i] >> 32;
        CHECK(thread < THREADS && (uint32_t)words[i] == next[thread]);
        next[thread]++;
    }
    close(shared);
    OK("threads write each record once");
}

/* What a number stands for changes between two calls. */
static void checks_descriptors(void)
{
    char name[] = "exitless-XXXXXX";
    int other = mkstemp(name), byte = 0;
    CHECK(other >= 0 && unlink(name) == 0);
    CHECK(write(other, "other", 5) == 5);
    int used = dup(file);
    CHECK(used >= 0);
    for (int round = 0; round < 30; round++) {
        for (int i = 0; i < 60; i++)
            CHECK(pread(used, &byte, 1, 8) == 1 && byte == 1);
        CHECK(dup2(other, used) == used);
        byte = 0;
        for (int i = 0; i < 60; i++)
            CHECK(pread(used, &byte, 1, 0) == 1 && byte == 'o');
        CHECK(close(used) == 0);
        CHECK(pread(used, &byte, 1, 0) == -1 && errno == EBADF);
        used = dup(file);
        byte = 0;
    }
    CHECK(fcntl(used, F_GETFD) >= 0);
    close(used);
    close(other);
    OK("a number stands for what it was made to stand for");
}

static void checks_errors(void)
{
    char byte;
    for (int i = 0; i < 300; i++) {
        CHECK(pread(file, &byte, 1, 0) == 1);
        if (i % 20)
            continue;
        CHECK(syscall(SYS_pread64, file, 8, 1, 0) == -1 && errno == EFAULT);
        CHECK(syscall(SYS_read, file, 0x7fffffff0000, 1) == -1 && errno == EFAULT);
        CHECK(pread(file, &byte, 1, -1) == -1 && errno == EINVAL);
        CHECK(pread(12345, &byte, 1, 0) == -1 && errno == EBADF);
        CHECK(lseek(file, -1, SEEK_SET) == -1 && errno == EINVAL);
        CHECK(lseek(file, 0, 77) == -1 && errno == EINVAL);
        CHECK(syscall(SYS_fstat, file, 8) == -1 && errno == EFAULT);
        CHECK(syscall(SYS_readv, file, 8, 1) == -1 && errno == EFAULT);
        CHECK(syscall(SYS_readv, file, 0, -1) == -1 && errno == EINVAL);
    }
    /* The reader is gone: SIGPIPE comes with the error, before anything else is done. */
    int ends[2], go[2];
    CHECK(pipe(ends) == 0 && pipe(go) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(read(go[0], &byte, 1) == 1);
        for (int i = 0; i < 100; i++)
            CHECK(write(ends[1], &byte, 1) == 1);
        close(ends[0]);
        (void)!write(ends[1], &byte, 1);
        (void)!write(STDOUT_FILENO, "went on\n", 8);
        _exit(7);
    }
    close(ends[0]);
    CHECK(write(go[1], &byte, 1) == 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGPIPE);
    close(ends[1]), close(go[0]), close(go[1]);
    OK("errors are those of each call");
}

/* Calls with an effect at home that cannot happen twice, with a signal each millisecond. */
static void *makes(void *argument)
{
    uint64_t random = (uint64_t)argument;
    char name[64], other[64], target[64], found[64], directory[256], inside[256];
    snprintf(name, sizeof name, "exitless-%d-%lu", getpid(), (unsigned long)random);
    CHECK(mkdir(name, 0700) == 0);
    int at = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    CHECK(at >= 0);
    CHECK(getcwd(directory, sizeof directory) != NULL);
    unsigned kept = 0;
    for (unsigned i = 0; i < 400; i++) {
        snprintf(name, sizeof name, "%u", i);
        CHECK(openat(at, name, O_RDONLY) == -1 && errno == ENOENT);
        CHECK(faccessat(at, name, F_OK, 0) == -1 && errno == ENOENT);
        int made = openat(at, name, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
        CHECK(made >= 0);
        CHECK(write(made, name, strlen(name)) == (ssize_t)strlen(name));
        CHECK(fcntl(made, F_GETFD) == FD_CLOEXEC);
        CHECK(close(made) == 0);
        CHECK(openat(at, name, O_WRONLY | O_CREAT | O_EXCL, 0600) == -1 && errno == EEXIST);
        struct stat status;
        CHECK(fstatat(at, name, &status, 0) == 0 && status.st_size == (off_t)strlen(name));
        snprintf(target, sizeof target, "to %u", i);
        snprintf(other, sizeof other, "link %u", i);
        CHECK(symlinkat(target, at, other) == 0);
        ssize_t length = readlinkat(at, other, found, sizeof found);
        CHECK(length == (ssize_t)strlen(target) && memcmp(found, target, (size_t)length) == 0);
        CHECK(unlinkat(at, other, 0) == 0);
        int back = openat(at, name, O_RDONLY);
        CHECK(back >= 0);
        memset(found, 0, sizeof found);
        CHECK(read(back, found, sizeof found) == (ssize_t)strlen(name) && strcmp(found, name) == 0);
        int copy = dup(back);
        CHECK(copy >= 0 && lseek(copy, 0, SEEK_CUR) == (off_t)strlen(name));
        CHECK(close(back) == 0 && close(copy) == 0);
        snprintf(other, sizeof other, "kept %u", i);
        switch (next_random(&random) % 3) {
        case 0: CHECK(unlinkat(at, name, 0) == 0); break;
        case 1: CHECK(renameat(at, name, at, other) == 0); CHECK(unlinkat(at, other, 0) == 0); break;
        default: kept++; break;
        }
        CHECK(getppid() > 0 && getcwd(inside, sizeof inside) != NULL && strcmp(inside, directory) == 0);
    }
    unsigned seen = 0;
    static __thread char entries[4096];
    for (long got; (got = syscall(SYS_getdents64, at, entries, sizeof entries)) > 0;) {
        for (long place = 0; place < got;) {
            seen += entries[place + 19] != '.';
            CHECK(unlinkat(at, entries + place + 19, 0) == 0 || entries[place + 19] == '.');
            unsigned short size;
            memcpy(&size, entries + place + 16, 2);
            place += size;
        }
    }
    CHECK(seen == kept);
    snprintf(name, sizeof name, "exitless-%d-%lu", getpid(), (unsigned long)(uint64_t)argument);
    CHECK(close(at) == 0 && rmdir(name) == 0);
    CHECK(rmdir(name) == -1 && errno == ENOENT);
    return NULL;
}

static void checks_effects(void)
{
    set_timer(1000);
    makes((void *)1);
    pthread_t threads[2];
    for (uint64_t i = 0; i < 2; i++)
        CHECK(pthread_create(&threads[i], NULL, makes, (void *)(i + 2)) == 0);
    for (int i = 0; i < 2; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    set_timer(0);
    OK("each effect happens once");
}

static volatile sig_atomic_t arrived;

static void arrives(int number)
{
    arrived = arrived * 100 + number;
}

/* What is unblocked while it waits is delivered before the call is over. */
static void checks_masks(void)
{
    struct sigaction action = {.sa_handler = arrives}, old;
    sigset_t two, one, before;
    sigemptyset(&two), sigemptyset(&one);
    sigaddset(&two, SIGUSR1), sigaddset(&two, SIGUSR2), sigaddset(&one, SIGUSR1);
    for (int i = 1; i <= 64; i++) {
        if (i == SIGKILL || i == SIGSTOP || i == 32 || i == 33)
            continue;
        CHECK(sigaction(i, NULL, &old) == 0);
    }
    for (int round = 0; round < 200; round++) {
        action.sa_flags = round % 2 ? SA_RESTART : 0;
        CHECK(sigaction(SIGUSR1, &action, NULL) == 0 && sigaction(SIGUSR2, &action, &old) == 0);
        CHECK(sigaction(SIGUSR1, NULL, &old) == 0 && old.sa_handler == arrives);
        CHECK((old.sa_flags & SA_RESTART) == action.sa_flags);
        CHECK(sigprocmask(SIG_BLOCK, &two, &before) == 0 && !sigismember(&before, SIGUSR1));
        arrived = 0;
        if (round % 8 == 0) {
            CHECK(raise(SIGUSR1) == 0 && kill(getpid(), SIGUSR2) == 0 && arrived == 0);
            CHECK(sigprocmask(SIG_UNBLOCK, &one, NULL) == 0 && arrived == SIGUSR1);
        } else {
            CHECK(sigprocmask(SIG_UNBLOCK, &one, NULL) == 0 && arrived == 0);
        }
        CHECK(sigprocmask(SIG_SETMASK, &before, &one) == 0);
        CHECK(sigismember(&one, SIGUSR2) && !sigismember(&one, SIGUSR1));
        CHECK(arrived == (round % 8 == 0 ? SIGUSR1 * 100 + SIGUSR2 : 0));
        sigemptyset(&one), sigaddset(&one, SIGUSR1);
        /* What is ignored while it waits is gone. */
        if (round % 16 == 0) {
            CHECK(sigprocmask(SIG_BLOCK, &two, NULL) == 0 && raise(SIGUSR1) == 0);
            CHECK(signal(SIGUSR1, SIG_IGN) == arrives);
            CHECK(sigprocmask(SIG_UNBLOCK, &two, NULL) == 0);
        }
        CHECK(sigprocmask(77, &one, NULL) == -1 && errno == EINVAL);
        CHECK(syscall(SYS_rt_sigprocmask, SIG_BLOCK, 8, 0, 8) == -1 && errno == EFAULT);
        CHECK(syscall(SYS_rt_sigaction, SIGKILL, &action, 0, 8) == -1 && errno == EINVAL);
    }
    OK("masks and actions are those of each call");
}

/* Requests and answers over a socket, by the calls that servers make. */
static void checks_sockets(void)
{
    int ends[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    uint64_t words[200], random = 9;
    if (child == 0) {
        close(ends[0]);
        for (ssize_t got; (got = recv(ends[1], words, sizeof words, 0)) > 0;) {
            for (ssize_t done = 0; done < got;) {
                ssize_t put = send(ends[1], (char *)words + done, (size_t)(got - done), MSG_NOSIGNAL);
                CHECK(put > 0);
                done += put;
            }
        }
        _exit(0);
    }
    close(ends[1]);
    for (uint64_t round = 0; round < 1500; round++) {
        size_t count = 1 + next_random(&random) % 200;
        for (size_t k = 0; k < count; k++)
            words[k] = round << 16 | k;
        CHECK(recv(ends[0], words + 100, 8, MSG_DONTWAIT) == -1 && errno == EAGAIN);
        CHECK(send(ends[0], words, count * 8, 0) == (ssize_t)count * 8);
        memset(words, 0, sizeof words);
        for (size_t done = 0; done < count * 8;) {
            ssize_t got = recv(ends[0], (char *)words + done, count * 8 - done, 0);
            CHECK(got > 0);
            done += (size_t)got;
        }
        for (size_t k = 0; k < count; k++)
            CHECK(words[k] == (round << 16 | k));
        char byte;
        if (round % 100 == 0) {
            CHECK(send(ends[0], "xy", 2, 0) == 2);
            CHECK(recv(ends[0], &byte, 1, MSG_PEEK | MSG_WAITALL) == 1 && byte == 'x');
            CHECK(recv(ends[0], words, 2, MSG_WAITALL) == 2);
        }
    }
    CHECK(shutdown(ends[0], SHUT_WR) == 0);
    CHECK(recv(ends[0], words, 8, 0) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(send(ends[0], words, 8, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    close(ends[0]);
    OK("sockets carry each word once");
}

static uint64_t milliseconds(void)
{
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* A server that waits for several clients, as event loops do. */
static void checks_events(void)
{
    enum { CLIENTS = 5, ROUNDS = 400 };
    int set = epoll_create1(EPOLL_CLOEXEC), ends[CLIENTS][2];
    CHECK(set >= 0);
    pid_t children[CLIENTS];
    for (int i = 0; i < CLIENTS; i++) {
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, ends[i]) == 0);
        children[i] = fork();
        CHECK(children[i] >= 0);
        if (children[i] == 0) {
            close(ends[i][0]);
            for (uint64_t round = 0; round < ROUNDS; round++) {
                uint64_t word = round * 10 + (uint64_t)i, back;
                CHECK(write(ends[i][1], &word, 8) == 8);
                CHECK(read(ends[i][1], &back, 8) == 8 && back == word + 1);
            }
            _exit(0);
        }
        close(ends[i][1]);
        struct epoll_event event = {.events = EPOLLIN | (i % 2 ? EPOLLET : 0), .data.u32 = (uint32_t)i};
        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, ends[i][0], &event) == 0);
    }
    uint64_t rounds[CLIENTS] = {0}, over = 0;
    while (over < CLIENTS) {
        struct epoll_event events[3];
        int count = epoll_wait(set, events, 3, -1);
        CHECK(count > 0 && count <= 3);
        for (int k = 0; k < count; k++) {
            uint64_t word, i = events[k].data.u32;
            ssize_t got = read(ends[i][0], &word, 8);
            if (got == 0) {
                /* Another child has it too, so it would stay in the set. */
                CHECK(epoll_ctl(set, EPOLL_CTL_DEL, ends[i][0], NULL) == 0);
                CHECK(close(ends[i][0]) == 0);
                over++;
                continue;
            }
            CHECK(got == 8 && word == rounds[i] * 10 + i);
            rounds[i]++;
            word++;
            CHECK(write(ends[i][0], &word, 8) == 8);
        }
    }
    for (int i = 0; i < CLIENTS; i++) {
        int status;
        CHECK(rounds[i] == ROUNDS && waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
    struct epoll_event event = {.events = EPOLLIN};
    /* All are closed: nothing comes, and the time is kept. */
    uint64_t before = milliseconds();
    CHECK(epoll_wait(set, &event, 1, 30) == 0 && milliseconds() - before >= 30);
    CHECK(epoll_wait(set, &event, 1, 0) == 0);
    CHECK(epoll_wait(set, &event, 0, 0) == -1 && errno == EINVAL);
    CHECK(syscall(SYS_epoll_wait, set, 8, 1, 0) == 0 || errno == EFAULT);
    CHECK(epoll_wait(file, &event, 1, 0) == -1 && errno == EINVAL);
    struct sigaction action = {.sa_handler = arrives};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    pid_t waker = fork();
    if (waker == 0) {
        usleep(50000);
        _exit(kill(getppid(), SIGUSR1) != 0);
    }
    arrived = 0;
    CHECK(epoll_wait(set, &event, 1, 20000) == -1 && errno == EINTR && arrived == SIGUSR1);
    int status;
    CHECK(waitpid(waker, &status, 0) == waker && status == 0);
    /* A counter, and then a file that asks whose signals are meant. */
    int counter = eventfd(0, EFD_NONBLOCK);
    event.events = EPOLLIN, event.data.u64 = 77;
    CHECK(counter >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, counter, &event) == 0);
    uint64_t word = 3;
    for (int i = 0; i < 50; i++) {
        CHECK(epoll_wait(set, &event, 1, 0) == 0);
        CHECK(write(counter, &word, 8) == 8);
        CHECK(epoll_wait(set, &event, 1, -1) == 1 && event.data.u64 == 77);
        CHECK(read(counter, &word, 8) == 8 && word == 3);
        CHECK(read(counter, &word, 8) == -1 && errno == EAGAIN);
    }
    sigset_t one;
    sigemptyset(&one), sigaddset(&one, SIGUSR2);
    CHECK(sigprocmask(SIG_BLOCK, &one, NULL) == 0);
    int told = signalfd(-1, &one, SFD_NONBLOCK | SFD_CLOEXEC);
    event.events = EPOLLIN, event.data.u64 = 78;
    CHECK(told >= 0 && epoll_ctl(set, EPOLL_CTL_ADD, told, &event) == 0);
    for (int i = 0; i < 20; i++) {
        CHECK(epoll_wait(set, &event, 1, 0) == 0);
        CHECK(kill(getpid(), SIGUSR2) == 0);
        CHECK(epoll_wait(set, &event, 1, 10000) == 1 && event.data.u64 == 78);
        struct signalfd_siginfo info;
        CHECK(read(told, &info, sizeof info) == sizeof info && info.ssi_signo == SIGUSR2);
    }
    close(told), close(counter), close(set);
    CHECK(sigprocmask(SIG_UNBLOCK, &one, NULL) == 0);
    OK("events are told as they come");
}

static volatile sig_atomic_t traps;

static void steps(int number)
{
    (void)number;
    traps++;
}

/* One instruction at a time, system calls too. */
static void checks_steps(void)
{
    struct sigaction action = {.sa_handler = steps};
    CHECK(sigaction(SIGTRAP, &action, NULL) == 0);
    long sum = 0;
    __asm__ volatile("pushfq\n orq $0x100,(%%rsp)\n popfq\n"
                     "mov $39,%%eax\n syscall\n mov %%rax,%0\n"
                     "mov $186,%%eax\n syscall\n add %%rax,%0\n"
                     "pushfq\n andq $~0x100,(%%rsp)\n popfq\n"
                     : "=&r"(sum) : : "rax", "rcx", "r11", "cc", "memory");
    CHECK(sum == 2L * getpid());
    CHECK(traps > 4);
    OK("calls are stepped over");
}

static void checks_identity(char **argv)
{
    for (int i = 0; i < 50; i++)
        CHECK(syscall(SYS_getpid) == getpid() && syscall(SYS_gettid) == getpid());
    for (int round = 0; round < 5; round++) {
        pid_t child = vfork();
        if (child == 0) {
            pid_t first = (pid_t)syscall(SYS_getpid);
            for (int i = 0; i < 50; i++)
                if (syscall(SYS_getpid) != first || syscall(SYS_gettid) != first)
                    _exit(1);
            _exit(0);
        }
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 0);
        CHECK(syscall(SYS_getpid) == getpid() && syscall(SYS_gettid) == getpid());
    }
    pid_t child;
    char *arguments[] = {argv[0], "again", NULL}, *nothing[] = {NULL};
    CHECK(posix_spawn(&child, argv[0], NULL, NULL, arguments, nothing) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 5);
    OK("each process knows who it is");
}

int main(int argc, char **argv)
{
    if (argc > 1) {
        for (int i = 0; i < 50; i++)
            CHECK(syscall(SYS_getpid) == getpid() && syscall(SYS_gettid) == getpid());
        return 5;
    }
    file = mkstemp(path);
    CHECK(file >= 0 && unlink(path) == 0);
    static uint64_t words[BLOCK];
    for (uint64_t record = 0; record < RECORDS; record++) {
        for (uint64_t k = 0; k < BLOCK; k++)
            words[k] = record * BLOCK + k;
        CHECK(write(file, words, sizeof words) == sizeof words);
    }
    CHECK(lseek(file, 0, SEEK_SET) == 0);
    uint64_t random = 20261121;
    checks_offsets(&random);
    checks_registers(&random);
    checks_signals();
    checks_pipes();
    checks_threads();
    checks_descriptors();
    checks_errors();
    checks_effects();
    checks_masks();
    checks_sockets();
    checks_events();
    checks_steps();
    checks_identity(argv);
    return 0;
}
