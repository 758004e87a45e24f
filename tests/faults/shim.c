/* Stands between stepwell and the system, for the files of one queue: counts its I/O calls, fails the n-th of them, and can
 * write down what was written and synced, in the order in which it happened. Loaded with LD_PRELOAD into a process that runs
 * real stepwell code; told what to do by a small file that both sides have mapped or open, see shim.rs for its layout.
 *
 * SQLite's own table of replaceable calls has no fsync, and Rust's standard library goes past it: hence the C library's names.
 * The index of the log (-shm) is written through a mapping, where no call can fail; that it cannot be made can.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OPEN = 1, READ, WRITE, SYNC, TRUNCATE, UNLINK, STAT, MAP, SYNC_FAILED, THREAD };
/* ROLLBACK is SQLite's own journal, DIR the directory itself, NOTE the journal of the tests: it is written down, but never fails. */
enum { NONE, DB, WAL, SHM, OWNER, OTHER, DIR, NOTE, ROLLBACK };
enum { ONCE, ON };
/* What a call fails with, besides a number of errno. */
#define SHORT 0
/* Added to that number: only syncs fail. */
#define SYNCS_ONLY 256
/* Added to that number: no file is touched, threads cannot be started. */
#define THREADS_ONLY 512

struct control {
    _Atomic uint64_t armed, at, mode, error, calls, failures, first_op, first_file;
};

static struct control *control;
static const char *dir;
static size_t dir_length;
static int record = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
#define FILES 4096
static _Atomic unsigned char files[FILES];

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_read)(int, void *, size_t);
static ssize_t (*real_pread)(int, void *, size_t, off64_t);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_pwrite)(int, const void *, size_t, off64_t);
static int (*real_fsync)(int);
static int (*real_fdatasync)(int);
static int (*real_ftruncate)(int, off64_t);
static int (*real_unlink)(const char *);
static int (*real_fstat)(int, struct stat64 *);
static void *(*real_mmap)(void *, size_t, int, int, int, off64_t);
static int (*real_close)(int);
static int (*real_create)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);

