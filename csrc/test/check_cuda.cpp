// Walks the CUDA kernels over odd shapes, in buffers that end where the data ends, and holds them against a reference
// in double precision. Run it plain or under compute-sanitizer. Exits with 1 where a number is wrong by more than
// rounding, with 77 where there is no device. A number as argument runs one case in so many. With KD_EMULATE and
// csrc/test/cuda_shim.h it needs none.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#ifdef KD_EMULATE
#include "cuda_shim.h"
#else
#include <cuda_runtime.h>
#endif

#include "cuda_case.h"

namespace kd::test {
namespace {

#ifdef KD_EMULATE
constexpr bool kEmulated = true;
#else
constexpr bool kEmulated = false;
#endif

constexpr int kDtypes[] = {KD_FLOAT32, KD_BFLOAT16, KD_FLOAT16};

// Sizes around a word, a warp, the step from warps to blocks, and, on the shim's smaller cards, clusters of all sizes.
std::vector<std::int64_t> class_counts() {
    std::vector<std::int64_t> counts = {1, 2, 3, 7, 8, 9, 15, 31, 33, 100, 129, 1000, 1024, 1025, 1030, 2049, 4099};
    if (!kEmulated) counts.insert(counts.end(), {30522, 32000, 60001, 128256, 262147, 1000003});
    return counts;
}

// Every number of this is a different mixture of the options that may be combined freely.
Case mixture(int number, std::int64_t classes, int dtype) {
    Case c;
    c.classes = classes;
    c.rows = classes > 2000 ? 2 : 5;
    c.dtype = dtype;
    c.long_labels = number % 2 != 0;
    c.temperature = number % 4 == 0 ? 1.0 : number % 4 == 1 ? 4.0 : number % 4 == 2 ? 2.5 : 3.0;
    c.student_offset = number % 3 == 1 ? 1 : 0;
    c.teacher_offset = number % 5 == 2 ? 3 : c.student_offset;
    c.grad_offset = number % 7 == 3 ? 2 : c.student_offset;
    c.padding = number % 6 == 4 ? 5 : 0;
    c.in_place = number % 8 == 5;
    c.with_grad = number % 9 != 6;
    c.per_row = number % 4 == 2;
    c.row_tensors = number % 5 == 3;
    c.share = number % 6 == 1 ? 0.9 : 1.0;
    c.flags = number % 2 == 0 ? KD_CE_MEAN_VALID | KD_KL_MEAN_ROWS : KD_KL_MEAN_ROWS | KD_KL_VALID_ROWS;
    if (number % 7 == 1) c.flags |= KD_KL_MEAN_CLASSES;
    c.seed = std::uint32_t(number + 1);
    return c;
}

void check_dense(int device) {
    int number = 0;
    for (std::int64_t classes : class_counts()) {
        for (int dtype : kDtypes) {
            Case c = mixture(number, classes, dtype);
            c.device = device;
            c.name = "dense";
            check(c);
            c.teacher_count = 0;
            c.name = "cross-entropy";
            check(c);
            c = mixture(number + 1, classes, dtype);
            c.device = device;
            c.labelled = false;
            c.name = "KL";
            check(c);
            ++number;
        }
    }
}

// Teachers near the student, and equal to it, at a spread and a shift that hide the difference from a rough formula.
void check_close(int device) {
    for (int dtype : kDtypes) {
        for (std::int64_t classes : {10, 1000, 2050}) {
            for (double temperature : {1.0, 20.0}) {
                Case c;
                c.device = device;
                c.dtype = dtype;
                c.classes = classes;
                c.rows = 2;
                c.temperature = temperature;
                c.labelled = false;
                c.spread = 5;
                c.nearness = dtype == KD_FLOAT32 ? 1e-4 : 1e-2;
                c.tight = true;
                c.name = "near";
                check(c);
                c.nearness = dtype == KD_FLOAT32 ? 1e-2 : 1e-1;
                c.shift = 50;
                c.name = "near up to a shift";
                check(c);
                c.shift = 0;
                c.nearness = -1;
                c.concentrated = true;
                c.name = "concentrated";
                if (dtype == KD_FLOAT32) check(c);
                c.concentrated = false;
                c.nearness = 0;
                c.name = "equal";
                c.exactly_zero = true;
                check(c);
            }
        }
    }
}

void check_masks(int device) {
    for (int dtype : kDtypes) {
        for (std::int64_t classes : {9, 1100}) {
            for (Mask mask :
                 {Mask::kTeacher, Mask::kStudent, Mask::kBoth, Mask::kLowest, Mask::kUnderflow, Mask::kNaN,
                  Mask::kTeacherNaN, Mask::kInfinity, Mask::kAll, Mask::kBadLabel, Mask::kLabel, Mask::kLse}) {
                Case c;
                c.device = device;
                c.dtype = dtype;
                c.classes = classes;
                c.rows = 3;
                c.temperature = 2;
                c.mask = mask;
                c.per_row = true;
                c.name = "mask";
                check(c);
                c.teacher_count = 3;
                c.name = "mask, several teachers";
                check(c);
                c.teacher_count = 1;
                c.listed = 4;
                for (int tail : {KD_TAIL_RENORMALISE, KD_TAIL_UNNORMALISED, KD_TAIL_BUCKET}) {
                    c.tail = tail;
                    c.name = "mask, sparse";
                    check(c);
                }
                c.row_tensors = true;
                c.name = "mask, sparse, without a KL term";
                check(c);
                c.listed = 0;
                c.name = "mask, without a KL term";
                check(c);
                c.teacher_count = 2;
                c.name = "mask, several teachers, without a KL term";
                check(c);
            }
        }
    }
}

void check_several(int device) {
    int number = 0;
    for (std::int64_t classes : {1, 5, 100, 1031}) {
        for (int dtype : kDtypes) {
            for (unsigned flag : {0u, unsigned(KD_MEAN_OF_LOSSES)}) {
                Case c = mixture(number++, classes, dtype);
                c.device = device;
                c.teacher_count = 2 + number % 3;
                c.flags |= flag;
                c.name = "several teachers";
                check(c);
                c.labelled = false;
                c.spread = 3;
                c.nearness = 0;
                c.exactly_zero = true;
                c.name = "several equal teachers";
                check(c);
            }
        }
    }
}

void check_sparse(int device) {
    int number = 0;
    for (std::int64_t classes : {1, 7, 40, 130, 1100, 4099}) {
        for (std::int64_t listed : {1, 5, 40}) {
            for (int tail : {KD_TAIL_RENORMALISE, KD_TAIL_UNNORMALISED, KD_TAIL_BUCKET}) {
                if (listed > classes) continue;
                Case c = mixture(number, classes, kDtypes[number % 3]);
                c.device = device;
                c.listed = listed;
                c.tail = tail;
                c.long_indices = number % 2 == 0;
                c.name = "sparse";
                check(c);
                ++number;
            }
        }
    }
    if (kEmulated) return;
    Case c = mixture(2, 700001, KD_BFLOAT16);  // more classes than a map holds
    c.listed = 100;
    c.device = device;
    c.name = "sparse, in windows";
    check(c);
}

void check_rows(int device) {
    for (int dtype : kDtypes) {
        for (std::int64_t classes : {1, 9, 130, 1025, 5000}) {
            for (std::int64_t offset : {0, 1}) {
                check_log_sum_exp(device, dtype, 3, classes, offset);
                check_scale(device, dtype, 3, classes, offset);
            }
        }
    }
}

// Many short rows: parts of a warp to a row, several to a block, and a count and a sum that have launches of their own.
void check_many_rows(int device) {
    for (int dtype : kDtypes) {
        for (std::int64_t rows : {0, 70, kEmulated ? 1030 : 70001}) {
            for (std::int64_t classes : {10, 100}) {
                if (kEmulated && rows * classes > 20000) continue;
                Case c = mixture(4, classes, dtype);
                c.device = device;
                c.rows = rows;
                c.per_row = false;
                c.name = "many rows";
                check(c);
                c.mask = Mask::kTeacher;
                c.per_row = true;
                c.name = "many rows, one with a mask";
                check(c);
            }
        }
    }
    Case c = mixture(4, 3, KD_FLOAT32);  // so many that their losses are added up in two steps
    c.device = device;
    c.rows = kEmulated ? 33001 : 500001;
    c.per_row = false;
    c.name = "very many rows";
    if (!kEmulated || device == 1) check(c);
}

}  // namespace
}  // namespace kd::test

int main(int count, char** arguments) {
    if (count > 1) kd::test::one_in = std::max(1, std::atoi(arguments[1]));
    const int devices = kd_cuda_device_count();
    if (devices == 0) {
        std::printf("no device\n");
        return 77;
    }
    for (int device = 0; device < devices; ++device) {
        kd::test::check_dense(device);
        kd::test::check_close(device);
        kd::test::check_masks(device);
        kd::test::check_several(device);
        kd::test::check_sparse(device);
        kd::test::check_rows(device);
        kd::test::check_many_rows(device);
        kd::test::check_graph(device);
    }
    std::printf("ok: one in %d of %d cases on %d devices\n", kd::test::one_in, kd::test::cases, devices);
    return 0;
}
