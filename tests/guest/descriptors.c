/* Descriptors of the less usual kinds, between processes too. */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

static void reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static void edges(void)
{
    int epoll = epoll_create1(0), ends[2], event = eventfd(0, EFD_NONBLOCK);
    CHECK(epoll >= 0 && pipe2(ends, O_NONBLOCK) == 0);
    struct epoll_event wanted = {.events = EPOLLIN | EPOLLET, .data.u32 = 1}, got[8];
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &wanted) == 0);
    wanted = (struct epoll_event){.events = EPOLLIN | EPOLLET | EPOLLONESHOT, .data.u32 = 2};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == 0);
    CHECK(write(ends[1], "abc", 3) == 3 && epoll_wait(epoll, got, 8, -1) == 1 && got[0].data.u32 == 1);
    /* What is left unread is no new edge; what comes new is one. */
    char bytes[100];
    CHECK(epoll_wait(epoll, got, 8, 0) == 0 && read(ends[0], bytes, 1) == 1 && epoll_wait(epoll, got, 8, 20) == 0);
    CHECK(write(ends[1], "d", 1) == 1 && epoll_wait(epoll, got, 8, -1) == 1 && epoll_wait(epoll, got, 8, 0) == 0);
    CHECK(read(ends[0], bytes, 100) == 3 && read(ends[0], bytes, 100) == -1 && errno == EAGAIN);
    CHECK(eventfd_write(event, 1) == 0 && epoll_wait(epoll, got, 8, -1) == 1 && got[0].data.u32 == 2);
    CHECK(eventfd_write(event, 1) == 0 && epoll_wait(epoll, got, 8, 0) == 0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_MOD, event, &wanted) == 0 && epoll_wait(epoll, got, 8, -1) == 1);
    /* Another process writes; the epoll descriptor itself can be waited for. */
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 50; i++)
            while (write(ends[1], "0123456789", 10) != 10)
                CHECK(errno == EAGAIN);
        _exit(0);
    }
    int seen = 0;
    struct pollfd outer = {epoll, POLLIN, 0};
    while (seen < 500) {
        CHECK(poll(&outer, 1, -1) == 1 && epoll_wait(epoll, got, 8, 0) == 1 && got[0].data.u32 == 1);
        ssize_t count;
        while ((count = read(ends[0], bytes, sizeof bytes)) > 0)
            seen += (int)count;
        CHECK(count == -1 && errno == EAGAIN);
    }
    reap(child);
    CHECK(close(ends[1]) == 0 && epoll_wait(epoll, got, 8, -1) == 1 && (got[0].events & EPOLLHUP));
    CHECK(close(ends[0]) == 0 && epoll_wait(epoll, got, 8, 0) == 0);
    close(epoll), close(event);
    OK("epoll by edges");
}

