// The kernels for x86-64 processors with AVX-512 (F, BW, DQ, VL); compiled with those flags, so nothing here may
// have a symbol that other objects share (see element.h).
#include "simd_avx512.h"

#include "kernel_impl.h"

namespace kd::cpu {

const KernelTable avx512_kernels = KD_KERNEL_TABLE;

}  // namespace kd::cpu
