/* A FAKE of NCCL, for tests on machines without a GPU. It is not NVIDIA's code and proves nothing about it: it checks that
 * numalign keeps NCCL's rules (one thread, no call while another is in progress, abort by every rank) and moves words
 * between real processes.
 *
 * Ranks meet at a Unix socket that rank 0's ncclGetUniqueId opens; its path is the id. Rank 0 adds what all send and answers
 * with the sum. Every communicator has a thread that does the work, so that calls answer "in progress" as NCCL's do. A rank
 * whose process is gone is an error to the others only where FAKE_NCCL_REMOTE_ERRORS=1; otherwise they hang, as over NVLink.
 *
 * FAKE_NCCL_VERSION: version code (23007). FAKE_NCCL_FAULT: `init-hangs`, `init-fails`, `async-error:N` (the N-th sum of
 * this process fails), `bit-flips:N` (this rank receives a changed bit in it), `sum-hangs:N` (it never ends, until the abort), `abort-stuck` (after an abort the stream never gets idle).
 * FAKE_NCCL_FAULT_RANK: the rank that has the fault (every rank). FAKE_NCCL_FAULT_ONCE: a file; the fault is for the
 * process that makes it. FAKE_NCCL_LOG: file to which every communicator's life is written.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum { SUCCESS = 0, SYSTEM_ERROR = 2, INTERNAL_ERROR = 3, INVALID_ARGUMENT = 4, INVALID_USAGE = 5, REMOTE_ERROR = 6, IN_PROGRESS = 7 };
typedef struct { char internal[128]; } ncclUniqueId;
struct config { size_t size; unsigned magic, version; int blocking; };

extern void fake_cuda_begin(void *stream);
extern void fake_cuda_end(void *stream);
extern int fake_cuda_has_context(void);

#define MOST_RANKS 64
struct ncclComm {
    int rank, world;
    ncclUniqueId id;
    pthread_t owner, thread;
    atomic_int state, aborted, wanted;
    /* Of rank 0 one per rank; of the others the first. */
    int sockets[MOST_RANKS];
    uint32_t *words;
    size_t count;
    void *stream;
};

static char last_error[256];
static int listener = -1;
static char listener_path[108];
static atomic_int sums;

static void log_line(const char *what, int rank, int world) {
    const char *path = getenv("FAKE_NCCL_LOG");
    if (!path) return;
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0600);
    char line[128];
    int length = snprintf(line, sizeof line, "%d %s rank %d of %d\n", (int)getpid(), what, rank, world);
    if (file >= 0 && write(file, line, (size_t)length) < 0) { /* The test will miss it. */ }
    if (file >= 0) close(file);
}

static int has_fault(const char *name, int rank) {
    const char *fault = getenv("FAKE_NCCL_FAULT"), *only = getenv("FAKE_NCCL_FAULT_RANK"), *once = getenv("FAKE_NCCL_FAULT_ONCE");
    if (!fault || strncmp(fault, name, strlen(name)) || (only && atoi(only) != rank)) return 0;
    const char *number = strchr(fault, ':');
    if (number && atoi(number + 1) != atomic_load(&sums)) return 0;
    if (!once) return 1;
    int file = open(once, O_WRONLY | O_CREAT | O_EXCL, 0600);
    if (file < 0) return 0;
    close(file);
    return 1;
}

static void nap(void) { struct timespec pause = {0, 100000}; nanosleep(&pause, NULL); }

/* Moves all bytes, or answers nonzero when the communicator was aborted (1) or the other side is gone (2). */
static int move_all(struct ncclComm *comm, int socket, void *bytes, size_t count, int sending) {
    char *place = bytes;
    while (count > 0) {
        if (atomic_load(&comm->aborted)) return 1;
        struct pollfd wait = {socket, sending ? POLLOUT : POLLIN, 0};
        if (poll(&wait, 1, 1) <= 0) continue;
        ssize_t moved = sending ? send(socket, place, count, MSG_NOSIGNAL) : recv(socket, place, count, 0);
        if (moved > 0) { place += moved; count -= (size_t)moved; continue; }
        if (moved < 0 && (errno == EAGAIN || errno == EINTR)) continue;
        return 2;
    }
    return 0;
}

