/* A FAKE of the CUDA driver, for tests on machines without a GPU. It is not NVIDIA's code and proves nothing about it: it
 * lets real numalign processes go through the protocol around it, and runs on the CPU what the fake NVRTC compiled. Here:
 * devices, contexts, streams, events and copies; memory.c has the memory, launch.c runs kernels, fake.h has the faults.
 *
 * A stream is a counter of things under way: the fake NCCL, which shares this library, adds to it and takes away; copies
 * are done at once, or wait in a thread of their own while something is under way. Everything else is done at once, in
 * the order of the calls. Functions and results are those of cuda.h that numalign and Burn's backend call.
 *
 * FAKE_CUDA_GPUS: how many GPUs there are (1). FAKE_CUDA_INIT: result of cuInit (0). FAKE_CUDA_CAPABILITY: compute
 * capability, such as 75 (90); a list gives each GPU its own. CUDA_VISIBLE_DEVICES: honoured as a list of numbers.
 */
#include "fake.h"
#include "memory.h"
#include <pthread.h>
#include <time.h>

struct fake_stream {
    atomic_int under_way;
};

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

CUresult cuInit(unsigned flags) { return flags ? INVALID_VALUE : environment("FAKE_CUDA_INIT", SUCCESS); }
CUresult cuDriverGetVersion(int *version) { *version = 12040; return SUCCESS; }
CUresult cuGetErrorString(CUresult result, const char **text) {
    switch (result) {
    case OUT_OF_MEMORY: *text = "out of memory"; break;
    case NO_DEVICE: *text = "no CUDA-capable device is detected"; break;
    case LAUNCH_FAILED: *text = "unspecified launch failure"; break;
    default: *text = "an error of the fake driver";
    }
    return SUCCESS;
}
CUresult cuGetErrorName(CUresult result, const char **text) {
    *text = result == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : result == LAUNCH_FAILED ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_OF_THE_FAKE";
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
CUresult cuDeviceGetUuid_v2(unsigned char *uuid, CUdevice device) { memset(uuid, 0, 16); uuid[15] = (unsigned char)device; return SUCCESS; }
CUresult cuDeviceGetUuid(unsigned char *uuid, CUdevice device) { return cuDeviceGetUuid_v2(uuid, device); }
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    (void)device;
    *bytes = (size_t)environment("FAKE_CUDA_FREE_MIB", 1024) << 21;
    return SUCCESS;
}
/* The numbers of an H100 or, below 9.0, of an A100 and of Turing, where they matter. */
CUresult cuDeviceGetAttribute(int *value, int attribute, CUdevice device) {
    const char *list = setting("FAKE_CUDA_CAPABILITY", "90");
    for (int i = 0; i < device && strchr(list, ','); i++) list = strchr(list, ',') + 1;
    int capability = atoi(list);
    switch (attribute) {
    case 1: *value = 1024; break;          /* MAX_THREADS_PER_BLOCK */
    case 2: case 3: *value = 1024; break;  /* MAX_BLOCK_DIM_X, Y */
    case 4: *value = 64; break;            /* MAX_BLOCK_DIM_Z */
    case 5: *value = 2147483647; break;    /* MAX_GRID_DIM_X */
    case 6: case 7: *value = 65535; break; /* MAX_GRID_DIM_Y, Z */
    case 8: *value = 49152; break;         /* MAX_SHARED_MEMORY_PER_BLOCK */
    case 10: *value = 32; break;           /* WARP_SIZE */
    case 16: *value = 132; break;          /* MULTIPROCESSOR_COUNT */
    case 75: *value = capability / 10; break;
    case 76: *value = capability % 10; break;
    case 97: *value = capability >= 90 ? 232448 : capability >= 80 ? 166912 : 65536; break; /* …_PER_BLOCK_OPTIN */
    default: *value = 0;
    }
    return SUCCESS;
}
CUresult cuDeviceCanAccessPeer(int *can, CUdevice from, CUdevice to) { *can = from != to; return SUCCESS; }
CUresult cuDevicePrimaryCtxRetain(void **context, CUdevice device) { *context = (void *)(uintptr_t)(device + 1); return SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) { (void)device; return SUCCESS; }
CUresult cuCtxSetCurrent(void *context) { fake_cuda_context = context; return SUCCESS; }
CUresult cuCtxGetCurrent(void **context) { *context = fake_cuda_context; return SUCCESS; }
CUresult cuStreamCreate(void **stream, unsigned flags) {
    (void)flags;
    if (!fake_cuda_context) return INVALID_CONTEXT;
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
    if (!fake_cuda_context) return INVALID_CONTEXT;
    if (fake_cuda_broken) return LAUNCH_FAILED;
    if (!its || atomic_load(&its->under_way) == 0) {
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
static atomic_int copies, waits;
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t bytes, void *stream) {
    if (fails("copy", &copies)) return LAUNCH_FAILED;
    return queue((void *)(uintptr_t)to, from, bytes, stream);
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t bytes, void *stream) { return queue(to, (const void *)(uintptr_t)from, bytes, stream); }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr to, CUdeviceptr from, size_t bytes, void *stream) { return queue((void *)(uintptr_t)to, (const void *)(uintptr_t)from, bytes, stream); }
CUresult cuMemcpyHtoD_v2(CUdeviceptr to, const void *from, size_t bytes) { return cuMemcpyHtoDAsync_v2(to, from, bytes, NULL); }
CUresult cuMemcpyDtoH_v2(void *to, CUdeviceptr from, size_t bytes) { return cuMemcpyDtoHAsync_v2(to, from, bytes, NULL); }
CUresult cuMemsetD8Async(CUdeviceptr to, unsigned char value, size_t bytes, void *stream) {
    (void)stream;
    memset((void *)(uintptr_t)to, value, bytes);
    return SUCCESS;
}
/* CUDA_MEMCPY2D of cuda.h. */
struct copy_2d {
    size_t src_x, src_y; int src_type; const void *src_host; CUdeviceptr src_device; void *src_array; size_t src_pitch;
    size_t dst_x, dst_y; int dst_type; void *dst_host; CUdeviceptr dst_device; void *dst_array; size_t dst_pitch;
    size_t width, height;
};
CUresult cuMemcpy2DAsync_v2(const struct copy_2d *copy, void *stream) {
    (void)stream;
    if (!fake_cuda_context) return INVALID_CONTEXT;
    if (fake_cuda_broken) return LAUNCH_FAILED;
    enum { HOST = 1, DEVICE = 2 };
    if (copy->src_type < HOST || copy->src_type > DEVICE || copy->dst_type < HOST || copy->dst_type > DEVICE) return INVALID_VALUE;
    if (copy->height > 1 && (copy->width > copy->src_pitch || copy->width > copy->dst_pitch)) return INVALID_VALUE;
    if (copy->src_type == HOST && fails("copy", &copies)) return LAUNCH_FAILED;
    const char *from = copy->src_type == HOST ? copy->src_host : (const char *)(uintptr_t)copy->src_device;
    char *to = copy->dst_type == HOST ? copy->dst_host : (char *)(uintptr_t)copy->dst_device;
    for (size_t row = 0; row < copy->height; row++)
        memcpy(to + (row + copy->dst_y) * copy->dst_pitch + copy->dst_x, from + (row + copy->src_y) * copy->src_pitch + copy->src_x, copy->width);
    return SUCCESS;
}

