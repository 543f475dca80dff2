// Python module _C: exports only. Shapes and dtypes were checked in interpcore.ops.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bind_params.h"
#include "cpu/isa.h"
#include "interpcore/attn_vjp.h"
#include "interpcore/norm_vjp.h"

INTERPCORE_DECLARE_OP(attn_vjp, AttnVjp)
INTERPCORE_DECLARE_OP(norm_vjp, NormVjp<float>)

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

void attn_vjp(const py::dict& args, const std::string& isa, int threads) {
  const auto params = interpcore::attn_vjp_params(args);
  const Isa chosen = isa_named(isa);
  py::gil_scoped_release release;
  interpcore::attn_vjp_on(chosen, params, threads);
}

void norm_vjp(const py::dict& args, const std::string& isa, int threads) {
  const auto params = interpcore::norm_vjp_params<float>(args);
  const Isa chosen = isa_named(isa);
  py::gil_scoped_release release;
  interpcore::norm_vjp_on(chosen, params, threads);
}

}  // namespace

PYBIND11_MODULE(_C, module) {
  module.doc() = "CPU kernels of interpcore.";
  module.def("supported_isas", &supported_isas);
#if defined(_OPENMP)
  module.attr("openmp") = true;
#else
  module.attr("openmp") = false;
#endif
  module.def("attn_vjp", &attn_vjp);
  module.def("norm_vjp", &norm_vjp);
}
