// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
#include "interpcore/gate.h"

namespace interpcore {
namespace INTERPCORE_ISA {

void gate(const Gate& p, [[maybe_unused]] int threads) {
  const int64_t rows = p.batch * p.vectors * p.positions;
  // Below about 50 microseconds of work a second thread costs more than it saves.
  [[maybe_unused]] const bool parallel = threads > 1 && rows * p.width >= 250000;
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t position = row % p.positions, c = row / p.positions % p.vectors, b = row / p.positions / p.vectors;
    const float* __restrict x = p.x + b * p.x_stride[0] + c * p.x_stride[1] + position * p.x_stride[2];
    const float* __restrict factor = p.factor + b * p.factor_stride[0] + position * p.factor_stride[1];
    const float* __restrict factor2 = p.factor2 + b * p.factor2_stride[0] + position * p.factor2_stride[1];
    float* __restrict out = p.out + row * p.width;
    const float* __restrict x2 = p.x2 + b * p.x2_stride[0] + c * p.x2_stride[1] + position * p.x2_stride[2];
#pragma omp simd
    for (int64_t i = 0; i < p.width; ++i) out[i] = x[i] * factor[i] + x2[i] * factor2[i];
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
