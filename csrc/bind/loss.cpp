// loss(): from Python's tensors to the kernels' structs and back.
#include "loss.h"

#include <pybind11/pybind11.h>

#include <cmath>

#include "kd/api.h"
#include "tensors.h"

namespace kd::bind {

PyObject* loss_error = nullptr;

namespace {

// Positions in the tuples that kdbench.ops hands over; see LossSpec and LossInputs there.
enum SpecField { kTemperature, kCeWeight, kKlWeight, kFlags, kIgnoreIndex, kLabelShare, kTail, kTeacherWeights, kGradScale };
enum ExtraField { kIndices, kTeacherLse, kRowTemperature, kRowCeWeight, kRowKlWeight, kRowLabelShare, kExtraFields };

constexpr dlpack::DataType kFloat32Type{dlpack::kFloat, 32, 1};
constexpr dlpack::DataType kFloat64Type{dlpack::kFloat, 64, 1};
[[maybe_unused]] constexpr dlpack::DataType kByteType{dlpack::kUnsigned, 8, 1};

// What one call has read so far.
struct Request {
    kd_loss_args args{};
    dlpack::Tensor student;
    dlpack::DataType label_type{};

    bool on_device() const { return student.device.type == dlpack::kCuda; }
};

double number(PyObject* tuple, int field) { return PyFloat_AsDouble(PyTuple_GET_ITEM(tuple, field)); }
long long whole_number(PyObject* tuple, int field) { return PyLong_AsLongLong(PyTuple_GET_ITEM(tuple, field)); }

// Rows of `columns` numbers, walkable by a kernel.
bool is_matrix(const dlpack::Tensor& t, std::int64_t rows, std::int64_t columns) {
    const bool walkable = t.ndim == 2 && (t.strides[1] == 1 || columns <= 1 || rows == 0);
    return walkable && t.shape[0] == rows && t.shape[1] == columns;
}

bool is_vector(const dlpack::Tensor& t, std::int64_t rows) {
    return t.ndim == 1 && t.shape[0] == rows && (t.strides[0] == 1 || rows <= 1);
}

bool read_student(PyObject* object, Request* r) {
    dlpack::Tensor& s = r->student;
    if (!view(object, &s) || s.ndim != 2 || s.shape[1] < 1 || !is_matrix(s, s.shape[0], s.shape[1])) return false;
    r->args.dtype = dtype_of(s.dtype);
    if (r->args.dtype < 0) return false;
    if (s.device.type == dlpack::kCuda ? r->args.dtype == KD_FLOAT64 : s.device.type != dlpack::kCpu) return false;
    r->args.student = s.begin();
    r->args.student_stride = s.strides[0];
    r->args.rows = s.shape[0];
    r->args.classes = s.shape[1];
    return true;
}

bool read_teacher(PyObject* object, std::int64_t columns, Request* r) {
    dlpack::Tensor t;
    if (!view(object, &t) || !is_matrix(t, r->args.rows, columns)) return false;
    if (!same_device(t, r->student) || dtype_of(t.dtype) != r->args.dtype) return false;
    r->args.teachers[r->args.teacher_count] = t.begin();
    r->args.teacher_strides[r->args.teacher_count] = t.strides[0];
    ++r->args.teacher_count;
    return true;
}

bool read_teachers(PyObject* object, Request* r) {
    const std::int64_t columns = r->args.indices != nullptr ? r->args.listed : r->args.classes;
    if (object == Py_None) return true;
    if (!PyTuple_Check(object)) return read_teacher(object, columns, r);
    if (PyTuple_GET_SIZE(object) > KD_MAX_TEACHERS) return false;
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(object); ++k) {
        if (!read_teacher(PyTuple_GET_ITEM(object, k), columns, r)) return false;
    }
    return true;
}

bool read_labels(PyObject* object, Request* r) {
    if (object == Py_None) return true;
    dlpack::Tensor t;
    if (!view(object, &t) || !is_vector(t, r->args.rows) || !same_device(t, r->student)) return false;
    r->args.label_dtype = index_dtype_of(t.dtype);
    r->args.labels = t.begin();
    return r->args.label_dtype >= 0;
}

bool read_indices(PyObject* object, Request* r) {
    dlpack::Tensor t;
    if (!view(object, &t) || t.ndim != 2 || !same_device(t, r->student)) return false;
    static const std::int64_t none = 0;  // empty tensors have no address, but their shape still counts
    r->args.index_dtype = index_dtype_of(t.dtype);
    r->args.indices = t.begin() != nullptr ? static_cast<const void*>(t.begin()) : &none;
    r->args.listed = t.shape[1];
    return r->args.index_dtype >= 0 && is_matrix(t, r->args.rows, t.shape[1]) &&
           (t.strides[0] == t.shape[1] || r->args.rows <= 1);
}

bool read_row_numbers(PyObject* object, const double** out, Request* r) {
    if (object == Py_None) return true;
    dlpack::Tensor t;
    if (!view(object, &t) || !is_vector(t, r->args.rows) || !same_device(t, r->student)) return false;
    *out = reinterpret_cast<const double*>(t.begin());
    return t.dtype.is(dlpack::kFloat, 64);
}

bool read_extras(PyObject* extras, Request* r) {
    if (extras == Py_None) return true;
    PyObject* const indices = PyTuple_GET_ITEM(extras, kIndices);
    kd_loss_args& a = r->args;
    return (indices == Py_None || read_indices(indices, r)) &&
           read_row_numbers(PyTuple_GET_ITEM(extras, kTeacherLse), &a.teacher_lse, r) &&
           read_row_numbers(PyTuple_GET_ITEM(extras, kRowTemperature), &a.row_temperature, r) &&
           read_row_numbers(PyTuple_GET_ITEM(extras, kRowCeWeight), &a.row_ce_weight, r) &&
           read_row_numbers(PyTuple_GET_ITEM(extras, kRowKlWeight), &a.row_kl_weight, r) &&
           read_row_numbers(PyTuple_GET_ITEM(extras, kRowLabelShare), &a.row_label_share, r);
}

bool read_spec(PyObject* spec, Request* r) {
    kd_loss_args& a = r->args;
    a.temperature = number(spec, kTemperature);
    a.ce_weight = number(spec, kCeWeight);
    a.kl_weight = number(spec, kKlWeight);
    a.flags = std::uint32_t(whole_number(spec, kFlags));
    a.ignore_index = whole_number(spec, kIgnoreIndex);
    a.label_share = number(spec, kLabelShare);
    a.tail = std::int32_t(whole_number(spec, kTail));
    a.grad_scale = number(spec, kGradScale);
    PyObject* const weights = PyTuple_GET_ITEM(spec, kTeacherWeights);
    for (Py_ssize_t k = 0; k < PyTuple_GET_SIZE(weights) && k < KD_MAX_TEACHERS; ++k) {
        a.teacher_weights[k] = PyFloat_AsDouble(PyTuple_GET_ITEM(weights, k));
    }
    return !PyErr_Occurred();
}

// The largest |u| + |v| / T of a row, u and v being the weights of its terms before the divisors: no entry of its gradient
// is larger. Numbers given row by row are looked at where that needs no waiting; elsewhere they are unknown (infinite).
double largest_weight(const Request& r) {
    const kd_loss_args& a = r.args;
    const bool by_row = a.row_temperature != nullptr || a.row_ce_weight != nullptr || a.row_kl_weight != nullptr;
    if (by_row && r.on_device()) return INFINITY;
    const double rows = double(a.rows);
    const double ce = a.labels == nullptr ? 0 : a.ce_weight / (a.flags & KD_CE_MEAN_VALID ? rows : 1.0);
    double kl = a.teacher_count == 0 ? 0 : a.kl_weight / (a.flags & KD_KL_MEAN_ROWS ? rows : 1.0);
    if (a.flags & KD_KL_MEAN_CLASSES) kl /= double(a.classes);
    double largest = 0;
    for (std::int64_t i = 0; i < (by_row ? a.rows : 1); ++i) {
        const double u = ce * (a.row_ce_weight != nullptr ? a.row_ce_weight[i] : 1.0);
        const double v = kl * (a.row_kl_weight != nullptr ? a.row_kl_weight[i] : 1.0);
        const double t = a.row_temperature != nullptr ? a.row_temperature[i] : a.temperature;
        const double weight = std::fabs(u) + std::fabs(v) / t;
        if (!(weight <= largest)) largest = weight;
    }
    return largest;
}

// A power of two that brings the largest entries of a half-precision gradient to about `head`: those of a mean over
// thousands of rows would otherwise be lost to underflow, before whoever scales the loss has had a chance to help.
// Where a mean is over the valid rows alone, which only the kernel counts, there is room for few of them.
double automatic_scale(const Request& r) {
    if (r.args.dtype != KD_FLOAT16 || r.args.rows == 0) return 1.0;
    const double head = r.args.flags & (KD_CE_MEAN_VALID | KD_KL_VALID_ROWS) ? 4.0 : 64.0;
    const double largest = largest_weight(r);
    if (!(largest > 1e-30 && largest < head)) return 1.0;  // never down: entries may be far below the bound
    return std::exp2(std::floor(std::log2(head / largest)));
}

// Raises LossError(status, row).
PyObject* fail(int status, std::int64_t row) {
    PyObject* const arguments = Py_BuildValue("(iL)", status, (long long)row);
    if (arguments != nullptr) PyErr_SetObject(loss_error, arguments);
    Py_XDECREF(arguments);
    return nullptr;
}

// The row losses, or their sum, as a tensor in the logits' precision (single for half).
PyObject* loss_tensor(const Request& r, bool per_row, void** data) {
    const bool wide = r.args.dtype == KD_FLOAT64;
    return make(r.student, wide ? kFloat64Type : kFloat32Type, per_row ? 1 : 0, &r.args.rows, data);
}

void write_number(const Request& r, void* data, std::int64_t i, double value) {
    if (r.args.dtype == KD_FLOAT64) {
        static_cast<double*>(data)[i] = value;
    } else {
        static_cast<float*>(data)[i] = float(value);
    }
}

PyObject* run_cpu(Request& r, int threads) {
    const bool per_row = (r.args.flags & KD_PER_ROW) != 0;
    void* data = nullptr;
    PyObject* const out = loss_tensor(r, per_row, &data);
    if (out == nullptr) return nullptr;
    double* const rows = per_row ? static_cast<double*>(PyMem_RawMalloc(std::size_t(r.args.rows + 1) * 8)) : nullptr;
    kd_loss_result result{};
    kd_status status = KD_NO_MEMORY;
    if (!per_row || rows != nullptr) {
        PyThreadState* const released = PyEval_SaveThread();
        status = kd_loss_cpu(&r.args, rows, threads, &result);
        PyEval_RestoreThread(released);
    }
    if (status == KD_OK && !per_row) write_number(r, data, 0, result.loss);
    for (std::int64_t i = 0; status == KD_OK && per_row && i < r.args.rows; ++i) write_number(r, data, i, rows[i]);
    PyMem_RawFree(rows);
    if (status == KD_OK) return out;
    Py_DECREF(out);
    return fail(status, result.bad_row);
}

#ifdef KD_HAVE_CUDA
PyObject* run_cuda(Request& r) {
    kd_cuda_call call{};
    void* loss = nullptr;
    PyObject* const out = loss_tensor(r, (r.args.flags & KD_PER_ROW) != 0, &loss);
    if (out == nullptr) return nullptr;
    // Freed when this function ends, reused by later work of the same stream at the earliest.
    const std::int64_t bytes = kd_cuda_workspace(&r.args);
    PyObject* const workspace = make(r.student, kByteType, 1, &bytes, &call.workspace);
    kd_status status = KD_CUDA_ERROR;
    const bool ready = workspace != nullptr &&
                       api->current_stream(r.student.device.type, r.student.device.id, &call.stream) == 0;
    if (ready) {
        call.device = r.student.device.id;
        call.loss = static_cast<float*>(loss);
        status = kd_loss_cuda(&r.args, &call);
    }
    Py_XDECREF(workspace);
    if (status == KD_OK) return out;
    Py_DECREF(out);
    return PyErr_Occurred() ? nullptr : fail(status, -1);
}
#endif

PyObject* run(Request& r, int threads) {
#ifdef KD_HAVE_CUDA
    if (r.on_device()) return run_cuda(r);
#endif
    return run_cpu(r, threads);
}

bool usable_device(const Request& r) {
#ifdef KD_HAVE_CUDA
    (void)r;
    return true;
#else
    return !r.on_device();
#endif
}

// Where the gradient goes: nowhere, over the student, into a given tensor, or into a new one.
bool read_gradient(PyObject* wanted, Request* r, PyObject** gradient) {
    kd_loss_args& a = r->args;
    if (wanted == Py_False) {
        *gradient = Py_NewRef(Py_None);
        return true;
    }
    if (wanted == Py_True) {
        const std::int64_t shape[2] = {a.rows, a.classes};
        *gradient = make(r->student, r->student.dtype, 2, shape, &a.grad);
        a.grad_stride = a.classes;
        return *gradient != nullptr;
    }
    dlpack::Tensor out;
    if (!view(wanted, &out) || !is_matrix(out, a.rows, a.classes) || !same_device(out, r->student)) return false;
    if (dtype_of(out.dtype) != a.dtype || (a.rows > 1 && out.strides[0] < a.classes)) return false;
    a.grad = out.begin();
    a.grad_stride = out.strides[0];
    *gradient = Py_NewRef(wanted);
    return true;
}

}  // namespace

