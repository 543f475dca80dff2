// Compiled once by CMake to see whether nvcc, the host compiler and the architectures work together.
#include <cuda_bf16.h>

__global__ void probe(__nv_bfloat16* value) { value[0] = __float2bfloat16(1.0f); }
