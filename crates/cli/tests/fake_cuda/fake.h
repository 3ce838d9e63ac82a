/* What the parts of the fake CUDA share: result codes, settings from the environment, and faults on demand.
 *
 * FAKE_CUDA_FAULT: `KIND:N`, what goes wrong at the N-th call of its kind in a process, and at every later one:
 *   memory     an allocation is refused            memory-once  that one allocation alone is refused
 *   launch     a launch is refused                 kernel       a kernel fails while it runs, which the next wait tells
 *   copy       a copy to the device fails          sync         waiting for the device fails
 *   compile    a kernel does not compile
 * FAKE_CUDA_FAULT_ONCE: a file; the fault is for the process that makes it. */
#pragma once
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201, INVALID_HANDLE = 400, NOT_FOUND = 500, NOT_READY = 600, LAUNCH_FAILED = 719
};

static inline const char *setting(const char *name, const char *otherwise) {
    const char *text = getenv(name);
    return text && *text ? text : otherwise;
}
static inline int environment(const char *name, int otherwise) {
    const char *text = setting(name, NULL);
    return text ? atoi(text) : otherwise;
}

/* Whether this process is the one to have the fault. */
static inline int fault_is_ours(void) {
    static atomic_int known; /* 1: ours, 2: another process's */
    if (!atomic_load(&known)) {
        const char *once = setting("FAKE_CUDA_FAULT_ONCE", NULL);
        int file = once ? open(once, O_WRONLY | O_CREAT | O_EXCL, 0600) : 0;
        if (once && file >= 0) close(file);
        atomic_store(&known, file >= 0 ? 1 : 2);
    }
    return atomic_load(&known) == 1;
}

/* Counts a call of `kind` in `calls`, and tells whether it is to fail. */
static inline int fails(const char *kind, atomic_int *calls) {
    const char *fault = setting("FAKE_CUDA_FAULT", NULL);
    size_t length = strlen(kind);
    int call = atomic_fetch_add(calls, 1) + 1;
    if (!fault || strncmp(fault, kind, length)) return 0;
    int once = !strncmp(fault + length, "-once:", 6);
    if (!once && fault[length] != ':') return 0;
    int wanted = atoi(fault + length + (once ? 6 : 1));
    return (once ? call == wanted : call >= wanted) && fault_is_ours();
}
