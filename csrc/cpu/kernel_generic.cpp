// The kernels for whatever instruction set the compiler targets by default.
#include "kernel_impl.h"

namespace kd::cpu {

const KernelTable generic_kernels = {{run_rows<float>, run_rows<double>}};

}  // namespace kd::cpu
