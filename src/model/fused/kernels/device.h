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

// The sum of every thread's x, the same bits in each: the order depends on the size of the block alone.
// The block is whole warps, at most 32. All its threads must come here.
DEVICE float block_sum(float x) {
    __shared__ float warps[32];
    for (unsigned apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
    // Until all have read the sums of the call before.
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    float sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += warps[warp];
    return sum;
}

// The same in double precision.
DEVICE double block_sum_double(double x) {
    __shared__ double warps[32];
    for (unsigned apart = 16; apart > 0; apart /= 2) x += __shfl_xor_sync(0xffffffffu, x, apart);
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    double sum = 0;
    for (unsigned warp = 0; warp < blockDim.x / 32; warp++) sum += warps[warp];
    return sum;
}

// The largest of every thread's x, by the same rules. What is not a number is passed over.
DEVICE float block_max(float x) {
    __shared__ float warps[32];
    for (unsigned apart = 16; apart > 0; apart /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, apart));
    __syncthreads();
    if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
    __syncthreads();
    float most = warps[0];
    for (unsigned warp = 1; warp < blockDim.x / 32; warp++) most = fmaxf(most, warps[warp]);
    return most;
}

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
