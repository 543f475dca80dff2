// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
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

Row row_at(const NormVjp<float>& p, int64_t b, int64_t c, int64_t position) {
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

// Writes the row's result to `out` where `first`, else adds it. The cases are template parameters because
// a test inside the loop keeps it from being vectorised without masked loads.
template <bool weighted, bool with_residual, bool first>
void add_row(const NormVjp<float>& p, const Row& row, float* __restrict out) {
  const int64_t width = p.width;
  const float* __restrict g = row.g;
  const float* __restrict normed = row.normed;
  const float* __restrict residual = row.residual;
  const float* __restrict weight = p.weight;
  const float offset = p.weight_offset, rstd = row.rstd;
  float sum = 0.0f, dot = 0.0f;
#pragma omp simd reduction(+ : sum, dot)
  for (int64_t i = 0; i < width; ++i) {
    const float scaled = weighted ? g[i] * (weight[i] + offset) : g[i];
    sum += scaled;
    dot += scaled * normed[i];
  }
  const float mean = p.center ? sum / static_cast<float>(width) : 0.0f;
  const float projection = dot / static_cast<float>(width);
#pragma omp simd
  for (int64_t i = 0; i < width; ++i) {
    const float scaled = weighted ? g[i] * (weight[i] + offset) : g[i];
    float value = norm_vjp_element(scaled, normed[i], rstd, mean, projection);
    if (with_residual) value += residual[i];
    out[i] = first ? value : out[i] + value;
  }
}

using AddRow = void (*)(const NormVjp<float>&, const Row&, float*);
constexpr AddRow kAddRow[2][2][2] = {  // weighted, with_residual, first
    {{add_row<false, false, false>, add_row<false, false, true>},
     {add_row<false, true, false>, add_row<false, true, true>}},
    {{add_row<true, false, false>, add_row<true, false, true>},
     {add_row<true, true, false>, add_row<true, true, true>}}};

}  // namespace

void norm_vjp(const NormVjp<float>& p, [[maybe_unused]] int threads) {
  const int64_t rows = p.batch / p.sum_over * p.vectors * p.positions;
  const auto& add = kAddRow[p.weight != nullptr][p.residual != nullptr];
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

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
