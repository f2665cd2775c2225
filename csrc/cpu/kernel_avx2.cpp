// The kernels for x86-64 processors with AVX2, FMA and F16C; compiled with those flags, so nothing here may
// have a symbol that other objects share (see element.h).
#include "simd_avx2.h"

#include "kernel_impl.h"

namespace kd::cpu {

const KernelTable avx2_kernels = KD_KERNEL_TABLE;

}  // namespace kd::cpu
