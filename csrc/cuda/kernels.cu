// All CUDA kernels, compiled at once: half of a file's time goes into reading CUDA's headers for each architecture.
#include "../../kernels/activation_moments.cu"
#include "../../kernels/column_moments.cu"
#include "../../kernels/edge_scores.cu"
