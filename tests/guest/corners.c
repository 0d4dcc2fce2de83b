/* The less usual descriptors and calls, each in its simplest true use. */
#include "check.h"
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <pthread.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <time.h>

static int reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

static void events(void)
{
    uint64_t value = 5;
    int event = eventfd(3, EFD_NONBLOCK | EFD_CLOEXEC), counts = eventfd(2, EFD_SEMAPHORE);
    CHECK(write(event, &value, 8) == 8 && read(event, &value, 8) == 8 && value == 8);
    CHECK(read(event, &value, 8) == -1 && errno == EAGAIN);
    CHECK(read(counts, &value, 8) == 8 && value == 1 && read(counts, &value, 8) == 8);
    OK("eventfd");
    int timer = timerfd_create(CLOCK_MONOTONIC, 0);
    struct itimerspec every = {{0, 20000000}, {0, 20000000}};
    CHECK(timer >= 0 && timerfd_settime(timer, 0, &every, NULL) == 0);
    uint64_t expired = 0;
    while (expired < 5) {
        CHECK(read(timer, &value, 8) == 8);
        expired += value;
    }
    OK("timerfd");
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1), sigaddset(&set, SIGCHLD);
    CHECK(sigprocmask(SIG_BLOCK, &set, NULL) == 0);
    int signals = signalfd(-1, &set, SFD_CLOEXEC);
    struct signalfd_siginfo info;
    CHECK(kill(getpid(), SIGUSR1) == 0 && read(signals, &info, sizeof info) == sizeof info);
    CHECK(info.ssi_signo == SIGUSR1 && info.ssi_pid == (uint32_t)getpid());
    pid_t child = fork();
    if (child == 0)
        _exit(7);
    CHECK(read(signals, &info, sizeof info) == sizeof info && info.ssi_signo == SIGCHLD && info.ssi_status == 7);
    reap(child);
    CHECK(sigprocmask(SIG_UNBLOCK, &set, NULL) == 0);
    OK("signalfd");

    int epoll = epoll_create1(EPOLL_CLOEXEC), pair[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) == 0);
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = 1}, got[8];
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, pair[0], &wanted) == 0);
    wanted = (struct epoll_event){.events = EPOLLIN | EPOLLONESHOT, .data.u64 = 2};
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == 0);
    CHECK(epoll_ctl(epoll, EPOLL_CTL_ADD, event, &wanted) == -1 && errno == EEXIST);
    CHECK(epoll_wait(epoll, got, 8, 30) == 0);
    value = 1;
    CHECK(write(event, &value, 8) == 8 && epoll_wait(epoll, got, 8, -1) == 1 && got[0].data.u64 == 2);
    CHECK(epoll_wait(epoll, got, 8, 0) == 0);
    CHECK(write(pair[1], "hello", 5) == 5 && epoll_wait(epoll, got, 8, 1000) == 1 && got[0].data.u64 == 1 && got[0].events == EPOLLIN);
    char bytes[64];
    CHECK(read(pair[0], bytes, 64) == 5 && read(pair[0], bytes, 64) == -1 && errno == EAGAIN);
    CHECK(close(pair[1]) == 0 && epoll_wait(epoll, got, 8, 1000) == 1 && (got[0].events & EPOLLHUP));
    OK("epoll");

    int ends[2];
    CHECK(pipe2(ends, O_CLOEXEC) == 0);
    struct pollfd polled[2] = {{ends[0], POLLIN, 0}, {ends[1], POLLOUT, 0}};
    CHECK(poll(polled, 2, 100) == 1 && polled[0].revents == 0 && polled[1].revents == POLLOUT);
    struct timespec start, end, wait = {0, 60000000};
    clock_gettime(CLOCK_MONOTONIC, &start);
    CHECK(ppoll(polled, 1, &wait, NULL) == 0 && poll(NULL, 0, 20) == 0);
    fd_set readable;
    FD_ZERO(&readable);
    FD_SET(ends[0], &readable);
    struct timeval limit = {0, 60000};
    CHECK(select(ends[0] + 1, &readable, NULL, NULL, &limit) == 0 && !FD_ISSET(ends[0], &readable));
    CHECK(limit.tv_sec == 0 && limit.tv_usec == 0);
    clock_gettime(CLOCK_MONOTONIC, &end);
    double took = (double)(end.tv_sec - start.tv_sec) + (double)(end.tv_nsec - start.tv_nsec) * 1e-9;
    CHECK(took >= 0.14 && took < 5);
    CHECK(write(ends[1], "x", 1) == 1 && poll(polled, 1, -1) == 1 && polled[0].revents == POLLIN);
    CHECK(close(ends[1]) == 0 && read(ends[0], bytes, 9) == 1 && poll(polled, 1, -1) == 1 && polled[0].revents == POLLHUP);
    polled[0].fd = 999;
    CHECK(poll(polled, 1, -1) == 1 && polled[0].revents == POLLNVAL);
    OK("poll and select");
    close(event), close(counts), close(timer), close(signals), close(epoll), close(pair[0]), close(ends[0]);
}

