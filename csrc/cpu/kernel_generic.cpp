// The kernels for whatever instruction set the compiler targets by default.
#include "simd_generic.h"

#include "kernel_impl.h"

namespace kd::cpu {

const KernelTable generic_kernels = KD_KERNEL_TABLE;

}  // namespace kd::cpu