// loss(student, teachers, labels, extras, spec, gradient, threads)
PyObject* loss(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count != 7) {
        PyErr_SetString(PyExc_TypeError, "loss takes student, teachers, labels, extras, spec, gradient, threads");
        return nullptr;
    }
    Request r;
    const bool readable = read_student(arguments[0], &r) && usable_device(r) && read_extras(arguments[3], &r) &&
                          read_teachers(arguments[1], &r) && read_labels(arguments[2], &r);
    if (!readable) Py_RETURN_NONE;
    if (!read_spec(arguments[4], &r)) return nullptr;
    if (r.args.grad_scale == 0) r.args.grad_scale = automatic_scale(r);
    const long threads = PyLong_AsLong(arguments[6]);
    if (threads == -1 && PyErr_Occurred()) return nullptr;
    PyObject* gradient = nullptr;
    if (!read_gradient(arguments[5], &r, &gradient)) {
        if (PyErr_Occurred()) return nullptr;
        Py_RETURN_NONE;
    }
    PyObject* const value = run(r, int(threads));
    if (value == nullptr) {
        Py_DECREF(gradient);
        return nullptr;
    }
    PyObject* const unscale = r.args.grad_scale == 1 ? Py_NewRef(Py_None) : PyFloat_FromDouble(1 / r.args.grad_scale);
    PyObject* const all = PyTuple_New(3);
    if (all == nullptr || unscale == nullptr) {
        Py_DECREF(gradient);
        Py_DECREF(value);
        Py_XDECREF(unscale);
        Py_XDECREF(all);
        return nullptr;
    }
    PyTuple_SET_ITEM(all, 0, value);
    PyTuple_SET_ITEM(all, 1, gradient);
    PyTuple_SET_ITEM(all, 2, unscale);
    return all;
}

