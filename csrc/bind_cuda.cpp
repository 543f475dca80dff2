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

interpcore::ColumnChunks column_chunks(const py::dict& args) {
  interpcore::ColumnChunks p;
  p.totals = interpcore::column_moments_params(args);
  p.chunk_rows = args["chunk_rows"].cast<int64_t>();
  p.counts = interpcore::pointer<int32_t>(args, "part_counts");
  p.sums = interpcore::pointer<double>(args, "part_sums");
  return p;
}

void column_moments(const py::dict& args, uintptr_t stream) {
  check(interpcore::column_moments_cuda(column_chunks(args), reinterpret_cast<cudaStream_t>(stream)));
}

void activation_moments(const py::dict& args, uintptr_t stream) {
  interpcore::ActivationChunks p;
  p.pre = column_chunks(args["pre"]), p.post = column_chunks(args["post"]);
  p.up = interpcore::pointer<const void>(args, "up");
  p.up_stride = args["up_stride"].cast<int64_t>();
  p.out = interpcore::pointer<void>(args, "out");
  const auto activation = static_cast<interpcore::Activation>(args["activation"].cast<int>());
  check(interpcore::activation_moments_cuda(p, activation, reinterpret_cast<cudaStream_t>(stream)));
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
  module.def("column_moments", &column_moments);
  module.def("activation_moments", &activation_moments);
}