/* A rank is gone: an error, or for ever silence, until the abort. */
static void lost(struct ncclComm *comm) {
    const char *tells = getenv("FAKE_NCCL_REMOTE_ERRORS");
    if (tells && *tells == '1') {
        snprintf(last_error, sizeof last_error, "a fake rank is gone");
        atomic_store(&comm->state, REMOTE_ERROR);
    }
    while (!atomic_load(&comm->aborted)) nap();
}

static int meet(struct ncclComm *comm) {
    if (has_fault("init-fails", comm->rank)) {
        snprintf(last_error, sizeof last_error, "no fake socket found");
        return SYSTEM_ERROR;
    }
    if (has_fault("init-hangs", comm->rank)) {
        while (!atomic_load(&comm->aborted)) nap();
        return INTERNAL_ERROR;
    }
    if (comm->rank == 0) {
        for (int joined = 1; joined < comm->world;) {
            if (atomic_load(&comm->aborted)) return INTERNAL_ERROR;
            struct pollfd wait = {listener, POLLIN, 0};
            if (poll(&wait, 1, 1) <= 0) continue;
            int socket = accept4(listener, NULL, NULL, SOCK_CLOEXEC), rank = 0;
            if (socket < 0) continue;
            if (move_all(comm, socket, &rank, sizeof rank, 0) || rank <= 0 || rank >= comm->world) { close(socket); continue; }
            comm->sockets[rank] = socket;
            joined++;
        }
        int all = 1;
        for (int rank = 1; rank < comm->world; rank++)
            if (move_all(comm, comm->sockets[rank], &all, sizeof all, 1)) return REMOTE_ERROR;
        return SUCCESS;
    }
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%s", comm->id.internal);
    int answer = 0;
    for (;;) {
        if (atomic_load(&comm->aborted)) return INTERNAL_ERROR;
        int socket_ = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (connect(socket_, (struct sockaddr *)&address, sizeof address) == 0) { comm->sockets[0] = socket_; break; }
        close(socket_);
        nap();
    }
    if (move_all(comm, comm->sockets[0], &comm->rank, sizeof comm->rank, 1)) return REMOTE_ERROR;
    if (move_all(comm, comm->sockets[0], &answer, sizeof answer, 0)) return REMOTE_ERROR;
    return SUCCESS;
}

static void add_up(struct ncclComm *comm) {
    size_t bytes = comm->count * sizeof(uint32_t);
    if (comm->rank > 0) {
        if (move_all(comm, comm->sockets[0], comm->words, bytes, 1) || move_all(comm, comm->sockets[0], comm->words, bytes, 0)) lost(comm);
        return;
    }
    uint32_t *other = malloc(bytes);
    for (int rank = 1; rank < comm->world; rank++) {
        if (move_all(comm, comm->sockets[rank], other, bytes, 0)) { lost(comm); free(other); return; }
        for (size_t i = 0; i < comm->count; i++) comm->words[i] += other[i];
    }
    free(other);
    for (int rank = 1; rank < comm->world; rank++)
        if (move_all(comm, comm->sockets[rank], comm->words, bytes, 1)) { lost(comm); return; }
}

static void *work(void *argument) {
    struct ncclComm *comm = argument;
    int met = meet(comm);
    if (met == REMOTE_ERROR) { lost(comm); met = INTERNAL_ERROR; }
    if (met == SUCCESS) log_line("formed", comm->rank, comm->world);
    atomic_store(&comm->state, met);
    while (!atomic_load(&comm->aborted)) {
        if (!atomic_load(&comm->wanted)) { nap(); continue; }
        atomic_fetch_add(&sums, 1);
        if (has_fault("async-error", comm->rank)) {
            snprintf(last_error, sizeof last_error, "a fake link is down");
            atomic_store(&comm->state, SYSTEM_ERROR);
            while (!atomic_load(&comm->aborted)) nap();
        } else if (has_fault("sum-hangs", comm->rank)) {
            while (!atomic_load(&comm->aborted)) nap();
        } else {
            add_up(comm);
            /* In the middle of a row: its mark stays. */
            if (has_fault("bit-flips", comm->rank)) comm->words[2] ^= 1u << 7;
        }
        atomic_store(&comm->wanted, 0);
        fake_cuda_end(comm->stream);
    }
    /* Whether a sum was under way when the abort came is chance; the fault must not depend on it. */
    if (comm->stream && has_fault("abort-stuck", comm->rank)) fake_cuda_begin(comm->stream);
    return NULL;
}

