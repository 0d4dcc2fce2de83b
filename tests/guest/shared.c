/* Shared mappings of files: one memory with every other mapping, with read and write, and with those
 * who cut the file under it. */
#include "check.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define RW (PROT_READ | PROT_WRITE)
#define MIB (1UL << 20)

static sigjmp_buf back;
static char *volatile fault_at;
static volatile int fault_signal, fault_code;

static void on_fault(int number, siginfo_t *info, void *context)
{
    (void)context;
    fault_signal = number, fault_at = info->si_addr, fault_code = info->si_code;
    siglongjmp(back, 1);
}

/* The signal of touching `address`, or 0. */
static int touch(char *address, int write)
{
    fault_at = NULL;
    if (sigsetjmp(back, 1))
        return fault_signal;
    if (write)
        *(volatile char *)address = 1;
    else
        (void)*(volatile char *)address;
    return 0;
}

static void reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static int make(const char *name, off_t size)
{
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0 && ftruncate(fd, size) == 0);
    return fd;
}

static char *map(int fd, size_t size, int protection, off_t offset)
{
    char *at = mmap(NULL, size, protection, MAP_SHARED, fd, offset);
    CHECK(at != MAP_FAILED);
    return at;
}

static void coherence(void)
{
    char text[16];
    int fd = make("one", 8 * PAGE), other = open("one", O_RDWR), reader = open("one", O_RDONLY);
    char *a = map(fd, 8 * PAGE, RW, 0), *b = map(other, 4 * PAGE, RW, 2 * PAGE), *c = map(reader, 8 * PAGE, PROT_READ, 0);
    CHECK(touch(a, 0) == 0 && touch(b, 0) == 0 && touch(c, 0) == 0);
    strcpy(a + 2 * PAGE, "through a");
    CHECK(strcmp(b, "through a") == 0 && strcmp(c + 2 * PAGE, "through a") == 0);
    CHECK(pread(reader, text, 10, 2 * PAGE) == 10 && strcmp(text, "through a") == 0);
    CHECK(pwrite(other, "written", 8, 3 * PAGE) == 8);
    CHECK(strcmp(a + 3 * PAGE, "written") == 0 && strcmp(b + PAGE, "written") == 0 && strcmp(c + 3 * PAGE, "written") == 0);
    pid_t child = fork();
    if (child == 0) {
        strcpy(a + 5 * PAGE, "inherited");
        int mine = open("one", O_RDWR);
        char *d = map(mine, 8 * PAGE, RW, 0);
        strcpy(d + 6 * PAGE, "opened anew");
        _exit(strcmp(d + 5 * PAGE, "inherited") != 0);
    }
    reap(child);
    CHECK(strcmp(b + 3 * PAGE, "inherited") == 0 && strcmp(c + 6 * PAGE, "opened anew") == 0);
    CHECK(mprotect(c, PAGE, RW) == -1 && errno == EACCES);
    CHECK(mmap(NULL, PAGE, RW, MAP_SHARED, reader, 0) == MAP_FAILED && errno == EACCES);
    char *d = map(fd, PAGE, PROT_READ, 0);
    CHECK(touch(d, 1) == SIGSEGV && mprotect(d, PAGE, RW) == 0 && touch(d, 1) == 0 && c[0] == 1);
    /* A private one shows what is there, and keeps what it writes to itself. */
    char *e = mmap(NULL, 8 * PAGE, RW, MAP_PRIVATE, fd, 0);
    CHECK(e != MAP_FAILED && strcmp(e + 6 * PAGE, "opened anew") == 0);
    strcpy(e + 6 * PAGE, "own"), strcpy(e + 7 * PAGE, "own");
    CHECK(strcmp(a + 6 * PAGE, "opened anew") == 0 && a[7 * PAGE] == 0);
    CHECK(msync(a, 8 * PAGE, MS_SYNC) == 0 && msync(a, 8 * PAGE, MS_ASYNC) == 0 && msync(a + 1, 1, MS_SYNC) == -1 && errno == EINVAL);
    CHECK(munmap(a, 8 * PAGE) == 0 && munmap(b, 4 * PAGE) == 0 && munmap(c, 8 * PAGE) == 0 && munmap(d, PAGE) == 0);
    CHECK(pread(fd, text, 12, 6 * PAGE) == 12 && strcmp(text, "opened anew") == 0);
    close(fd), close(other), close(reader);
    OK("mappings, reads and writes are one");

    /* Over the borders of what may be mapped as one piece, there and back by another mapping. */
    fd = make("big", 40 * MIB + 100);
    a = map(fd, 48 * MIB, RW, 0), b = map(fd, 32 * MIB, RW, 5 * MIB + PAGE);
    uint64_t random = 7;
    for (int i = 0; i < 300; i++) {
        unsigned long page = next_random(&random) % (32 * MIB / PAGE);
        number_page((i & 1 ? b : a + 5 * MIB + PAGE) + page * PAGE, page + 1);
        CHECK(page_has((i & 1 ? a + 5 * MIB + PAGE : b) + page * PAGE, page + 1));
    }
    char page[PAGE];
    random = 7;
    for (int i = 0; i < 300; i++) {
        unsigned long number = next_random(&random) % (32 * MIB / PAGE);
        CHECK(pread(fd, page, PAGE, (off_t)(5 * MIB + PAGE + number * PAGE)) == (ssize_t)PAGE && page_has(page, number + 1));
    }
    CHECK(touch(a + 40 * MIB + 99, 1) == 0 && touch(a + 40 * MIB + PAGE, 0) == SIGBUS);
    char *moved = mremap(b, 32 * MIB, 34 * MIB, MREMAP_MAYMOVE);
    CHECK(moved != MAP_FAILED && memcmp(moved, a + 5 * MIB + PAGE, 34 * MIB) == 0);
    CHECK(munmap(a, 48 * MIB) == 0 && munmap(moved, 34 * MIB) == 0 && ftruncate(fd, 0) == 0);
    close(fd);
    OK("large files, too");
}

