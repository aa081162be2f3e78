// Rotary positions, a thread a value.
#include "device.h"

struct rotary {
    const float *x;       // (rows,width), heads of head_dim side by side
    const float *cosines; // (rows,pairs)
    const float *sines;   // (rows,pairs)
    float *y;             // (rows,width)
    uint64_t count;
    uint32_t width;
    uint32_t head_dim;
    uint32_t pairs;
    uint32_t turned; // of every `of` heads so many
    uint32_t of;
    float way; // 1, or -1 to turn back
};

KERNEL(rotary, rotary, a) {
    uint64_t i = value_index();
    if (i >= a.count) return;
    uint64_t row = i / a.width;
    uint32_t column = (uint32_t)(i % a.width), channel = column % a.head_dim;
    if (column / a.head_dim % a.of >= a.turned || channel >= 2 * a.pairs) {
        a.y[i] = a.x[i];
        return;
    }
    int first = channel < a.pairs;
    uint64_t angle = row * a.pairs + (first ? channel : channel - a.pairs);
    float other = first ? -a.x[i + a.pairs] : a.x[i - a.pairs];
    a.y[i] = a.x[i] * a.cosines[angle] + other * a.way * a.sines[angle];
}
