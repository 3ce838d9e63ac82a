/* Kernels on the CPU: modules and launches of the FAKE CUDA driver. A module is a shared library that the fake NVRTC
 * (nvrtc.c) compiled. Blocks run one after another. Where a kernel has barriers, each of its threads is a fiber that waits at
 * them; otherwise its threads are a loop. x86-64 only.
 *
 * FAKE_CUDA_ORDER: `reverse` runs blocks, warps and lanes from the last to the first.
 * FAKE_CUDA_TRACE: file that gets a line for each launch. FAKE_CUDA_COUNTS: file that gets a line at the end of a process:
 * its launches, and with FAKE_CUDA_BYTES the bytes that they read and wrote. */
#include "fake.h"
#include "memory.h"
#include "toolkit/include/emulated_thread.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>

enum { MOST_THREADS = 1024, WARP = 32, SLOT = 16 };
#define STACK ((size_t)256 << 10)

extern CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device);

static void say(const char *text) { fprintf(stderr, "fake CUDA: %s\n", text); }
static void append(const char *variable, const char *line) {
    const char *path = setting(variable, NULL);
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0) return;
    if (write(file, line, strlen(line)) < 0) say("cannot write its log");
    close(file);
}

/* Modules */
struct module { void *library; };
struct function {
    void (*thread)(void **), (*block)(void **);
    int has_barriers;
    unsigned char *shared;
    int most_shared;
    char name[200];
};
static emulated_thread now;
static void wait_for_block(void);
static void wait_for_warp(void);
static unsigned char *exchange(void);
static unsigned warp_lanes(void);

CUresult cuModuleLoadData(struct module **out, const char *image) {
    if (!fake_cuda_context) return INVALID_CONTEXT;
    if (fake_cuda_broken) return LAUNCH_FAILED;
    if (strncmp(image, "EMULATED ", 9)) {
        say("a module that the fake NVRTC has not compiled");
        return INVALID_IMAGE;
    }
    void *library = dlopen(image + 9, RTLD_NOW | RTLD_LOCAL);
    if (!library) {
        say(dlerror());
        return INVALID_IMAGE;
    }
    *out = calloc(1, sizeof **out);
    (*out)->library = library;
    return SUCCESS;
}
CUresult cuModuleUnload(struct module *module) { (void)module; return SUCCESS; }
CUresult cuModuleGetFunction(struct function **out, struct module *module, const char *name) {
    char symbol[300];
    struct function *function = calloc(1, sizeof *function);
    snprintf(symbol, sizeof symbol, "emulated_thread_%s", name);
    *(void **)&function->thread = dlsym(module->library, symbol);
    snprintf(symbol, sizeof symbol, "emulated_block_%s", name);
    *(void **)&function->block = dlsym(module->library, symbol);
    unsigned char *(*bind)(emulated_thread *);
    *(void **)&bind = dlsym(module->library, "emulated_bind");
    const int *has_barriers = dlsym(module->library, "emulated_has_barriers");
    if (!function->thread || !function->block || !bind || !has_barriers) {
        say(name);
        free(function);
        return NOT_FOUND;
    }
    now.wait_for_block = wait_for_block;
    now.wait_for_warp = wait_for_warp;
    now.exchange = exchange;
    now.warp_lanes = warp_lanes;
    now.touch = fake_cuda_touch;
    function->shared = bind(&now);
    function->has_barriers = *has_barriers;
    function->most_shared = 48 * 1024;
    snprintf(function->name, sizeof function->name, "%s", name);
    *out = function;
    return SUCCESS;
}
CUresult cuFuncSetAttribute(struct function *function, int attribute, int value) {
    enum { MAX_DYNAMIC_SHARED_SIZE_BYTES = 8 };
    int most;
    cuDeviceGetAttribute(&most, 97, (CUdevice)(uintptr_t)fake_cuda_context - 1);
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES) return SUCCESS;
    if (value > most) return INVALID_VALUE;
    if (value > function->most_shared) function->most_shared = value;
    return SUCCESS;
}

/* Fibers: one for each thread of the block that runs. */
void fake_cuda_switch(void **save, void *load);
__asm__(".text\n.globl fake_cuda_switch\n.type fake_cuda_switch,@function\nfake_cuda_switch:\n"
        "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
        "movq %rsp,(%rdi)\nmovq %rsi,%rsp\n"
        "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
        ".size fake_cuda_switch,.-fake_cuda_switch\n");
enum state { RUNS, AT_BLOCK, AT_WARP, ENDED };
static struct fiber { void *at; enum state state; emulated_uint3 index; unsigned exchanges; int begun; } fibers[MOST_THREADS];
static char *stacks;
static void *scheduler;
static unsigned present, threads;
static struct function *running;
static void **arguments;
static unsigned char slots[MOST_THREADS / WARP][2][WARP * SLOT];

