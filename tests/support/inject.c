/* Runs a command in whose processes some system calls fail.
 *
 *     inject CALLS ERRNO FIRST TIMES PATH ARMED REPORT COMMAND [ARGUMENT ...]
 *
 * Of the system calls CALLS (names, separated by commas) of the command and of all it starts, those count that are about a file
 * with PATH in its name ("" for all), while the file ARMED is there ("" for always). From the FIRST of them on (1 is the first),
 * TIMES (0 for all) fail with ERRNO, without having done anything; with 0 they succeed, 10 ms later. REPORT holds how many counted and how many failed.
 *
 * The calls are caught by seccomp, so also those that are made without the C library. The process becomes the command; who decides
 * on each call is another one, which ends when all that it decides for have ended.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <poll.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

/* What of its arguments names a file. */
enum { NOTHING = 0, FD = 1, AT = 2, PATH1 = 3, PATH2 = 4 };

static const struct call {
    const char *name;
    int number;
    int about;
} CALLS[] = {
    {"openat", SYS_openat, AT},
    {"openat2", SYS_openat2, AT},
    {"statx", SYS_statx, AT},
    {"newfstatat", SYS_newfstatat, AT},
    {"getdents64", SYS_getdents64, FD},
    {"read", SYS_read, FD},
    {"pread64", SYS_pread64, FD},
    {"write", SYS_write, FD},
    {"writev", SYS_writev, FD},
    {"pwrite64", SYS_pwrite64, FD},
    {"pwritev", SYS_pwritev, FD},
    {"copy_file_range", SYS_copy_file_range, FD},
    {"fallocate", SYS_fallocate, FD},
    {"ftruncate", SYS_ftruncate, FD},
    {"fsync", SYS_fsync, FD},
    {"fdatasync", SYS_fdatasync, FD},
    {"sync_file_range", SYS_sync_file_range, FD},
    {"syncfs", SYS_syncfs, FD},
    {"flock", SYS_flock, FD},
    {"renameat2", SYS_renameat2, AT},
    {"unlinkat", SYS_unlinkat, AT},
    {"mkdirat", SYS_mkdirat, AT},
    {"linkat", SYS_linkat, AT},
    {"inotify_add_watch", SYS_inotify_add_watch, PATH2},
    {"clone", SYS_clone, NOTHING},
    {"clone3", SYS_clone3, NOTHING},
    {"execve", SYS_execve, PATH1},
    {"socket", SYS_socket, NOTHING},
    {"accept4", SYS_accept4, NOTHING},
    {"renameat", SYS_renameat, AT},
#ifdef SYS_open
    {"open", SYS_open, PATH1},
    {"rename", SYS_rename, PATH1},
    {"unlink", SYS_unlink, PATH1},
    {"rmdir", SYS_rmdir, PATH1},
    {"mkdir", SYS_mkdir, PATH1},
    {"stat", SYS_stat, PATH1},
    {"lstat", SYS_lstat, PATH1},
#endif
};
enum { CALLS_COUNT = sizeof CALLS / sizeof *CALLS, CHOSEN_MAX = 32, NAME_MAX_BYTES = 4096 };

static void die(const char *what) {
    fprintf(stderr, "inject: %s: %s\n", what, strerror(errno));
    _exit(125);
}

static const struct call *by_number(int number) {
    for (int i = 0; i < CALLS_COUNT; i++)
        if (CALLS[i].number == number) return &CALLS[i];
    return NULL;
}

/* The filter, from whose file descriptor the calls are read that it catches. */
static int catch(char *names) {
    struct sock_filter code[CHOSEN_MAX + 3];
    int numbers[CHOSEN_MAX], count = 0, at = 0;
    for (char *name = strtok(names, ","); name; name = strtok(NULL, ",")) {
        int i = 0;
        while (i < CALLS_COUNT && strcmp(CALLS[i].name, name)) i++;
        errno = EINVAL;
        if (i == CALLS_COUNT || count == CHOSEN_MAX) die(name);
        numbers[count++] = CALLS[i].number;
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < count; i++)
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)numbers[i], count - i, 0);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF);
    struct sock_fprog program = {.len = (unsigned short)at, .filter = code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) die("no_new_privs");
    int fd = (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
    if (fd < 0) die("seccomp");
    return fd;
}

static void send_fd(int to, int fd) {
    char byte = 0, control[CMSG_SPACE(sizeof fd)] = {0};
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof fd);
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    if (sendmsg(to, &message, 0) != 1) die("sendmsg");
}

