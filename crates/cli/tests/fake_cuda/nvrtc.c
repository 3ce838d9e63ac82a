/* A FAKE of NVIDIA's run-time compiler: it compiles cubecl's CUDA C++ with the host's C++ compiler, behind
 * toolkit/include/emulated_cuda.h. Its "PTX" is a line with the path of the shared library, for launch.c.
 *
 * FAKE_CUDA_KERNELS: folder of compiled kernels (numalign-emulated-kernels in the folder for temporary files); what is there is not compiled
 * again, by whichever process. FAKE_CUDA_DUMP: folder that gets the source of every kernel. FAKE_CUDA_COMPILED: file that
 * gets a line for each call, compiled or found. FAKE_CUDA_BYTES: kernels count what they read and write. */
#include "fake.h"
#include <errno.h>
#include <stdint.h>
#include <sys/stat.h>

enum { COMPILATION_FAILED = 6, MOST_PATH = 1024, MOST_LOG = 20000 };
struct program { char *source, *ptx, *log; };

int nvrtcVersion(int *major, int *minor) {
    *major = 12;
    *minor = 4;
    return 0;
}
int nvrtcCreateProgram(struct program **out, const char *source, const char *name, int headers, const char *const *contents, const char *const *names) {
    (void)name; (void)headers; (void)contents; (void)names;
    *out = calloc(1, sizeof **out);
    (*out)->source = strdup(source);
    (*out)->log = strdup("");
    return 0;
}
int nvrtcDestroyProgram(struct program **program) {
    free((*program)->source); free((*program)->ptx); free((*program)->log); free(*program);
    *program = NULL;
    return 0;
}
int nvrtcGetPTXSize(struct program *program, size_t *size) { *size = strlen(program->ptx) + 1; return 0; }
int nvrtcGetPTX(struct program *program, char *ptx) { strcpy(ptx, program->ptx); return 0; }
int nvrtcGetProgramLogSize(struct program *program, size_t *size) { *size = strlen(program->log) + 1; return 0; }
int nvrtcGetProgramLog(struct program *program, char *log) { strcpy(log, program->log); return 0; }
const char *nvrtcGetErrorString(int result) { return result ? "NVRTC_ERROR_COMPILATION" : "NVRTC_SUCCESS"; }

static uint64_t mix(uint64_t hash, const char *text, size_t length) {
    for (size_t i = 0; i < length; i++) hash = (hash ^ (unsigned char)text[i]) * 1099511628211u;
    return hash;
}

/* A name for what is compiled. cubecl writes the structs in front of a kernel in an order that differs from process to
 * process: their lines count without their order. */
static uint64_t key(const char *source, const char *flags, uint64_t seed) {
    const char *kernel = strstr(source, "extern \"C\" __global__"), *at = source;
    uint64_t hash = mix(seed, flags, strlen(flags)), sum = 0;
    while (kernel && at < kernel) {
        const char *end = strchr(at, '\n');
        size_t length = end && end < kernel ? (size_t)(end - at) : (size_t)(kernel - at);
        uint64_t line = mix(seed, at, length);
        sum += line * line;
        at += length < (size_t)(kernel - at) ? length + 1 : length;
    }
    return mix(hash ^ sum, at, strlen(at));
}

/* The kernel's name: the last word in front of the bracket with its arguments. */
static void name_of(const char *source, char *name, size_t most) {
    snprintf(name, most, "kernel");
    const char *at = strstr(source, "__global__ void");
    at = at ? strchr(at, ')') : NULL; /* of __launch_bounds__ */
    const char *end = at ? strchr(at, '(') : NULL;
    if (!end) return;
    while (end[-1] == ' ') end--;
    const char *start = end;
    while (start > source && (start[-1] == '_' || (start[-1] >= '0' && start[-1] <= '9') || ((start[-1] | 32) >= 'a' && (start[-1] | 32) <= 'z'))) start--;
    snprintf(name, most, "%.*s", (int)(end - start), start);
}

static void append(const char *variable, const char *title, const char *what) {
    const char *path = setting(variable, NULL);
    int file = path ? open(path, O_WRONLY | O_CREAT | O_APPEND, 0600) : -1;
    if (file < 0) return;
    char line[MOST_PATH];
    int length = snprintf(line, sizeof line, "%d %s %s\n", (int)getpid(), what, title);
    if (write(file, line, (size_t)length) < 0) fprintf(stderr, "fake CUDA: cannot write to %s\n", path);
    close(file);
}

