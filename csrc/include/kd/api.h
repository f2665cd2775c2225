// The C face of the distillation kernels: plain pointers, strides and codes, nothing of torch or Python.
//
// For row i with student logits s, teacher logits t, label y, temperature T and label share b,
//
//     L_i = u_i * CE_i + v_i * KL_i
//     CE_i = - b log softmax(s)_y - (1 - b) / (C - 1) * sum_{c != y} log softmax(s)_c     (C = 1: 0)
//     KL_i = KL(p || softmax(s / T)),  p = softmax(t / T) for one teacher; see "teachers" and "indices" for others
//     u_i  = ce_weight * row_ce_weight[i] / (valid rows, with KD_CE_MEAN_VALID);  0 where y == ignore_index
//     v_i  = kl_weight * row_kl_weight[i] / (the divisors that flags name);       0 where KD_KL_VALID_ROWS asks for it
//
// and, on request, dL_i/ds. The weights hold alpha and T^2; nothing here has a default. Terms whose weight is 0 are
// not computed at all, so that 0 * inf cannot reach a loss. Edge cases, on every device:
//
//   a class with t = -inf contributes 0; one with s = -inf and t > -inf makes the loss +inf (its gradient is finite);
//   NaN, +inf or a row that is all -inf gives a NaN row; N = 0 gives 0; C = 1 gives exactly 0;
//   equal student and teacher rows give exactly 0 loss and gradient.
#pragma once

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

// Raised whenever the meaning of the structs below changes; the Python face refuses a module of another level.
#define KD_API_LEVEL 2

// Most teachers of one call: a launch carries their addresses by value.
#define KD_MAX_TEACHERS 16

typedef enum kd_dtype {
    KD_FLOAT32 = 0,
    KD_FLOAT64 = 1,  // CPU only
    KD_BFLOAT16 = 2,
    KD_FLOAT16 = 3,
} kd_dtype;

typedef enum kd_index_dtype {  // of labels and of sparse indices
    KD_INT32 = 0,
    KD_INT64 = 1,
} kd_index_dtype;

typedef enum kd_flag {
    KD_CE_MEAN_VALID = 1,    // divide u by the number of rows whose label is not ignore_index (0 rows: the term is 0)
    KD_KL_MEAN_ROWS = 2,     // divide v by rows
    KD_KL_MEAN_CLASSES = 4,  // divide v by classes as well: torch's 'mean'
    KD_KL_VALID_ROWS = 8,    // v is 0 in rows whose label is ignore_index; KD_KL_MEAN_ROWS then divides by the others
    KD_PER_ROW = 16,         // the caller wants row_loss and no sum
    KD_MEAN_OF_LOSSES = 32,  // several teachers: sum_k w_k KL(p_k || q) in place of KL(sum_k w_k p_k || q)
} kd_flag;

// What a sparse teacher says about the classes it does not list.
typedef enum kd_tail {
    KD_TAIL_RENORMALISE = 0,   // nothing: p = softmax over the listed logits / T, 0 elsewhere
    KD_TAIL_UNNORMALISED = 1,  // p_k = exp(t_k / T - lse); sum_k p_k log(p_k / q_k), which may be negative
    KD_TAIL_BUCKET = 2,        // the same, and all other classes are one: + r log(r / r_q), r = 1 - sum p_k
} kd_tail;

typedef enum kd_status {
    KD_OK = 0,
    KD_BAD_LABEL = 1,     // CPU: result.bad_row names the first label outside [0, classes); nothing was written
    KD_BAD_ARGUMENT = 2,  // an unknown code, a missing pointer or a size that makes no sense
    KD_NO_MEMORY = 3,
    KD_BAD_INDEX = 4,     // CPU: bad_row holds a sparse index outside [0, classes), or the same one twice
    KD_CUDA_ERROR = 5,    // kd_cuda_error() has the text
} kd_status;

