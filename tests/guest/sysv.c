/* System V shared memory, semaphores and message queues, within the process and between processes. */
#include "check.h"
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define LENGTH (5 * PAGE + 100)

static void reap(pid_t child)
{
    int status;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

static struct shmid_ds about(int id)
{
    struct shmid_ds ds;
    CHECK(shmctl(id, IPC_STAT, &ds) == 0);
    return ds;
}

static void *attach(int id, const void *at, int flags)
{
    void *place = shmat(id, at, flags);
    CHECK(place != (void *)-1);
    return place;
}

static void memory(void)
{
    int id = shmget(IPC_PRIVATE, LENGTH, IPC_CREAT | 0600);
    CHECK(id >= 0 && about(id).shm_segsz == LENGTH && about(id).shm_nattch == 0 && about(id).shm_cpid == getpid());
    char *a = attach(id, NULL, 0), *b = attach(id, NULL, 0);
    CHECK(a != b && about(id).shm_nattch == 2 && about(id).shm_lpid == getpid());
    strcpy(a + 3 * PAGE, "through a");
    CHECK(strcmp(b + 3 * PAGE, "through a") == 0 && page_is_zero(a + 4 * PAGE) && b[5 * PAGE + 4000] == 0);
    const char *c = attach(id, NULL, SHM_RDONLY);
    CHECK(strcmp(c + 3 * PAGE, "through a") == 0 && mprotect((void *)c, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EACCES);
    CHECK(about(id).shm_nattch == 3 && shmdt(c) == 0 && shmdt(c) == -1 && errno == EINVAL);
    pid_t child = fork();
    if (child == 0) {
        CHECK(about(id).shm_nattch == 4);
        strcpy(b, "from the child");
        CHECK(shmdt(a) == 0 && about(id).shm_nattch == 3 && about(id).shm_lpid == getpid());
        char *d = attach(id, NULL, 0);
        strcpy(d + PAGE, "attached anew");
        _exit(0); /* which detaches */
    }
    reap(child);
    CHECK(strcmp(a, "from the child") == 0 && strcmp(a + PAGE, "attached anew") == 0 && about(id).shm_nattch == 2);
    OK("segments are shared");

    CHECK(shmat(id, a + 1, 0) == (void *)-1 && errno == EINVAL);
    CHECK(shmat(id, a, 0) == (void *)-1 && errno == EINVAL);
    CHECK(shmat(id, NULL, SHM_REMAP) == (void *)-1 && errno == EINVAL);
    CHECK(shmat(-1, NULL, 0) == (void *)-1 && errno == EINVAL && shmdt(a + PAGE) == -1 && errno == EINVAL);
    char *place = mmap(NULL, 16 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED && munmap(place, 16 * PAGE) == 0);
    CHECK(attach(id, place + 100, SHM_RND) == place && strcmp(place, "from the child") == 0);
    memset(b, 0, 10);
    CHECK(attach(id, b, SHM_REMAP) == b && strcmp(b + PAGE, "attached anew") == 0);
    CHECK(munmap(place, 6 * PAGE) == 0 && shmdt(b) == 0 && about(id).shm_nattch >= 1);
    OK("at the places that are asked for");

    /* Removed: it lives as long as somebody has it. */
    CHECK(shmctl(id, IPC_RMID, NULL) == 0 && (about(id).shm_perm.mode & SHM_DEST));
    strcpy(a + 2 * PAGE, "still here");
    child = fork();
    if (child == 0)
        _exit(strcmp(a + 2 * PAGE, "still here") != 0);
    reap(child);
    CHECK(shmdt(a) == 0 && shmctl(id, IPC_STAT, &(struct shmid_ds){0}) == -1 && (errno == EINVAL || errno == EIDRM));
    OK("until the last detaches");

    /* By a key, persisting without anybody, across execve. */
    key_t key = ftok(".", 'k');
    CHECK(key != -1);
    id = shmget(key, 3 * 1024 * 1024, IPC_CREAT | IPC_EXCL | 0640);
    CHECK(id >= 0 && shmget(key, 10, IPC_CREAT | IPC_EXCL | 0600) == -1 && errno == EEXIST);
    CHECK(shmget(key, 4 * 1024 * 1024, 0) == -1 && errno == EINVAL && shmget(key, 0, 0) == id);
    a = attach(id, NULL, 0);
    for (unsigned long i = 0; i < 768; i++)
        number_page(a + i * PAGE, i + 1);
    child = fork();
    if (child == 0) {
        char number[20];
        snprintf(number, sizeof number, "%d", id);
        execl("/proc/self/exe", "sysv", number, NULL);
        _exit(1);
    }
    reap(child);
    CHECK(page_has(a, 1000) && shmdt(a) == 0 && about(id).shm_nattch == 0);
    a = attach(id, NULL, 0);
    CHECK(page_has(a, 1000) && page_has(a + 767 * PAGE, 768));
    struct shmid_ds ds = about(id);
    CHECK((ds.shm_perm.mode & 0777) == 0640 && ds.shm_perm.__key == key);
    ds.shm_perm.mode = 0600;
    CHECK(shmctl(id, IPC_SET, &ds) == 0 && (about(id).shm_perm.mode & 0777) == 0600);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0 && shmget(key, 0, 0) == -1 && errno == ENOENT && shmdt(a) == 0);
    OK("and stay where nobody has them");
}

/* The program that memory() executes: it has inherited nothing. */
static int executed(int id)
{
    CHECK(about(id).shm_nattch == 1);
    char *a = attach(id, NULL, 0);
    for (unsigned long i = 0; i < 768; i++)
        CHECK(page_has(a + i * PAGE, i + 1));
    number_page(a, 1000);
    CHECK(about(id).shm_nattch == 2);
    return 0;
}

union semun {
    int val;
    struct semid_ds *buf;
    unsigned short *array;
};

static void on_alarm(int number)
{
    (void)number;
}

static void semaphores(void)
{
    int set = semget(IPC_PRIVATE, 3, IPC_CREAT | 0600), id = shmget(IPC_PRIVATE, PAGE, IPC_CREAT | 0600);
    CHECK(set >= 0 && id >= 0);
    volatile long *counter = attach(id, NULL, 0);
    CHECK(shmctl(id, IPC_RMID, NULL) == 0);
    unsigned short values[3] = {1, 0, 7};
    CHECK(semctl(set, 0, SETALL, (union semun){.array = values}) == 0 && semctl(set, 2, GETVAL) == 7);
    pid_t children[4];
    for (int i = 0; i < 4; i++) {
        children[i] = fork();
        if (children[i])
            continue;
        struct sembuf down = {0, -1, SEM_UNDO}, up = {0, 1, SEM_UNDO}, done = {1, 1, 0};
        for (int n = 0; n < 50; n++) {
            CHECK(semop(set, &down, 1) == 0);
            long before = *counter;
            if (n % 10 == 0)
                usleep(100);
            *counter = before + 1;
            CHECK(semop(set, &up, 1) == 0);
        }
        CHECK(semop(set, &done, 1) == 0);
        _exit(0);
    }
    struct sembuf all = {1, -4, 0};
    CHECK(semop(set, &all, 1) == 0 && *counter == 200);
    for (int i = 0; i < 4; i++)
        reap(children[i]);
    pid_t child = fork();
    if (child == 0) {
        struct sembuf take = {2, -5, SEM_UNDO};
        CHECK(semop(set, &take, 1) == 0 && semctl(set, 2, GETVAL) == 2 && semctl(set, 2, GETPID) == getpid());
        _exit(0); /* which gives them back */
    }
    reap(child);
    CHECK(semctl(set, 0, GETALL, (union semun){.array = values}) == 0 && values[0] == 1 && values[1] == 0 && values[2] == 7);
    struct sembuf never = {1, -1, 0}, not_now = {1, -1, IPC_NOWAIT};
    struct timespec soon = {0, 20000000};
    CHECK(semop(set, &not_now, 1) == -1 && errno == EAGAIN && semtimedop(set, &never, 1, &soon) == -1 && errno == EAGAIN);
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    ualarm(30000, 30000); /* again and again: the first may come before the call */
    CHECK(semop(set, &never, 1) == -1 && errno == EINTR);
    ualarm(0, 0);
    struct semid_ds ds;
    CHECK(semctl(set, 0, IPC_STAT, (union semun){.buf = &ds}) == 0 && ds.sem_nsems == 3);
    child = fork();
    if (child == 0)
        _exit(!(semop(set, &never, 1) == -1 && errno == EIDRM)); /* never late: its waiting is seen */
    while (semctl(set, 1, GETNCNT) == 0)
        usleep(1000);
    CHECK(semctl(set, 0, IPC_RMID) == 0);
    reap(child);
    OK("semaphores");
}

static void messages(void)
{
    struct {
        long kind;
        char text[64];
    } message = {3, "third"};
    int queue = msgget(IPC_PRIVATE, IPC_CREAT | 0600);
    CHECK(queue >= 0 && msgsnd(queue, &message, 6, 0) == 0);
    message.kind = 2, strcpy(message.text, "second");
    CHECK(msgsnd(queue, &message, 7, 0) == 0);
    CHECK(msgrcv(queue, &message, 64, 2, 0) == 7 && message.kind == 2 && strcmp(message.text, "second") == 0);
    CHECK(msgrcv(queue, &message, 3, 0, 0) == -1 && errno == E2BIG);
    CHECK(msgrcv(queue, &message, 3, 0, MSG_NOERROR) == 3 && memcmp(message.text, "thi", 3) == 0);
    CHECK(msgrcv(queue, &message, 64, 0, IPC_NOWAIT) == -1 && errno == ENOMSG);
    pid_t child = fork();
    if (child == 0) {
        for (int i = 0; i < 100; i++) {
            message.kind = i + 1, memset(message.text, 'a' + i % 26, 64);
            CHECK(msgsnd(queue, &message, 64, 0) == 0);
        }
        _exit(0);
    }
    for (int i = 0; i < 100; i++)
        CHECK(msgrcv(queue, &message, 64, i + 1, 0) == 64 && message.text[63] == 'a' + i % 26);
    reap(child);
    struct msqid_ds ds;
    CHECK(msgctl(queue, IPC_STAT, &ds) == 0 && ds.msg_qnum == 0 && ds.msg_lrpid == getpid());
    child = fork();
    if (child == 0)
        _exit(!(msgrcv(queue, &message, 64, 0, 0) == -1 && (errno == EIDRM || errno == EINVAL))); /* or it was late */
    usleep(20000);
    CHECK(msgctl(queue, IPC_RMID, NULL) == 0);
    reap(child);
    OK("message queues");
}

int main(int count, char **arguments)
{
    if (count > 1)
        return executed(atoi(arguments[1]));
    memory();
    semaphores();
    messages();
    return 0;
}
