/* Files that are read and written often, in every way in which somebody could notice who does it. */
#include "check.h"
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define ROUNDS 200

/* Not constants, so that the compiler does not object. */
static void *volatile nowhere = (void *)8;
static volatile int too_many = -1;

static volatile sig_atomic_t seen;
static void note(int signal) { seen = signal; }

static void handle(int signal, int flags)
{
    struct sigaction action = {.sa_handler = note, .sa_flags = flags};
    CHECK(sigaction(signal, &action, NULL) == 0);
}

/* Each thread opens files of its own under numbers that others have just closed. */
static void *numbers(void *argument)
{
    long self = (long)argument;
    char name[32], text[16], expected[16];
    snprintf(name, sizeof name, "numbered-%ld", self);
    for (int round = 0; round < ROUNDS; round++) {
        int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(fd >= 0);
        int length = snprintf(expected, sizeof expected, "%ld:%d", self, round);
        for (int i = 0; i < 3; i++)
            CHECK(pwrite(fd, expected, (size_t)length, i * 100) == length);
        for (int i = 0; i < 3; i++) {
            memset(text, 0, sizeof text);
            CHECK(pread(fd, text, (size_t)length, i * 100) == length);
            CHECK(strcmp(text, expected) == 0);
        }
        if (round % 3 == 0) {
            int other = open("/dev/null", O_WRONLY);
            CHECK(other >= 0 && dup2(other, fd) == fd && close(other) == 0);
            CHECK(read(fd, text, 1) == -1 && errno == EBADF);
        }
        CHECK(close(fd) == 0);
    }
    return NULL;
}

static void reused_numbers(void)
{
    pthread_t threads[6];
    for (long i = 0; i < 6; i++)
        CHECK(pthread_create(&threads[i], NULL, numbers, (void *)i) == 0);
    for (int i = 0; i < 6; i++)
        CHECK(pthread_join(threads[i], NULL) == 0);
    puts("ok numbers that are used again and again");
}

static void use(int fd, int times)
{
    for (int i = 0; i < times; i++)
        CHECK(write(fd, "x", 1) == 1);
}

static void pipe_ends(void)
{
    int p[2];
    char byte;
    CHECK(pipe(p) == 0);
    use(p[1], 4);
    for (int i = 0; i < 4; i++)
        CHECK(read(p[0], &byte, 1) == 1);
    int copy = dup(p[1]);
    CHECK(close(p[1]) == 0);
    use(copy, 2);
    CHECK(read(p[0], &byte, 1) == 1 && read(p[0], &byte, 1) == 1);
    CHECK(close(copy) == 0);
    CHECK(read(p[0], &byte, 1) == 0);
    CHECK(close(p[0]) == 0);

    /* A child that is killed leaves nothing open. */
    for (int round = 0; round < 8; round++) {
        int ready[2];
        CHECK(pipe(p) == 0 && pipe(ready) == 0);
        pid_t child = fork();
        if (child == 0) {
            char bytes[16];
            close(p[1]);
            for (int i = 0; i < 4; i++)
                CHECK(read(p[0], bytes, 1) == 1);
            CHECK(write(ready[1], "", 1) == 1);
            for (;;)
                CHECK(read(p[0], bytes, 1) == 1);
        }
        close(p[0]);
        use(p[1], 4);
        CHECK(read(ready[0], &byte, 1) == 1);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
        CHECK(write(p[1], "x", 1) == -1 && errno == EPIPE && seen == SIGPIPE);
        seen = 0;
        close(p[1]);
        close(ready[0]);
        close(ready[1]);
    }
    puts("ok the ends of pipes");
}

static void shared_offsets(void)
{
    char text[8] = "";
    int fd = open("shared", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    for (int i = 0; i < 4; i++)
        CHECK(write(fd, "0123456789", 10) == 10);
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, text, 3) == 3);
    pid_t child = fork();
    if (child == 0)
        _exit(read(fd, text, 4) == 4 && memcmp(text, "3456", 4) == 0 && lseek(fd, 0, SEEK_CUR) == 7 ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(lseek(fd, 0, SEEK_CUR) == 7 && read(fd, text, 1) == 1 && text[0] == '7');
    int copy = dup(fd);
    CHECK(lseek(copy, 2, SEEK_SET) == 2 && read(fd, text, 1) == 1 && text[0] == '2');
    CHECK(fcntl(fd, F_SETFL, O_APPEND) == 0 && write(copy, "end", 3) == 3 && lseek(fd, 0, SEEK_CUR) == 43);
    struct stat status_of;
    CHECK(fstat(fd, &status_of) == 0 && status_of.st_size == 43);
    CHECK(ftruncate(fd, 5) == 0 && fstat(copy, &status_of) == 0 && status_of.st_size == 5);
    CHECK(pread(fd, text, 8, 3) == 2 && pread(fd, text, 8, 5) == 0 && pread(fd, text, 8, -1) == -1 && errno == EINVAL);
    CHECK(lseek(fd, -1, SEEK_SET) == -1 && errno == EINVAL);
    CHECK(read(fd, nowhere, 1) == 0);
    CHECK(lseek(fd, 0, SEEK_SET) == 0 && read(fd, nowhere, 1) == -1 && errno == EFAULT);
    CHECK(write(fd, nowhere, 1) == -1 && errno == EFAULT);
    CHECK(close(fd) == 0 && close(copy) == 0);
    puts("ok offsets that processes and numbers share");
}

