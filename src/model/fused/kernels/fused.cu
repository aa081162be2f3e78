// All kernels, as one module for the GPU and one library for the tests.
#include "norm.cu"
#include "activation.cu"
#include "softmax.cu"
#include "rotary.cu"
#include "head.cu"
#include "many.cu"
