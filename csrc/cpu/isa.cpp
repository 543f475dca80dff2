#include "isa.h"

#include "interpcore/bfloat16_product.h"

namespace interpcore {

bool isa_supported(Isa isa) {
  if (isa == Isa::baseline) return true;
#if defined(INTERPCORE_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (isa == Isa::avx2) return avx2;
  return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
#else
  return false;
#endif
}

bool bfloat16_product_supported() {
#if defined(INTERPCORE_BF16)
  return isa_supported(Isa::avx512) && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

}  // namespace interpcore
