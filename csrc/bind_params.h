// Reads each op's params struct from the dictionary that interpcore.ops passes; shared by _C and _C_cuda.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

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
#include "interpcore/norm_vjp.h"
#include "interpcore/product.h"
#include "interpcore/row_summary.h"

namespace interpcore {

namespace py = pybind11;

template <typename T>
T* pointer(const py::dict& args, const char* name) {
  return reinterpret_cast<T*>(args[name].cast<uintptr_t>());
}

template <int axes>
void read_sizes(const py::dict& args, const char* name, int64_t (&sizes)[axes]) {
  const py::tuple values = args[name];
  for (int axis = 0; axis < axes; ++axis) sizes[axis] = values[axis].cast<int64_t>();
}

// The entries of "shape", a size each.
template <typename... Sizes>
void read_shape(const py::dict& args, Sizes&... sizes) {
  const py::tuple values = args["shape"];
  int axis = 0;
  ((sizes = values[axis++].cast<int64_t>()), ...);
}

inline NormVjp norm_vjp_params(const py::dict& args) {
  NormVjp p;
  read_shape(args, p.batch, p.vectors, p.positions, p.width);
  p.sum_over = args["sum_over"].cast<int64_t>();
  p.center = args["center"].cast<bool>();
  p.weight_offset = args["weight_offset"].cast<float>();
  p.g = pointer<const float>(args, "g");
  p.residual = pointer<const float>(args, "residual");
  p.normed = pointer<const float>(args, "normed");
  p.rstd = pointer<const float>(args, "rstd");
  p.weight = pointer<const float>(args, "weight");
  p.out = pointer<float>(args, "out");
  read_sizes(args, "g_stride", p.g_stride);
  read_sizes(args, "residual_stride", p.residual_stride);
  read_sizes(args, "normed_stride", p.normed_stride);
  read_sizes(args, "rstd_stride", p.rstd_stride);
  return p;
}

inline Gate gate_params(const py::dict& args) {
  Gate p;
  read_shape(args, p.batch, p.vectors, p.positions, p.width);
  p.x = pointer<const float>(args, "x");
  p.x2 = pointer<const float>(args, "x2");
  p.factor = pointer<const float>(args, "factor");
  p.factor2 = pointer<const float>(args, "factor2");
  p.out = pointer<float>(args, "out");
  read_sizes(args, "x_stride", p.x_stride);
  read_sizes(args, "x2_stride", p.x2_stride);
  read_sizes(args, "factor_stride", p.factor_stride);
  read_sizes(args, "factor2_stride", p.factor2_stride);
  return p;
}

inline ColumnMoments column_moments_params(const py::dict& args) {
  ColumnMoments p;
  read_shape(args, p.rows, p.columns);
  p.thresholds = args["thresholds"].cast<int64_t>();
  p.row_stride = args["row_stride"].cast<int64_t>();
  p.stored = static_cast<Stored>(args["stored"].cast<int>());
  p.go_on = args["go_on"].cast<bool>();
  p.x = pointer<const void>(args, "x");
  p.mask = pointer<const bool>(args, "mask");
  p.threshold = pointer<const float>(args, "threshold");
  p.shift = pointer<const float>(args, "shift");
  p.counts = pointer<int64_t>(args, "counts");
  p.moments = pointer<double>(args, "moments");
  return p;
}

inline ActivationMoments activation_moments_params(const py::dict& args) {
  ActivationMoments p;
  p.activation = static_cast<Activation>(args["activation"].cast<int>());
  p.pre = column_moments_params(args["pre"]);
  p.post = column_moments_params(args["post"]);
  p.up = pointer<const float>(args, "up");
  p.up_stride = args["up_stride"].cast<int64_t>();
  p.out = pointer<float>(args, "out");
  p.out_stride = p.post.row_stride;
  return p;
}

inline AttnJvp attn_jvp_params(const py::dict& args) {
  AttnJvp p;
  read_shape(args, p.batch, p.vectors, p.positions, p.heads, p.width);
  p.groups = args["groups"].cast<int64_t>();
  p.live = args["live"].cast<int64_t>();
  p.scale = args["scale"].cast<float>();
  p.tq = pointer<const float>(args, "tq");
  p.tk = pointer<const float>(args, "tk");
  p.tv = pointer<const float>(args, "tv");
  p.queries_t = pointer<const float>(args, "queries_t");
  p.v = pointer<const float>(args, "v");
  p.z = pointer<const float>(args, "z");
  p.pattern = pointer<const float>(args, "pattern");
  p.factor = pointer<const float>(args, "factor");
  p.key_value = pointer<const float>(args, "key_value");
  p.tz = pointer<float>(args, "tz");
  read_sizes(args, "tq_stride", p.tq_stride);
  read_sizes(args, "tk_stride", p.tk_stride);
  read_sizes(args, "tv_stride", p.tv_stride);
  read_sizes(args, "v_stride", p.v_stride);
  read_sizes(args, "pattern_stride", p.pattern_stride);
  read_sizes(args, "factor_stride", p.factor_stride);
  read_sizes(args, "key_value_stride", p.key_value_stride);
  read_sizes(args, "tz_stride", p.tz_stride);
  return p;
}

inline AttnVjp attn_vjp_params(const py::dict& args) {
  AttnVjp p;
  read_shape(args, p.batch, p.vectors, p.positions, p.heads, p.width);
  p.groups = args["groups"].cast<int64_t>();
  p.keys = args["keys"].cast<int64_t>();
  p.live = args["live"].cast<int64_t>();
  p.group_kv = args["group_kv"].cast<bool>();
  p.scale = args["scale"].cast<float>();
  p.g = pointer<const float>(args, "g");
  p.q = pointer<const float>(args, "q");
  p.k = pointer<const float>(args, "k");
  p.values_t = pointer<const float>(args, "values_t");
  p.z = pointer<const float>(args, "z");
  p.pattern = pointer<const float>(args, "pattern");
  p.factor = pointer<const float>(args, "factor");
  p.key_value = pointer<const float>(args, "key_value");
  p.dq = pointer<float>(args, "dq");
  p.dk = pointer<float>(args, "dk");
  p.dv = pointer<float>(args, "dv");
  read_sizes(args, "g_stride", p.g_stride);
  read_sizes(args, "q_stride", p.q_stride);
  read_sizes(args, "k_stride", p.k_stride);
  read_sizes(args, "pattern_stride", p.pattern_stride);
  read_sizes(args, "factor_stride", p.factor_stride);
  read_sizes(args, "key_value_stride", p.key_value_stride);
  read_sizes(args, "dq_stride", p.dq_stride);
  read_sizes(args, "dk_stride", p.dk_stride);
  read_sizes(args, "dv_stride", p.dv_stride);
  return p;
}

inline BinCounts bin_counts_params(const py::dict& args) {
  BinCounts p;
  read_shape(args, p.rows, p.columns, p.bins);
  p.row_stride = args["row_stride"].cast<int64_t>();
  p.linear = args.contains("edge");
  if (p.linear) {
    p.line = {args["first"].cast<float>(), args["scale"].cast<float>(), args["count"].cast<int32_t>(),
              pointer<const float>(args, "edge")};
  } else {
    p.octaves = {args["bits"].cast<int32_t>(), args["offset"].cast<int32_t>(), args["most"].cast<int32_t>()};
  }
  p.x = pointer<const float>(args, "x");
  p.counts = pointer<int64_t>(args, "counts");
  p.nonfinite = pointer<int64_t>(args, "nonfinite");
  return p;
}

inline GroupSums group_sums_params(const py::dict& args) {
  GroupSums p;
  p.columns = args["columns"].cast<int64_t>();
  p.groups = args["groups"].cast<int64_t>();
  p.row_stride = args["row_stride"].cast<int64_t>();
  p.x = pointer<const float>(args, "x");
  p.order = pointer<const int64_t>(args, "order");
  p.start = pointer<const int64_t>(args, "start");
  p.place = pointer<const int64_t>(args, "place");
  p.shift = pointer<const float>(args, "shift");
  p.total = pointer<double>(args, "total");
  p.square = pointer<double>(args, "square");
  p.active = pointer<int32_t>(args, "active");
  p.largest = pointer<float>(args, "largest");
  p.nonfinite = pointer<bool>(args, "nonfinite");
  return p;
}

inline ColumnTop column_top_params(const py::dict& args) {
  ColumnTop p;
  read_shape(args, p.rows, p.columns, p.k);
  p.row_stride = args["row_stride"].cast<int64_t>();
  p.x = pointer<const float>(args, "x");
  p.index = pointer<const int64_t>(args, "index");
  p.value = pointer<float>(args, "value");
  p.place = pointer<int64_t>(args, "place");
  return p;
}

inline Product product_params(const py::dict& args) {
  Product p;
  read_shape(args, p.rows, p.depth, p.columns);
  p.out_by_in = args["out_by_in"].cast<bool>();
  p.x_stride = args["x_stride"].cast<int64_t>();
  p.weight_stride = args["weight_stride"].cast<int64_t>();
  p.x = pointer<const float>(args, "x");
  p.weight = pointer<const float>(args, "weight");
  p.bias = pointer<const float>(args, "bias");
  p.out = pointer<float>(args, "out");
  return p;
}

inline BFloat16Product bfloat16_product_params(const py::dict& args) {
  BFloat16Product p;
  read_shape(args, p.rows, p.depth, p.columns);
  p.out_by_in = args["out_by_in"].cast<bool>();
  p.x_stride = args["x_stride"].cast<int64_t>();
  p.weight_stride = args["weight_stride"].cast<int64_t>();
  p.x = pointer<const uint16_t>(args, "x");
  p.weight = pointer<const uint16_t>(args, "weight");
  p.out = pointer<float>(args, "out");
  return p;
}

inline BatchProduct batch_product_params(const py::dict& args) {
  BatchProduct p;
  read_shape(args, p.batch, p.rows, p.depth, p.columns);
  read_sizes(args, "x_stride", p.x_stride);
  read_sizes(args, "weight_stride", p.weight_stride);
  read_sizes(args, "out_stride", p.out_stride);
  p.x = pointer<const float>(args, "x");
  p.y = pointer<const float>(args, "y");
  p.scale = pointer<const float>(args, "scale");
  p.y_scale = pointer<const float>(args, "y_scale");
  p.weight = pointer<const float>(args, "weight");
  p.out = pointer<float>(args, "out");
  return p;
}

inline RowSummary row_summary_params(const py::dict& args) {
  RowSummary p;
  read_shape(args, p.rows, p.columns, p.k);
  p.first = args["first"].cast<int64_t>();
  p.edges = args["edges"].cast<int32_t>();
  p.wide = args["wide"].cast<bool>();
  p.r = pointer<const void>(args, "r");
  p.edge = pointer<const double>(args, "edge");
  p.histogram = pointer<int64_t>(args, "histogram");
  p.powers = pointer<double>(args, "powers");
  p.powers_stride = args["powers_stride"].cast<int64_t>();
  p.count = pointer<int64_t>(args, "count");
  p.top = pointer<void>(args, "top");
  p.bottom = pointer<void>(args, "bottom");
  p.top_index = pointer<int64_t>(args, "top_index");
  p.bottom_index = pointer<int64_t>(args, "bottom_index");
  return p;
}

}  // namespace interpcore
