/* Preloaded by the tool's tests: write() to a regular file that goes wrong as FOVEAL_TEST_WRITE names it. The first
 * call writes half of its bytes; "SIGTERM", "SIGINT", "SIGHUP": then the signal comes, as if from outside; "ENOSPC",
 * "EIO": every later call fails. Standard output and standard error are left alone. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static const struct {
    const char* name;
    int signal, error;
} kinds[] = {
    {"SIGTERM", SIGTERM, 0}, {"SIGINT", SIGINT, 0}, {"SIGHUP", SIGHUP, 0}, {"ENOSPC", 0, ENOSPC}, {"EIO", 0, EIO}};

ssize_t write(int file, const void* bytes, size_t count) {
    static int calls = 0;
    ssize_t (*real)(int, const void*, size_t) = NULL;
    *(void**)&real = dlsym(RTLD_NEXT, "write");
    const char* how = getenv("FOVEAL_TEST_WRITE");
    struct stat status;
    if (how == NULL || file <= STDERR_FILENO || fstat(file, &status) != 0 || !S_ISREG(status.st_mode))
        return real(file, bytes, count);
    ++calls;
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; ++i) {
        if (strcmp(how, kinds[i].name) != 0) continue;
        if (calls > 1 && kinds[i].error != 0) {
            errno = kinds[i].error;
            return -1;
        }
        const ssize_t written = real(file, bytes, calls == 1 ? (count + 1) / 2 : count);
        if (calls == 1 && kinds[i].signal != 0) kill(getpid(), kinds[i].signal);
        return written;
    }
    return real(file, bytes, count);
}
