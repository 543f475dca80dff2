// Bodies of one thread of edge_scores: tiles of 128 sources by N destinations on the tensor cores of warp groups, and
// the sum of their spans and units. With an N of 40, 56, 64 or 80 the inputs of a GPT-2 layer, three for each head and
// one for the MLP, leave at most an eighth of a tile empty, where 128 leave two fifths.
//
// A tile's rows are 128 bytes of shared memory, 64 values of the inner product, with their 16-byte chunks swizzled as
// the tensor cores read them. nvcc compiles this for the device, and the tests for a grid that a CPU emulates, which
// reads the operands through the same descriptors.
#pragma once

#include "_values.cuh"
#include "interpcore/edge_scores.h"

namespace interpcore {

constexpr int kEdgeSources = 128, kEdgeDepth = 64, kEdgeInner = 16;
constexpr int kEdgeStages = 4;     // tiles of operands under way or in use
constexpr int kGroupThreads = 128, kGroupSources = 64;  // of a warp group
constexpr int kEdgeThreads = kEdgeSources / kGroupSources * kGroupThreads;
constexpr int kEdgeRowBytes = kEdgeDepth * 2, kSwizzledBytes = 8 * kEdgeRowBytes;
template <int N>
constexpr int edge_sums = kGroupSources * N / kGroupThreads;  // of a thread
template <int N>
constexpr int edge_stage_bytes = (kEdgeSources + N) * kEdgeRowBytes;

#ifdef __CUDACC__
using Shared = uint32_t;  // an address
#else
using Shared = unsigned char*;
#endif

// Which part of the result a block makes.
template <int N>
struct EdgePlace {
  int64_t top, left, part;    // its first source and destination; unit * spans + span
  int64_t first, begin, end;  // the unit's first row; of its inner product the first value, and one past the last

  INTERPCORE_BODY EdgePlace(const EdgeScores& p, int64_t block) {
    const int64_t down = (p.sources + kEdgeSources - 1) / kEdgeSources;
    const int64_t across = (p.destinations + N - 1) / N;
    top = block % down * kEdgeSources, left = block / down % across * N;
    part = block / down / across, begin = part % p.spans * p.span;
    const int64_t unit = part / p.spans, values = p.unit_rows[unit] * p.width;
    first = p.unit_first[unit], end = begin + p.span < values ? begin + p.span : values;
  }

  INTERPCORE_BODY int steps() const { return end > begin ? static_cast<int>((end - begin + kEdgeDepth - 1) / kEdgeDepth) : 0; }
};

// Whether the thread's destination is reached by a source of the tile; without any the block has nothing to do.
template <int N>
INTERPCORE_BODY bool reached(const EdgeScores& p, const EdgePlace<N>& at, int thread) {
  const int64_t column = at.left + thread;
  return thread < N && column < p.destinations && p.prefix[column] > at.top;
}

// 16 bytes into shared memory, zeros where they are not there; on the device under way until it is waited for.
INTERPCORE_BODY void copy_chunk(Shared to, const uint16_t* from, bool there) {
#ifdef __CUDACC__
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(there ? 16 : 0) : "memory");
#else
  there ? memcpy(to, from, 16) : memset(to, 0, 16);
#endif
}

// The thread's chunks of the operands, every 32nd row, and how much of its inner product is still to come. Rows that
// are not there are read as the last one: their sums go nowhere.
template <int N>
struct EdgeLoads {
  static constexpr int kChunks = kEdgeRowBytes / 16, kApart = kEdgeThreads / kChunks;
  static constexpr int kRows = (kEdgeSources + N + kApart - 1) / kApart;
  const uint16_t* from[kRows];
  int values, place, last;  // place: of the first chunk in a stage, in bytes; last: rows of its own

  INTERPCORE_BODY EdgeLoads(const EdgeScores& p, const EdgePlace<N>& at, int thread) {
    const int chunk = thread % kChunks, row = thread / kChunks;
    values = static_cast<int>(at.end - at.begin) - chunk * 8;
    place = row * kEdgeRowBytes + (chunk ^ row % 8) * 16;
    last = (kEdgeSources + N - row + kApart - 1) / kApart;
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      const int own = row + i * kApart;
      const bool source = i < kEdgeSources / kApart;
      const int64_t index = source ? at.top + own : at.left + own - kEdgeSources;
      const int64_t most = (source ? p.sources : p.destinations) - 1;
      from[i] = (source ? p.difference : p.grad) + ((index < most ? index : most) * p.rows + at.first) * p.width +
                at.begin + chunk * 8;
    }
  }

  // Of the next step.
  INTERPCORE_BODY void load(Shared stage) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      if (i + 1 < kRows || i < last) copy_chunk(stage + place + i * kApart * kEdgeRowBytes, from[i], values > 0);
      from[i] += kEdgeDepth;
    }
    values -= kEdgeDepth;
  }
};

// Where the tensor cores find rows of an operand: address, bytes between groups of eight rows, and the swizzle.
INTERPCORE_BODY uint64_t matrix_at(uint32_t address) {
  return (address & 0x3ffff) >> 4 | uint64_t{1} << 16 | uint64_t{kSwizzledBytes >> 4} << 32 | uint64_t{1} << 62;
}

// Descriptors of the operands of a warp group for 16 values of the stage's inner product.
struct EdgeOperands {
  uint64_t a, b;

  INTERPCORE_BODY EdgeOperands(uint32_t stage, int thread, int inner) {
    const uint32_t at = stage + inner * kEdgeInner * 2;
    a = matrix_at(at + thread / kGroupThreads * kGroupSources * kEdgeRowBytes);
    b = matrix_at(at + kEdgeSources * kEdgeRowBytes);
  }
};

// The thread's sums: of each eight destinations two neighbours, for two sources that are eight apart.
template <int N>
INTERPCORE_BODY void store_sums(const EdgeScores& p, const EdgePlace<N>& at, int thread, const float (&sum)[edge_sums<N>]) {
  const int lane = thread % 32, warp = thread / 32;
  float* partial = p.partial + at.part * p.sources * p.destinations;
#pragma unroll
  for (int i = 0; i < edge_sums<N>; ++i) {
    const int64_t source = at.top + warp * 16 + lane / 4 + i / 2 % 2 * 8;
    const int64_t column = at.left + i / 4 * 8 + lane % 4 * 2 + i % 2;
    if (source < p.sources && column < p.destinations) partial[source * p.destinations + column] = sum[i];
  }
}

// One edge of one segment: its units' spans in order, example by example.
INTERPCORE_BODY void add_units(const EdgeScores& p, int64_t segment, int64_t edge) {
  const int64_t edges = p.sources * p.destinations;
  float total = 0, squares = 0, example = 0;
  if (edge / p.destinations < p.prefix[edge % p.destinations]) {
    const float* at = p.partial + p.segment_first[segment] * p.spans * edges + edge;
    for (int unit = p.segment_first[segment]; unit < p.segment_first[segment + 1]; ++unit) {
      for (int64_t span = 0; span < p.spans; ++span, at += edges) example += *at;
      if (p.ends[unit]) total += example, squares += example * example, example = 0;
    }
  }
  p.total[segment * edges + edge] = total;
  if (p.squares) p.squares[segment * edges + edge] = squares;
}

}  // namespace interpcore
