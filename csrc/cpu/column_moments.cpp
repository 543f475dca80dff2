// Compiled once per instruction set; INTERPCORE_ISA names the namespace.
//
// A tile of columns is walked in blocks of rows, a few rows at a time; meanwhile those that come next are fetched into
// the second cache, where a tile's rows and sums fit.
#include "column_totals.h"

namespace interpcore {
namespace INTERPCORE_ISA {
namespace {

template <typename T>
void tile_moments(const ColumnMoments& p, int64_t first, int64_t most) {
  const Tile<T> tile{p, first, p.columns - first < most ? p.columns - first : most};
  int64_t live[kBlock], next = 0;
  Totals totals;
  begin(tile, totals);
  while (const int64_t n = take_rows(p, next, live)) {
    if (!totals.shifted) find_shift(tile, live, n, totals.s);
    totals.shifted = true;
    sum_block(tile, live, n, totals.s);
    add_block(tile, live, n, totals);
  }
  finish(tile, totals);
}

}  // namespace

void column_moments(const ColumnMoments& p, int threads) {
  // Below about 50 microseconds of work a second thread costs more than it saves.
  if (p.rows * p.columns < 250000) threads = 1;
  const int64_t width = tile_width(p.columns, threads);
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
  for (int64_t first = 0; first < p.columns; first += width) {
    switch (p.stored) {
      case Stored::float32: tile_moments<float>(p, first, width); break;
      case Stored::bfloat16: tile_moments<Bf16>(p, first, width); break;
      case Stored::float16: tile_moments<Fp16>(p, first, width); break;
    }
  }
}

}  // namespace INTERPCORE_ISA
}  // namespace interpcore
