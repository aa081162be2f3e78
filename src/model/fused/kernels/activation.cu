// The MLP's activation functions, a thread a value. The numbers of the functions are those of
// activation.rs.
#include "device.h"

#define GELU_TANH 0
#define GELU_ERF 1
#define RELU 2
#define SILU 3

#define SQRT_2_OVER_PI 0.7978845608f
#define CUBIC 0.044715f
#define SQRT_HALF 0.7071067812f
#define INV_SQRT_2PI 0.3989422804f

DEVICE float activated(uint32_t curve, float x) {
    switch (curve) {
    case GELU_TANH: return 0.5f * x * (1 + tanhf(SQRT_2_OVER_PI * (x + CUBIC * x * x * x)));
    case GELU_ERF: return 0.5f * x * (1 + erff(x * SQRT_HALF));
    case RELU: return x > 0 ? x : 0;
    default: return x / (1 + expf(-x));
    }
}

DEVICE float slope(uint32_t curve, float x) {
    float s;
    switch (curve) {
    case GELU_TANH:
        s = tanhf(SQRT_2_OVER_PI * (x + CUBIC * x * x * x));
        return 0.5f * (1 + s) + 0.5f * x * (1 - s * s) * SQRT_2_OVER_PI * (1 + 3 * CUBIC * x * x);
    case GELU_ERF: return 0.5f * (1 + erff(x * SQRT_HALF)) + x * INV_SQRT_2PI * expf(-0.5f * x * x);
    case RELU: return x > 0 ? 1 : 0;
    default: s = 1 / (1 + expf(-x)); return s * (1 + x * (1 - s));
    }
}

struct activation_forward {
    const float *x;
    float *y;
    uint64_t count;
    uint32_t curve;
    uint32_t unused;
};

KERNEL(activation_forward, activation_forward, a) {
    uint64_t i = value_index();
    if (i < a.count) a.y[i] = activated(a.curve, a.x[i]);
}

struct activation_backward {
    const float *x;
    const float *g;
    float *gx;
    uint64_t count;
    uint32_t curve;
    uint32_t unused;
};

KERNEL(activation_backward, activation_backward, a) {
    uint64_t i = value_index();
    if (i < a.count) a.gx[i] = a.g[i] * slope(a.curve, a.x[i]);
}

// Gates and ups may lie side by side: a row of either begins `stride` values after the one before. So value
// i of the product is made of those at this place.
DEVICE uint64_t gated_at(uint64_t i, uint32_t columns, uint32_t stride) {
    return i / columns * stride + i % columns;
}

struct gated_forward {
    const float *gate; // (rows,columns)
    const float *up;   // (rows,columns)
    float *y;          // (rows,columns), without gaps
    uint64_t count;
    uint32_t columns;
    uint32_t stride;
    uint32_t curve;
    uint32_t unused;
};

KERNEL(gated_forward, gated_forward, a) {
    uint64_t i = value_index();
    if (i >= a.count) return;
    uint64_t at = gated_at(i, a.columns, a.stride);
    a.y[i] = activated(a.curve, a.gate[at]) * a.up[at];
}

struct gated_backward {
    const float *gate; // (rows,columns)
    const float *up;   // (rows,columns)
    const float *g;    // (rows,columns), without gaps
    float *g_gate;     // as gate
    float *g_up;       // as up
    uint64_t count;
    uint32_t columns;
    uint32_t stride;
    uint32_t curve;
    uint32_t unused;
};

KERNEL(gated_backward, gated_backward, a) {
    uint64_t i = value_index();
    if (i >= a.count) return;
    uint64_t at = gated_at(i, a.columns, a.stride);
    a.g_gate[at] = a.g[i] * a.up[at] * slope(a.curve, a.gate[at]);
    a.g_up[at] = a.g[i] * activated(a.curve, a.gate[at]);
}
