// A block of threads in plain C, one thread after another. Each is a context of its own. The threads of
// a warp go on in turn while they exchange values, up to a barrier or their end; then it is the next
// warp's turn. Blocks run one after another, too.
//
// So a warp runs as far ahead of the others as a GPU may let it. The tests run each launch twice, the
// second time with warps, their threads and blocks in the other order. Where a barrier is missing, or
// blocks depend on each other, the results differ.
#pragma once

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <ucontext.h>

#define DEVICE static inline
#define __shared__ static

#define MOST_THREADS 1024
#define STACK (64 * 1024)

// Where a thread has stopped.
enum stop { AT_EXCHANGE, AT_BARRIER, AT_END };

struct thread {
    ucontext_t context;
    enum stop stop;
    // How many values it has exchanged with others.
    unsigned exchanges;
};

static struct { unsigned x; } threadIdx, blockIdx, blockDim;
static struct thread threads[MOST_THREADS];
static ucontext_t scheduler;
static void (*body)(void);
static const void *arguments;

static void stop_here(enum stop stop) {
    threads[threadIdx.x].stop = stop;
    swapcontext(&threads[threadIdx.x].context, &scheduler);
}

static void __syncthreads(void) { stop_here(AT_BARRIER); }

static void whole_thread(void) {
    body();
    stop_here(AT_END);
}

// Two tables in turn: who writes into one has stopped since all of its warp read it.
static union { float f; double d; } exchanged[2][MOST_THREADS];

static inline float exchange_float(float x, unsigned apart) {
    unsigned table = threads[threadIdx.x].exchanges++ % 2;
    exchanged[table][threadIdx.x].f = x;
    stop_here(AT_EXCHANGE);
    return exchanged[table][threadIdx.x ^ apart].f;
}

static inline double exchange_double(double x, unsigned apart) {
    unsigned table = threads[threadIdx.x].exchanges++ % 2;
    exchanged[table][threadIdx.x].d = x;
    stop_here(AT_EXCHANGE);
    return exchanged[table][threadIdx.x ^ apart].d;
}

#define __shfl_xor_sync(mask, x, apart) \
    _Generic((x), float: exchange_float, double: exchange_double)(x, apart)

// Runs the 32 threads of a warp up to a barrier or their end. 0, or 3 if they part ways.
static int run_warp(unsigned first, int backwards, enum stop *stop) {
    do {
        for (unsigned lane = 0; lane < 32; lane++) {
            unsigned t = first + (backwards ? 31 - lane : lane);
            threadIdx.x = t;
            swapcontext(&scheduler, &threads[t].context);
        }
        *stop = threads[first].stop;
        for (unsigned lane = 1; lane < 32; lane++)
            if (threads[first + lane].stop != *stop) return 3;
    } while (*stop == AT_EXCHANGE);
    return 0;
}

// The same of all threads of a block, up to their end.
static int run_block(unsigned count, int backwards) {
    enum stop stop = AT_BARRIER;
    while (stop != AT_END) {
        for (unsigned warp = 0; warp < count / 32; warp++) {
            enum stop own;
            int failed = run_warp(32 * (backwards ? count / 32 - 1 - warp : warp), backwards, &own);
            if (failed) return failed;
            if (warp > 0 && own != stop) return 3;
            stop = own;
        }
    }
    return 0;
}

// 0, or why not: 1 no memory, 2 too many threads or no whole warps, 3 some threads of a block ended or
// exchange values, and others wait at a barrier.
static int run_blocks(unsigned blocks, unsigned count, int backwards) {
    if (count == 0 || count > MOST_THREADS || count % 32 != 0) return 2;
    char *stacks = malloc((size_t)count * STACK);
    if (!stacks) return 1;
    blockDim.x = count;
    int failed = 0;
    for (unsigned i = 0; i < blocks && !failed; i++) {
        blockIdx.x = backwards ? blocks - 1 - i : i;
        for (unsigned t = 0; t < count; t++) {
            getcontext(&threads[t].context);
            threads[t].context.uc_stack.ss_sp = stacks + (size_t)t * STACK;
            threads[t].context.uc_stack.ss_size = STACK;
            threads[t].context.uc_link = NULL;
            threads[t].exchanges = 0;
            makecontext(&threads[t].context, whole_thread, 0);
        }
        failed = run_block(count, backwards);
    }
    free(stacks);
    return failed;
}

#define KERNEL(name, type, a)                                                                   \
    static void name##_body(const struct type a);                                               \
    static void name##_thread(void) { name##_body(*(const struct type *)arguments); }           \
    uint32_t name##_size(void) { return sizeof(struct type); }                                  \
    int name(const void *given, uint32_t blocks, uint32_t count, int backwards) {               \
        arguments = given;                                                                      \
        body = name##_thread;                                                                   \
        return run_blocks(blocks, count, backwards);                                            \
    }                                                                                           \
    static void name##_body(const struct type a)