static void vectors(void)
{
    static char big[3 << 20], back[3 << 20];
    int fd = open("vector", O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (size_t i = 0; i < sizeof big; i++)
        big[i] = (char)(i * 2654435761u >> 13);
    struct iovec parts[3] = {{big, 1}, {big + 1, 0}, {big + 1, sizeof big - 1}};
    for (int i = 0; i < 3; i++) {
        CHECK(lseek(fd, 0, SEEK_SET) == 0 && writev(fd, parts, 3) == (ssize_t)sizeof big);
        struct iovec into[2] = {{back, 12345}, {back + 12345, sizeof back - 12345}};
        CHECK(lseek(fd, 0, SEEK_SET) == 0 && readv(fd, into, 2) == (ssize_t)sizeof back);
        CHECK(memcmp(big, back, sizeof big) == 0);
        memset(back, 0, sizeof back);
    }
    CHECK(readv(fd, parts, too_many) == -1 && errno == EINVAL);
    CHECK(close(fd) == 0 && write(fd, big, 1) == -1 && errno == EBADF);
    puts("ok vectors");
}

static void waiting(int p[2], const char *what)
{
    static char buffer[1 << 18];
    char byte;
    use(p[1], 3);
    for (int i = 0; i < 3; i++)
        CHECK(read(p[0], &byte, 1) == 1);
    /* A handler breaks a read off, or it goes on. */
    handle(SIGALRM, 0);
    /* Again and again: the first may come before the call. */
    struct itimerval soon = {.it_value = {.tv_usec = 20000}, .it_interval = {.tv_usec = 20000}}, never = {0};
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    CHECK(read(p[0], &byte, 1) == -1 && errno == EINTR && seen == SIGALRM);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    handle(SIGALRM, SA_RESTART);
    seen = 0;
    pid_t child = fork();
    if (child == 0) {
        usleep(60000);
        _exit(write(p[1], "y", 1) == 1 ? 0 : 1);
    }
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    CHECK(read(p[0], &byte, 1) == 1 && byte == 'y' && seen == SIGALRM);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(waitpid(child, NULL, 0) == child);
    /* A write that fills it is broken off where it stands. */
    handle(SIGALRM, 0);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    ssize_t put = 0, more;
    while ((more = write(p[1], buffer, sizeof buffer)) == (ssize_t)sizeof buffer)
        put += more;
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    put += more > 0 ? more : 0;
    CHECK(more > 0 || seen == SIGALRM);
    CHECK(fcntl(p[1], F_SETFL, O_NONBLOCK) == 0);
    while ((more = write(p[1], buffer, 1)) == 1)
        put++;
    CHECK(more == -1 && errno == EAGAIN);
    CHECK(fcntl(p[0], F_SETFL, O_NONBLOCK) == 0);
    while ((more = read(p[0], buffer, sizeof buffer)) > 0)
        put -= more;
    CHECK(more == -1 && errno == EAGAIN && put == 0);
    CHECK(fcntl(p[0], F_SETFL, 0) == 0 && fcntl(p[1], F_SETFL, 0) == 0);
    /* Much goes through, in order, between processes. */
    child = fork();
    if (child == 0) {
        unsigned word = 0;
        for (int i = 0; i < 64; i++) {
            unsigned *words = (unsigned *)buffer;
            for (size_t k = 0; k < sizeof buffer / 4; k++)
                words[k] = word++;
            CHECK(write(p[1], buffer, sizeof buffer) == (ssize_t)sizeof buffer);
        }
        _exit(0);
    }
    unsigned expected = 0;
    for (size_t left = 64 * sizeof buffer, kept = 0; left > 0;) {
        ssize_t got = read(p[0], buffer + kept, sizeof buffer - kept);
        CHECK(got > 0);
        left -= (size_t)got;
        size_t have = kept + (size_t)got;
        for (size_t k = 0; k < have / 4; k++)
            CHECK(((unsigned *)buffer)[k] == expected++);
        kept = have % 4;
        memmove(buffer, buffer + have - kept, kept);
    }
    CHECK(waitpid(child, NULL, 0) == child);
    CHECK(close(p[0]) == 0 && close(p[1]) == 0);
    printf("ok waiting for %s\n", what);
}

static void limits(void)
{
    int fd = open("limited", O_RDWR | O_CREAT | O_TRUNC, 0600);
    use(fd, 3);
    struct rlimit limit = {10, RLIM_INFINITY};
    handle(SIGXFSZ, 0);
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    CHECK(write(fd, "0123456789", 10) == 7);
    CHECK(write(fd, "0123456789", 10) == -1 && errno == EFBIG && seen == SIGXFSZ);
    limit.rlim_cur = RLIM_INFINITY;
    CHECK(setrlimit(RLIMIT_FSIZE, &limit) == 0);
    use(fd, 3);
    CHECK(lseek(fd, 0, SEEK_END) == 13 && close(fd) == 0);
    puts("ok a limit on the size of files");
}

int main(void)
{
    int p[2];
    handle(SIGPIPE, 0);
    reused_numbers();
    pipe_ends();
    shared_offsets();
    vectors();
    CHECK(pipe(p) == 0);
    waiting(p, "a pipe");
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, p) == 0);
    waiting(p, "a socket");
    limits();
    return 0;
}
