// What the CUDA form of edge_scores reads.
#pragma once

#include <cstdint>

namespace interpcore {

// Sums of difference[source] . grad[destination] over units: runs of rows of one example and segment, ordered by
// segment, then example. bfloat16 by their bits; each unit's rows lie one behind the other, and its inner product is
// cut into spans.
struct EdgeScores {
  int64_t sources, destinations, rows, width;  // S, D, B * P, d; d a multiple of 8
  int64_t tile;                                // destinations in one: 40, 56, 64 or 80
  int64_t units, spans, span, segments;        // span: values of each, a multiple of 64
  const uint16_t* difference;                  // [S, rows, d], at a multiple of 16 bytes
  const uint16_t* grad;                        // [D, rows, d], likewise
  const int32_t* prefix;                       // [D], how many sources reach each destination
  const int32_t* unit_first;                   // [units], first row of each
  const int32_t* unit_rows;                    // [units]
  const int32_t* ends;                         // [units], 1 where an example's last unit of the segment is
  const int32_t* segment_first;                // [segments + 1], first unit of each
  float* partial;                              // [units, spans, S, D]
  float* total;                                // [segments, S, D]
  float* squares;                              // as total, sums of squares over examples, or null
};

}  // namespace interpcore
