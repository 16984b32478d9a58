/* The compiled heart of the fast engine: synapse sums of spikes, and the neurons they arrive at.
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
#include <time.h>

#if !defined(__GNUC__)
#error "the kernels use the vector extensions of GCC and Clang; without them lapilli computes with NumPy"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the kernels split 16-bit lanes into bytes and expect the low byte first; lapilli computes with NumPy"
#endif

#define INLINE static inline __attribute__((always_inline))
#define TILE 16            /* pixels by channels of bytes that are transposed at a time */
#define PIXELS(block) (4096 / block) /* output pixels that are worked off together: 16 KiB of sums */
#define SPARE 16           /* lists are read and written by whole sixteens */
#define TOGETHER 6         /* output pixels by LANES targets whose products are summed in registers */
#define LANES 64           /* weights of one row come in groups of 64 bytes */
#define AHEAD 4            /* images that are asked for before they are read */
#define CHUNK 256          /* rows of bytes that a 16-bit lane can add up: 256 * 255 < 2^16 */
#define LIST_BYTES (1 << 19) /* event lists of the images that are worked off together */

/* A connection that carries spikes or bytes; see Arriving in kernels.py for the meaning of every field. */
typedef struct {
    const uint8_t *x;
    int64_t x_step, x_sample, silent;
    int64_t channels, pixels_in;
    const int32_t *under;
    int64_t taps;
    const uint8_t *weight;
    int64_t shift;
    const int32_t *to;
    int64_t fan;
    const int8_t *factors; /* the weights once more, for products; NULL where there are none */
    int64_t dense_above;   /* events of an image from which on the product is sooner done */
    int64_t graded, zero;  /* whether bytes are numbers, not spikes, and the byte that stands for 0 */
    const int32_t *offset; /* of every target, added to its sum; NULL where it is 0 */
    uint32_t *lists; /* made by the kernel, as is all below: of the images that are worked off together */
    int32_t *counts;
    uint64_t *bits;
    int one_to_one;
    uint8_t *bytes; /* images for products: [pixels and one of padding][channels, whole sixteens] */
    uint8_t *dense; /* which images go that way */
} Source;

/* Steps of a block of neurons, with all that arrives at them. */
typedef struct {
    Source *sources;
    int64_t n_sources;
    const int32_t *extra; /* as the neurons lie: [blocks][pixels][lanes] for each step and sample */
    int64_t extra_step, extra_sample;
    int32_t *u, *v;
    const int32_t *bias;
    int64_t bias_per_pixel;
    uint8_t *spikes;
    int64_t spikes_step, spikes_sample;
    int64_t *current_trace, *u_trace, *v_trace;
    int64_t trace_step, trace_sample;
    int64_t steps, samples;
    int64_t pixels, targets, block, lanes; /* lanes: of the state of a block's neurons */
    int64_t first_pixel, last_pixel, first_block, last_block;
    int64_t keep_u, keep_v, threshold, zero, amount, limit, may_wrap;
    int64_t wraps, saturations, products, nanoseconds;
    int64_t vbmi2;    /* whether the machine has these instructions */
    int64_t together; /* made by the kernel, as is all below: images that are worked off together */
    uint32_t *rows;
    int32_t *drive;
    uint8_t *fired;
} Layer;

/* Which of several layers the time goes into; of a single one, the caller knows. */
static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

#if defined(__clang__)
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (Bytes){__VA_ARGS__})
#endif

typedef uint8_t Bytes __attribute__((vector_size(TILE), aligned(1), may_alias));

#if defined(__x86_64__)
#include <immintrin.h>
#define EIGHT(n) n, n + 1, n + 2, n + 3, n + 4, n + 5, n + 6, n + 7
static const uint8_t PLACES[64] __attribute__((aligned(64))) = {
    EIGHT(0), EIGHT(8), EIGHT(16), EIGHT(24), EIGHT(32), EIGHT(40), EIGHT(48), EIGHT(56),
};
#undef EIGHT
#define NAME(f) f##_avx512
#define TARGET __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,bmi,popcnt")))
#define WIDTH 64
#define COLUMNS 256
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

enum { PORTABLE, AVX2, AVX512, AVX512_VBMI2 }; /* as LEVELS in kernels.py */

static int best_level(void)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("bmi") || !__builtin_cpu_supports("popcnt")) return PORTABLE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl")
        && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni"))
        return __builtin_cpu_supports("avx512vbmi2") ? AVX512_VBMI2 : AVX512;
    if (__builtin_cpu_supports("avx2")) return AVX2;
#endif
    return PORTABLE;
}