// log_sum_exp(logits, temperature, row_temperature, threads)
PyObject* log_sum_exp(PyObject*, PyObject* const* arguments, Py_ssize_t count) {
    if (count != 4) {
        PyErr_SetString(PyExc_TypeError, "log_sum_exp takes logits, temperature, row_temperature, threads");
        return nullptr;
    }
    Request r;
    const bool readable = read_student(arguments[0], &r) && usable_device(r) &&
                          read_row_numbers(arguments[2], &r.args.row_temperature, &r);
    if (!readable) Py_RETURN_NONE;
    const double temperature = PyFloat_AsDouble(arguments[1]);
    const long threads = PyLong_AsLong(arguments[3]);
    if (PyErr_Occurred()) return nullptr;
    void* data = nullptr;
    PyObject* const out = make(r.student, kFloat64Type, 1, &r.args.rows, &data);
    if (out == nullptr) return nullptr;
    const kd_loss_args& a = r.args;
    auto* const lse = static_cast<double*>(data);
    kd_status status;
#ifdef KD_HAVE_CUDA
    if (r.on_device()) {
        void* stream = nullptr;
        if (api->current_stream(r.student.device.type, r.student.device.id, &stream) != 0) return Py_DECREF(out), nullptr;
        status = kd_log_sum_exp_cuda(a.student, a.student_stride, a.dtype, a.rows, a.classes, temperature,
                                     a.row_temperature, lse, stream, r.student.device.id);
    } else
#endif
    {
        PyThreadState* const released = PyEval_SaveThread();
        status = kd_log_sum_exp_cpu(a.student, a.student_stride, a.dtype, a.rows, a.classes, temperature,
                                    a.row_temperature, int(threads), lse);
        PyEval_RestoreThread(released);
    }
    if (status == KD_OK) return out;
    Py_DECREF(out);
    return fail(status, -1);
}