static void pipes_without_copies(void)
{
    int in[2], out[2], file = open("spliced", O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(pipe(in) == 0 && pipe(out) == 0 && file >= 0);
    CHECK(write(in[1], "0123456789", 10) == 10 && tee(in[0], out[1], 4, 0) == 4);
    loff_t at = 100;
    CHECK(splice(in[0], NULL, file, &at, 10, SPLICE_F_MOVE) == 10 && at == 110);
    char bytes[20] = {0};
    CHECK(pread(file, bytes, 10, 100) == 10 && memcmp(bytes, "0123456789", 10) == 0);
    CHECK(read(out[0], bytes, 20) == 4 && memcmp(bytes, "0123", 4) == 0);
    at = 105;
    CHECK(splice(file, &at, in[1], NULL, 100, 0) == 5 && read(in[0], bytes, 20) == 5 && memcmp(bytes, "56789", 5) == 0);
    CHECK(splice(in[0], NULL, out[1], NULL, 5, SPLICE_F_NONBLOCK) == -1 && errno == EAGAIN);
    CHECK(fcntl(in[1], F_SETPIPE_SZ, 1 << 16) == 1 << 16 && fcntl(in[1], F_GETPIPE_SZ) == 1 << 16);
    /* One that waits, for another process. */
    pid_t child = fork();
    if (child == 0) {
        usleep(10000);
        CHECK(write(in[1], "late", 4) == 4);
        _exit(0);
    }
    CHECK(splice(in[0], NULL, out[1], NULL, 100, 0) == 4 && read(out[0], bytes, 20) == 4 && memcmp(bytes, "late", 4) == 0);
    reap(child);
    close(in[0]), close(in[1]), close(out[0]), close(out[1]), close(file);
    OK("splice and tee");
}

static void timers(void)
{
    int timer = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
    struct timespec now;
    CHECK(timer >= 0 && clock_gettime(CLOCK_REALTIME, &now) == 0);
    uint64_t expired;
    struct itimerspec past = {{0, 0}, {now.tv_sec - 1, 0}}, left;
    CHECK(timerfd_settime(timer, TFD_TIMER_ABSTIME, &past, NULL) == 0);
    struct pollfd polled = {timer, POLLIN, 0};
    CHECK(poll(&polled, 1, -1) == 1 && read(timer, &expired, 8) == 8 && expired == 1);
    CHECK(read(timer, &expired, 8) == -1 && errno == EAGAIN);
    struct itimerspec later = {{1, 0}, {100, 0}}, none = {{0, 0}, {0, 0}};
    CHECK(timerfd_settime(timer, 0, &later, NULL) == 0 && timerfd_gettime(timer, &left) == 0);
    CHECK(left.it_value.tv_sec >= 90 && left.it_value.tv_sec <= 100 && left.it_interval.tv_sec == 1);
    CHECK(timerfd_settime(timer, 0, &none, &left) == 0 && left.it_value.tv_sec >= 90);
    CHECK(timerfd_gettime(timer, &left) == 0 && left.it_value.tv_sec == 0 && left.it_value.tv_nsec == 0);
    close(timer);
    OK("timers as descriptors");
}

static void send_descriptor(int over, int fd)
{
    char control[CMSG_SPACE(sizeof fd)] = {0}, byte = 'd';
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    CHECK(sendmsg(over, &message, 0) == 1);
}

static int receive_descriptor(int over)
{
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte;
    struct iovec part = {&byte, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    CHECK(recvmsg(over, &message, MSG_CMSG_CLOEXEC) == 1);
    int fd;
    CHECK(CMSG_FIRSTHDR(&message) != NULL);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

static void passed(void)
{
    int pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    pid_t child = fork();
    if (child == 0) {
        int memory = memfd_create("passed", MFD_CLOEXEC), event = eventfd(0, 0);
        CHECK(memory >= 0 && ftruncate(memory, 4 * PAGE) == 0);
        char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
        CHECK(at != MAP_FAILED);
        number_page(at + PAGE, 77);
        send_descriptor(pair[1], memory), send_descriptor(pair[1], event);
        uint64_t value;
        CHECK(read(event, &value, 8) == 8 && value == 5 && page_has(at + 2 * PAGE, 78));
        _exit(0);
    }
    int memory = receive_descriptor(pair[0]), event = receive_descriptor(pair[0]);
    char *at = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
    CHECK(at != MAP_FAILED && page_has(at + PAGE, 77));
    number_page(at + 2 * PAGE, 78);
    CHECK(eventfd_write(event, 5) == 0);
    reap(child);
    CHECK(munmap(at, 4 * PAGE) == 0);
    close(pair[0]), close(pair[1]), close(memory), close(event);
    OK("memory and events passed over a socket");
}

struct locker {
    volatile int tried, locked;
};

static void *lock_after(void *argument)
{
    struct locker *locker = argument;
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    int fd = open("owned", O_RDWR);
    CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == -1 && errno == EAGAIN);
    locker->tried = 1;
    CHECK(fcntl(fd, F_OFD_SETLKW, &lock) == 0);
    locker->locked = 1;
    close(fd);
    return NULL;
}

static void locks(void)
{
    int fd = open("owned", O_RDWR | O_CREAT, 0600), ready[2], go[2];
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    CHECK(fd >= 0 && fcntl(fd, F_OFD_SETLK, &lock) == 0);
    struct locker locker = {0, 0};
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, lock_after, &locker) == 0);
    while (!locker.tried)
        usleep(1000);
    usleep(20000);
    CHECK(!locker.locked);
    lock.l_type = F_UNLCK;
    CHECK(fcntl(fd, F_OFD_SETLK, &lock) == 0 && pthread_join(thread, NULL) == 0 && locker.locked);
    OK("locks of open files");
    /* Two that wait for each other: the kernel sees it. */
    CHECK(pipe(ready) == 0 && pipe(go) == 0);
    lock = (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 1};
    CHECK(fcntl(fd, F_SETLK, &lock) == 0);
    pid_t child = fork();
    if (child == 0) {
        struct flock other = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 1, .l_len = 1};
        CHECK(fcntl(fd, F_SETLK, &other) == 0 && write(ready[1], "r", 1) == 1);
        other.l_start = 0;
        int result = fcntl(fd, F_SETLKW, &other), why = errno;
        _exit(result == 0 ? 0 : why == EDEADLK ? 1 : 2);
    }
    char byte;
    CHECK(read(ready[0], &byte, 1) == 1);
    lock.l_start = 1;
    int result = fcntl(fd, F_SETLKW, &lock), why = errno, status;
    CHECK(result == 0 || why == EDEADLK);
    close(fd); /* and with it go this process's locks */
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status));
    CHECK(result == 0 ? WEXITSTATUS(status) == 1 : WEXITSTATUS(status) == 0);
    OK("deadlocks of locks are seen");
}

