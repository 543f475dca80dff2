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

void edge_scores(const py::dict& args, uintptr_t stream) {
  interpcore::EdgeScores p;
  int64_t shape[4], cuts[5];
  interpcore::read_sizes(args, "shape", shape), interpcore::read_sizes(args, "cuts", cuts);
  p.sources = shape[0], p.destinations = shape[1], p.rows = shape[2], p.width = shape[3];
  p.tile = cuts[0], p.units = cuts[1], p.spans = cuts[2], p.span = cuts[3], p.segments = cuts[4];
  p.difference = interpcore::pointer<const uint16_t>(args, "difference");
  p.grad = interpcore::pointer<const uint16_t>(args, "grad");
  p.prefix = interpcore::pointer<const int32_t>(args, "prefix");
  p.unit_first = interpcore::pointer<const int32_t>(args, "unit_first");
  p.unit_rows = interpcore::pointer<const int32_t>(args, "unit_rows");
  p.ends = interpcore::pointer<const int32_t>(args, "ends");
  p.segment_first = interpcore::pointer<const int32_t>(args, "segment_first");
  p.partial = interpcore::pointer<float>(args, "partial");
  p.total = interpcore::pointer<float>(args, "total");
  p.squares = interpcore::pointer<float>(args, "squares");
  check(interpcore::edge_scores_cuda(p, reinterpret_cast<cudaStream_t>(stream)));
}

}  // namespace

PYBIND11_MODULE(_C_cuda, module) {
  module.doc() = "CUDA kernels of interpcore.";
  module.def("column_moments", &column_moments);
  module.def("activation_moments", &activation_moments);
  module.def("edge_scores", &edge_scores);
}