// scale(gradient, factors, factor): multiplies rows in place, on a GPU; True where it did.
PyObject* scale(PyObject*, [[maybe_unused]] PyObject* const* arguments, Py_ssize_t count) {
    if (count != 3) {
        PyErr_SetString(PyExc_TypeError, "scale takes gradient, factors, factor");
        return nullptr;
    }
#ifdef KD_HAVE_CUDA
    const double factor = PyFloat_AsDouble(arguments[2]);
    if (PyErr_Occurred()) return nullptr;
    Request r;
    dlpack::Tensor factors;
    const bool readable = read_student(arguments[0], &r) && r.on_device() && view(arguments[1], &factors) &&
                          same_device(factors, r.student) && factors.dtype.is(dlpack::kFloat, 32) &&
                          (factors.ndim == 0 || (factors.ndim == 1 && factors.shape[0] == r.args.rows));
    if (readable) {
        const kd_loss_args& a = r.args;
        void* stream = nullptr;
        if (api->current_stream(r.student.device.type, r.student.device.id, &stream) != 0) return nullptr;
        const kd_status status = kd_scale_cuda(
            const_cast<void*>(a.student), a.student_stride, a.dtype, a.rows, a.classes,
            reinterpret_cast<const float*>(factors.begin()), factors.ndim == 0 ? 0 : factors.strides[0],
            factor, stream, r.student.device.id);
        if (status != KD_OK) return fail(status, -1);
        Py_RETURN_TRUE;
    }
#endif
    Py_RETURN_FALSE;
}

}  // namespace kd::bind