static void locks_stay(void)
{
    int fd = make("locked", PAGE);
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    CHECK(fcntl(fd, F_SETLK, &lock) == 0);
    char *a = map(fd, PAGE, RW, 0), *b = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, fd, 0);
    CHECK(b != MAP_FAILED && touch(a, 1) == 0 && munmap(a, PAGE) == 0 && munmap(b, PAGE) == 0);
    pid_t child = fork();
    if (child == 0)
        _exit(!(fcntl(fd, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == getppid()));
    reap(child);
    close(fd);
    /* What one process has locked another may have mapped: the lock ends with its owner. */
    int mine = open("locked", O_RDWR);
    child = fork();
    if (child == 0) {
        int own = open("locked", O_RDWR);
        CHECK(flock(own, LOCK_EX) == 0 && touch(map(own, PAGE, RW, 0), 1) == 0);
        CHECK(mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE, own, 0) != MAP_FAILED && touch(map(mine, PAGE, RW, 0), 1) == 0);
        pid_t heir = fork();
        if (heir == 0) {
            close(own);
            execl("/bin/true", "true", NULL);
        }
        reap(heir);
        CHECK(flock(mine, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
        _exit(0);
    }
    a = map(mine, PAGE, RW, 0);
    CHECK(touch(a, 1) == 0);
    reap(child);
    CHECK(flock(mine, LOCK_EX | LOCK_NB) == 0 && munmap(a, PAGE) == 0);
    close(mine);
    OK("mapping a file keeps the locks on it");
}

static void ends(void)
{
    int fd = make("cut", 2 * PAGE + 10), zero = open("/dev/zero", O_RDONLY);
    char *a = map(fd, 16 * PAGE, RW, 0);
    memset(a, 'x', 2 * PAGE + 10);
    CHECK(a[2 * PAGE + 10] == 0 && touch(a + 3 * PAGE, 0) == SIGBUS && fault_at == a + 3 * PAGE && fault_code == BUS_ADRERR);
    CHECK(touch(a + 5 * PAGE + 7, 1) == SIGBUS && fault_at == a + 5 * PAGE + 7);
    CHECK(read(zero, a + 5 * PAGE, 10) == -1 && errno == EFAULT);
    CHECK(syscall(SYS_futex, a + 6 * PAGE, FUTEX_WAIT, 1, NULL, NULL, 0) == -1 && errno == EFAULT);
    CHECK(ftruncate(fd, 16 * PAGE) == 0 && touch(a + 5 * PAGE, 1) == 0 && read(zero, a + 6 * PAGE, 10) == 10);
    a[15 * PAGE] = 'y';
    /* Pages that were touched are gone with the file's end, and come again empty. */
    CHECK(ftruncate(fd, PAGE) == 0 && touch(a + PAGE, 0) == SIGBUS && touch(a + 15 * PAGE, 1) == SIGBUS && touch(a, 1) == 0);
    CHECK(read(zero, a + 2 * PAGE, 10) == -1 && errno == EFAULT && write(1, a + 2 * PAGE, 1) == -1 && errno == EFAULT);
    CHECK(ftruncate(fd, 16 * PAGE) == 0 && page_is_zero(a + PAGE) && page_is_zero(a + 15 * PAGE));
    strcpy(a + 15 * PAGE, "again");
    char text[6];
    CHECK(pread(fd, text, 6, 15 * PAGE) == 6 && strcmp(text, "again") == 0);
    OK("the file's end is a bus error");

    /* Another process cuts it all the time. */
    pid_t child = fork();
    if (child == 0) {
        for (;;)
            CHECK(ftruncate(fd, 0) == 0 && ftruncate(fd, 16 * PAGE) == 0);
    }
    int buses = 0, errors = 0;
    for (int i = 0; i < 1500; i++) {
        char *at = a + (i % 16) * PAGE;
        buses += touch(at, i & 1) == SIGBUS;
        errors += read(zero, at, 8) == -1;
        errors += syscall(SYS_futex, at, FUTEX_WAKE_OP, 1, 1, at, FUTEX_OP(FUTEX_OP_ADD, 1, FUTEX_OP_CMP_EQ, 0)) == -1;
    }
    CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
    CHECK(buses >= 0 && errors >= 0 && ftruncate(fd, 0) == 0 && ftruncate(fd, PAGE) == 0 && touch(a, 1) == 0);
    CHECK(pread(fd, text, 1, 0) == 1 && text[0] == 1 && munmap(a, 16 * PAGE) == 0);
    close(fd), close(zero);
    OK("whoever cuts it");
}

static void zeros_and_seals(void)
{
    int zero = open("/dev/zero", O_RDWR);
    char *a = map(zero, PAGE, RW, 0), *b = map(zero, PAGE, RW, 0);
    char *c = mmap(NULL, PAGE, RW, MAP_PRIVATE, zero, 0);
    pid_t child = fork();
    if (child == 0) {
        a[0] = 1, b[0] = 2, c[0] = 3;
        _exit(0);
    }
    reap(child);
    CHECK(a[0] == 1 && b[0] == 2 && c[0] == 0);
    CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, open("/dev/null", O_RDONLY), 0) == MAP_FAILED && errno == ENODEV);
    CHECK(mmap(NULL, PAGE, PROT_READ, MAP_SHARED, open(".", O_RDONLY), 0) == MAP_FAILED && errno == ENODEV);
    int memory = memfd_create("sealed", MFD_ALLOW_SEALING);
    CHECK(ftruncate(memory, 2 * PAGE) == 0);
    char *d = map(memory, 2 * PAGE, RW, 0);
    strcpy(d, "before the seal");
    CHECK(fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EBUSY);
    CHECK(munmap(d, 2 * PAGE) == 0 && fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE | F_SEAL_SHRINK) == 0);
    CHECK(mmap(NULL, PAGE, RW, MAP_SHARED, memory, 0) == MAP_FAILED && errno == EPERM);
    CHECK(ftruncate(memory, 0) == -1 && errno == EPERM);
    d = mmap(NULL, 2 * PAGE, PROT_READ, MAP_PRIVATE, memory, 0);
    CHECK(d != MAP_FAILED && strcmp(d, "before the seal") == 0);
    OK("zeros and seals");
}