/* Read `n` integers of a tuple, from `first` on; 0 and a Python exception where that fails. */
static int integers(PyObject *tuple, Py_ssize_t first, Py_ssize_t n, int64_t *values)
{
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *value = PyTuple_GetItem(tuple, first + i);
        values[i] = value ? PyLong_AsLongLong(value) : -1;
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

enum { LAYER_FIELDS = 32, SOURCE_FIELDS = 17 };

/* A layer as kernels.py describes it; 0 and a Python exception where that fails: then too, free_layer() is due. */
static int read_layer(PyObject *given, int64_t vbmi2, Layer *l)
{
    int64_t a[LAYER_FIELDS], s[SOURCE_FIELDS];
    const Py_ssize_t size = PyTuple_Size(given);
    if (size < 0) return 0;
    if (size < LAYER_FIELDS || (size - LAYER_FIELDS) % SOURCE_FIELDS) {
        PyErr_Format(PyExc_TypeError, "this kernel does not take %zd integers", size);
        return 0;
    }
    if (!integers(given, 0, LAYER_FIELDS, a)) return 0;
    const Py_ssize_t n = (size - LAYER_FIELDS) / SOURCE_FIELDS;
    Source *sources = calloc((size_t)(n + 1), sizeof *sources);
    if (!sources) {
        PyErr_NoMemory();
        return 0;
    }
    *l = (Layer){
        sources, n, (const int32_t *)(intptr_t)a[0], a[1], a[2], (int32_t *)(intptr_t)a[3], (int32_t *)(intptr_t)a[4],
        (const int32_t *)(intptr_t)a[5], a[6], (uint8_t *)(intptr_t)a[7], a[8], a[9], (int64_t *)(intptr_t)a[10],
        (int64_t *)(intptr_t)a[11], (int64_t *)(intptr_t)a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20],
        a[21], a[22], a[23], a[24], a[25], a[26], a[27], a[28], a[29], a[30], a[31], 0, 0, 0, 0, vbmi2, 0, NULL, NULL, NULL,
    };
    for (Py_ssize_t i = 0; i < n; i++) {
        if (!integers(given, LAYER_FIELDS + i * SOURCE_FIELDS, SOURCE_FIELDS, s)) return 0;
        sources[i] = (Source){
            (const uint8_t *)(intptr_t)s[0], s[1], s[2], s[3], s[4], s[5], (const int32_t *)(intptr_t)s[6], s[7],
            (const uint8_t *)(intptr_t)s[8], s[9], (const int32_t *)(intptr_t)s[10], s[11],
            (const int8_t *)(intptr_t)s[12], s[13], s[14], s[15], (const int32_t *)(intptr_t)s[16],
            NULL, NULL, NULL, 0, NULL, NULL,
        };
    }
    return 1;
}

static void free_layer(Layer *l)
{
    for (int64_t i = 0; l->sources && i < l->n_sources; i++) {
        free(l->sources[i].lists);
        free(l->sources[i].counts);
        free(l->sources[i].bits);
        free(l->sources[i].bytes);
        free(l->sources[i].dense);
    }
    free(l->sources);
    free(l->rows);
    free(l->drive);
    free(l->fired);
}

/* What every layer counted, as a list of tuples; NULL and a Python exception where that fails. */
static PyObject *counted(const Layer *layers, Py_ssize_t n)
{
    PyObject *all = PyList_New(n);
    for (Py_ssize_t i = 0; all && i < n; i++) {
        const Layer *l = layers + i;
        PyObject *one = Py_BuildValue("LLLL", (long long)l->wraps, (long long)l->saturations, (long long)l->products,
                                      (long long)l->nanoseconds);
        if (!one || PyList_SetItem(all, i, one) < 0) { /* which takes `one` over even where it fails */
            Py_DECREF(all);
            all = NULL;
        }
    }
    return all;
}

/* layer_steps(level, stride, layer, ...): layers that hear each other take their steps in turns of `stride`. */
static PyObject *layer_steps(PyObject *self, PyObject *args)
{
    (void)self;
    int64_t a[2]; /* level, stride */
    const Py_ssize_t n = PyTuple_Size(args) - 2;
    if (n < 1) {
        PyErr_SetString(PyExc_TypeError, "this kernel takes a level, a stride and layers");
        return NULL;
    }
    if (!integers(args, 0, 2, a) || !checked_level(a[0])) return NULL;
    Layer *layers = calloc((size_t)n, sizeof *layers);
    if (!layers) return PyErr_NoMemory();
    PyObject *result = NULL;
    int good = 1;
    for (Py_ssize_t i = 0; good && i < n; i++) good = read_layer(PyTuple_GetItem(args, 2 + i), a[0] >= AVX512_VBMI2, layers + i);
    if (good && a[1] < 1) {
        PyErr_SetString(PyExc_ValueError, "this kernel takes at least one step at a time");
        good = 0;
    }
    if (good) {
        int done;
        Py_BEGIN_ALLOW_THREADS
        switch (a[0]) {
#if defined(__x86_64__)
        case AVX512_VBMI2:
        case AVX512: done = layer_steps_avx512(layers, n, a[1]); break;
        case AVX2: done = layer_steps_avx2(layers, n, a[1]); break;
#endif
        default: done = layer_steps_portable(layers, n, a[1]);
        }
        Py_END_ALLOW_THREADS
        result = done ? counted(layers, n) : PyErr_NoMemory();
    }
    for (Py_ssize_t i = 0; i < n; i++) free_layer(layers + i);
    free(layers);
    return result;
}

