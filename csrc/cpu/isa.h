// Instruction sets that the CPU kernels are compiled for, and the choice between them at run time.
#pragma once

namespace interpcore {

enum class Isa { baseline, avx2, avx512 };

// True where this build holds kernels for `isa` and this processor can run them.
bool isa_supported(Isa isa);

}  // namespace interpcore

// Declares the forms of one op (a namespace per instruction set, see CMakeLists.txt) and `op_on`, which picks one.
#if defined(INTERPCORE_X86)
#define INTERPCORE_DECLARE_OP(op, Params)                            \
  namespace interpcore {                                             \
  namespace baseline { void op(const Params& params, int threads); } \
  namespace avx2 { void op(const Params& params, int threads); }     \
  namespace avx512 { void op(const Params& params, int threads); }   \
  inline void op##_on(Isa isa, const Params& params, int threads) {  \
    if (isa == Isa::avx512) return avx512::op(params, threads);      \
    if (isa == Isa::avx2) return avx2::op(params, threads);          \
    baseline::op(params, threads);                                   \
  }                                                                  \
  }
#else
#define INTERPCORE_DECLARE_OP(op, Params)                                                              \
  namespace interpcore {                                                                               \
  namespace baseline { void op(const Params& params, int threads); }                                   \
  inline void op##_on(Isa, const Params& params, int threads) { return baseline::op(params, threads); } \
  }
#endif