int ncclGetVersion(int *version) {
    const char *text = getenv("FAKE_NCCL_VERSION");
    *version = text ? atoi(text) : 23007;
    return SUCCESS;
}

int ncclGetUniqueId(ncclUniqueId *id) {
    static int number;
    if (listener >= 0) { close(listener); unlink(listener_path); }
    memset(id, 0, sizeof *id);
    const char *folder = getenv("TMPDIR");
    snprintf(listener_path, sizeof listener_path, "%s/fake-nccl-%d-%d", folder ? folder : "/tmp", (int)getpid(), number++);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memcpy(address.sun_path, listener_path, sizeof listener_path);
    memcpy(id->internal, listener_path, sizeof listener_path);
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, MOST_RANKS)) return SYSTEM_ERROR;
    return SUCCESS;
}

int ncclCommInitRankConfig(struct ncclComm **out, int world, ncclUniqueId id, int rank, struct config *config) {
    if (!out || world < 1 || world > MOST_RANKS || rank < 0 || rank >= world) return INVALID_ARGUMENT;
    if (!config || config->magic != 0xcafebeef || config->blocking != 0 || config->size < sizeof *config) return INVALID_ARGUMENT;
    if (!fake_cuda_has_context()) return INVALID_USAGE;
    struct ncclComm *comm = calloc(1, sizeof *comm);
    *comm = (struct ncclComm){.rank = rank, .world = world, .id = id, .owner = pthread_self()};
    atomic_store(&comm->state, IN_PROGRESS);
    *out = comm;
    if (pthread_create(&comm->thread, NULL, work, comm)) return SYSTEM_ERROR;
    return IN_PROGRESS;
}

int ncclCommGetAsyncError(struct ncclComm *comm, int *state) {
    if (!comm || !pthread_equal(comm->owner, pthread_self())) return INVALID_USAGE;
    *state = atomic_load(&comm->state);
    return SUCCESS;
}

int ncclAllReduce(const void *from, void *to, size_t count, int type, int operation, struct ncclComm *comm, void *stream) {
    if (!comm || !pthread_equal(comm->owner, pthread_self())) return INVALID_USAGE;
    if (atomic_load(&comm->state) != SUCCESS || atomic_load(&comm->wanted)) return INVALID_USAGE;
    if (from != to || type != 3 || operation != 0) return INVALID_ARGUMENT;
    comm->words = to;
    comm->count = count;
    comm->stream = stream;
    fake_cuda_begin(stream);
    atomic_store(&comm->wanted, 1);
    return SUCCESS;
}

int ncclCommAbort(struct ncclComm *comm) {
    if (!comm || !pthread_equal(comm->owner, pthread_self())) return INVALID_USAGE;
    atomic_store(&comm->aborted, 1);
    pthread_join(comm->thread, NULL);
    if (comm->rank == 0 && listener >= 0) { close(listener); listener = -1; unlink(listener_path); }
    for (int rank = 0; rank < comm->world; rank++)
        if (comm->sockets[rank] > 0) close(comm->sockets[rank]);
    log_line("aborted", comm->rank, comm->world);
    free(comm);
    return SUCCESS;
}

const char *ncclGetErrorString(int result) {
    switch (result) {
    case SUCCESS: return "no error";
    case SYSTEM_ERROR: return "unhandled system error";
    case INVALID_ARGUMENT: return "invalid argument";
    case INVALID_USAGE: return "invalid usage";
    case REMOTE_ERROR: return "remote process exited or there was a network error";
    case IN_PROGRESS: return "NCCL operation in progress";
    default: return "internal error";
    }
}
const char *ncclGetLastError(struct ncclComm *comm) { (void)comm; return last_error; }
