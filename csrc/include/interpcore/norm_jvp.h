// Jacobian-vector product of a LayerNorm or RMSNorm with respect to its input.
#pragma once

#include "interpcore/norm_vjp.h"

namespace interpcore {

// The arguments are those of the transposed op; `g` holds the tangents of the input.
using NormJvp = NormVjp;

}  // namespace interpcore
