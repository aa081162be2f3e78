// What all kernels share. They are written in what CUDA C++ and plain C have in common: nvcc makes
// them for a GPU, and any C compiler makes them for the tests, with stand_in.h for a block of threads.
//
// A kernel takes one struct, which its Rust caller lays out alike. `a` is that struct.
#pragma once

#include <math.h>
#include <stdint.h>

#ifdef __CUDACC__
#define DEVICE static __device__ __forceinline__
#define KERNEL(name, type, a) extern "C" __global__ void name(const struct type a)
#else
#include "stand_in.h"
#endif

// `name` puts every thread's x together, two at a time by `joined`: the same bits in each thread, since
// the order depends on the size of the block alone. The block is whole warps, at most 32. All its threads
// must come here. The first barrier: until all have read what the call before put together.
#define BLOCK_REDUCTION(name, type, joined)                                                             \
    DEVICE type name(type x) {                                                                          \
        __shared__ type warps[32];                                                                      \
        for (unsigned apart = 16; apart > 0; apart /= 2) {                                              \
            type other = __shfl_xor_sync(0xffffffffu, x, apart);                                        \
            x = joined(x, other);                                                                       \
        }                                                                                               \
        __syncthreads();                                                                                \
        if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;                                         \
        __syncthreads();                                                                                \
        type whole = warps[0];                                                                          \
        for (unsigned warp = 1; warp < blockDim.x / 32; warp++) whole = joined(whole, warps[warp]);     \
        return whole;                                                                                   \
    }

#define ADDED(x, y) ((x) + (y))

BLOCK_REDUCTION(block_sum, float, ADDED)
BLOCK_REDUCTION(block_sum_double, double, ADDED)
// The largest; what is not a number is passed over.
BLOCK_REDUCTION(block_max, float, fmaxf)

// The value that this thread computes where each computes one.
DEVICE uint64_t value_index(void) {
    return (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
}

// A scaled score under a cap (0: none): cap * tanh(scale * x / cap).
DEVICE float capped(float x, float scale, float cap) {
    float z = x * scale;
    return cap > 0 ? cap * tanhf(z / cap) : z;
}

// The slope of a capped score by x, of its value.
DEVICE float capped_slope(float value, float scale, float cap) {
    return cap > 0 ? scale * (1 - (value / cap) * (value / cap)) : scale;
}
