// The walk over rows that the norm ops share. Included by sources that are compiled once per instruction set; no
// standard-library templates, as in those.
#pragma once

#include <cstdint>

#include "interpcore/norm_vjp.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

struct Row {
  const float* g;
  const float* residual;  // or null
  const float* normed;
  float rstd;
};

Row row_at(const NormVjp& p, int64_t b, int64_t c, int64_t position) {
  Row row;
  row.g = p.g + b * p.g_stride[0] + c * p.g_stride[1] + position * p.g_stride[2];
  row.residual = nullptr;
  if (p.residual) {
    row.residual = p.residual + b * p.residual_stride[0] + c * p.residual_stride[1] + position * p.residual_stride[2];
  }
  row.normed = p.normed + b * p.normed_stride[0] + position * p.normed_stride[1];
  row.rstd = p.rstd[b * p.rstd_stride[0] + position * p.rstd_stride[1]];
  return row;
}

// Adds a row's result to `out`, or writes it there.
using AddRow = void (*)(const NormVjp&, const Row&, float*);

// Fills p.out; `add` has the form that adds and the form that writes.
void fill_rows(const NormVjp& p, const AddRow (&add)[2], [[maybe_unused]] int threads) {
  const int64_t rows = p.batch / p.sum_over * p.vectors * p.positions;
  // Below about 50 microseconds of work a second thread costs more than it saves.
  [[maybe_unused]] const bool parallel = threads > 1 && rows * p.sum_over * p.width >= 250000;
#pragma omp parallel for schedule(static) num_threads(threads) if (parallel)
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t position = row % p.positions;
    const int64_t c = row / p.positions % p.vectors;
    const int64_t first = row / p.positions / p.vectors * p.sum_over;
    float* out = p.out + row * p.width;
    for (int64_t b = first; b < first + p.sum_over; ++b) add[b == first](p, row_at(p, b, c, position), out);
  }
}

}  // namespace
}  // namespace INTERPCORE_ISA
}  // namespace interpcore
