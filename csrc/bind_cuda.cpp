// Python module _C_cuda: exports only. Importing it touches no device.
#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>

#include "bind_params.h"
#include "cuda/launch.h"

namespace py = pybind11;

namespace {

void check(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

template <typename T>
void norm_vjp_as(const py::dict& args, cudaStream_t stream) {
  check(interpcore::norm_vjp_cuda(interpcore::norm_vjp_params<T>(args), stream));
}

void norm_vjp(const py::dict& args, const std::string& dtype, uintptr_t stream_handle) {
  const auto stream = reinterpret_cast<cudaStream_t>(stream_handle);
  if (dtype == "float32") return norm_vjp_as<float>(args, stream);
  if (dtype == "float16") return norm_vjp_as<__half>(args, stream);
  if (dtype == "bfloat16") return norm_vjp_as<__nv_bfloat16>(args, stream);
  throw std::invalid_argument("norm_vjp has no CUDA form for " + dtype);
}

}  // namespace

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "CUDA kernels of interpcore.";
  module.def("norm_vjp", &norm_vjp);
}