static void sockets(void)
{
    int pair[2], made = open("passed", O_RDWR | O_CREAT, 0600);
    CHECK(made >= 0 && socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair) == 0);
    pid_t child = fork();
    if (child == 0) {
        char control[CMSG_SPACE(sizeof(int))] = {0}, text[] = "with a descriptor";
        struct iovec parts[2] = {{text, 5}, {text + 5, 12}};
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control};
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &made, sizeof made);
        CHECK(sendmsg(pair[1], &message, 0) == 17);
        _exit(0);
    }
    char control[CMSG_SPACE(sizeof(int))], text[64] = {0};
    struct iovec part = {text, 64};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    memset(control, 0x5a, sizeof control);
    CHECK(recvmsg(pair[0], &message, MSG_CMSG_CLOEXEC) == 17 && strcmp(text, "with a descriptor") == 0);
    int received;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    CHECK(header && header->cmsg_type == SCM_RIGHTS);
    memcpy(&received, CMSG_DATA(header), sizeof received);
    // What pads control data is not written.
    for (size_t at = CMSG_LEN(sizeof(int)); at < sizeof control; at++)
        CHECK(control[at] == 0x5a);
    CHECK(received != made && write(received, "passed on", 9) == 9 && lseek(made, 0, SEEK_CUR) == 9);
    CHECK(fcntl(received, F_GETFD) == FD_CLOEXEC);
    reap(child);
    struct ucred peer;
    socklen_t length = sizeof peer;
    CHECK(getsockopt(pair[0], SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 && peer.pid == getpid());
    int type;
    length = sizeof type;
    CHECK(getsockopt(pair[0], SOL_SOCKET, SO_TYPE, &type, &length) == 0 && type == SOCK_SEQPACKET);
    close(pair[0]), close(pair[1]), close(made), close(received);
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "listening"}, other;
    int listener = socket(AF_UNIX, SOCK_STREAM, 0), client = socket(AF_UNIX, SOCK_STREAM, 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == -1 && errno == ENOENT);
    CHECK(bind(listener, (struct sockaddr *)&address, sizeof address) == 0 && listen(listener, 4) == 0);
    CHECK(connect(client, (struct sockaddr *)&address, sizeof address) == 0);
    length = sizeof other;
    int server = accept4(listener, (struct sockaddr *)&other, &length, SOCK_CLOEXEC);
    CHECK(server >= 0 && send(server, "bytes", 5, MSG_NOSIGNAL) == 5 && recv(client, text, 64, MSG_PEEK) == 5);
    CHECK(recv(client, text, 5, MSG_WAITALL) == 5 && shutdown(server, SHUT_WR) == 0 && recv(client, text, 5, 0) == 0);
    close(client);
    CHECK(send(server, "x", 1, MSG_NOSIGNAL) == -1 && errno == EPIPE);
    close(server), close(listener);
    OK("sockets pass bytes and descriptors");
}

static void *locks(void *argument)
{
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    CHECK(fcntl(*(int *)argument, F_SETLK, &lock) == 0); /* the process has it, not a thread */
    return NULL;
}

