// CUDA C++ as cubecl 0.10 writes it, for the host's C++ compiler: what stands in front of a kernel that runs on the CPU. All
// headers of the emulated toolkit are this one. Functions and their edge cases are those of the CUDA C++ Programming Guide.
#pragma once
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <type_traits>
#include <utility>
#include "emulated_thread.h"

static emulated_thread *emu;
#define threadIdx (emu->thread_index)
#define blockIdx (emu->block_index)
#define blockDim (emu->block_size)
#define gridDim (emu->grid_size)
static constexpr int warpSize = 32;

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__
#define __grid_constant__
#define __launch_bounds__(...)
#define __align__(n) __attribute__((aligned(n)))

typedef emulated_uint3 uint3;
typedef emulated_uint3 dim3;
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }

// Barriers
inline void __syncthreads() { emu->wait_for_block(); }
inline void __syncwarp(unsigned = ~0u) { emu->wait_for_warp(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
inline unsigned emu_lane() { return emu->linear % 32; }

// Warp exchange: two sets of slots, since a lane may be one exchange ahead.
template <class T> inline T emu_exchange(T value, unsigned source) {
    static_assert(sizeof(T) <= 16);
    auto *slots = emu->exchange();
    memcpy(slots + 16 * emu_lane(), &value, sizeof value);
    emu->wait_for_warp();
    T got;
    memcpy(&got, slots + 16 * (source < 32 ? source : emu_lane()), sizeof got);
    return got;
}
template <class T> inline T __shfl_sync(unsigned, T v, int lane, int = 32) { return emu_exchange(v, (unsigned)lane & 31); }
template <class T> inline T __shfl_xor_sync(unsigned, T v, int mask, int = 32) { return emu_exchange(v, emu_lane() ^ (unsigned)mask); }
template <class T> inline T __shfl_up_sync(unsigned, T v, unsigned d, int = 32) { return emu_exchange(v, emu_lane() >= d ? emu_lane() - d : emu_lane()); }
template <class T> inline T __shfl_down_sync(unsigned, T v, unsigned d, int = 32) { return emu_exchange(v, emu_lane() + d < 32 ? emu_lane() + d : emu_lane()); }
inline unsigned __ballot_sync(unsigned, int p) {
    auto *slots = emu->exchange();
    int value = p != 0;
    memcpy(slots + 16 * emu_lane(), &value, sizeof value);
    emu->wait_for_warp();
    unsigned all = 0;
    for (unsigned i = 0; i < 32 && i < emu->warp_lanes(); i++) { memcpy(&value, slots + 16 * i, sizeof value); all |= (unsigned)value << i; }
    return all;
}
inline int __any_sync(unsigned m, int p) { return __ballot_sync(m, p) != 0; }
inline int __all_sync(unsigned m, int p) { return __ballot_sync(m, !p) == 0; }

// Half precision
struct __half {
    _Float16 v;
    __half() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> __half(T x) : v((_Float16)x) {}
    operator float() const { return (float)v; }
};
struct __nv_bfloat16 {
    uint16_t bits;
    __nv_bfloat16() = default;
    template <class T, class = std::enable_if_t<std::is_arithmetic_v<T>>> __nv_bfloat16(T given) {
        float x = (float)given;
        uint32_t u;
        memcpy(&u, &x, 4);
        bits = x != x ? 0x7fff : (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
    }
    __nv_bfloat16(const __half &h) : __nv_bfloat16((float)h) {}
    operator float() const { uint32_t u = (uint32_t)bits << 16; float x; memcpy(&x, &u, 4); return x; }
};
#define EMU_HALF(H)                                                                                                     \
    inline H operator+(H a, H b) { return H((float)a + (float)b); }                                                     \
    inline H operator-(H a, H b) { return H((float)a - (float)b); }                                                     \
    inline H operator*(H a, H b) { return H((float)a * (float)b); }                                                     \
    inline H operator/(H a, H b) { return H((float)a / (float)b); }                                                     \
    inline H operator-(H a) { return H(-(float)a); }                                                                    \
    inline bool operator<(H a, H b) { return (float)a < (float)b; }                                                     \
    inline bool operator>(H a, H b) { return (float)a > (float)b; }                                                     \
    inline bool operator==(H a, H b) { return (float)a == (float)b; }                                                   \
    inline H __hmax(H a, H b) { return H(fmaxf(a, b)); }                                                                \
    inline H __hmin(H a, H b) { return H(fminf(a, b)); }                                                                \
    inline H hexp(H a) { return H(expf(a)); }                                                                           \
    inline H hsqrt(H a) { return H(sqrtf(a)); }                                                                         \
    inline H hrsqrt(H a) { return H(1.0f / sqrtf(a)); }
EMU_HALF(__half)
EMU_HALF(__nv_bfloat16)
struct __align__(4) __half2 { __half x, y; };
struct __align__(4) __nv_bfloat162 { __nv_bfloat16 x, y; };

// Maths. CUDA's approximations are computed exactly, but with their edge cases.
template <class T> inline std::enable_if_t<std::is_floating_point_v<T>, T> max(T a, T b) { return fmax(a, b); }
template <class T> inline std::enable_if_t<std::is_floating_point_v<T>, T> min(T a, T b) { return fmin(a, b); }
template <class A, class B, class C = std::common_type_t<A, B>>
inline std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>, C> max(A a, B b) { return (C)a > (C)b ? (C)a : (C)b; }
template <class A, class B, class C = std::common_type_t<A, B>>
inline std::enable_if_t<std::is_integral_v<A> && std::is_integral_v<B>, C> min(A a, B b) { return (C)a < (C)b ? (C)a : (C)b; }
inline float rsqrt(float x) { return 1.0f / sqrtf(x); }
inline float __fdividef(float a, float b) { return fabsf(b) > 8.5070592e37f ? (isinf(a) ? NAN : 0.0f) : a / b; }
inline float __powf(float a, float b) { return exp2f(b * log2f(a)); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __sinf(float x) { return sinf(x); }
inline float __cosf(float x) { return cosf(x); }
inline float __tanhf(float x) { return tanhf(x); }
inline float __fsqrt_rn(float x) { return sqrtf(x); }
inline float __frsqrt_rn(float x) { return 1.0f / sqrtf(x); }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return (unsigned)((uint64_t)a * b >> 32); }
inline int __mulhi(int a, int b) { return (int)((int64_t)a * b >> 32); }
inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) { return (unsigned long long)((unsigned __int128)a * b >> 64); }

// Atomics: one thread at a time runs.
template <class T, class V> inline T atomicAdd(T *p, V v) { T old = *p; *p = (T)(old + (T)v); return old; }
template <class T, class V> inline T atomicSub(T *p, V v) { T old = *p; *p = (T)(old - (T)v); return old; }
template <class T, class V> inline T atomicMax(T *p, V v) { T old = *p; if (old < (T)v) *p = (T)v; return old; }
template <class T, class V> inline T atomicMin(T *p, V v) { T old = *p; if ((T)v < old) *p = (T)v; return old; }
template <class T, class V> inline T atomicExch(T *p, V v) { T old = *p; *p = (T)v; return old; }
template <class T, class V> inline T atomicCAS(T *p, V c, V v) { T old = *p; if (old == (T)c) *p = (T)v; return old; }

// Warp matrices: lane 0 has the whole fragment, the others' are empty. Products as the tensor cores': inputs cut to their
// precision, sums in f32.
namespace nvcuda::wmma {
struct matrix_a {}; struct matrix_b {}; struct accumulator {};
struct row_major {}; struct col_major {};
enum layout_t { mem_row_major, mem_col_major };
namespace precision { struct tf32 {}; }
inline float __float_to_tf32(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    if ((u & 0x7f800000) != 0x7f800000) u = (u + 0x1000) & ~0x1fffu;
    memcpy(&x, &u, 4);
    return x;
}
template <class T> struct emu_storage { typedef T type; };
template <> struct emu_storage<precision::tf32> { typedef float type; };
template <class Use, int M, int N, int K> struct emu_shape;
template <int M, int N, int K> struct emu_shape<matrix_a, M, N, K> { static constexpr int rows = M, cols = K; };
template <int M, int N, int K> struct emu_shape<matrix_b, M, N, K> { static constexpr int rows = K, cols = N; };
template <int M, int N, int K> struct emu_shape<accumulator, M, N, K> { static constexpr int rows = M, cols = N; };
template <class Use, int M, int N, int K, class T, class Layout = void> struct fragment {
    typedef typename emu_storage<T>::type storage;
    static constexpr int rows = emu_shape<Use, M, N, K>::rows, cols = emu_shape<Use, M, N, K>::cols;
    storage x[rows * cols];
    int num_elements = emu_lane() == 0 ? rows * cols : 0;
};
template <class U, int M, int N, int K, class T, class L, class V> inline void fill_fragment(fragment<U, M, N, K, T, L> &f, V v) {
    if (emu_lane() == 0) for (auto &x : f.x) x = (typename fragment<U, M, N, K, T, L>::storage)v;
}
template <class F, class S> inline void emu_load(F &f, const S *from, unsigned stride, bool row) {
    emu->wait_for_warp();
    if (emu_lane() != 0) return;
    for (int r = 0; r < F::rows; r++)
        for (int c = 0; c < F::cols; c++) f.x[r * F::cols + c] = row ? from[r * (size_t)stride + c] : from[c * (size_t)stride + r];
}
template <class U, int M, int N, int K, class T, class L, class S> inline void load_matrix_sync(fragment<U, M, N, K, T, L> &f, const S *from, unsigned stride) {
    static_assert(!std::is_void_v<L>);
    emu_load(f, from, stride, std::is_same_v<L, row_major>);
}
template <class U, int M, int N, int K, class T, class L, class S> inline void load_matrix_sync(fragment<U, M, N, K, T, L> &f, const S *from, unsigned stride, layout_t layout) {
    emu_load(f, from, stride, layout == mem_row_major);
}
template <class F, class S> inline void store_matrix_sync(S *to, const F &f, unsigned stride, layout_t layout) {
    emu->wait_for_warp();
    if (emu_lane() == 0)
        for (int r = 0; r < F::rows; r++)
            for (int c = 0; c < F::cols; c++) (layout == mem_row_major ? to[r * (size_t)stride + c] : to[c * (size_t)stride + r]) = f.x[r * F::cols + c];
    emu->wait_for_warp();
}
template <class T> struct emu_operand { static float of(typename emu_storage<T>::type x) { return (float)x; } };
template <> struct emu_operand<precision::tf32> { static float of(float x) { uint32_t u; memcpy(&u, &x, 4); u &= ~0x1fffu; memcpy(&x, &u, 4); return x; } };
template <int M, int N, int K, class TD, class TA, class TB, class TC, class LA, class LB>
inline void mma_sync(fragment<accumulator, M, N, K, TD> &d, const fragment<matrix_a, M, N, K, TA, LA> &a, const fragment<matrix_b, M, N, K, TB, LB> &b,
                     const fragment<accumulator, M, N, K, TC> &c) {
    if (emu_lane() != 0) return;
    float left[M * K], right[K * N], sum[M * N];
    for (int i = 0; i < M * K; i++) left[i] = emu_operand<TA>::of(a.x[i]);
    for (int i = 0; i < K * N; i++) right[i] = emu_operand<TB>::of(b.x[i]);
    for (int i = 0; i < M * N; i++) sum[i] = (float)c.x[i];
    for (int m = 0; m < M; m++)
        for (int k = 0; k < K; k++)
            for (int n = 0; n < N; n++) sum[m * N + n] += left[m * K + k] * right[k * N + n];
    for (int i = 0; i < M * N; i++) d.x[i] = sum[i];
}
} // namespace nvcuda::wmma

// The instruction mma.m16n8k8 with factors in TF32, lane by lane as in the PTX ISA ("Warp-level matrix instructions"). It stands in
// inline assembly, whose operands cubecl always names alike.
inline void emu_mma(const char *text, const uint32_t (&a)[4], const uint32_t (&b)[2], const float (&c)[4], float *(&&d)[4]) {
    float sums[4], left[8], right[8];
    memcpy(sums, c, sizeof sums);
    if (!strstr(text, "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32")) {
        fprintf(stderr, "the emulated GPU does not know %s\n", text);
        abort();
    }
    uint32_t all_a[32][4], all_b[32][2];
    auto *slots = emu->exchange();
    memcpy(slots + 16 * emu_lane(), a, sizeof a);
    emu->wait_for_warp();
    for (int i = 0; i < 32; i++) memcpy(all_a[i], slots + 16 * i, sizeof a);
    slots = emu->exchange();
    memcpy(slots + 16 * emu_lane(), b, sizeof b);
    emu->wait_for_warp();
    for (int i = 0; i < 32; i++) memcpy(all_b[i], slots + 16 * i, sizeof b);
    unsigned group = emu_lane() / 4, in_group = emu_lane() % 4;
    for (unsigned place = 0; place < 4; place++) {
        unsigned lower = place / 2, column = in_group * 2 + place % 2;
        for (unsigned k = 0; k < 8; k++) {
            uint32_t of_a = all_a[group * 4 + k % 4][k / 4 * 2 + lower] & ~0x1fffu, of_b = all_b[column * 4 + k % 4][k / 4] & ~0x1fffu;
            memcpy(&left[k], &of_a, 4);
            memcpy(&right[k], &of_b, 4);
        }
        for (unsigned k = 0; k < 8; k++) sums[place] += left[k] * right[k];
    }
    for (unsigned place = 0; place < 4; place++) *d[place] = sums[place];
}
#define asm
#define volatile(...)                                                                                                   \
    emu_mma(#__VA_ARGS__, {reg_a_0, reg_a_1, reg_a_2, reg_a_3}, {reg_b_0, reg_b_1}, {reg_c_0, reg_c_1, reg_c_2, reg_c_3},  \
            {&reg_d_0, &reg_d_1, &reg_d_2, &reg_d_3})

#ifdef EMULATED_BYTES
// With -fsanitize=thread the compiler calls these before each access to memory: here they count it.
__attribute__((no_sanitize("thread"))) inline void emu_touch(void *at, unsigned bytes, int write) {
    if (emu) emu->touch(at, bytes, write);
}
#define EMU_TOUCH(name, bytes, write)                                                                                   \
    extern "C" __attribute__((no_sanitize("thread"))) void __tsan_##name##bytes(void *at) { emu_touch(at, bytes, write); }
#define EMU_TOUCH_SIZE(bytes)                                                                                           \
    EMU_TOUCH(read, bytes, 0)                                                                                           \
    EMU_TOUCH(write, bytes, 1)
#define EMU_TOUCH_UNALIGNED(bytes)                                                                                      \
    EMU_TOUCH(unaligned_read, bytes, 0)                                                                                 \
    EMU_TOUCH(unaligned_write, bytes, 1)
EMU_TOUCH_SIZE(1) EMU_TOUCH_SIZE(2) EMU_TOUCH_SIZE(4) EMU_TOUCH_SIZE(8) EMU_TOUCH_SIZE(16)
EMU_TOUCH_UNALIGNED(2) EMU_TOUCH_UNALIGNED(4) EMU_TOUCH_UNALIGNED(8) EMU_TOUCH_UNALIGNED(16)
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_read_range(void *at, unsigned long bytes) { emu_touch(at, (unsigned)bytes, 0); }
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_write_range(void *at, unsigned long bytes) { emu_touch(at, (unsigned)bytes, 1); }
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_func_entry(void *) {}
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_func_exit(void) {}
extern "C" __attribute__((no_sanitize("thread"))) void __tsan_init(void) {}
#endif

// The kernel's entries for the fake driver.
template <class... A, size_t... I> inline void emu_call(void (*kernel)(A...), void **a, std::index_sequence<I...>) {
    kernel(*(std::remove_cv_t<A> *)a[I]...);
}
template <class... A> inline void emu_apply(void (*kernel)(A...), void **a) { emu_call(kernel, a, std::index_sequence_for<A...>{}); }
#define EMU_ENTRY(name, barriers)                                                                                       \
    alignas(1024) unsigned char dynamic_shared_mem[EMULATED_SHARED];                                                    \
    extern "C" void *emulated_bind(emulated_thread *thread) {                                                           \
        emu = thread;                                                                                                   \
        return dynamic_shared_mem;                                                                                      \
    }                                                                                                                   \
    extern "C" const int emulated_has_barriers = barriers;                                                              \
    extern "C" void emulated_thread_##name(void **a) { emu_apply(&name, a); }                                           \
    extern "C" void emulated_block_##name(void **a) {                                                                   \
        unsigned threads = blockDim.x * blockDim.y * blockDim.z;                                                        \
        for (unsigned i = 0; i < threads; i++) {                                                                        \
            unsigned at = emu->reverse ? threads - 1 - i : i;                                                           \
            emu->thread_index = {at % blockDim.x, at / blockDim.x % blockDim.y, at / blockDim.x / blockDim.y};          \
            emu->linear = at;                                                                                           \
            emu_apply(&name, a);                                                                                        \
        }                                                                                                               \
    }