static void pause_as(enum state state) {
    fibers[present].state = state;
    fake_cuda_switch(&fibers[present].at, scheduler);
}
static void wait_for_block(void) { pause_as(AT_BLOCK); }
static void wait_for_warp(void) { pause_as(AT_WARP); }
/* Two sets of slots in turn: a lane may be one exchange ahead of another. */
static unsigned char *exchange(void) { return slots[present / WARP][fibers[present].exchanges++ & 1]; }
static unsigned warp_lanes(void) {
    unsigned first = present / WARP * WARP;
    return threads - first < WARP ? threads - first : WARP;
}
static void life(void) {
    for (;;) {
        running->thread(arguments);
        pause_as(ENDED);
    }
}
static void resume(unsigned thread) {
    struct fiber *fiber = &fibers[thread];
    present = thread;
    now.thread_index = fiber->index;
    now.linear = thread;
    if (!fiber->begun) {
        void **top = (void **)(stacks + (thread + 1) * STACK);
        *--top = NULL; /* never returned to; it aligns the stack as a call would */
        *--top = (void *)life;
        top -= 6;
        fiber->at = top;
        fiber->begun = 1;
    }
    fake_cuda_switch(&scheduler, fiber->at);
}
/* Runs the threads of one warp until all wait for their block or have ended; how many wait, or -1 where that cannot be. */
static int run_warp(unsigned first, unsigned *ended) {
    unsigned last = first + WARP < threads ? first + WARP : threads;
    for (;;) {
        unsigned at_warp = 0, at_block = 0, over = 0;
        for (unsigned i = first; i < last; i++) {
            unsigned thread = now.reverse ? last - 1 - (i - first) : i;
            if (fibers[thread].state == RUNS) resume(thread);
        }
        for (unsigned i = first; i < last; i++) {
            at_warp += fibers[i].state == AT_WARP;
            at_block += fibers[i].state == AT_BLOCK;
            over += fibers[i].state == ENDED;
        }
        if (at_warp && at_block) return -1;
        if (!at_warp) {
            *ended += over;
            return (int)at_block;
        }
        for (unsigned i = first; i < last; i++)
            if (fibers[i].state == AT_WARP) fibers[i].state = RUNS;
    }
}
static int run_block(void) {
    for (unsigned i = 0; i < threads; i++) {
        fibers[i].state = RUNS;
        fibers[i].exchanges = 0;
        fibers[i].index = (emulated_uint3){i % now.block_size.x, i / now.block_size.x % now.block_size.y, i / now.block_size.x / now.block_size.y};
    }
    unsigned warps = (threads + WARP - 1) / WARP;
    for (;;) {
        unsigned waiting = 0, ended = 0;
        for (unsigned i = 0; i < warps; i++) {
            int at_block = run_warp((now.reverse ? warps - 1 - i : i) * WARP, &ended);
            if (at_block < 0) {
                say("lanes of a warp wait at different barriers");
                return 1;
            }
            waiting += (unsigned)at_block;
        }
        if (ended == threads) return 0;
        for (unsigned i = 0; i < threads; i++)
            if (fibers[i].state == AT_BLOCK) fibers[i].state = RUNS;
    }
}

static uint64_t launches, bytes_read, bytes_written;

CUresult cuLaunchKernel(struct function *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x, unsigned block_y,
                        unsigned block_z, unsigned shared, void *stream, void **kernel_arguments, void **extra) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    static atomic_int asked, run;
    (void)stream;
    if (!fake_cuda_context) return INVALID_CONTEXT;
    if (fake_cuda_broken) return LAUNCH_FAILED;
    unsigned all = block_x * block_y * block_z;
    if (extra || !function || !grid_x || !grid_y || !grid_z || !all || all > MOST_THREADS || block_z > 64 || grid_y > 65535 || grid_z > 65535) return INVALID_VALUE;
    if ((int)shared > function->most_shared || shared > EMULATED_SHARED) return INVALID_VALUE;
    if (fails("launch", &asked)) {
        fake_cuda_broken = 1;
        return LAUNCH_FAILED;
    }
    if (fails("kernel", &run)) {
        fake_cuda_broken = 1;
        return SUCCESS;
    }
    pthread_mutex_lock(&lock);
    if (!stacks) {
        now.reverse = !strcmp(setting("FAKE_CUDA_ORDER", "forward"), "reverse");
        stacks = mmap(NULL, MOST_THREADS * STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    }
    now.block_size = (emulated_uint3){block_x, block_y, block_z};
    now.grid_size = (emulated_uint3){grid_x, grid_y, grid_z};
    threads = all;
    running = function;
    arguments = kernel_arguments;
    int failed = 0;
    size_t blocks = (size_t)grid_x * grid_y * grid_z;
    for (size_t n = 0; n < blocks && !failed; n++) {
        size_t block = now.reverse ? blocks - 1 - n : n;
        now.block_index = (emulated_uint3){block % grid_x, block / grid_x % grid_y, block / grid_x / grid_y};
        if (shared) memset(function->shared, 0xFF, shared); /* NaN */
        if (function->has_barriers) failed = run_block();
        else function->block(kernel_arguments);
    }
    launches++;
    uint64_t read_now, written_now;
    fake_cuda_next_launch(&read_now, &written_now);
    bytes_read += read_now;
    bytes_written += written_now;
    char line[500];
    snprintf(line, sizeof line, "%d %s grid %u %u %u block %u %u %u shared %u read %llu written %llu%s\n", (int)getpid(), function->name, grid_x, grid_y, grid_z,
             block_x, block_y, block_z, shared, (unsigned long long)read_now, (unsigned long long)written_now, failed ? " FAILED" : "");
    append("FAKE_CUDA_TRACE", line);
    if (failed) fake_cuda_broken = 1;
    pthread_mutex_unlock(&lock);
    return failed ? LAUNCH_FAILED : SUCCESS;
}

__attribute__((destructor)) static void tell(void) {
    if (!launches) return;
    char line[200];
    snprintf(line, sizeof line, "%d launches %llu read %llu written %llu\n", (int)getpid(), (unsigned long long)launches, (unsigned long long)bytes_read, (unsigned long long)bytes_written);
    append("FAKE_CUDA_COUNTS", line);
}
