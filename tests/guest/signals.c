/* Signals: masks, information, order, restarting and interrupting, nesting, and timers. */
#include "check.h"
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>

static volatile int calls, depth, deepest, order[64], values[64], last_code;
static volatile pid_t last_pid;
static volatile uid_t last_uid;

static void on_signal(int number, siginfo_t *info, void *context)
{
    CHECK(context != NULL && info->si_signo == number);
    if (calls < 64)
        order[calls] = number, values[calls] = info->si_value.sival_int;
    calls++;
    last_code = info->si_code, last_pid = info->si_pid, last_uid = info->si_uid;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigemptyset(&action.sa_mask);
    CHECK(sigaction(number, &action, NULL) == 0);
}

static sigset_t set_of(int number)
{
    sigset_t set;
    sigemptyset(&set);
    if (number)
        sigaddset(&set, number);
    return set;
}

static void masks(void)
{
    handle(SIGUSR1, on_signal, 0), handle(SIGUSR2, on_signal, 0);
    sigset_t one = set_of(SIGUSR1), old, pending;
    CHECK(sigprocmask(SIG_BLOCK, &one, &old) == 0 && !sigismember(&old, SIGUSR1));
    calls = 0;
    for (int i = 0; i < 5; i++)
        CHECK(raise(SIGUSR1) == 0);
    CHECK(kill(getpid(), SIGUSR2) == 0);
    CHECK(calls == 1 && order[0] == SIGUSR2 && last_code == SI_USER && last_pid == getpid() && last_uid == getuid());
    CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGUSR1) && !sigismember(&pending, SIGUSR2));
    CHECK(sigprocmask(SIG_UNBLOCK, &one, NULL) == 0);
    CHECK(calls == 2 && order[1] == SIGUSR1 && last_code == SI_TKILL);
    CHECK(sigprocmask(SIG_BLOCK, NULL, &old) == 0 && !sigismember(&old, SIGUSR1));
    sigset_t deadly = set_of(SIGKILL);
    CHECK(sigprocmask(SIG_BLOCK, &deadly, NULL) == 0 && sigprocmask(SIG_BLOCK, NULL, &old) == 0);
    CHECK(!sigismember(&old, SIGKILL));
    struct sigaction action = {.sa_handler = SIG_IGN};
    CHECK(sigaction(SIGKILL, &action, NULL) == -1 && errno == EINVAL);
    CHECK(sigaction(65, &action, NULL) == -1 && errno == EINVAL);
    OK("masks and pending signals");
}

static void queued(void)
{
    sigset_t all;
    sigfillset(&all);
    for (int i = 0; i < 5; i++)
        handle(SIGRTMIN + i, on_signal, 0);
    handle(SIGRTMAX, on_signal, 0);
    /* Each handler runs with the others blocked, or the later would seem first. */
    for (int i = 0; i < 5; i++) {
        struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO, .sa_mask = all};
        CHECK(sigaction(SIGRTMIN + i, &action, NULL) == 0);
    }
    sigset_t old;
    CHECK(sigprocmask(SIG_BLOCK, &all, &old) == 0);
    calls = 0;
    for (int i = 0; i < 20; i++)
        CHECK(sigqueue(getpid(), SIGRTMIN + (i * 3) % 5, (union sigval){.sival_int = i}) == 0);
    CHECK(raise(SIGUSR1) == 0);
    struct sigaction first = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO, .sa_mask = all};
    CHECK(sigaction(SIGUSR1, &first, NULL) == 0);
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    CHECK(calls == 21 && last_code == SI_QUEUE && last_pid == getpid());
    for (int i = 0; i < calls; i++)
        printf("%d:%d ", order[i] == SIGUSR1 ? -1 : order[i] - SIGRTMIN, order[i] == SIGUSR1 ? 0 : values[i]);
    puts("");
    OK("real-time signals are queued in order");
}

