// The bodies of edge_scores' CUDA kernels on a grid that the CPU emulates: block by block, every thread to the next
// barrier, with the stages of shared memory in the kernel's order. Operands are read through the descriptors that the
// tensor cores are given. tests/test_device_edges.py compiles and calls this.
#include <array>
#include <vector>

#include "../kernels/edge_scores.cuh"

using namespace interpcore;

namespace {

using Room = std::vector<unsigned char>;
template <int N>
using Sums = std::array<float, edge_sums<N>>;

// PTX, "Matrix descriptor": address and bytes between groups of eight rows in units of 16; 128-byte swizzle, which
// changes bits 4 to 6 of an address by its bits 7 to 9.
float operand(const Room& room, uint64_t descriptor, uint32_t row, uint32_t value) {
  const uint32_t start = static_cast<uint32_t>(descriptor & 0x3fff) << 4;
  const uint32_t apart = static_cast<uint32_t>(descriptor >> 32 & 0x3fff) << 4;
  uint32_t at = start + row / 8 * apart + row % 8 * 128 + value * 2;
  at ^= (at >> 7 & 7) << 4;
  uint16_t bits;
  memcpy(&bits, &room.at(at), sizeof bits);
  return as_float(static_cast<uint32_t>(bits) << 16);
}

// PTX, "Register fragments for wgmma.mma_async.m64nNk16", the accumulator D.
template <int N>
void multiply(const Room& room, int thread, const EdgeOperands& of, Sums<N>& sums) {
  const int warp = thread % 128 / 32, lane = thread % 32;
  for (int i = 0; i < edge_sums<N>; ++i) {
    const int row = 16 * warp + lane / 4 + 8 * (i / 2 % 2), column = 8 * (i / 4) + 2 * (lane % 4) + i % 2;
    for (int k = 0; k < 16; ++k) sums[i] += operand(room, of.a, row, k) * operand(room, of.b, column, k);
  }
}

template <int N>
void products(const EdgeScores& p, int64_t block) {
  const EdgePlace<N> at(p, block);
  bool any = false;
  for (int t = 0; t < kEdgeThreads; ++t) any = any || reached(p, at, t);
  if (!any) return;
  Room room(kEdgeStages * edge_stage_bytes<N>, 0xff);  // NaN where nothing was loaded
  std::vector<EdgeLoads<N>> loads;
  for (int t = 0; t < kEdgeThreads; ++t) loads.emplace_back(p, at, t);
  const auto load = [&](int step) {
    if (step < at.steps())
      for (EdgeLoads<N>& own : loads) own.load(room.data() + step % kEdgeStages * edge_stage_bytes<N>);
  };
  std::vector<Sums<N>> sums(kEdgeThreads, Sums<N>{});
  for (int step = 0; step < kEdgeStages - 1; ++step) load(step);
  for (int step = 0; step < at.steps(); ++step) {
    for (int t = 0; t < kEdgeThreads; ++t)
      for (int inner = 0; inner < kEdgeDepth / kEdgeInner; ++inner)
        multiply<N>(room, t, EdgeOperands(step % kEdgeStages * edge_stage_bytes<N>, t, inner), sums[t]);
    load(step + kEdgeStages - 1);
  }
  for (int t = 0; t < kEdgeThreads; ++t) {
    float own[edge_sums<N>];
    memcpy(own, sums[t].data(), sizeof own);
    store_sums(p, at, t, own);
  }
}

template <int N>
void all_products(const EdgeScores& p) {
  const int64_t down = (p.sources + kEdgeSources - 1) / kEdgeSources, across = (p.destinations + N - 1) / N;
  for (int64_t block = 0; block < down * across * p.units * p.spans; ++block) products<N>(p, block);
}

}  // namespace

extern "C" void edge_scores(const EdgeScores* p) {
  if (p->tile == 40) all_products<40>(*p);
  if (p->tile == 56) all_products<56>(*p);
  if (p->tile == 64) all_products<64>(*p);
  if (p->tile == 80) all_products<80>(*p);
  for (int64_t segment = 0; segment < p->segments; ++segment)
    for (int64_t edge = 0; edge < p->sources * p->destinations; ++edge) add_units(*p, segment, edge);
}
