/* What a kernel and the fake driver share: where in the grid the running thread is, and how it waits for others. */
#pragma once
#define EMULATED_SHARED (228 * 1024)
typedef struct { unsigned x, y, z; } emulated_uint3;
typedef struct emulated_thread {
    emulated_uint3 thread_index, block_index, block_size, grid_size;
    /* Its number in the block, x first. */
    unsigned linear;
    int reverse;
    void (*wait_for_block)(void);
    void (*wait_for_warp)(void);
    unsigned char *(*exchange)(void);
    unsigned (*warp_lanes)(void);
    void (*touch)(const void *address, unsigned bytes, int write);
} emulated_thread;