struct meeting {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    sem_t turn;
    volatile long count;
};

static void posix(void)
{
    char name[64];
    snprintf(name, sizeof name, "/skein-test-%d", getpid());
    int fd = shm_open(name, O_RDWR | O_CREAT | O_EXCL, 0600);
    CHECK(fd >= 0 && ftruncate(fd, sizeof(struct meeting)) == 0);
    struct meeting *m = (struct meeting *)map(fd, sizeof *m, RW, 0);
    pthread_mutexattr_t shared;
    pthread_condattr_t shared_too;
    CHECK(pthread_mutexattr_init(&shared) == 0 && pthread_mutexattr_setpshared(&shared, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_mutexattr_setrobust(&shared, PTHREAD_MUTEX_ROBUST) == 0);
    CHECK(pthread_condattr_init(&shared_too) == 0 && pthread_condattr_setpshared(&shared_too, PTHREAD_PROCESS_SHARED) == 0);
    CHECK(pthread_mutex_init(&m->mutex, &shared) == 0 && pthread_cond_init(&m->changed, &shared_too) == 0);
    CHECK(sem_init(&m->turn, 1, 0) == 0);
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = fork();
        if (children[i])
            continue;
        /* By a mapping of its own, at another address. */
        CHECK(munmap(m, sizeof *m) == 0 && mmap(NULL, 3 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
        int again = shm_open(name, O_RDWR, 0);
        m = (struct meeting *)map(again, sizeof *m, RW, 0);
        for (int n = 0; n < 200; n++) {
            CHECK(pthread_mutex_lock(&m->mutex) == 0);
            m->count++;
            CHECK(pthread_cond_broadcast(&m->changed) == 0 && pthread_mutex_unlock(&m->mutex) == 0);
        }
        CHECK(sem_post(&m->turn) == 0);
        _exit(0);
    }
    CHECK(pthread_mutex_lock(&m->mutex) == 0);
    while (m->count < 800)
        CHECK(pthread_cond_wait(&m->changed, &m->mutex) == 0);
    CHECK(pthread_mutex_unlock(&m->mutex) == 0);
    for (int i = 0; i < 4; i++)
        CHECK(sem_wait(&m->turn) == 0);
    for (int i = 0; i < 4; i++)
        reap(children[i]);
    pid_t owner = fork();
    if (owner == 0)
        _exit(pthread_mutex_lock(&m->mutex)); /* and dies with it */
    reap(owner);
    CHECK(pthread_mutex_lock(&m->mutex) == EOWNERDEAD && pthread_mutex_consistent(&m->mutex) == 0);
    CHECK(pthread_mutex_unlock(&m->mutex) == 0 && m->count == 800 && shm_unlink(name) == 0);
    CHECK(shm_open(name, O_RDWR, 0) == -1 && errno == ENOENT);
    sem_t *named = sem_open(name, O_CREAT | O_EXCL, 0600, 0);
    CHECK(named != SEM_FAILED);
    pid_t child = fork();
    if (child == 0) {
        sem_t *opened = sem_open(name, 0);
        CHECK(opened != SEM_FAILED && sem_post(opened) == 0);
        _exit(0);
    }
    CHECK(sem_wait(named) == 0 && sem_trywait(named) == -1 && errno == EAGAIN && sem_unlink(name) == 0);
    reap(child);
    OK("POSIX shared memory, mutexes, conditions and semaphores");
}

static void many(void)
{
    char *at[100];
    for (int i = 0; i < 100; i++) {
        char name[20];
        snprintf(name, sizeof name, "m%d", i);
        int fd = make(name, PAGE);
        at[i] = map(fd, PAGE, RW, 0);
        snprintf(at[i], PAGE, "file %d", i);
        close(fd);
    }
    for (int i = 0; i < 100; i++) {
        char name[20], text[20] = "", wanted[20];
        snprintf(name, sizeof name, "m%d", i), snprintf(wanted, sizeof wanted, "file %d", i);
        int fd = open(name, O_RDONLY);
        CHECK(read(fd, text, 9) > 0 && strcmp(text, wanted) == 0 && munmap(at[i], PAGE) == 0 && unlink(name) == 0);
        close(fd);
    }
    OK("many of them");
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    CHECK(sigaction(SIGBUS, &action, NULL) == 0 && sigaction(SIGSEGV, &action, NULL) == 0);
    coherence();
    locks_stay();
    ends();
    zeros_and_seals();
    posix();
    many();
    return 0;
}