static void files(void)
{
    int file = open("file", O_RDWR | O_CREAT | O_EXCL, 0644);
    CHECK(file >= 0 && open("file", O_RDWR | O_CREAT | O_EXCL, 0644) == -1 && errno == EEXIST);
    char a[] = "one", b[] = "two", c[] = "three", out[20] = {0}, tail[20] = {0};
    struct iovec parts[3] = {{a, 3}, {b, 3}, {c, 5}}, back[2] = {{out, 4}, {tail, 19}};
    CHECK(writev(file, parts, 3) == 11 && lseek(file, 0, SEEK_SET) == 0);
    CHECK(readv(file, back, 2) == 11 && strcmp(out, "onet") == 0 && strcmp(tail, "wothree") == 0);
    CHECK(pwritev(file, parts, 2, 100) == 6 && preadv(file, back, 1, 101) == 4 && memcmp(out, "netw", 4) == 0);
    CHECK(pwrite(file, "X", 1, 0) == 1 && pread(file, out, 3, 0) == 3 && memcmp(out, "Xne", 3) == 0);
    CHECK(lseek(file, -6, SEEK_END) == 100 && lseek(file, -200, SEEK_SET) == -1 && errno == EINVAL);
    OK("vectors and positions");
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 0, .l_len = 10};
    CHECK(fcntl(file, F_SETLK, &lock) == 0);
    pid_t child = fork();
    if (child == 0) {
        CHECK(fcntl(file, F_SETLK, &lock) == -1 && (errno == EAGAIN || errno == EACCES));
        CHECK(fcntl(file, F_GETLK, &lock) == 0 && lock.l_type == F_WRLCK && lock.l_pid == getppid());
        struct flock beyond = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 10, .l_len = 1};
        CHECK(fcntl(file, F_SETLKW, &beyond) == 0);
        _exit(0);
    }
    CHECK(reap(child) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, locks, &file) == 0 && pthread_join(thread, NULL) == 0);
    int again = open("file", O_RDWR);
    CHECK(flock(file, LOCK_EX) == 0 && flock(again, LOCK_EX | LOCK_NB) == -1 && errno == EWOULDBLOCK);
    CHECK(flock(file, LOCK_UN) == 0 && flock(again, LOCK_EX | LOCK_NB) == 0);
    OK("file locks");
    int nameless = open(".", O_TMPFILE | O_RDWR, 0600);
    if (nameless >= 0) {
        CHECK(write(nameless, "no name yet", 11) == 11);
        char path[40];
        snprintf(path, sizeof path, "/proc/self/fd/%d", nameless);
        CHECK(linkat(AT_FDCWD, path, AT_FDCWD, "named", AT_SYMLINK_FOLLOW) == 0);
        puts("named");
    } else {
        puts("no O_TMPFILE here");
    }
    int target = open("sent", O_RDWR | O_CREAT, 0644);
    off_t at = 2;
    CHECK(sendfile(target, file, &at, 50) == 50 && at == 52 && lseek(target, 0, SEEK_CUR) == 50);
    loff_t from = 0, to = 200;
    CHECK(copy_file_range(file, &from, target, &to, 30, 0) == 30);
    CHECK(ftruncate(target, 220) == 0 && fallocate(target, 0, 0, 5000) == 0);
    struct stat status;
    CHECK(fstat(target, &status) == 0 && status.st_size == 5000 && status.st_mode == (S_IFREG | 0644));
    struct statx more;
    CHECK(statx(AT_FDCWD, "sent", 0, STATX_BASIC_STATS, &more) == 0 && more.stx_size == 5000 && more.stx_ino == status.st_ino);
    OK("sendfile, copy_file_range, fallocate");
    CHECK(mkdir("d", 0755) == 0);
    int directory = open("d", O_RDONLY | O_DIRECTORY), inside = openat(directory, "x", O_CREAT | O_WRONLY, 0600);
    CHECK(inside >= 0 && faccessat(directory, "x", W_OK, 0) == 0 && renameat2(directory, "x", directory, "y", RENAME_NOREPLACE) == 0);
    CHECK(fchdir(directory) == 0 && access("y", F_OK) == 0 && chdir("..") == 0 && unlinkat(directory, "y", 0) == 0);
    CHECK(unlinkat(AT_FDCWD, "d", AT_REMOVEDIR) == 0);
    int duplicate = fcntl(file, F_DUPFD_CLOEXEC, 50);
    CHECK(duplicate == 50 && dup2(file, 60) == 60 && dup3(file, 60, O_CLOEXEC) == 60 && dup3(file, file, 0) == -1 && errno == EINVAL);
    CHECK(close_range(50, 70, 0) == 0 && fcntl(60, F_GETFD) == -1 && errno == EBADF);
    int memory = memfd_create("name", MFD_CLOEXEC);
    CHECK(memory >= 0 && write(memory, "memory", 6) == 6 && pread(memory, out, 6, 0) == 6);
    int watch = inotify_init1(IN_NONBLOCK);
    CHECK(watch >= 0 && inotify_add_watch(watch, ".", IN_CREATE) >= 0 && close(creat("seen", 0600)) == 0);
    char notes[512];
    CHECK(read(watch, notes, sizeof notes) > 0 && strcmp(((struct inotify_event *)(void *)notes)->name, "seen") == 0);
    close(file), close(again), close(target), close(directory), close(inside), close(nameless), close(memory), close(watch);
    OK("directories, duplicates, memfd, inotify");
}

