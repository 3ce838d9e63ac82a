/* Device memory as the parts of the fake driver see it: memory.c. */
#pragma once
#include <stddef.h>
#include <stdint.h>
typedef int CUresult;
typedef int CUdevice;
typedef uint64_t CUdeviceptr;

/* The context of the calling thread, or null. */
extern _Thread_local void *fake_cuda_context;
/* Set once a kernel failed while it ran: every later call on the device answers it, as a real driver does. */
extern int fake_cuda_broken;

/* Bytes that are allocated. */
size_t fake_cuda_allocated(void);
/* Notes an access of a kernel, for FAKE_CUDA_BYTES. */
void fake_cuda_touch(const void *address, unsigned bytes, int write);
/* Starts the count of distinct words anew, and adds it to what is told at the end. */
void fake_cuda_next_launch(uint64_t *bytes_read, uint64_t *bytes_written);
