// Compiled once per instruction set; INTERPCORE_ISA names the namespace. No standard-library templates here: the
// linker could keep an AVX-512 copy of one for every caller.
#include "interpcore/norm_vjp.h"

#include "norm_rows.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

// Writes the row's result to `out` where `first`, else adds it. The cases are template parameters because
// a test inside the loop keeps it from being vectorised without masked loads.
template <bool weighted, bool with_residual, bool first>
void add_row(const NormVjp& p, const Row& row, float* __restrict out) {
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

constexpr AddRow kAddRow[2][2][2] = {  // weighted, with_residual, first
    {{add_row<false, false, false>, add_row<false, false, true>},
     {add_row<false, true, false>, add_row<false, true, true>}},
    {{add_row<true, false, false>, add_row<true, false, true>},
     {add_row<true, true, false>, add_row<true, true, true>}}};

}  // namespace

void norm_vjp(const NormVjp& p, int threads) {
  fill_rows(p, kAddRow[p.weight != nullptr][p.residual != nullptr], threads);
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
