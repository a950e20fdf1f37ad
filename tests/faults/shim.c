/* Counts the system calls that change files below a folder, and at the n-th kills the process, stops it, writes half or
 * reports a full disk. Loaded with LD_PRELOAD; set with shim_set (from Python through ctypes). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum action { COUNT, KILL, FULL, STOP, INTERRUPT };
static char root[PATH_MAX];
static long at;
static enum action action;
struct record { volatile long n; char names[(1 << 18) - sizeof(long)]; };
static struct record *calls; /* shared with the parent, which reads it */

/* Set what the children of this process do. Returns the record of the next child. */
struct record *shim_set(const char *folder, long n, int what) {
    calls = mmap(NULL, sizeof *calls, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    at = n;
    action = what;
    if (!realpath(folder, root)) snprintf(root, sizeof root, "%s", folder);
    return calls;
}

const char *shim_names(struct record *record) { return record->names; }
void shim_free(struct record *record) { munmap(record, sizeof *record); }

static int below(const char *path, int dir) {
    char whole[2 * PATH_MAX], from[64];
    if (!root[0] || !path) return 0;
    if (path[0] == '/') snprintf(whole, sizeof whole, "%s", path);
    else {
        char base[PATH_MAX];
        ssize_t n = -1;
        if (dir == AT_FDCWD) { if (getcwd(base, sizeof base)) n = strlen(base); }
        else { snprintf(from, sizeof from, "/proc/self/fd/%d", dir); n = readlink(from, base, sizeof base - 1); }
        if (n < 0) return 0;
        base[n] = 0;
        snprintf(whole, sizeof whole, "%s/%s", base, path);
    }
    return strncmp(whole, root, strlen(root)) == 0;
}

static int below_fd(int fd) {
    char from[64], path[PATH_MAX];
    if (!root[0]) return 0;
    snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(from, path, sizeof path - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return strncmp(path, root, strlen(root)) == 0;
}

/* Returns 1 if the call must fail with ENOSPC. */
static int happens(const char *name, int needs_space) {
    long n = __sync_add_and_fetch(&calls->n, 1);
    size_t used = strlen(calls->names);
    if (used < sizeof calls->names - 64) snprintf(calls->names + used, 32, "%s,", name);
    if (action == FULL) {
        if (needs_space && n >= at) { errno = ENOSPC; return 1; }
        return 0;
    }
    if (n == at) {
        if (action == KILL) raise(SIGKILL);
        if (action == STOP) raise(SIGSTOP);
        if (action == INTERRUPT) raise(SIGINT);
    }
    return 0;
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

#define OPENING(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if ((flags & (O_CREAT | O_TRUNC)) && below(path, AT_FDCWD) && happens("create", 1)) return -1; \
        return real(path, flags, mode); }
OPENING(open)
OPENING(open64)
#define OPENING_AT(name) \
    int name(int dir, const char *path, int flags, ...) { \
        REAL(name); mode_t mode = 0; \
        if (flags & (O_CREAT | O_TMPFILE)) { va_list more; va_start(more, flags); mode = va_arg(more, mode_t); va_end(more); } \
        if ((flags & (O_CREAT | O_TRUNC)) && below(path, dir) && happens("create", 1)) return -1; \
        return real(dir, path, flags, mode); }
OPENING_AT(openat)
OPENING_AT(openat64)

FILE *fopen(const char *path, const char *mode) {
    REAL(fopen);
    if (mode[0] != 'r' && below(path, AT_FDCWD) && happens("create", 1)) return NULL;
    return real(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    if (mode[0] != 'r' && below(path, AT_FDCWD) && happens("create", 1)) return NULL;
    return real(path, mode);
}
ssize_t write(int fd, const void *data, size_t n) {
    REAL(write);
    if (below_fd(fd) && happens("write", 1)) return -1;
    return real(fd, data, n);
}
ssize_t pwrite(int fd, const void *data, size_t n, off_t where) {
    REAL(pwrite);
    if (below_fd(fd) && happens("write", 1)) return -1;
    return real(fd, data, n, where);
}
ssize_t pwrite64(int fd, const void *data, size_t n, off64_t where) {
    REAL(pwrite64);
    if (below_fd(fd) && happens("write", 1)) return -1;
    return real(fd, data, n, where);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    REAL(writev);
    if (below_fd(fd) && happens("write", 1)) return -1;
    return real(fd, parts, n);
}
ssize_t sendfile(int out, int in, off_t *where, size_t n) {
    static ssize_t (*real)(int, int, off_t *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "sendfile");
    if (below_fd(out) && happens("write", 1)) return -1;
    return real(out, in, where, n);
}
int ftruncate(int fd, off_t n) {
    REAL(ftruncate);
    if (below_fd(fd) && happens("truncate", 0)) return -1;
    return real(fd, n);
}
int ftruncate64(int fd, off64_t n) {
    REAL(ftruncate64);
    if (below_fd(fd) && happens("truncate", 0)) return -1;
    return real(fd, n);
}
int posix_fallocate(int fd, off_t from, off_t n) {
    REAL(posix_fallocate);
    if (below_fd(fd) && happens("allocate", 1)) return ENOSPC;
    return real(fd, from, n);
}
int posix_fallocate64(int fd, off64_t from, off64_t n) {
    REAL(posix_fallocate64);
    if (below_fd(fd) && happens("allocate", 1)) return ENOSPC;
    return real(fd, from, n);
}
int fsync(int fd) {
    REAL(fsync);
    if (below_fd(fd) && happens("fsync", 0)) return -1;
    return real(fd);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    if (below(to, AT_FDCWD) && happens("rename", 0)) return -1;
    return real(from, to);
}
int renameat(int d1, const char *from, int d2, const char *to) {
    REAL(renameat);
    if (below(to, d2) && happens("rename", 0)) return -1;
    return real(d1, from, d2, to);
}
int renameat2(int d1, const char *from, int d2, const char *to, unsigned int flags) {
    REAL(renameat2);
    if (below(to, d2) && happens("exchange", 0)) return -1;
    return real(d1, from, d2, to, flags);
}
int unlink(const char *path) {
    REAL(unlink);
    if (below(path, AT_FDCWD) && happens("unlink", 0)) return -1;
    return real(path);
}
int unlinkat(int dir, const char *path, int flags) {
    REAL(unlinkat);
    if (below(path, dir) && happens("unlink", 0)) return -1;
    return real(dir, path, flags);
}
int rmdir(const char *path) {
    REAL(rmdir);
    if (below(path, AT_FDCWD) && happens("rmdir", 0)) return -1;
    return real(path);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    if (below(path, AT_FDCWD) && happens("mkdir", 1)) return -1;
    return real(path, mode);
}
int mkdirat(int dir, const char *path, mode_t mode) {
    REAL(mkdirat);
    if (below(path, dir) && happens("mkdir", 1)) return -1;
    return real(dir, path, mode);
}
