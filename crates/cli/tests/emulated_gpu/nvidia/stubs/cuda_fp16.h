/* nccl.h includes it for C++ only. */
