// The C face of the distillation kernels: plain pointers, strides and codes, nothing of torch or Python.
//
// Every kernel computes, for one row of C student logits s, teacher logits t and a label y,
//
//     L = ce_weight * CE(s, y) + kl_weight * KL(softmax(t / T) || softmax(s / T))
//
// and, on request, dL/ds. The weights already hold alpha, T^2 and the reduction; nothing here has a default.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever the meaning of the structs below changes; the Python face refuses a module of another level.
#define KD_API_LEVEL 1

typedef enum kd_dtype {
    KD_FLOAT32 = 0,
    KD_FLOAT64 = 1,
} kd_dtype;

typedef enum kd_label_dtype {
    KD_INT32 = 0,
    KD_INT64 = 1,
} kd_label_dtype;

typedef enum kd_flag {
    // Divide ce_weight by the number of rows whose label is not ignore_index (0 rows: the term is 0).
    KD_CE_MEAN_OVER_VALID_ROWS = 1,
} kd_flag;

typedef enum kd_status {
    KD_OK = 0,
    KD_BAD_LABEL = 1,     // result.bad_row names the first label outside [0, classes); nothing was written
    KD_BAD_ARGUMENT = 2,  // an unknown code, a missing pointer or a size that makes no sense
    KD_NO_MEMORY = 3,
} kd_status;

typedef struct kd_loss_args {
    const void* student;  // [rows, classes], inner stride 1
    const void* teacher;  // the same, or null: no KL term
    const void* labels;   // [rows] contiguous, or null: no CE term
    void* grad;           // [rows, classes], inner stride 1, or null: no gradient is computed
    double* row_loss;     // [rows] or null
    int64_t rows;
    int64_t classes;
    int64_t student_stride;  // elements from one row to the next; 0 repeats a row
    int64_t teacher_stride;
    int64_t grad_stride;
    int64_t ignore_index;  // rows with this label take no part in the CE term
    double temperature;
    double ce_weight;
    double kl_weight;
    int32_t dtype;        // kd_dtype of student, teacher and grad
    int32_t label_dtype;  // kd_label_dtype
    uint32_t flags;       // kd_flag, or-ed
    int32_t threads;      // most threads to use; results do not depend on it
} kd_loss_args;

typedef struct kd_loss_result {
    double loss;         // sum of the weighted row losses, added in row order
    int64_t valid_rows;  // rows whose label is not ignore_index; 0 without labels
    int64_t bad_row;     // -1 unless KD_BAD_LABEL
} kd_loss_result;

// Loss and gradient on the CPU. Bit-equal for any number of threads on one instruction set.
kd_status kd_loss_cpu(const kd_loss_args* args, kd_loss_result* result);

// The instruction set that the CPU kernels use on this machine: "avx2" or "generic".
const char* kd_cpu_isa(void);

// Whether the CPU kernels were compiled with OpenMP; without it they run on one thread.
int kd_has_openmp(void);

#ifdef __cplusplus
}  // extern "C"
#endif
