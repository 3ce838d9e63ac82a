/* A FAKE of the CUDA driver, for tests on machines without a GPU. It is not NVIDIA's code and proves nothing about it: it
 * lets real numalign processes go through the protocol around it.
 *
 * "Device memory" is host memory. A stream is a counter of things under way: the fake NCCL, which shares this library,
 * adds to it and takes away; copies are done at once, or refused while something is under way, since a real driver would
 * queue them and this one cannot. Functions and results are those of cuda.h that numalign calls.
 *
 * FAKE_CUDA_GPUS: how many GPUs there are (1). FAKE_CUDA_INIT: result of cuInit (0).
 * FAKE_CUDA_FREE_MIB: free memory of each GPU (1024). CUDA_VISIBLE_DEVICES: honoured as a list of numbers.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;
enum { SUCCESS = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_CONTEXT = 201, NOT_READY = 600 };

struct fake_stream {
    atomic_int under_way;
};

static int environment(const char *name, int otherwise) {
    const char *text = getenv(name);
    return text && *text ? atoi(text) : otherwise;
}

/* Numbers of the visible GPUs. */
static int visible(int *list, int most) {
    int there = environment("FAKE_CUDA_GPUS", 1), count = 0;
    const char *text = getenv("CUDA_VISIBLE_DEVICES");
    if (!text) {
        for (int i = 0; i < there && count < most; i++) list[count++] = i;
        return count;
    }
    while (*text && count < most) {
        char *end;
        long number = strtol(text, &end, 10);
        if (end == text || number < 0 || number >= there) break;
        list[count++] = (int)number;
        text = *end == ',' ? end + 1 : end;
    }
    return count;
}

static _Thread_local void *current;

CUresult cuInit(unsigned flags) { return flags ? INVALID_VALUE : environment("FAKE_CUDA_INIT", SUCCESS); }
CUresult cuDriverGetVersion(int *version) { *version = 12040; return SUCCESS; }
CUresult cuGetErrorString(CUresult result, const char **text) {
    *text = result == NO_DEVICE ? "no CUDA-capable device is detected" : result == OUT_OF_MEMORY ? "out of memory" : "an error of the fake driver";
    return SUCCESS;
}
CUresult cuDeviceGetCount(int *count) { int list[64]; *count = visible(list, 64); return SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    int list[64], count = visible(list, 64);
    if (ordinal < 0 || ordinal >= count) return INVALID_DEVICE;
    *device = list[ordinal];
    return SUCCESS;
}
CUresult cuDeviceGetName(char *name, int length, CUdevice device) { snprintf(name, (size_t)length, "Fake GPU %d", device); return SUCCESS; }
CUresult cuDeviceGetUuid(unsigned char *uuid, CUdevice device) { memset(uuid, 0, 16); uuid[15] = (unsigned char)device; return SUCCESS; }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) { (void)device; *bytes = (size_t)2 << 30; return SUCCESS; }
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    (void)device;
    *value = attribute == 75 ? 9 : 0;
    return SUCCESS;
}
CUresult cuDeviceCanAccessPeer(int *can, CUdevice from, CUdevice to) { *can = from != to; return SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(void **context, CUdevice device) { *context = (void *)(uintptr_t)(device + 1); return SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { (void)device; return SUCCESS; }
CUresult cuCtxSetCurrent(void *context) { current = context; return SUCCESS; }
CUresult cuMemGetInfo_v2(size_t *bytes, size_t *total) {
    if (!current) return INVALID_CONTEXT;
    *bytes = (size_t)environment("FAKE_CUDA_FREE_MIB", 1024) << 20;
    *total = (size_t)2 << 30;
    return SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    if (!current) return INVALID_CONTEXT;
    void *memory = malloc(bytes);
    if (!memory) return OUT_OF_MEMORY;
    /* What is not written must not look written. */
    memset(memory, 0xA5, bytes);
    *pointer = (CUdeviceptr)(uintptr_t)memory;
    return SUCCESS;
}
CUresult cuMemFree_v2(CUdeviceptr pointer) { free((void *)(uintptr_t)pointer); return SUCCESS; }
CUresult cuMemAllocHost_v2(void **pointer, size_t bytes) {
    if (!current) return INVALID_CONTEXT;
    *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void *pointer) { free(pointer); return SUCCESS; }

CUresult cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    if (!current) return INVALID_CONTEXT;
    struct fake_stream *its = calloc(1, sizeof *its);
    *stream = its;
    return its ? SUCCESS : OUT_OF_MEMORY;
}
/* Left to the process's end: the fake NCCL's thread may still count on it. */
CUresult cuStreamDestroy_v2(void *stream) { (void)stream; return SUCCESS; }
CUresult cuStreamQuery(void *stream) {
    struct fake_stream *its = stream;
    if (!its) return INVALID_VALUE;
    return atomic_load(&its->under_way) > 0 ? NOT_READY : SUCCESS;
}

/* The order of a stream: what comes after a sum waits for it. A real driver queues; here a thread of its own does. */
struct copy {
    void *to;
    const void *from;
    size_t bytes;
    struct fake_stream *stream;
};
static void *copy_later(void *argument) {
    struct copy *copy = argument;
    /* Its own place in the count, and that of the sum before it. */
    while (atomic_load(&copy->stream->under_way) > 1) {
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    memcpy(copy->to, copy->from, copy->bytes);
    atomic_fetch_sub(&copy->stream->under_way, 1);
    free(copy);
    return NULL;
}
static CUresult queue(void *to, const void *from, size_t bytes, void *stream) {
    struct fake_stream *its = stream;
    if (!its || !current) return INVALID_VALUE;
    if (atomic_load(&its->under_way) == 0) {
        memcpy(to, from, bytes);
        return SUCCESS;
    }
    struct copy *copy = malloc(sizeof *copy);
    *copy = (struct copy){to, from, bytes, its};
    atomic_fetch_add(&its->under_way, 1);
    pthread_t thread;
    if (pthread_create(&thread, NULL, copy_later, copy)) return OUT_OF_MEMORY;
    pthread_detach(thread);
    return SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) { return queue((void *)(uintptr_t)to, from, bytes, stream); }
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) { return queue(to, (const void *)(uintptr_t)from, bytes, stream); }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) { return queue((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes, stream); }

/* For the fake NCCL. */
void fake_cuda_begin(void *stream) { atomic_fetch_add(&((struct fake_stream *)stream)->under_way, 1); }
void fake_cuda_end(void *stream) { atomic_fetch_sub(&((struct fake_stream *)stream)->under_way, 1); }
int fake_cuda_has_context(void) { return current != NULL; }