__attribute__((constructor)) static void start(void) {
    real_open = dlsym(RTLD_NEXT, "open64");
    real_read = dlsym(RTLD_NEXT, "read");
    real_pread = dlsym(RTLD_NEXT, "pread64");
    real_write = dlsym(RTLD_NEXT, "write");
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    real_unlink = dlsym(RTLD_NEXT, "unlink");
    real_fstat = dlsym(RTLD_NEXT, "fstat64");
    real_mmap = dlsym(RTLD_NEXT, "mmap64");
    real_close = dlsym(RTLD_NEXT, "close");
    real_create = dlsym(RTLD_NEXT, "pthread_create");
    const char *told = getenv("STEPWELL_SHIM_CONTROL"), *to = getenv("STEPWELL_SHIM_RECORD");
    const char *of = getenv("STEPWELL_SHIM_DIR");
    if (!told || !of) return;
    int fd = real_open(told, O_RDWR | O_CLOEXEC);
    if (fd < 0) abort();
    control = real_mmap(0, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (control == MAP_FAILED) abort();
    real_close(fd);
    if (to && (record = real_open(to, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600)) < 0) abort();
    dir_length = strlen(of);
    dir = of;
}

static int file_at(const char *path) {
    if (!dir || !path || strncmp(path, dir, dir_length)) return NONE;
    path += dir_length;
    if (!*path || !strcmp(path, "/")) return DIR;
    if (!strcmp(path, "/journal")) return NOTE;
    if (strncmp(path, "/jobs.db", 8)) return NONE;
    path += 8;
    return !*path ? DB : !strcmp(path, "-wal") ? WAL : !strcmp(path, "-shm") ? SHM : !strcmp(path, "-owner") ? OWNER : !strcmp(path, "-journal") ? ROLLBACK : OTHER;
}

static int file_of(int fd) { return fd >= 0 && fd < FILES ? files[fd] : NONE; }

/* Whether this call, of the kind that is to fail, is the one: then errno is set, or 0 stands for a short write. */
static int is_hit(int op, int file, uint64_t error) {
    uint64_t call = atomic_fetch_add(&control->calls, 1) + 1, at = control->at;
    if (!at || (control->mode == ONCE ? call != at : call < at)) return 0;
    if (atomic_fetch_add(&control->failures, 1) == 0) {
        control->first_op = op;
        control->first_file = file;
    }
    errno = error == SHORT ? ENOSPC : (int)error;
    return 1;
}

static int fails(int op, int file, int takes_space) {
    if (file == NONE || file == NOTE || !control || !control->armed || control->error & THREADS_ONLY) return 0;
    uint64_t error = control->error & (SYNCS_ONLY - 1);
    if (control->error & SYNCS_ONLY ? op != SYNC : error != EIO && !takes_space) return 0;
    return is_hit(op, file, error);
}

struct entry { uint64_t op, file, at, length; };

static void note(int op, int file, uint64_t at, const void *bytes, uint64_t length) {
    struct entry entry = {op, file, at, length};
    int kept = errno;
    if (real_write(record, &entry, sizeof entry) != sizeof entry) abort();
    if (bytes && length && real_write(record, bytes, length) != (ssize_t)length) abort();
    errno = kept;
}

/* What is done and what is written down of it are one step, so that the record has the order of what happened. */
static int begin(int file) {
    if (record < 0 || file == NONE) return 0;
    pthread_mutex_lock(&lock);
    return 1;
}

static void end(int is_recorded) {
    if (is_recorded) pthread_mutex_unlock(&lock);
}

static int opened(const char *path, int flags, mode_t mode) {
    int file = file_at(path);
    int is_new = file != NONE && (flags & O_CREAT) && access(path, F_OK);
    if (fails(OPEN, file, is_new)) return -1;
    int is_recorded = begin(file);
    int fd = real_open(path, flags, mode);
    if (fd >= 0 && fd < FILES) files[fd] = file;
    if (fd >= 0 && is_recorded && is_new) note(OPEN, file, 0, 0, 0);
    end(is_recorded);
    return fd;
}

#define OPENED(path, flags) \
    mode_t mode = 0; \
    if (flags & O_CREAT) { \
        va_list rest; \
        va_start(rest, flags); \
        mode = va_arg(rest, int); \
        va_end(rest); \
    } \
    return opened(path, flags, mode);

int open(const char *path, int flags, ...) { OPENED(path, flags) }
int open64(const char *path, int flags, ...) { OPENED(path, flags) }

int close(int fd) {
    if (fd >= 0 && fd < FILES) files[fd] = NONE;
    return real_close(fd);
}

ssize_t read(int fd, void *to, size_t length) {
    return fails(READ, file_of(fd), 0) ? -1 : real_read(fd, to, length);
}

ssize_t pread64(int fd, void *to, size_t length, off64_t at) {
    return fails(READ, file_of(fd), 0) ? -1 : real_pread(fd, to, length, at);
}

ssize_t pread(int fd, void *to, size_t length, off_t at) { return pread64(fd, to, length, at); }

/* The first half, when a short write is asked for. */
static ssize_t is_short(int file, size_t *length) {
    if (!fails(WRITE, file, 1)) return 0;
    if (control->error != SHORT || control->failures > 1 || *length < 2) return -1;
    *length /= 2;
    return 0;
}

ssize_t write(int fd, const void *from, size_t length) {
    int file = file_of(fd);
    if (is_short(file, &length)) return -1;
    int is_recorded = begin(file);
    off64_t at = is_recorded ? lseek64(fd, 0, SEEK_CUR) : 0;
    ssize_t done = real_write(fd, from, length);
    if (is_recorded && done > 0) note(WRITE, file, at, from, done);
    end(is_recorded);
    return done;
}

ssize_t pwrite64(int fd, const void *from, size_t length, off64_t at) {
    int file = file_of(fd);
    if (is_short(file, &length)) return -1;
    int is_recorded = begin(file);
    ssize_t done = real_pwrite(fd, from, length, at);
    if (is_recorded && done > 0) note(WRITE, file, at, from, done);
    end(is_recorded);
    return done;
}

ssize_t pwrite(int fd, const void *from, size_t length, off_t at) { return pwrite64(fd, from, length, at); }

static int synced(int fd, int (*sync)(int)) {
    int file = file_of(fd);
    if (fails(SYNC, file, 1)) {
        if (begin(file)) {
            note(SYNC_FAILED, file, 0, 0, 0);
            end(1);
        }
        return -1;
    }
    /* Not under the lock: what is written meanwhile is not promised to be on the disk, so the record says when it began. */
    int is_recorded = begin(file);
    if (is_recorded) note(SYNC, file, 0, 0, 0);
    end(is_recorded);
    return record >= 0 ? 0 : sync(fd);
}

int fsync(int fd) { return synced(fd, real_fsync); }
int fdatasync(int fd) { return synced(fd, real_fdatasync); }

int ftruncate64(int fd, off64_t length) {
    int file = file_of(fd);
    if (fails(TRUNCATE, file, 1)) return -1;
    int is_recorded = begin(file);
    int done = real_ftruncate(fd, length);
    if (is_recorded && !done) note(TRUNCATE, file, length, 0, 0);
    end(is_recorded);
    return done;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int unlink(const char *path) {
    int file = file_at(path);
    if (fails(UNLINK, file, 0)) return -1;
    int is_recorded = begin(file);
    int done = real_unlink(path);
    if (is_recorded && !done) note(UNLINK, file, 0, 0, 0);
    end(is_recorded);
    return done;
}

int fstat64(int fd, struct stat64 *to) { return fails(STAT, file_of(fd), 0) ? -1 : real_fstat(fd, to); }

void *mmap64(void *at, size_t length, int access, int flags, int fd, off64_t offset) {
    if (!real_mmap) real_mmap = dlsym(RTLD_NEXT, "mmap64");
    return !(flags & MAP_ANONYMOUS) && fails(MAP, file_of(fd), 0) ? MAP_FAILED : real_mmap(at, length, access, flags, fd, offset);
}

int pthread_create(pthread_t *thread, const pthread_attr_t *how, void *(*run)(void *), void *with) {
    if (!real_create) real_create = dlsym(RTLD_NEXT, "pthread_create");
    int counts = control && control->armed && control->error & THREADS_ONLY;
    return counts && is_hit(THREAD, NONE, EAGAIN) ? EAGAIN : real_create(thread, how, run, with);
}