static int write_text(const char *path, const char *before, const char *text, const char *after) {
    FILE *file = fopen(path, "w");
    if (!file) return 0;
    int written = fprintf(file, "%s%s%s", before, text, after) >= 0;
    return fclose(file) == 0 && written;
}

static int fail(struct program *program, const char *log) {
    free(program->log);
    program->log = strdup(log);
    return COMPILATION_FAILED;
}

int nvrtcCompileProgram(struct program *program, int count, const char *const *options) {
    static atomic_int calls;
    const char *include = "";
    for (int i = 0; i < count; i++)
        if (!strncmp(options[i], "--include-path=", 15) && !*include) include = options[i] + 15;
    if (fails("compile", &calls)) return fail(program, "default_program(3): error: identifier \"of_the_fake\" is undefined\n\n1 error detected in the compilation of \"default_program\".\n");

    const char *source = program->source;
    const char *flags = environment("FAKE_CUDA_BYTES", 0) ? "-O1 -DEMULATED_BYTES -fsanitize=thread" : "-O2";
    char folder[MOST_PATH / 4], title[300], name[256], path[MOST_PATH], base[MOST_PATH], last[400];
    snprintf(folder, sizeof folder, "%s", setting("FAKE_CUDA_KERNELS", ""));
    if (!*folder) snprintf(folder, sizeof folder, "%s/numalign-emulated-kernels", setting("TMPDIR", "/tmp"));
    name_of(source, name, sizeof name);
    struct stat header;
    snprintf(path, sizeof path, "%.500s/emulated_cuda.h", include);
    long long version = stat(path, &header) ? 0 : (long long)header.st_mtim.tv_sec * 1000 + header.st_size;
    snprintf(title, sizeof title, "%.80s-%016llx%016llx-%llx", name, (unsigned long long)key(source, flags, 1469598103934665603u),
             (unsigned long long)key(source, flags, 0x9e3779b97f4a7c15u), version);

    const char *dump = setting("FAKE_CUDA_DUMP", NULL);
    if (dump) {
        mkdir(dump, 0755);
        snprintf(path, sizeof path, "%.500s/%.300s.cu", dump, title);
        write_text(path, "", source, "");
    }
    mkdir(folder, 0755);
    snprintf(path, sizeof path, "%s/%s.so", folder, title);
    if (access(path, R_OK)) {
        char command[8 * MOST_PATH], text[MOST_PATH + 8], result[MOST_PATH + 8], log[MOST_PATH + 8];
        static atomic_int number;
        snprintf(base, sizeof base, "%s/%s.%d-%d", folder, title, (int)getpid(), atomic_fetch_add(&number, 1));
        snprintf(text, sizeof text, "%s.cpp", base);
        snprintf(result, sizeof result, "%s.so", base);
        snprintf(log, sizeof log, "%s.log", base);
        int barriers = strstr(source, "_sync") || strstr(source, "__sync") || strstr(source, "wmma") || strstr(source, "barrier");
        snprintf(last, sizeof last, "\nEMU_ENTRY(%s, %d)\n", name, barriers);
        if (!write_text(text, "#include \"emulated_cuda.h\"\n", source, last)) return fail(program, "the fake NVRTC cannot write its source");
        /* No contraction to fused multiply-adds: a kernel's text in another order must not change a bit. */
        snprintf(command, sizeof command, "g++ -std=c++17 %s -march=native -ffp-contract=off -w -fPIC -fno-strict-aliasing -I'%s' -c -o '%s.o' '%s' > '%s' 2>&1 && g++ -shared -o '%s' '%s.o' >> '%s' 2>&1",
                 flags, include, base, text, log, result, base, log);
        int status = system(command);
        char said[MOST_LOG] = "";
        FILE *file = fopen(log, "r");
        if (file) {
            said[fread(said, 1, sizeof said - 1, file)] = 0;
            fclose(file);
        }
        unlink(log);
        if (status) return fail(program, *said ? said : "the fake NVRTC cannot run g++");
        unlink(text);
        snprintf(text, sizeof text, "%s.o", base);
        unlink(text);
        if (rename(result, path)) return fail(program, strerror(errno));
        append("FAKE_CUDA_COMPILED", title, "compiled");
    } else {
        append("FAKE_CUDA_COMPILED", title, "found");
    }
    free(program->ptx);
    program->ptx = malloc(strlen(path) + 16);
    sprintf(program->ptx, "EMULATED %s", path);
    return 0;
}
