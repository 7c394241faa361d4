/* A library to be preloaded: it kills its process at the N-th change to a directory.
 *
 * Counted is every call of libc that changes a file or a name below the directory. The call itself
 * is not made, but for a write, of which the first half is: the file is torn. Armed with 0 it kills
 * nobody and says what it sees, a line for each change: `write PATH`, `fsync PATH`, `rename OLD NEW`.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char directory[PATH_MAX];
static long left = -1, counted = 0;
static char last[64];

void arm(const char *path, long n) {
    strncpy(directory, path, sizeof directory - 1);
    left = n;
    counted = 0;
}

long count(void) { return counted; }

#define REAL(name) static __typeof__(&name) real; if (!real) real = dlsym(RTLD_NEXT, #name)

static int below(const char *path) {
    return left >= 0 && path && strncmp(path, directory, strlen(directory)) == 0;
}

static int below_at(int parent, const char *path) {
    char link[64], found[PATH_MAX];
    if (left < 0 || !path) return 0;
    if (path[0] == '/' || parent == AT_FDCWD) return below(path);
    snprintf(link, sizeof link, "/proc/self/fd/%d", parent);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return 0;
    found[length] = 0;
    return below(found);
}

static int below_fd(int file) { return left >= 0 && below_at(file, "."); }

static void say(const char *what, const char *path, const char *other) {
    char line[3 * PATH_MAX];
    if (left != 0) return;
    int length = snprintf(line, sizeof line, "%s %s %s\n", what, path, other);
    syscall(SYS_write, 2, line, length);
}

static void say_fd(const char *what, int file) {
    char link[64], found[PATH_MAX];
    if (left != 0) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, found, sizeof found - 1);
    if (length < 0) return;
    found[length] = 0;
    say(what, found, "");
}

static int is_due(const char *what) {
    counted++;
    if (left > 0 && counted == left) {
        snprintf(last, sizeof last, "killed at %s\n", what);
        return 1;
    }
    return 0;
}

static void die(void) {
    syscall(SYS_write, 2, last, strlen(last));
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

#define POINT(condition, what) do { if ((condition) && is_due(what)) die(); } while (0)

static int opens_to_change(int flags) {
    return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC));
}

#define OPEN(name, parameters, arguments, place)                          \
    int name parameters {                                                 \
        REAL(name);                                                       \
        mode_t mode = 0;                                                  \
        if (flags & (O_CREAT | O_TMPFILE)) {                              \
            va_list more;                                                 \
            va_start(more, flags);                                        \
            mode = va_arg(more, mode_t);                                  \
            va_end(more);                                                 \
        }                                                                 \
        POINT(opens_to_change(flags) && place, "open");                   \
        return real arguments;                                            \
    }
OPEN(open, (const char *path, int flags, ...), (path, flags, mode), below(path))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode), below(path))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode), below_at(at, path))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode), below_at(at, path))

ssize_t write(int file, const void *data, size_t size) {
    REAL(write);
    if (below_fd(file)) say_fd("write", file);
    if (below_fd(file) && is_due("write")) {
        real(file, data, size / 2);
        die();
    }
    return real(file, data, size);
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) {
    REAL(pwrite64);
    if (below_fd(file)) say_fd("write", file);
    if (below_fd(file) && is_due("pwrite")) {
        real(file, data, size / 2, at);
        die();
    }
    return real(file, data, size, at);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t size) {
    REAL(sendfile64);
    if (below_fd(to)) say_fd("write", to);
    if (below_fd(to) && is_due("sendfile")) {
        real(to, from, at, 1000);
        die();
    }
    return real(to, from, at, size);
}

ssize_t copy_file_range(int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags) {
    REAL(copy_file_range);
    if (below_fd(to)) say_fd("write", to);
    if (below_fd(to) && is_due("copy_file_range")) {
        real(from, a, to, b, 1000, flags);
        die();
    }
    return real(from, a, to, b, size, flags);
}

#define CALL(name, parameters, arguments, place)                          \
    int name parameters {                                                 \
        REAL(name);                                                       \
        POINT(place, #name);                                              \
        return real arguments;                                            \
    }
int fsync(int file) {
    REAL(fsync);
    if (below_fd(file)) say_fd("fsync", file);
    POINT(below_fd(file), "fsync");
    return real(file);
}

int rename(const char *old, const char *new) {
    REAL(rename);
    if (below(new) || below(old)) say("rename", old, new);
    POINT(below(new) || below(old), "rename");
    return real(old, new);
}

CALL(fdatasync, (int file), (file), below_fd(file))
CALL(ftruncate64, (int file, off64_t size), (file, size), below_fd(file))
CALL(fchmod, (int file, mode_t mode), (file, mode), below_fd(file))
CALL(renameat, (int a, const char *old, int b, const char *new), (a, old, b, new),
     below_at(b, new) || below_at(a, old))
CALL(unlink, (const char *path), (path), below(path))
CALL(unlinkat, (int at, const char *path, int flags), (at, path, flags), below_at(at, path))
CALL(remove, (const char *path), (path), below(path))
CALL(mkdir, (const char *path, mode_t mode), (path, mode), below(path))
CALL(mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), below_at(at, path))
CALL(rmdir, (const char *path), (path), below(path))
CALL(link, (const char *old, const char *new), (old, new), below(new))
CALL(symlink, (const char *old, const char *new), (old, new), below(new))
CALL(symlinkat, (const char *old, int at, const char *new), (old, at, new), below_at(at, new))
CALL(chmod, (const char *path, mode_t mode), (path, mode), below(path))
