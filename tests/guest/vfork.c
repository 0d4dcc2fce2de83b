/* Starting programs: vfork, posix_spawn with its actions, system and popen. */
#include "check.h"
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

static int reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "child") == 0) {
        printf("child of %s arguments, X=%s\n", argc == 3 ? argv[2] : "?", getenv("X") ? getenv("X") : "(none)");
        return 21;
    }
    volatile int shared = 1;
    pid_t child = vfork();
    if (child == 0) {
        shared = 2;
        _exit(5);
    }
    CHECK(child > 0 && shared == 2 && WEXITSTATUS(reap(child)) == 5);
    OK("vfork shares memory and the parent waits");
    child = vfork();
    if (child == 0) {
        execl("/proc/self/exe", "vfork", "child", "vfork", NULL);
        _exit(100);
    }
    CHECK(child > 0 && WEXITSTATUS(reap(child)) == 21);
    OK("vfork and exec");
    volatile int failed = 0;
    child = vfork();
    if (child == 0) {
        execl("/no/such/program", "x", NULL);
        failed = errno;
        _exit(127);
    }
    CHECK(WEXITSTATUS(reap(child)) == 127 && failed == ENOENT);
    OK("vfork and an exec that fails");
    child = vfork();
    if (child == 0) {
        signal(SIGTERM, SIG_DFL);
        kill(getpid(), SIGTERM);
        _exit(0);
    }
    int status = reap(child);
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGTERM);
    OK("a vfork child that is killed");

    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    CHECK(posix_spawn_file_actions_addopen(&actions, 5, "spawned", O_WRONLY | O_CREAT | O_TRUNC, 0640) == 0);
    CHECK(posix_spawn_file_actions_adddup2(&actions, 5, 1) == 0);
    CHECK(posix_spawn_file_actions_addclose(&actions, 5) == 0);
    posix_spawnattr_t attributes;
    posix_spawnattr_init(&attributes);
    sigset_t set;
    sigemptyset(&set), sigaddset(&set, SIGUSR1);
    posix_spawnattr_setsigmask(&attributes, &set);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETPGROUP);
    char *spawn_argv[] = {"sh", "-c", "echo one; grep SigBlk /proc/self/status | tail -c 5; ls -l /proc/self/fd/5 2>&1 | wc -l; exit 9", NULL};
    CHECK(posix_spawn(&child, "/bin/sh", &actions, &attributes, spawn_argv, environ) == 0);
    CHECK(WEXITSTATUS(reap(child)) == 9);
    OK("posix_spawn with actions");
    CHECK(posix_spawnp(&child, "no-such-program", NULL, NULL, spawn_argv, environ) == ENOENT);
    char *true_argv[] = {"true", NULL};
    for (int i = 0; i < 50; i++) {
        CHECK(posix_spawnp(&child, "true", NULL, NULL, true_argv, environ) == 0);
        CHECK(reap(child) == 0);
    }
    OK("fifty spawned programs");

    CHECK(WEXITSTATUS(system("echo from system; exit 3")) == 3);
    status = system("kill -9 $$");
    CHECK(WIFSIGNALED(status) && WTERMSIG(status) == 9);
    CHECK(system(NULL) == 1);
    OK("system");
    char line[100];
    FILE *in = popen("seq 3 | sort -r; exit 4", "r");
    CHECK(in != NULL);
    while (fgets(line, sizeof line, in))
        fputs(line, stdout);
    CHECK(WEXITSTATUS(pclose(in)) == 4);
    FILE *out = popen("tr a-z A-Z", "w");
    CHECK(out != NULL);
    fflush(stdout);
    fputs("written to popen\n", out);
    CHECK(pclose(out) == 0);
    OK("popen");

    int closed = open("/dev/null", O_RDONLY | O_CLOEXEC), kept = open("/dev/null", O_RDONLY);
    snprintf(line, sizeof line, "test -e /proc/self/fd/%d && echo leaked; test -e /proc/self/fd/%d && echo kept", closed, kept);
    CHECK(system(line) == 0);
    CHECK(setenv("X", "given", 1) == 0);
    fflush(stdout);
    execl("/proc/self/exe", "again", "child", "exec", NULL);
    return 1;
}