/* The line of a process's limits that begins so is this one. */
static void limit_shows(pid_t pid, const char *name, const char *expected)
{
    char path[64], line[256], found[256] = {0};
    snprintf(path, sizeof path, "/proc/%d/limits", pid);
    FILE *limits = fopen(path, "r");
    CHECK(limits != NULL);
    while (fgets(line, sizeof line, limits) != NULL)
        if (strncmp(line, name, strlen(name)) == 0)
            strcpy(found, line);
    CHECK(fclose(limits) == 0);
    if (strcmp(found, expected) != 0)
        fprintf(stderr, "not %sbut %s", expected, found);
    CHECK(strcmp(found, expected) == 0);
}

static void shown_limits(void)
{
    struct rlimit seconds = {1000, 2000}, bytes = {1 << 30, RLIM_INFINITY}, files = {30, 40};
    pid_t child = fork();
    if (child == 0) {
        CHECK(setrlimit(RLIMIT_CPU, &seconds) == 0 && setrlimit(RLIMIT_AS, &bytes) == 0 && setrlimit(RLIMIT_NOFILE, &files) == 0);
        pid_t waits = fork();
        if (waits == 0) {
            pause();
            _exit(0);
        }
        for (int i = 0; i < 2; i++) {
            pid_t pid = i == 0 ? getpid() : waits;
            limit_shows(pid, "Max cpu time", "Max cpu time              1000                 2000                 seconds   \n");
            limit_shows(pid, "Max address", "Max address space         1073741824           unlimited            bytes     \n");
            limit_shows(pid, "Max open files", "Max open files            30                   40                   files     \n");
        }
        CHECK(kill(waits, SIGKILL) == 0 && WTERMSIG(reap(waits)) == SIGKILL);
        _exit(0);
    }
    CHECK(reap(child) == 0);
    OK("limits are shown");
}

static void execution(void)
{
    int before = personality(0xffffffff);
    CHECK(before != -1);
    /* Containers may forbid to change it. */
    if (personality(ADDR_NO_RANDOMIZE) == before) {
        CHECK(personality(0xffffffff) == ADDR_NO_RANDOMIZE);
        pid_t child = fork();
        if (child == 0)
            _exit(personality(0xffffffff) == ADDR_NO_RANDOMIZE ? 5 : 6);
        CHECK(WEXITSTATUS(reap(child)) == 5);
        puts("not random");
        CHECK(personality(PER_LINUX) == ADDR_NO_RANDOMIZE && personality(0xffffffff) == PER_LINUX);
    }
    OK("what is executed is Linux");
}

static void is_in(const char *expected)
{
    char directory[4096];
    CHECK(getcwd(directory, sizeof directory) != NULL && strcmp(directory, expected) == 0);
}

static void *in_root(void *argument)
{
    is_in("/");
    return argument;
}

static void *leaves(void *forbidden)
{
    if (unshare(CLONE_FS) != 0) {
        CHECK(errno == EPERM);
        *(int *)forbidden = 1;
        return NULL;
    }
    pthread_t thread;
    CHECK(chdir("/") == 0 && pthread_create(&thread, NULL, in_root, NULL) == 0 && pthread_join(thread, NULL) == 0);
    pid_t child = fork();
    if (child == 0) {
        is_in("/");
        _exit(0);
    }
    CHECK(reap(child) == 0);
    return NULL;
}