static void waits(void)
{
    sigset_t set = set_of(SIGRTMIN), old;
    sigaddset(&set, SIGUSR2), sigaddset(&set, SIGALRM);
    CHECK(sigprocmask(SIG_BLOCK, &set, &old) == 0);
    siginfo_t info;
    struct timespec soon = {0, 20000000};
    CHECK(sigtimedwait(&set, &info, &soon) == -1 && errno == EAGAIN);
    CHECK(sigqueue(getpid(), SIGRTMIN, (union sigval){.sival_int = 77}) == 0);
    CHECK(sigwaitinfo(&set, &info) == SIGRTMIN && info.si_value.sival_int == 77 && info.si_code == SI_QUEUE);
    struct itimerval timer = {{0, 0}, {0, 50000}};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(sigwaitinfo(&set, &info) == SIGALRM && info.si_code == SI_KERNEL);
    OK("sigtimedwait and sigwaitinfo");
    calls = 0;
    handle(SIGALRM, on_signal, 0);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    sigset_t none = set_of(0), now;
    CHECK(sigsuspend(&none) == -1 && errno == EINTR && calls == 1);
    CHECK(sigprocmask(SIG_BLOCK, NULL, &now) == 0 && sigismember(&now, SIGALRM));
    CHECK(raise(SIGUSR2) == 0 && calls == 1);
    CHECK(sigsuspend(&none) == -1 && calls == 2);
    CHECK(sigprocmask(SIG_SETMASK, &old, NULL) == 0);
    OK("sigsuspend");
}

static int ends[2];
static void *writes_later(void *argument)
{
    usleep(300000);
    CHECK(write(ends[1], argument, 4) == 4);
    return NULL;
}

static void interrupts(void)
{
    CHECK(pipe(ends) == 0);
    sigset_t alarms = set_of(SIGALRM);
    struct itimerval timer = {{0, 0}, {0, 100000}};
    char bytes[10];
    calls = 0;
    handle(SIGALRM, on_signal, 0);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(read(ends[0], bytes, 10) == -1 && errno == EINTR && calls == 1);
    OK("a signal breaks off a read");
    handle(SIGALRM, on_signal, SA_RESTART);
    pthread_t thread;
    /* The writer must not be the one that handles the alarm. */
    CHECK(pthread_sigmask(SIG_BLOCK, &alarms, NULL) == 0);
    CHECK(pthread_create(&thread, NULL, writes_later, "late") == 0);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &alarms, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(read(ends[0], bytes, 10) == 4 && memcmp(bytes, "late", 4) == 0 && calls == 2);
    pthread_join(thread, NULL);
    OK("a read is restarted after a signal");
    struct timespec rest, nap = {5, 0};
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(nanosleep(&nap, &rest) == -1 && errno == EINTR && calls == 3 && rest.tv_sec == 4);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, &nap, &rest) == EINTR && calls == 4 && rest.tv_sec == 4);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(pause() == -1 && errno == EINTR && calls == 5);
    OK("sleeps are never restarted");
    signal(SIGALRM, SIG_IGN);
    CHECK(pthread_create(&thread, NULL, writes_later, "more") == 0);
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(read(ends[0], bytes, 10) == 4);
    pthread_join(thread, NULL);
    OK("an ignored signal interrupts nothing");
    handle(SIGALRM, on_signal, SA_RESTART);
    pid_t child = fork();
    if (child == 0) {
        usleep(400000);
        _exit(4);
    }
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    int status;
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 4 && calls == 6);
    OK("waitpid is restarted");
    close(ends[0]), close(ends[1]);
}

static void nests(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    depth++;
    if (depth > deepest)
        deepest = depth;
    if (calls++ < 5)
        raise(number);
    depth--;
}

static sigjmp_buf back;
static void jumps(int number, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    calls++;
    siglongjmp(back, number);
}

static void nesting(void)
{
    calls = depth = deepest = 0;
    handle(SIGUSR1, nests, 0);
    raise(SIGUSR1);
    CHECK(calls == 6 && deepest == 1);
    calls = deepest = 0;
    handle(SIGUSR1, nests, SA_NODEFER);
    raise(SIGUSR1);
    CHECK(calls == 6 && deepest == 6 && depth == 0);
    OK("SA_NODEFER nests, without it a handler is not interrupted by its own");
    calls = 0;
    handle(SIGUSR1, on_signal, SA_RESETHAND);
    raise(SIGUSR1);
    struct sigaction now;
    CHECK(sigaction(SIGUSR1, NULL, &now) == 0 && now.sa_handler == SIG_DFL && calls == 1);
    OK("SA_RESETHAND");
    calls = 0;
    handle(SIGUSR1, jumps, 0);
    for (int i = 0; i < 100; i++)
        if (sigsetjmp(back, 1) == 0) {
            raise(SIGUSR1);
            CHECK(!"back from the handler");
        }
    CHECK(calls == 100);
    sigset_t mask;
    CHECK(sigprocmask(SIG_BLOCK, NULL, &mask) == 0 && !sigismember(&mask, SIGUSR1));
    OK("longjmp out of a handler");
}