/* Waiting. An event is the time at which it was recorded. */
static CUresult wait_for_device(void) { return fails("sync", &waits) || fake_cuda_broken ? LAUNCH_FAILED : SUCCESS; }
CUresult cuCtxSynchronize(void) { return fake_cuda_context ? wait_for_device() : INVALID_CONTEXT; }
CUresult cuStreamSynchronize(void *stream) {
    while (cuStreamQuery(stream) == NOT_READY) {
        struct timespec pause = {0, 20000};
        nanosleep(&pause, NULL);
    }
    return wait_for_device();
}
CUresult cuStreamWaitEvent(void *stream, void *event, unsigned flags) { (void)stream; (void)flags; return event ? SUCCESS : INVALID_HANDLE; }
CUresult cuEventCreate(void **event, unsigned flags) {
    (void)flags;
    if (!fake_cuda_context) return INVALID_CONTEXT;
    *event = calloc(1, sizeof(struct timespec));
    return *event ? SUCCESS : OUT_OF_MEMORY;
}
CUresult cuEventRecord(void *event, void *stream) {
    (void)stream;
    if (!event) return INVALID_HANDLE;
    clock_gettime(CLOCK_MONOTONIC, event);
    return SUCCESS;
}
CUresult cuEventQuery(void *event) { return event ? SUCCESS : INVALID_HANDLE; }
CUresult cuEventSynchronize(void *event) { return event ? wait_for_device() : INVALID_HANDLE; }
CUresult cuEventDestroy_v2(void *event) { free(event); return SUCCESS; }
CUresult cuEventElapsedTime_v2(float *milliseconds, void *from, void *to) {
    const struct timespec *a = from, *b = to;
    *milliseconds = (float)(1e3 * (double)(b->tv_sec - a->tv_sec) + 1e-6 * (double)(b->tv_nsec - a->tv_nsec));
    return SUCCESS;
}
CUresult cuEventElapsedTime(float *milliseconds, void *from, void *to) { return cuEventElapsedTime_v2(milliseconds, from, to); }

/* For the fake NCCL. */
void fake_cuda_begin(void *stream) { atomic_fetch_add(&((struct fake_stream *)stream)->under_way, 1); }
void fake_cuda_end(void *stream) { atomic_fetch_sub(&((struct fake_stream *)stream)->under_way, 1); }
int fake_cuda_has_context(void) { return fake_cuda_context != NULL; }
