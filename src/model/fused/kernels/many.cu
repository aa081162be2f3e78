// What is done to many tensors in one launch. A block does a piece of one tensor; a table says which.
#include "device.h"

struct piece {
    const float *x;
    uint64_t count;
};

struct sums_of_squares {
    const struct piece *pieces; // one a block
    double *sums;               // one a block
};

KERNEL(sums_of_squares, sums_of_squares, a) {
    struct piece piece = a.pieces[blockIdx.x];
    double sum = 0;
    for (uint64_t i = threadIdx.x; i < piece.count; i += blockDim.x) {
        double x = piece.x[i];
        sum += x * x;
    }
    sum = block_sum_double(sum);
    if (threadIdx.x == 0) a.sums[blockIdx.x] = sum;
}

struct moved_piece {
    float *theta;
    const float *gradient;
    float *squares; // running average of the squared gradient
    float *average; // that of the gradient (AdamW), or none (RMSProp)
    uint64_t count;
    float rate;
    float root;
    float shrink;
    uint32_t unused;
};

struct optimizer_step {
    const struct moved_piece *pieces; // one a block
    float scale;                      // on every gradient
    float epsilon;
    // What an average keeps of itself, and what it takes of the gradient.
    float keep;
    float take;
    float keep_squares;
    float take_squares;
};

KERNEL(optimizer_step, optimizer_step, a) {
    struct moved_piece piece = a.pieces[blockIdx.x];
    for (uint64_t i = threadIdx.x; i < piece.count; i += blockDim.x) {
        float g = piece.gradient[i] * a.scale;
        float squares = a.keep_squares * piece.squares[i] + a.take_squares * (g * g);
        float direction = g;
        if (piece.average) {
            direction = a.keep * piece.average[i] + a.take * g;
            piece.average[i] = direction;
        }
        piece.squares[i] = squares;
        piece.theta[i] = piece.shrink * piece.theta[i]
            - piece.rate * direction / (sqrtf(squares) * piece.root + a.epsilon);
    }
}