static volatile int reaped, statuses;
static void on_child(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    int saved = errno, status;
    CHECK(info->si_code == CLD_EXITED);
    while (waitpid(-1, &status, WNOHANG) > 0)
        reaped++, statuses += WEXITSTATUS(status);
    errno = saved;
}

static void children(void)
{
    handle(SIGCHLD, on_child, SA_RESTART);
    for (int i = 0; i < 50; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0)
            _exit(i);
    }
    for (int i = 0; i < 2000 && reaped < 50; i++)
        usleep(10000);
    CHECK(reaped == 50 && statuses == 49 * 50 / 2);
    OK("SIGCHLD of fifty children");
    signal(SIGCHLD, SIG_IGN);
    if (fork() == 0)
        _exit(1);
    CHECK(wait(NULL) == -1 && errno == ECHILD);
    signal(SIGCHLD, SIG_DFL);
    OK("children of one who ignores SIGCHLD leave no zombies");
    pid_t child = fork();
    if (child == 0) {
        raise(SIGSTOP);
        _exit(6);
    }
    int status;
    siginfo_t info = {0};
    CHECK(waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP);
    CHECK(kill(child, SIGCONT) == 0);
    CHECK(waitid(P_PID, (id_t)child, &info, WEXITED | WNOWAIT) == 0 && info.si_status == 6 && info.si_code == CLD_EXITED);
    CHECK(waitpid(child, &status, 0) == child && WEXITSTATUS(status) == 6);
    OK("a child stops and continues");
}

static void timers(void)
{
    calls = 0;
    handle(SIGRTMIN, on_signal, 0);
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN, .sigev_value.sival_int = 99};
    CHECK(timer_create(CLOCK_MONOTONIC, &event, &timer) == 0);
    struct itimerspec often = {{0, 5000000}, {0, 5000000}}, left;
    CHECK(timer_settime(timer, 0, &often, NULL) == 0);
    while (calls < 10)
        pause();
    CHECK(last_code == SI_TIMER && values[3] == 99 && order[3] == SIGRTMIN);
    CHECK(timer_gettime(timer, &left) == 0 && left.it_interval.tv_nsec == 5000000);
    CHECK(timer_delete(timer) == 0);
    calls = 0;
    usleep(50000);
    CHECK(calls == 0);
    CHECK(timer_create(CLOCK_REALTIME, &event, &timer) == 0 && timer_delete(timer) == 0);
    OK("POSIX timers");
    handle(SIGALRM, on_signal, 0);
    CHECK(alarm(100) == 0 && alarm(1) >= 99);
    struct itimerval current;
    CHECK(getitimer(ITIMER_REAL, &current) == 0 && current.it_value.tv_usec + current.it_value.tv_sec > 0);
    CHECK(sleep(20) >= 18 && calls == 1 && order[0] == SIGALRM);
    OK("alarm");
    calls = 0;
    handle(SIGVTALRM, on_signal, 0);
    struct itimerval cpu = {{0, 0}, {0, 20000}};
    CHECK(setitimer(ITIMER_VIRTUAL, &cpu, NULL) == 0);
    while (!calls)
        ;
    CHECK(order[0] == SIGVTALRM);
    OK("a timer of CPU time");
}

static void *spins(void *argument)
{
    while (!*(volatile int *)argument)
        ;
    return NULL;
}

static void elsewhere(void)
{
    /* The only thread that does not block it gets it, though it never makes a system call. */
    sigset_t one = set_of(SIGUSR2);
    calls = 0;
    handle(SIGUSR2, on_signal, 0);
    pthread_t thread;
    int stop = 0;
    CHECK(pthread_create(&thread, NULL, spins, &stop) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, &one, NULL) == 0);
    CHECK(kill(getpid(), SIGUSR2) == 0);
    for (int i = 0; i < 2000 && !calls; i++)
        usleep(5000);
    CHECK(calls == 1);
    stop = 1;
    pthread_join(thread, NULL);
    CHECK(pthread_sigmask(SIG_UNBLOCK, &one, NULL) == 0 && calls == 1);
    OK("a signal finds the thread that takes it, in the midst of a loop");
}

int main(void)
{
    masks();
    queued();
    waits();
    interrupts();
    nesting();
    children();
    timers();
    elsewhere();
    return 0;
}
