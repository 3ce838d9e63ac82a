/* What crates/collective/src/nccl/library.rs and crates/gpu/src/driver.rs assume of NVIDIA's interfaces, asserted against
 * NVIDIA's own nccl.h and cuda.h. It is compiled, never run: see nvidia.rs. stubs/ stands for the rest of the toolkit. */
#include <cuda.h>
#include <nccl.h>
#include <stddef.h>

/* NCCL's configuration: the first 48 bytes, which every version has. */
struct config { size_t size; unsigned magic, version; int blocking, cga, min, max; const char *net; int split; };
#define SAME_FIELD(theirs, ours)                                                                                        \
    _Static_assert(offsetof(ncclConfig_t, theirs) == offsetof(struct config, ours), #theirs);                           \
    _Static_assert(sizeof(((ncclConfig_t *)0)->theirs) == sizeof(((struct config *)0)->ours), #theirs)
SAME_FIELD(size, size);
SAME_FIELD(magic, magic);
SAME_FIELD(version, version);
SAME_FIELD(blocking, blocking);
SAME_FIELD(cgaClusterSize, cga);
SAME_FIELD(minCTAs, min);
SAME_FIELD(maxCTAs, max);
SAME_FIELD(netName, net);
SAME_FIELD(splitShare, split);
_Static_assert(sizeof(struct config) == 48 && sizeof(ncclConfig_t) >= 48, "the configuration's size");
_Static_assert(sizeof(ncclUniqueId) == 128 && _Alignof(ncclUniqueId) == 1, "the id's size");
_Static_assert(ncclSuccess == 0 && ncclInProgress == 7 && ncclUint32 == 3 && ncclSum == 0, "codes");
_Static_assert(sizeof(ncclResult_t) == 4 && sizeof(ncclDataType_t) == 4 && sizeof(ncclRedOp_t) == 4, "enumerations");
_Static_assert(NCCL_VERSION(2, 19, 0) == 21900 && NCCL_VERSION(2, 30, 0) == 23000, "version codes");

#define TYPE(function, ...) _Static_assert(__builtin_types_compatible_p(__typeof__(function), __VA_ARGS__), #function)
TYPE(ncclCommInitRankConfig, ncclResult_t(ncclComm_t *, int, ncclUniqueId, int, ncclConfig_t *));
TYPE(ncclGetVersion, ncclResult_t(int *));
TYPE(ncclGetUniqueId, ncclResult_t(ncclUniqueId *));
TYPE(ncclCommGetAsyncError, ncclResult_t(ncclComm_t, ncclResult_t *));
TYPE(ncclCommAbort, ncclResult_t(ncclComm_t));
TYPE(ncclAllReduce, ncclResult_t(const void *, void *, size_t, ncclDataType_t, ncclRedOp_t, ncclComm_t, cudaStream_t));
TYPE(ncclGetErrorString, const char *(ncclResult_t));
TYPE(ncclGetLastError, const char *(ncclComm_t));

/* The driver. Macros of cuda.h put the _v2 on; CUDA 13 has cuDeviceGetUuid under that name only. */
#undef cuDeviceGetUuid
TYPE(cuInit, CUresult(unsigned));
TYPE(cuDriverGetVersion, CUresult(int *));
TYPE(cuGetErrorString, CUresult(CUresult, const char **));
TYPE(cuDeviceGetCount, CUresult(int *));
TYPE(cuDeviceGet, CUresult(CUdevice *, int));
TYPE(cuDeviceGetName, CUresult(char *, int, CUdevice));
TYPE(cuDeviceGetUuid_v2, CUresult(CUuuid *, CUdevice));
TYPE(cuDeviceTotalMem_v2, CUresult(size_t *, CUdevice));
TYPE(cuDeviceGetAttribute, CUresult(int *, CUdevice_attribute, CUdevice));
TYPE(cuDeviceCanAccessPeer, CUresult(int *, CUdevice, CUdevice));
TYPE(cuDevicePrimaryCtxRetain, CUresult(CUcontext *, CUdevice));
TYPE(cuDevicePrimaryCtxRelease_v2, CUresult(CUdevice));
TYPE(cuCtxSetCurrent, CUresult(CUcontext));
TYPE(cuMemGetInfo_v2, CUresult(size_t *, size_t *));
TYPE(cuMemAlloc_v2, CUresult(CUdeviceptr *, size_t));
TYPE(cuMemFree_v2, CUresult(CUdeviceptr));
TYPE(cuMemAllocHost_v2, CUresult(void **, size_t));
TYPE(cuMemFreeHost, CUresult(void *));
TYPE(cuMemcpyHtoDAsync_v2, CUresult(CUdeviceptr, const void *, size_t, CUstream));
TYPE(cuMemcpyDtoHAsync_v2, CUresult(void *, CUdeviceptr, size_t, CUstream));
TYPE(cuMemcpyDtoDAsync_v2, CUresult(CUdeviceptr, CUdeviceptr, size_t, CUstream));
TYPE(cuStreamCreate, CUresult(CUstream *, unsigned));
TYPE(cuStreamDestroy_v2, CUresult(CUstream));
TYPE(cuStreamQuery, CUresult(CUstream));
_Static_assert(sizeof(CUdevice) == 4 && sizeof(CUdeviceptr) == 8 && sizeof(CUuuid) == 16 && sizeof(CUresult) == 4, "sizes");
_Static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == 75 && CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == 76, "attributes");
_Static_assert(CU_DEVICE_ATTRIBUTE_TENSOR_MAP_ACCESS_SUPPORTED == 127, "attributes");
_Static_assert(CUDA_ERROR_NOT_READY == 600 && CU_STREAM_NON_BLOCKING == 1, "codes");
