// Layer norm and RMSNorm: a block does a row. RMSNorm takes no mean away (centered is 0).
#include "device.h"

// The mean that is taken away, and 1 / sqrt(mean of squares + epsilon).
struct moments {
    float mean;
    float scale;
};

DEVICE struct moments row_moments(const float *x, uint32_t columns, uint32_t centered, float epsilon) {
    struct moments found;
    float sum = 0;
    found.mean = 0;
    if (centered) {
        for (uint32_t j = threadIdx.x; j < columns; j += blockDim.x) sum += x[j];
        found.mean = block_sum(sum) / columns;
        sum = 0;
    }
    for (uint32_t j = threadIdx.x; j < columns; j += blockDim.x) {
        float apart = x[j] - found.mean;
        sum += apart * apart;
    }
    found.scale = 1 / sqrtf(block_sum(sum) / columns + epsilon);
    return found;
}

struct norm_forward {
    const float *x;      // (rows,columns)
    const float *factor; // (columns)
    const float *bias;   // (columns), or none
    float *y;            // (rows,columns)
    uint32_t columns;
    uint32_t centered;
    float epsilon;
    uint32_t unused;
};

KERNEL(norm_forward, norm_forward, a) {
    const float *x = a.x + (uint64_t)blockIdx.x * a.columns;
    float *y = a.y + (uint64_t)blockIdx.x * a.columns;
    struct moments row = row_moments(x, a.columns, a.centered, a.epsilon);
    for (uint32_t j = threadIdx.x; j < a.columns; j += blockDim.x)
        y[j] = (x[j] - row.mean) * row.scale * a.factor[j] + (a.bias ? a.bias[j] : 0);
}

struct norm_backward {
    const float *x;      // (rows,columns)
    const float *g;      // (rows,columns): the gradient of y
    const float *factor; // (columns)
    float *gx;           // (rows,columns)
    float *moments;      // (rows,2): mean and scale of each row, for the columns' sums
    uint32_t columns;
    uint32_t centered;
    float epsilon;
    uint32_t unused;
};

// With n the normed row and h = g * factor: (h - mean(h) - n * mean(h * n)) * scale. RMSNorm's has no
// mean(h).
KERNEL(norm_backward, norm_backward, a) {
    uint64_t begin = (uint64_t)blockIdx.x * a.columns;
    const float *x = a.x + begin, *g = a.g + begin;
    struct moments row = row_moments(x, a.columns, a.centered, a.epsilon);
    float sum = 0, along = 0;
    for (uint32_t j = threadIdx.x; j < a.columns; j += blockDim.x) {
        float h = g[j] * a.factor[j];
        sum += h;
        along += h * (x[j] - row.mean) * row.scale;
    }
    float mean = a.centered ? block_sum(sum) / a.columns : 0;
    along = block_sum(along) / a.columns;
    for (uint32_t j = threadIdx.x; j < a.columns; j += blockDim.x) {
        float normed = (x[j] - row.mean) * row.scale;
        a.gx[begin + j] = (g[j] * a.factor[j] - mean - normed * along) * row.scale;
    }
    if (threadIdx.x == 0) {
        a.moments[2 * (uint64_t)blockIdx.x] = row.mean;
        a.moments[2 * (uint64_t)blockIdx.x + 1] = row.scale;
    }
}

struct norm_columns {
    const float *x;       // (rows,columns)
    const float *g;       // (rows,columns)
    const float *moments; // (rows,2)
    float *sums;          // (2,parts,columns): of g * n, then of g
    uint64_t rows;
    uint32_t columns;
    uint32_t rows_of_part;
    uint32_t parts;
    uint32_t unused;
};

// A thread adds up one column of one part of the rows, one row after another.
KERNEL(norm_columns, norm_columns, a) {
    uint64_t i = value_index();
    if (i >= (uint64_t)a.parts * a.columns) return;
    uint32_t part = (uint32_t)(i / a.columns), column = (uint32_t)(i % a.columns);
    uint64_t row = (uint64_t)part * a.rows_of_part, end = row + a.rows_of_part;
    if (end > a.rows) end = a.rows;
    float along = 0, sum = 0;
    for (; row < end; row++) {
        float g = a.g[row * a.columns + column];
        along += g * (a.x[row * a.columns + column] - a.moments[2 * row]) * a.moments[2 * row + 1];
        sum += g;
    }
    a.sums[i] = along;
    a.sums[(uint64_t)a.parts * a.columns + i] = sum;
}

struct add_parts {
    const float *sums; // (groups,parts,columns)
    float *out;        // (groups,columns)
    uint32_t groups;
    uint32_t parts;
    uint32_t columns;
    uint32_t unused;
};

// One part after another, so that the bits are the same every time.
KERNEL(add_parts, add_parts, a) {
    uint64_t i = value_index();
    if (i >= (uint64_t)a.groups * a.columns) return;
    const float *sums = a.sums + i / a.columns * a.parts * a.columns + i % a.columns;
    float sum = 0;
    for (uint32_t part = 0; part < a.parts; part++) sum += sums[(uint64_t)part * a.columns];
    a.out[i] = sum;
}