static void directories_of_threads(void)
{
    char here[4096];
    int forbidden = 0;
    pthread_t thread;
    CHECK(getcwd(here, sizeof here) != NULL && strcmp(here, "/") != 0);
    CHECK(unshare(CLONE_FS | CLONE_FILES) == 0 || errno == EPERM);
    is_in(here);
    CHECK(pthread_create(&thread, NULL, leaves, &forbidden) == 0 && pthread_join(thread, NULL) == 0);
    is_in(here);
    puts(forbidden ? "threads have the same directories" : "a thread has its own directories");
    OK("directories of threads");
}

static void process(void)
{
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    int descriptor = (int)syscall(SYS_pidfd_open, child, 0);
    struct pollfd polled = {descriptor, POLLIN, 0};
    CHECK(descriptor >= 0 && poll(&polled, 1, 0) == 0);
    CHECK(syscall(SYS_pidfd_send_signal, descriptor, SIGTERM, NULL, 0) == 0);
    CHECK(poll(&polled, 1, -1) == 1);
    siginfo_t info;
    CHECK(waitid(P_PIDFD, (id_t)descriptor, &info, WEXITED) == 0 && info.si_pid == child && info.si_code == CLD_KILLED && info.si_status == SIGTERM);
    close(descriptor);
    OK("pidfd");
    unsigned char random[64] = {0}, more[64] = {0};
    CHECK(getrandom(random, 64, 0) == 64 && getrandom(more, 64, 0) == 64 && memcmp(random, more, 64) != 0);
    char name[16] = {0}, exe[4096] = {0}, comm[32] = {0};
    CHECK(prctl(PR_SET_NAME, "a new name that is too long") == 0 && prctl(PR_GET_NAME, name) == 0 && strcmp(name, "a new name that") == 0);
    int file = open("/proc/self/comm", O_RDONLY);
    CHECK(read(file, comm, 31) == 16 && memcmp(comm, name, 15) == 0 && close(file) == 0);
    CHECK(readlink("/proc/self/exe", exe, sizeof exe - 1) > 0 && strstr(exe, "/corners-") != NULL);
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/exe", getpid());
    char other[4096] = {0};
    CHECK(readlink(path, other, sizeof other - 1) > 0 && strcmp(exe, other) == 0);
    FILE *maps = fopen("/proc/self/maps", "r");
    CHECK(maps != NULL);
    while (fgets(other, sizeof other, maps) != NULL)
        if (strstr(other, "[vdso]") != NULL)
            CHECK(strstr(other, " r-xp 00000000 00:00 0 ") != NULL);
    CHECK(fclose(maps) == 0);
    OK("names");
    struct rlimit limit, lower = {20, 40};
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur > 40 && setrlimit(RLIMIT_NOFILE, &lower) == 0);
    int opened = 0;
    while (open("/dev/null", O_RDONLY) >= 0)
        opened++;
    CHECK(errno == EMFILE && opened <= 17);
    CHECK(close_range(3, 100, 0) == 0);
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 20 && limit.rlim_max == 40);
    child = fork();
    if (child == 0)
        _exit(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == 20 ? 0 : 1);
    CHECK(reap(child) == 0);
    OK("limits");
    struct utsname system;
    CHECK(uname(&system) == 0 && strcmp(system.sysname, "Linux") == 0 && strcmp(system.machine, "x86_64") == 0);
    CHECK(getpgid(0) == getpgrp() && getsid(0) > 0 && getppid() > 0);
    child = fork();
    if (child == 0) {
        CHECK(setsid() == getpid() && getpgrp() == getpid());
        CHECK(prctl(PR_SET_PDEATHSIG, SIGKILL) == 0);
        _exit(0);
    }
    CHECK(reap(child) == 0);
    mode_t mask = umask(027);
    CHECK(umask(mask) == 027);
    int niceness = getpriority(PRIO_PROCESS, 0);
    CHECK(nice(0) == niceness && setpriority(PRIO_PROCESS, 0, niceness) == 0);
    CHECK(sched_yield() == 0 && sysconf(_SC_NPROCESSORS_ONLN) >= 1 && sysconf(_SC_PAGESIZE) == (long)PAGE);
    cpu_set_t processors;
    CHECK(sched_getaffinity(0, sizeof processors, &processors) == 0 && CPU_COUNT(&processors) == sysconf(_SC_NPROCESSORS_ONLN));
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0 && usage.ru_maxrss > 100);
    OK("the rest of a process");
}

int main(void)
{
    events();
    sockets();
    files();
    process();
    shown_limits();
    execution();
    directories_of_threads();
    return 0;
}
