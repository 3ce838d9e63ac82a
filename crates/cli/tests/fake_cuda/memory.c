/* Device memory of the FAKE CUDA driver: a range of the process's own memory, handed out in pieces. New memory is NaN (or what
 * FAKE_CUDA_NEW_MEMORY says: `zero`), so that whatever reads it unwritten is seen.
 *
 * FAKE_CUDA_FREE_MIB: free memory of each GPU (1024); beyond it an allocation is refused.
 * FAKE_CUDA_BYTES=1: counts the bytes that kernels read and write, each word once per launch: what a GPU would have to move
 * if its caches held all that a launch touches. */
#include "fake.h"
#include "memory.h"
#include <pthread.h>
#include <sys/mman.h>

#define RANGE ((size_t)64 << 30)
#define ALIGNMENT ((size_t)512)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *range;
static size_t end, allocated;
static uint32_t *last_read, *last_written, launch = 1;
static uint64_t read_now, written_now;
static atomic_int allocations;
_Thread_local void *fake_cuda_context;
int fake_cuda_broken;

struct piece { size_t start, bytes; int used; };
static struct piece pieces[1 << 16];
static int count;

static void *reserve(size_t bytes) {
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static CUresult allocate(CUdeviceptr *pointer, size_t bytes) {
    if (!fake_cuda_context) return INVALID_CONTEXT;
    if (!bytes || !pointer) return INVALID_VALUE;
    if (fake_cuda_broken) return LAUNCH_FAILED;
    size_t whole = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    pthread_mutex_lock(&lock);
    if (!range) range = reserve(RANGE);
    if (!last_read && environment("FAKE_CUDA_BYTES", 0)) {
        last_read = reserve(RANGE);
        last_written = reserve(RANGE);
    }
    CUresult result = OUT_OF_MEMORY;
    if (range && allocated + whole <= (size_t)environment("FAKE_CUDA_FREE_MIB", 1024) << 20) {
        int at = 0;
        while (at < count && (pieces[at].used || pieces[at].bytes != whole)) at++;
        if (at == count && count < (int)(sizeof pieces / sizeof *pieces) && end + whole <= RANGE) {
            pieces[count++] = (struct piece){end, whole, 0};
            end += whole;
        }
        if (at < count) {
            pieces[at].used = 1;
            allocated += whole;
            char *memory = range + pieces[at].start;
            memset(memory, strcmp(setting("FAKE_CUDA_NEW_MEMORY", "nan"), "zero") ? 0xFF : 0, whole);
            *pointer = (CUdeviceptr)(uintptr_t)memory;
            result = SUCCESS;
        }
    }
    pthread_mutex_unlock(&lock);
    return result;
}

static CUresult release(CUdeviceptr pointer) {
    if (!pointer) return SUCCESS;
    CUresult result = INVALID_VALUE;
    pthread_mutex_lock(&lock);
    for (int at = 0; at < count; at++) {
        if (!pieces[at].used || (CUdeviceptr)(uintptr_t)(range + pieces[at].start) != pointer) continue;
        pieces[at].used = 0;
        allocated -= pieces[at].bytes;
        result = SUCCESS;
        break;
    }
    pthread_mutex_unlock(&lock);
    return result;
}

/* A refused allocation on a stream is tried again at once without the stream: it is one allocation. */
static _Thread_local int refused;
CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, void *stream) {
    (void)stream;
    refused = fails("memory", &allocations);
    return refused ? OUT_OF_MEMORY : allocate(pointer, bytes);
}
CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes) {
    if (refused) {
        refused = 0;
        return OUT_OF_MEMORY;
    }
    return allocate(pointer, bytes);
}
CUresult cuMemFree_v2(CUdeviceptr pointer) { return release(pointer); }
CUresult cuMemFreeAsync(CUdeviceptr pointer, void *stream) { (void)stream; return release(pointer); }
CUresult cuMemGetInfo_v2(size_t *bytes, size_t *total) {
    if (!fake_cuda_context) return INVALID_CONTEXT;
    size_t free_bytes = (size_t)environment("FAKE_CUDA_FREE_MIB", 1024) << 20;
    *bytes = free_bytes - allocated;
    *total = free_bytes * 2;
    return SUCCESS;
}
CUresult cuMemAllocHost_v2(void **pointer, size_t bytes) {
    if (!fake_cuda_context) return INVALID_CONTEXT;
    *pointer = aligned_alloc(4096, (bytes + 4095) / 4096 * 4096);
    return *pointer ? SUCCESS : OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void *pointer) { free(pointer); return SUCCESS; }

size_t fake_cuda_allocated(void) { return allocated; }

void fake_cuda_touch(const void *address, unsigned bytes, int write) {
    size_t offset = (size_t)((const char *)address - range);
    if (!last_read || offset >= RANGE) return;
    uint32_t *last = write ? last_written : last_read;
    uint64_t *sum = write ? &written_now : &read_now;
    for (size_t word = offset / 4; word <= (offset + bytes - 1) / 4; word++) {
        if (last[word] == launch) continue;
        last[word] = launch;
        *sum += bytes < 4 ? bytes : 4;
    }
}
void fake_cuda_next_launch(uint64_t *bytes_read, uint64_t *bytes_written) {
    *bytes_read = read_now;
    *bytes_written = written_now;
    read_now = written_now = 0;
    launch++;
}
