/* Preloaded, it shifts the wall clock by CLOCK_SHIFT seconds, CLOCK_DELAY seconds after the process first asked. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static int (*real)(clockid_t, struct timespec *);
static long long shift;
static time_t from;

__attribute__((constructor)) static void start(void) {
    real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    const char *seconds = getenv("CLOCK_SHIFT");
    const char *delay = getenv("CLOCK_DELAY");
    struct timespec now;
    real(CLOCK_MONOTONIC, &now);
    shift = seconds ? atoll(seconds) : 0;
    from = now.tv_sec + (delay ? atoll(delay) : 0);
}

int clock_gettime(clockid_t id, struct timespec *time) {
    if (!real)
        start();
    int result = real(id, time);
    struct timespec now;
    if (result == 0 && id == CLOCK_REALTIME && real(CLOCK_MONOTONIC, &now) == 0 && now.tv_sec >= from)
        time->tv_sec += shift;
    return result;
}