/* NumPy's array interface: what the capsule `__array_struct__` of an array points to. */
typedef struct {
    int two, nd;
    char typekind;
    int itemsize, flags;
    Py_ssize_t *shape, *strides;
    void *data;
    PyObject *descr;
} Array;
enum { ALIGNED = 0x100, NATIVE = 0x200, WRITEABLE = 0x400 };

/* Why a kernel would step out of an array: [*lead, ...] with `size` values of a type side by side in the rest. */
static const char *misfit(const Array *a, int kind, int itemsize, Py_ssize_t size, int writes, int n_lead,
                          const Py_ssize_t *lead)
{
    if (a->two != 2 || a->typekind != kind || a->itemsize != itemsize) return "type";
    if (!(a->flags & ALIGNED) || !(a->flags & NATIVE)) return "alignment or byte order";
    if (writes && !(a->flags & WRITEABLE)) return "writeability";
    if (a->nd < n_lead) return "number of axes";
    Py_ssize_t in_all = 1, values = 1;
    for (int i = 0; i < n_lead; i++) {
        if (a->shape[i] != lead[i]) return "shape";
        if (a->strides[i] % itemsize) return "strides";
        in_all *= lead[i];
    }
    for (int i = n_lead; i < a->nd; i++) values *= a->shape[i];
    if (values != size) return "size";
    Py_ssize_t stride = itemsize;
    for (int i = a->nd - 1; in_all && i >= n_lead; i--) {
        if (a->shape[i] > 1 && a->strides[i] != stride) return "strides";
        stride *= a->shape[i];
    }
    return NULL;
}

/* place(array, kind, itemsize, size, writes, *lead): its address, and the strides of the `lead` axes in values. */
static PyObject *place(PyObject *self, PyObject *args)
{
    (void)self;
    enum { FIXED = 5, MOST = 2 };
    PyObject *array;
    int kind, itemsize, writes;
    Py_ssize_t size, lead[MOST] = {1, 1};
    const int n_lead = (int)PyTuple_Size(args) - FIXED;
    if (n_lead < 0 || n_lead > MOST) {
        PyErr_SetString(PyExc_TypeError, "place() takes five values and up to two lengths");
        return NULL;
    }
    if (!PyArg_ParseTuple(args, "OCinp|nn", &array, &kind, &itemsize, &size, &writes, lead, lead + 1)) return NULL;
    PyObject *capsule = PyObject_GetAttrString(array, "__array_struct__");
    if (!capsule) return NULL;
    const Array *a = PyCapsule_GetPointer(capsule, NULL);
    PyObject *found = NULL;
    if (a) {
        const char *bad = misfit(a, kind, itemsize, size, writes, n_lead, lead);
        long long strides[MOST] = {0, 0};
        for (int i = 0; !bad && i < n_lead; i++) strides[i] = a->strides[i] / itemsize;
        if (bad) PyErr_Format(PyExc_AssertionError, "kernel: an array that does not fit in its %s", bad);
        else found = Py_BuildValue("LLL", (long long)(intptr_t)a->data, strides[0], strides[1]);
    }
    Py_DECREF(capsule);
    return found;
}

static PyObject *level(PyObject *self, PyObject *ignored)
{
    (void)self;
    (void)ignored;
    return PyLong_FromLong(best_level());
}

static PyMethodDef methods[] = {
    {"layer_steps", layer_steps, METH_VARARGS, NULL},
    {"place", place, METH_VARARGS, NULL},
    {"level", level, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT, "_kernels", "Kernels of the fast engine; call them through kernels.py.", 0, methods,
    NULL, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__kernels(void)
{
    PyObject *made = PyModule_Create(&module);
    if (made && PyModule_AddIntConstant(made, "INTERFACE", 6) < 0) { /* as in kernels.py */
        Py_DECREF(made);
        return NULL;
    }
    return made;
}
