/* Compiles kernels with NVIDIA's run-time compiler, as cubecl asks for it: compile LIBRARY ARCHITECTURE INCLUDE... -- FILE...
 * Says how many; the first lines about one that does not compile go to stderr, and the exit code is 1. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *read_all(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file || fseek(file, 0, SEEK_END)) return NULL;
    long size = ftell(file);
    rewind(file);
    char *text = calloc(1, (size_t)size + 1);
    if (text && fread(text, 1, (size_t)size, file) != (size_t)size) text = NULL;
    fclose(file);
    return text;
}

int main(int count, char **words) {
    void *library = count > 3 ? dlopen(words[1], RTLD_NOW) : NULL;
    if (!library) {
        fprintf(stderr, "%s\n", count > 3 ? dlerror() : "LIBRARY ARCHITECTURE INCLUDE... -- FILE...");
        return 2;
    }
    int (*version)(int *, int *) = dlsym(library, "nvrtcVersion");
    int (*create)(void **, const char *, const char *, int, void *, void *) = dlsym(library, "nvrtcCreateProgram");
    int (*compile)(void *, int, const char *const *) = dlsym(library, "nvrtcCompileProgram");
    int (*log_size)(void *, size_t *) = dlsym(library, "nvrtcGetProgramLogSize");
    int (*get_log)(void *, char *) = dlsym(library, "nvrtcGetProgramLog");
    int (*destroy)(void **) = dlsym(library, "nvrtcDestroyProgram");
    const char *options[32] = {"-lineinfo"};
    char text[32][1100];
    int used = 1, at = 3, failed = 0, compiled = 0, major, minor;
    snprintf(text[0], sizeof text[0], "--gpu-architecture=%s", words[2]);
    options[used++] = text[0];
    for (; at < count && strcmp(words[at], "--") && used < 32; at++, used++) {
        snprintf(text[used], sizeof text[used], "--include-path=%.1000s", words[at]);
        options[used] = text[used];
    }
    version(&major, &minor);
    for (at++; at < count; at++) {
        char *source = read_all(words[at]);
        void *program;
        if (!source || create(&program, source, NULL, 0, NULL, NULL)) return 2;
        compiled++;
        if (compile(program, used, options)) {
            size_t size = 0;
            log_size(program, &size);
            char *log = calloc(1, size + 1);
            get_log(program, log);
            fprintf(stderr, "%s for %s:\n%.600s\n", words[at], words[2], log);
            free(log);
            failed++;
        }
        destroy(&program);
        free(source);
    }
    printf("NVRTC %d.%d, %s: %d kernels, %d failed\n", major, minor, words[2], compiled, failed);
    return failed != 0 || compiled == 0;
}