static int receive_fd(int from) {
    int fd;
    char byte, control[CMSG_SPACE(sizeof fd)];
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    if (recvmsg(from, &message, MSG_CMSG_CLOEXEC) != 1 || !CMSG_FIRSTHDR(&message)) _exit(125);
    memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
    return fd;
}

/* A string in another process. */
static void read_string(pid_t pid, unsigned long long address, char *into, size_t room) {
    size_t length = 0;
    while (length + 1 < room) {
        /* Not over the end of a page: the next one may not be there. */
        size_t step = 4096 - (size_t)((address + length) % 4096);
        if (step > room - 1 - length) step = room - 1 - length;
        struct iovec local = {into + length, step}, remote = {(void *)(size_t)(address + length), step};
        ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
        if (got <= 0) break;
        if (memchr(into + length, 0, (size_t)got)) return;
        length += (size_t)got;
    }
    into[length] = 0;
}

static void name_of_fd(pid_t pid, int fd, char *into, size_t room) {
    char link[64];
    if (fd == AT_FDCWD) snprintf(link, sizeof link, "/proc/%d/cwd", pid);
    else snprintf(link, sizeof link, "/proc/%d/fd/%d", pid, fd);
    ssize_t length = readlink(link, into, room - 1);
    into[length < 0 ? 0 : length] = 0;
}

/* Whether the call is about a file with `part` in its name. */
static int is_about(const struct seccomp_notif *call, const char *part) {
    static char name[2 * NAME_MAX_BYTES + 2];
    pid_t pid = (pid_t)call->pid;
    const unsigned long long *args = (const unsigned long long *)call->data.args;
    const struct call *known = by_number(call->data.nr);
    if (!*part) return 1;
    *name = 0;
    switch (known ? known->about : NOTHING) {
    case FD: name_of_fd(pid, (int)args[0], name, NAME_MAX_BYTES); break;
    case PATH1: read_string(pid, args[0], name, NAME_MAX_BYTES); break;
    case PATH2: read_string(pid, args[1], name, NAME_MAX_BYTES); break;
    case AT: {
        static char path[NAME_MAX_BYTES];
        read_string(pid, args[1], path, sizeof path);
        if (*path != '/') {
            name_of_fd(pid, (int)args[0], name, NAME_MAX_BYTES);
            strcat(name, "/");
        }
        strcat(name, path);
    }
    }
    return strstr(name, part) != NULL;
}

static void decide(int listener, int error, unsigned long first, unsigned long times, const char *part, const char *armed,
                   int report) {
    unsigned long counted = 0, failed = 0;
    struct pollfd poll_fd = {.fd = listener, .events = POLLIN};
    for (;;) {
        if (poll(&poll_fd, 1, -1) < 0 && errno != EINTR) die("poll");
        if (poll_fd.revents & (POLLHUP | POLLERR)) _exit(0);
        struct seccomp_notif call = {0};
        /* Fails if the process has ended meanwhile. */
        if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &call)) continue;
        struct seccomp_notif_resp answer = {.id = call.id, .flags = SECCOMP_USER_NOTIF_FLAG_CONTINUE};
        if ((!*armed || !access(armed, F_OK)) && is_about(&call, part)) {
            counted++;
            if (counted >= first && (times == 0 || counted - first < times)) {
                failed++;
                if (error) answer.flags = 0, answer.error = -error;
                else usleep(10000);
            }
            char text[64];
            int length = snprintf(text, sizeof text, "%12lu %12lu\n", counted, failed);
            if (pwrite(report, text, (size_t)length, 0) != length) die("report");
        }
        ioctl(listener, SECCOMP_IOCTL_NOTIF_SEND, &answer);
    }
}

int main(int argc, char **argv) {
    errno = EINVAL;
    if (argc < 9) die("arguments");
    int ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends)) die("socketpair");
    int report = open(argv[7], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (report < 0) die(argv[7]);
    /* Nobody's child and in no group of ours: it must neither be waited for nor killed before the command. */
    pid_t child = fork();
    if (child < 0) die("fork");
    if (child == 0) {
        if (fork() != 0) _exit(0);
        setsid();
        close(ends[0]);
        int listener = receive_fd(ends[1]);
        int null = open("/dev/null", O_RDWR);
        for (int fd = 0; fd < 3; fd++) dup2(null, fd);
        decide(listener, atoi(argv[2]), strtoul(argv[3], NULL, 10), strtoul(argv[4], NULL, 10), argv[5], argv[6], report);
    }
    waitpid(child, NULL, 0);
    int listener = catch(argv[1]);
    send_fd(ends[0], listener);
    close(listener);
    execvp(argv[8], argv + 8);
    die(argv[8]);
}
