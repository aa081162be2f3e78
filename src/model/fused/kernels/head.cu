// What is made of a chunk of the head's products: a block does the vocabulary of one position. Each gives
// the value, and its slope by the products where it is asked for.
#include "device.h"

// The largest logit of a row, and the sum of exp(logit - largest).
struct partition {
    float most;
    float sum;
};

DEVICE struct partition row_partition(const float *z, uint32_t vocabulary, float scale, float cap) {
    struct partition found;
    float most = -INFINITY, sum = 0;
    for (uint32_t v = threadIdx.x; v < vocabulary; v += blockDim.x)
        most = fmaxf(most, capped(z[v], scale, cap));
    found.most = block_max(most);
    for (uint32_t v = threadIdx.x; v < vocabulary; v += blockDim.x)
        sum += expf(capped(z[v], scale, cap) - found.most);
    found.sum = block_sum(sum);
    return found;
}

struct head_token {
    const float *products;  // (rows,vocabulary)
    const uint32_t *tokens; // (rows)
    float *values;          // (rows): log p(token)
    float *slopes;          // (rows,vocabulary), or none
    uint32_t vocabulary;
    float scale;
    float cap; // 0: none
    uint32_t unused;
};

KERNEL(head_token, head_token, a) {
    uint64_t begin = (uint64_t)blockIdx.x * a.vocabulary;
    const float *z = a.products + begin;
    uint32_t token = a.tokens[blockIdx.x];
    struct partition row = row_partition(z, a.vocabulary, a.scale, a.cap);
    if (threadIdx.x == 0)
        a.values[blockIdx.x] = token < a.vocabulary
            ? capped(z[token], a.scale, a.cap) - row.most - logf(row.sum) : NAN;
    if (!a.slopes) return;
    for (uint32_t v = threadIdx.x; v < a.vocabulary; v += blockDim.x) {
        float logit = capped(z[v], a.scale, a.cap);
        float by_logit = (v == token ? 1.0f : 0.0f) - expf(logit - row.most) / row.sum;
        a.slopes[begin + v] = by_logit * capped_slope(logit, a.scale, a.cap);
    }
}

struct head_absent {
    const float *products; // (rows,vocabulary)
    const float *weights;  // (vocabulary)
    float *values;         // (rows): log(1 - sum of weight * p)
    float *slopes;         // (rows,vocabulary), or none
    uint32_t vocabulary;
    float scale;
    float cap;  // 0: none
    float least; // no smaller probability has its logarithm taken
};

KERNEL(head_absent, head_absent, a) {
    uint64_t begin = (uint64_t)blockIdx.x * a.vocabulary;
    const float *z = a.products + begin;
    struct partition row = row_partition(z, a.vocabulary, a.scale, a.cap);
    float comes = 0;
    for (uint32_t v = threadIdx.x; v < a.vocabulary; v += blockDim.x)
        comes += a.weights[v] * (expf(capped(z[v], a.scale, a.cap) - row.most) / row.sum);
    comes = block_sum(comes);
    // What is not a number stays so.
    float clear = 1 - comes < a.least ? a.least : 1 - comes;
    if (threadIdx.x == 0) a.values[blockIdx.x] = logf(clear);
    if (!a.slopes) return;
    for (uint32_t v = threadIdx.x; v < a.vocabulary; v += blockDim.x) {
        float logit = capped(z[v], a.scale, a.cap);
        float p = expf(logit - row.most) / row.sum;
        a.slopes[begin + v] = -p * (a.weights[v] - comes) / clear * capped_slope(logit, a.scale, a.cap);
    }
}

struct head_reference {
    const float *products; // (rows,vocabulary)
    const float *theirs;   // (rows,vocabulary): the reference's products
    float *values;         // (rows): KL(p_ref || p)
    float *slopes;         // (rows,vocabulary), or none
    uint32_t vocabulary;
    float scale;
    float cap; // 0: none
    uint32_t unused;
};

KERNEL(head_reference, head_reference, a) {
    uint64_t begin = (uint64_t)blockIdx.x * a.vocabulary;
    const float *z = a.products + begin, *t = a.theirs + begin;
    struct partition row = row_partition(z, a.vocabulary, a.scale, a.cap);
    struct partition ref = row_partition(t, a.vocabulary, a.scale, a.cap);
    float kl = 0;
    for (uint32_t v = threadIdx.x; v < a.vocabulary; v += blockDim.x) {
        float logit = capped(z[v], a.scale, a.cap), their = capped(t[v], a.scale, a.cap);
        float q = expf(their - ref.most) / ref.sum;
        // The largest first: logits of −100 have no digits to spare, their distances have.
        kl += q * ((their - ref.most) - (logit - row.most));
        if (a.slopes)
            a.slopes[begin + v] =
                (expf(logit - row.most) / row.sum - q) * capped_slope(logit, a.scale, a.cap);
    }
    kl = block_sum(kl) + (logf(row.sum) - logf(ref.sum));
    if (threadIdx.x == 0) a.values[blockIdx.x] = kl;
}
