// The kernels for x86-64 processors with AVX2; compiled with that flag, so nothing here may have a symbol
// that other objects share (see math.h).
#include "kernel_impl.h"

namespace kd::cpu {

const KernelTable avx2_kernels = {{run_rows<float>, run_rows<double>}};

}  // namespace kd::cpu
