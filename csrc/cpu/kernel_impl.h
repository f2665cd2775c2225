// The loop over rows, as a template. A source file includes this once and is compiled for one instruction set.
#pragma once

#include <cstddef>
#include <cstdlib>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "loss.h"
#include "row_kernel.h"

namespace {

inline int thread_index() {
#ifdef _OPENMP
    return omp_get_thread_num();
#else
    return 0;
#endif
}

template <class Real>
inline Row<Real> row_view(const kd::cpu::Call& call, std::int64_t i) {
    const kd_loss_args& args = *call.args;
    Row<Real> row;
    row.student = static_cast<const Real*>(args.student) + i * args.student_stride;
    row.teacher = call.teacher ? static_cast<const Real*>(call.teacher) + i * args.teacher_stride : nullptr;
    row.grad = args.grad ? static_cast<Real*>(args.grad) + i * args.grad_stride : nullptr;
    row.label = call.labels ? kd::cpu::label_at(call.labels, args.label_dtype, i) : -1;
    if (row.label == args.ignore_index) row.label = -1;
    return row;
}

// Each row is computed whole by one thread and its loss goes to its own place, so that the result cannot depend on
// how many threads there are. Scratch is claimed before they start: an exception must not leave a parallel region.
template <class Real>
kd_status run_rows(const kd::cpu::Call& call) {
    constexpr std::int64_t kLine = 64 / sizeof(Real);
    const kd_loss_args& args = *call.args;
    const Problem problem{args.classes, args.temperature, call.ce_weight, args.kl_weight};
    const std::int64_t padded = (args.classes + kLine - 1) / kLine * kLine;
    const std::size_t bytes = std::size_t(call.threads) * Scratch<Real>::kArrays * std::size_t(padded) * sizeof(Real);
    Real* const space = static_cast<Real*>(std::aligned_alloc(64, bytes));
    if (space == nullptr) return KD_NO_MEMORY;
#pragma omp parallel num_threads(call.threads) if (call.threads > 1)
    {
        Real* const mine = space + std::int64_t(thread_index()) * Scratch<Real>::kArrays * padded;
        const Scratch<Real> scratch{mine, mine + padded, mine + 2 * padded, mine + 3 * padded};
#pragma omp for schedule(static)
        for (std::int64_t i = 0; i < args.rows; ++i) {
            call.row_loss[i] = row_loss(problem, row_view<Real>(call, i), scratch);
        }
    }
    std::free(space);
    return KD_OK;
}

}  // namespace