static void notes(void)
{
    CHECK(mkdir("watched", 0755) == 0);
    int watch = inotify_init1(IN_NONBLOCK | IN_CLOEXEC);
    int where = inotify_add_watch(watch, "watched", IN_CREATE | IN_MODIFY | IN_CLOSE_WRITE | IN_MOVE | IN_DELETE | IN_DELETE_SELF);
    CHECK(watch >= 0 && where >= 0);
    pid_t child = fork();
    if (child == 0) {
        int fd = open("watched/a", O_WRONLY | O_CREAT, 0600);
        CHECK(write(fd, "x", 1) == 1 && close(fd) == 0 && rename("watched/a", "watched/b") == 0);
        CHECK(unlink("watched/b") == 0 && rmdir("watched") == 0);
        _exit(0);
    }
    reap(child);
    char buffer[4096] __attribute__((aligned(8)));
    uint32_t masks[16], cookie = 0;
    int count = 0;
    for (;;) {
        ssize_t length = read(watch, buffer, sizeof buffer);
        if (length < 0)
            break;
        for (char *at = buffer; at < buffer + length; at += sizeof(struct inotify_event) + ((struct inotify_event *)(void *)at)->len) {
            struct inotify_event *event = (void *)at;
            CHECK(event->wd == where && count < 16);
            if (event->mask & IN_MOVED_FROM)
                cookie = event->cookie;
            if (event->mask & IN_MOVED_TO)
                CHECK(event->cookie == cookie && strcmp(event->name, "b") == 0);
            masks[count++] = event->mask;
        }
    }
    static const uint32_t expected[] = {IN_CREATE, IN_MODIFY, IN_CLOSE_WRITE, IN_MOVED_FROM, IN_MOVED_TO, IN_DELETE, IN_DELETE_SELF, IN_IGNORED};
    CHECK(count == 8 && memcmp(masks, expected, sizeof expected) == 0);
    close(watch);
    OK("inotify sees another process");
}

int main(void)
{
    edges();
    pipes_without_copies();
    timers();
    passed();
    locks();
    notes();
    return 0;
}
