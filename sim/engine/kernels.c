/* The compiled heart of the fast engine: synapse sums of spikes, and the neuron loop.
 *
 * One readable body (kernels_body.h), compiled for several instruction sets and chosen when the program runs. Every
 * function here is handed integers only (addresses, sizes, strides); kernels.py has checked all of them. What is
 * computed is exact: the same bits for every instruction set, and for NumPy where there is no compiler.
 */
#define PY_SSIZE_T_CLEAN
#ifndef Py_LIMITED_API
#define Py_LIMITED_API 0x030A0000
#endif
#include <Python.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__GNUC__)
#error "the kernels use the vector extensions of GCC and Clang; without them lapilli computes with NumPy"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels split 16-bit lanes into bytes and expect the low byte first; lapilli computes with NumPy"
#endif

#define INLINE static inline __attribute__((always_inline))
#define TILE 16            /* pixels by channels that are transposed at a time */
#define PIXELS(block) (block < 256 ? 4096 / block : TILE) /* output pixels summed before they are written: 16 KiB */
#define LANES 64           /* weights of one row come in groups of 64 bytes */
#define CHUNK 256          /* rows of bytes that a 16-bit lane can add up: 256 * 255 < 2^16 */
#define LIST_BYTES (1 << 19) /* event lists of the images that are worked off together */

/* Spikes through packed weights; see event_sums() in kernels.py for the meaning of every field. */
typedef struct {
    const uint8_t *x;
    int64_t x_step, x_sample, steps, samples;
    int64_t channels, pixels_in;
    const int32_t *source;
    int64_t pixels_out, taps;
    const uint8_t *weight;
    int64_t block, targets;
    int32_t *drive;
    int64_t drive_step, drive_sample;
    int64_t shift, add;
    int64_t events;
} Sums;

/* Steps of a block of neurons; see neuron_steps() in kernels.py. */
typedef struct {
    const int32_t *drive;
    int64_t drive_step, drive_sample;
    int32_t *u, *v;
    const int32_t *bias;
    uint8_t *spikes;
    int64_t spikes_step, spikes_sample;
    int64_t *current_trace, *u_trace, *v_trace;
    int64_t trace_step, trace_sample;
    int64_t steps, samples, neurons;
    int64_t keep_u, keep_v, threshold, zero, amount, limit;
    int64_t wraps, saturations;
} Neurons;

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Row){__VA_ARGS__})
#endif

typedef int32_t Row __attribute__((vector_size(4 * TILE), aligned(4), may_alias));

#if defined(__x86_64__)
#include <immintrin.h>
#define NAME(f) f##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,bmi,popcnt")))
#define WIDTH 64
#define COLUMNS 512
#include "kernels_body.h"
#undef NAME
#undef TARGET
#undef WIDTH
#undef COLUMNS
#define NAME(f) f##_avx2
#define TARGET __attribute__((target("avx2,bmi,popcnt")))
#define WIDTH 32
#define COLUMNS 128
#include "kernels_body.h"
#undef NAME
#undef TARGET
#undef WIDTH
#undef COLUMNS
#endif
#define NAME(f) f##_portable
#define TARGET
#define WIDTH 16
#define COLUMNS 64
#include "kernels_body.h"

enum { PORTABLE, AVX2, AVX512 }; /* as LEVELS in kernels.py */

static int best_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("popcnt")) return PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq"))
        return AVX512;
    if (__builtin_cpu_supports("avx2")) return AVX2;
#endif
    return PORTABLE;
}

/* Read exactly `n` integers from the call; 0 and a Python exception where that fails. */
static int integers(PyObject *const *args, Py_ssize_t given, Py_ssize_t n, int64_t *values)
{
    if (given != n) {
        PyErr_Format(PyExc_TypeError, "this kernel takes %zd integers, not %zd", n, given);
        return 0;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        values[i] = PyLong_AsLongLong(args[i]);
        if (values[i] == -1 && PyErr_Occurred()) return 0;
    }
    return 1;
}

static int checked_level(int64_t level)
{
    if (level >= PORTABLE && level <= best_level()) return 1;
    PyErr_SetString(PyExc_ValueError, "this machine cannot run kernels of that level");
    return 0;
}

static PyObject *event_sums(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    (void)self;
    int64_t a[19];
    if (!integers(args, given, 19, a) || !checked_level(a[0])) return NULL;
    Sums s = {
        (const uint8_t *)(intptr_t)a[1], a[2], a[3], a[4], a[5], a[6], a[7], (const int32_t *)(intptr_t)a[8], a[9],
        a[10], (const uint8_t *)(intptr_t)a[11], a[12], a[13], (int32_t *)(intptr_t)a[14], a[15], a[16], a[17], a[18], 0,
    };
    int done;
    Py_BEGIN_ALLOW_THREADS
    switch (a[0]) {
#if defined(__x86_64__)
    case AVX512: done = event_sums_avx512(&s); break;
    case AVX2: done = event_sums_avx2(&s); break;
#endif
    default: done = event_sums_portable(&s);
    }
    Py_END_ALLOW_THREADS
    return done ? PyLong_FromLongLong(s.events) : PyErr_NoMemory();
}

static PyObject *neuron_steps(PyObject *self, PyObject *const *args, Py_ssize_t given)
{
    (void)self;
    int64_t a[24];
    if (!integers(args, given, 24, a) || !checked_level(a[0])) return NULL;
    Neurons n = {
        (const int32_t *)(intptr_t)a[1], a[2], a[3], (int32_t *)(intptr_t)a[4], (int32_t *)(intptr_t)a[5],
        (const int32_t *)(intptr_t)a[6], (uint8_t *)(intptr_t)a[7], a[8], a[9], (int64_t *)(intptr_t)a[10],
        (int64_t *)(intptr_t)a[11], (int64_t *)(intptr_t)a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19],
        a[20], a[21], a[22], a[23], 0, 0,
    };
    Py_BEGIN_ALLOW_THREADS
    switch (a[0]) {
#if defined(__x86_64__)
    case AVX512: neuron_steps_avx512(&n); break;
    case AVX2: neuron_steps_avx2(&n); break;
#endif
    default: neuron_steps_portable(&n);
    }
    Py_END_ALLOW_THREADS
    return Py_BuildValue("LL", (long long)n.wraps, (long long)n.saturations);
}

static PyObject *level(PyObject *self, PyObject *ignored)
{
    (void)self;
    (void)ignored;
    return PyLong_FromLong(best_level());
}

static PyMethodDef methods[] = {
    {"event_sums", (PyCFunction)(void (*)(void))event_sums, METH_FASTCALL, NULL},
    {"neuron_steps", (PyCFunction)(void (*)(void))neuron_steps, METH_FASTCALL, NULL},
    {"level", level, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Kernels of the fast engine; call them through kernels.py.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    return PyModule_Create(&module);
}
