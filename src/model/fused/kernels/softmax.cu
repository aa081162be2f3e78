// Softmax of masked attention scores: a block does the keys of one query.
#include "device.h"

struct masked_softmax {
    const float *scores; // (batch,heads,queries,keys)
    const float *mask;   // (batch,1,queries,keys): 0, or minus infinity
    float *p;            // (batch,heads,queries,keys)
    uint32_t heads;
    uint32_t queries;
    uint32_t keys;
    float scale;
    float cap; // 0: none
    uint32_t unused;
};

KERNEL(masked_softmax, masked_softmax, a) {
    uint64_t row = blockIdx.x;
    uint64_t seen = row / ((uint64_t)a.heads * a.queries) * a.queries + row % a.queries;
    const float *scores = a.scores + row * a.keys, *mask = a.mask + seen * a.keys;
    float *p = a.p + row * a.keys;
    float most = -INFINITY, sum = 0;
    for (uint32_t j = threadIdx.x; j < a.keys; j += blockDim.x) {
        p[j] = capped(scores[j], a.scale, a.cap) + mask[j];
        most = fmaxf(most, p[j]);
    }
    most = block_max(most);
    for (uint32_t j = threadIdx.x; j < a.keys; j += blockDim.x) {
        p[j] = expf(p[j] - most);
        sum += p[j];
    }
    sum = block_sum(sum);
    for (uint32_t j = threadIdx.x; j < a.keys; j += blockDim.x) p[j] /= sum;
}

struct masked_softmax_backward {
    const float *scores; // (rows,keys)
    const float *p;      // (rows,keys)
    const float *g;      // (rows,keys): the gradient of p
    float *gs;           // (rows,keys): that of the scores
    uint32_t keys;
    float scale;
    float cap; // 0: none
    uint32_t unused;
};

KERNEL(masked_softmax_backward, masked_softmax_backward, a) {
    uint64_t begin = (uint64_t)blockIdx.x * a.keys;
    const float *p = a.p + begin, *g = a.g + begin;
    float mean = 0;
    for (uint32_t j = threadIdx.x; j < a.keys; j += blockDim.x) mean += p[j] * g[j];
    mean = block_sum(mean);
    for (uint32_t j = threadIdx.x; j < a.keys; j += blockDim.x) {
        float value = a.cap > 0 ? capped(a.scores[begin + j], a.scale, a.cap) : 0;
        a.gs[begin + j] = (g[j] - mean) * p[j] * capped_slope(value, a.scale, a.cap);
    }
}
