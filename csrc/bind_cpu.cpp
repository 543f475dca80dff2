// Python module _C: exports only. Shapes and dtypes were checked in interpcore.ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind_params.h"
#include "cpu/isa.h"
#include "interpcore/activation_moments.h"
#include "interpcore/attn_jvp.h"
#include "interpcore/attn_vjp.h"
#include "interpcore/batch_product.h"
#include "interpcore/bfloat16_product.h"
#include "interpcore/bin_counts.h"
#include "interpcore/column_moments.h"
#include "interpcore/column_top.h"
#include "interpcore/gate.h"
#include "interpcore/group_sums.h"
#include "interpcore/norm_jvp.h"
#include "interpcore/norm_vjp.h"
#include "interpcore/product.h"
#include "interpcore/row_summary.h"

INTERPCORE_DECLARE_OP(activation_moments, ActivationMoments)
INTERPCORE_DECLARE_OP(attn_jvp, AttnJvp)
INTERPCORE_DECLARE_OP(attn_vjp, AttnVjp)
INTERPCORE_DECLARE_OP(bin_counts, BinCounts)
INTERPCORE_DECLARE_OP(column_moments, ColumnMoments)
INTERPCORE_DECLARE_OP(column_top, ColumnTop)
INTERPCORE_DECLARE_OP(gate, Gate)
INTERPCORE_DECLARE_OP(group_sums, GroupSums)
INTERPCORE_DECLARE_OP(norm_jvp, NormJvp)
INTERPCORE_DECLARE_OP(norm_vjp, NormVjp)
INTERPCORE_DECLARE_OP(batch_product, BatchProduct)
INTERPCORE_DECLARE_OP(product, Product)
INTERPCORE_DECLARE_OP(row_summary, RowSummary)

namespace py = pybind11;
using interpcore::Isa;

namespace {

constexpr std::pair<const char*, Isa> kIsas[] = {
    {"baseline", Isa::baseline}, {"avx2", Isa::avx2}, {"avx512", Isa::avx512}};

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const auto& [name, isa] : kIsas) {
    if (interpcore::isa_supported(isa)) names.emplace_back(name);
  }
  return names;
}

Isa isa_named(const std::string& wanted) {
  for (const auto& [name, isa] : kIsas) {
    if (wanted == name && interpcore::isa_supported(isa)) return isa;
  }
  throw std::invalid_argument("instruction set '" + wanted + "' is not supported here");
}

// Runs one op's form for the instruction set named, without the interpreter's lock.
template <typename Params>
void run(void (*op_on)(Isa, const Params&, int), const Params& params, const std::string& isa, int threads) {
  const Isa chosen = isa_named(isa);
  py::gil_scoped_release release;
  op_on(chosen, params, threads);
}

void activation_moments(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::activation_moments_on, interpcore::activation_moments_params(args), isa, threads);
}

void attn_jvp(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::attn_jvp_on, interpcore::attn_jvp_params(args), isa, threads);
}

void attn_vjp(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::attn_vjp_on, interpcore::attn_vjp_params(args), isa, threads);
}

void bin_counts(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::bin_counts_on, interpcore::bin_counts_params(args), isa, threads);
}

void column_moments(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::column_moments_on, interpcore::column_moments_params(args), isa, threads);
}

void column_top(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::column_top_on, interpcore::column_top_params(args), isa, threads);
}

void gate(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::gate_on, interpcore::gate_params(args), isa, threads);
}

void group_sums(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::group_sums_on, interpcore::group_sums_params(args), isa, threads);
}

void norm_jvp(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::norm_jvp_on, interpcore::norm_vjp_params(args), isa, threads);
}

void norm_vjp(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::norm_vjp_on, interpcore::norm_vjp_params(args), isa, threads);
}

void batch_product(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::batch_product_on, interpcore::batch_product_params(args), isa, threads);
}

void product(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::product_on, interpcore::product_params(args), isa, threads);
}

void bfloat16_product(const py::dict& args, int threads) {
  if (!interpcore::bfloat16_product_supported()) throw std::invalid_argument("bfloat16_product is not supported here");
  const interpcore::BFloat16Product params = interpcore::bfloat16_product_params(args);
  py::gil_scoped_release release;
  interpcore::bfloat16_product(params, threads);
}

void row_summary(const py::dict& args, const std::string& isa, int threads) {
  run(&interpcore::row_summary_on, interpcore::row_summary_params(args), isa, threads);
}

}  // namespace

// Whether glibc now keeps `kept` freed bytes on top of its heap, from which arrays of up to `largest` bytes come.
static bool keep_freed(int largest, int kept) {
#if defined(__GLIBC__)
  return mallopt(M_MMAP_THRESHOLD, largest) == 1 && mallopt(M_TRIM_THRESHOLD, kept) == 1;
#else
  return false;
#endif
}

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of interpcore.";
  module.def("supported_isas", &supported_isas);
  module.def("keep_freed", &keep_freed);
#if defined(_OPENMP)
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
  module.def("activation_moments", &activation_moments);
  module.def("attn_jvp", &attn_jvp);
  module.def("attn_vjp", &attn_vjp);
  module.def("bin_counts", &bin_counts);
  module.def("column_moments", &column_moments);
  module.def("column_top", &column_top);
  module.def("gate", &gate);
  module.def("group_sums", &group_sums);
  module.def("norm_jvp", &norm_jvp);
  module.def("norm_vjp", &norm_vjp);
  module.def("batch_product", &batch_product);
  module.def("product", &product);
  module.def("bfloat16_product", &bfloat16_product);
  module.def("bfloat16_product_supported", &interpcore::bfloat16_product_supported);
  module.def("row_summary", &row_summary);
}
