/* A disk that fails: from the FAULT_AT'th write on (or only then, if FAULT_ONCE is set), writes below FAULT_ROOT get
   FAULT_ERRNO. Preloaded into one process; what that starts does not have it. Counts, and tells the count when the process ends. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static const char *root;
static long at, count;
static int code, once;

__attribute__((constructor)) static void begin(void) {
    root = getenv("FAULT_ROOT");
    at = getenv("FAULT_AT") ? atol(getenv("FAULT_AT")) : 0;
    code = getenv("FAULT_ERRNO") ? atoi(getenv("FAULT_ERRNO")) : ENOSPC;
    once = getenv("FAULT_ONCE") != NULL;
    unsetenv("LD_PRELOAD");
}

__attribute__((destructor)) static void end(void) {
    const char *path = getenv("FAULT_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;
    if (file) {
        fprintf(file, "%ld\n", count);
        fclose(file);
    }
}

static int fails(int handle) {
    char link[64], path[4096];
    ssize_t length;
    if (!root) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    if (strncmp(path, root, strlen(root)) != 0) return 0;
    long mine = __sync_add_and_fetch(&count, 1);
    if (at && (once ? mine == at : mine >= at)) {
        errno = code;
        return 1;
    }
    return 0;
}

#define REAL(name) ((typeof(&name))dlsym(RTLD_NEXT, #name))

ssize_t write(int handle, const void *data, size_t size) { return fails(handle) ? -1 : REAL(write)(handle, data, size); }
ssize_t pwrite(int handle, const void *data, size_t size, off_t from) {
    return fails(handle) ? -1 : REAL(pwrite)(handle, data, size, from);
}
ssize_t pwrite64(int handle, const void *data, size_t size, off64_t from) {
    return fails(handle) ? -1 : REAL(pwrite64)(handle, data, size, from);
}
int fsync(int handle) { return fails(handle) ? -1 : REAL(fsync)(handle); }
int fdatasync(int handle) { return fails(handle) ? -1 : REAL(fdatasync)(handle); }