typedef struct kd_loss_args {
    // Logits: [rows, classes], inner stride 1, row strides in elements (0 repeats a row), all of one dtype.
    const void* student;
    int64_t student_stride;
    const void* teachers[KD_MAX_TEACHERS];  // teacher_count of them; with indices: one, [rows, listed] logits
    int64_t teacher_strides[KD_MAX_TEACHERS];
    double teacher_weights[KD_MAX_TEACHERS];  // sum to 1; used where teacher_count > 1
    int32_t teacher_count;                    // 0: no KL term

    // A sparse teacher: [rows, listed] distinct class indices, contiguous; or null.
    const void* indices;
    int64_t listed;
    int32_t index_dtype;  // kd_index_dtype
    int32_t tail;         // kd_tail

    const void* labels;    // [rows] contiguous, or null: no CE term
    int32_t label_dtype;   // kd_index_dtype
    int64_t ignore_index;  // rows with this label take no part in the CE term

    // [rows] contiguous, or null. On the device of the logits.
    const double* teacher_lse;      // log sum_c exp(t_c / T) of the one teacher (over all classes, if it is sparse)
    const double* row_temperature;  // in place of temperature
    const double* row_ce_weight;    // factors of u and v
    const double* row_kl_weight;
    const double* row_label_share;  // in place of label_share

    double temperature;
    double ce_weight;
    double kl_weight;
    double label_share;  // b; 1 is plain cross-entropy

    int64_t rows;
    int64_t classes;
    void* grad;  // [rows, classes], inner stride 1, or null: no gradient. May be the student's memory and stride
    int64_t grad_stride;
    double grad_scale;  // the gradient is multiplied by this before it is rounded to dtype: half precision begins at
                        // 6e-8, and a mean over many rows would vanish. 1 otherwise
    int32_t dtype;   // kd_dtype of student, teachers and grad
    uint32_t flags;  // kd_flag, or-ed
} kd_loss_args;

// ---- CPU -------------------------------------------------------------------------------------------------------

typedef struct kd_loss_result {
    double loss;      // sum of the weighted row losses, added in row order
    int64_t bad_row;  // -1 unless KD_BAD_LABEL or KD_BAD_INDEX
} kd_loss_result;

// Loss and gradient on the CPU, with at most `threads` threads. row_loss is [rows] or null. Bit-equal for any number
// of threads on one instruction set.
kd_status kd_loss_cpu(const kd_loss_args* args, double* row_loss, int threads, kd_loss_result* result);

// lse[i] = log sum_c exp(t_c / T) over [rows, classes] logits.
kd_status kd_log_sum_exp_cpu(const void* logits, int64_t stride, int32_t dtype, int64_t rows, int64_t classes,
                             double temperature, const double* row_temperature, int threads, double* lse);

// The instruction set that the CPU kernels use on this machine: "avx512", "avx2" or "generic".
const char* kd_cpu_isa(void);

// Uses another one; null returns to the widest. KD_BAD_ARGUMENT if it was not built or this machine lacks it.
kd_status kd_cpu_force_isa(const char* name);

// Whether the CPU kernels were compiled with OpenMP; without it they run on one thread.
int kd_has_openmp(void);

// ---- CUDA, where it was built (KD_HAVE_CUDA) ---------------------------------------------------------------------
// Nothing below waits for the device or allocates, and every launch goes to `stream`: all of it can be captured in a
// CUDA graph. `device` is made current for the call. Labels and indices out of range give a NaN row: they cannot be
// reported without waiting. Sums are in a fixed order: same input, same bits.

typedef struct kd_cuda_call {
    void* stream;  // cudaStream_t
    int32_t device;
    void* workspace;  // kd_cuda_workspace(args) bytes of device memory, 16-byte aligned
    float* loss;      // device: one float, or [rows] with KD_PER_ROW
} kd_cuda_call;

// Bytes of scratch that a call needs.
int64_t kd_cuda_workspace(const kd_loss_args* args);

kd_status kd_loss_cuda(const kd_loss_args* args, const kd_cuda_call* call);

kd_status kd_log_sum_exp_cuda(const void* logits, int64_t stride, int32_t dtype, int64_t rows, int64_t classes,
                              double temperature, const double* row_temperature, double* lse, void* stream,
                              int32_t device);

// grad[i, :] *= factor * scale[i * scale_stride] (stride 0: one scale for all). Writes nothing where that is 1.
kd_status kd_scale_cuda(void* grad, int64_t stride, int32_t dtype, int64_t rows, int64_t classes, const float* scale,
                        int64_t scale_stride, double factor, void* stream, int32_t device);

// Devices that a driver offers; 0 without a driver.
int kd_cuda_device_count(void);

// Text of the last error of this thread.
const char* kd_cuda_error(void);

#ifdef __cplusplus
}  // extern "C"
#endif
