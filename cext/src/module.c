/* The extension module `_native`: Python's buffers and integers in, kernels called, exceptions out.
 *
 * Here belongs every check of arguments, with the same exception classes as the NumPy twin; arithmetic does
 * not. Only the limited API of Python 3.11 and the buffer protocol are used, so that one wheel serves all
 * later Pythons and any NumPy. Buffers stay exported while the lock is released: nobody can resize them. */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "kernels.h"

/* Below this many bytes handing the lock over costs more than the work. */
enum { LOCK_BYTES = 4096 };

#define WITHOUT_LOCK(bytes, work)                                              \
    do {                                                                       \
        PyThreadState *saved = (bytes) > LOCK_BYTES ? PyEval_SaveThread() : NULL; \
        work;                                                                  \
        if (saved != NULL) PyEval_RestoreThread(saved);                        \
    } while (0)

/* ---- arguments; each returns false with an exception set ---- */

static void wrong_type(PyObject *value, const char *name, const char *wanted) {
    PyObject *type = PyType_GetName(Py_TYPE(value));
    if (type != NULL) PyErr_Format(PyExc_TypeError, "%s must be %s, not %U", name, wanted, type);
    Py_XDECREF(type);
}

static bool expect_arguments(Py_ssize_t given, Py_ssize_t wanted) {
    if (given == wanted) return true;
    PyErr_Format(PyExc_TypeError, "expected %zd arguments, got %zd", wanted, given);
    return false;
}

static bool get_view(PyObject *value, Py_buffer *view, const char *name, bool writable) {
    if (!PyObject_CheckBuffer(value)) {
        wrong_type(value, name, "a buffer");
        return false;
    }
    /* All that the exporter can tell: asking for less makes each exporter refuse with a class of its own. */
    if (PyObject_GetBuffer(value, view, PyBUF_FULL_RO) < 0) return false;
    if (!PyBuffer_IsContiguous(view, 'C')) {
        PyErr_Format(PyExc_ValueError, "%s must be C-contiguous", name);
        return false;
    }
    if (writable && view->readonly) {
        PyErr_Format(PyExc_ValueError, "%s must be writable", name);
        return false;
    }
    return true;
}

static bool get_units(PyObject *value, Py_buffer *view, const char *name, Py_ssize_t unit, bool writable) {
    if (!get_view(value, view, name, writable)) return false;
    if (view->len % unit == 0) return true;
    PyErr_Format(PyExc_ValueError, "%s must be a multiple of %zd bytes: %zd", name, unit, view->len);
    return false;
}

static bool get_exactly(PyObject *value, Py_buffer *view, const char *name, Py_ssize_t size) {
    if (!get_view(value, view, name, false)) return false;
    if (view->len == size) return true;
    PyErr_Format(PyExc_ValueError, "%s must be %zd bytes: %zd", name, size, view->len);
    return false;
}

/* A buffer of one 4-byte type; `codes` are the letters that the struct module has for it. */
static bool get_typed(PyObject *value, Py_buffer *view, const char *name, const char *type, const char *codes,
                      bool writable) {
    if (!get_view(value, view, name, writable)) return false;
    const char *given = view->format == NULL ? "B" : view->format;
    const char *code = given + strspn(given, "@=<");
    if (view->itemsize == 4 && strlen(code) == 1 && strchr(codes, code[0]) != NULL) return true;
    PyErr_Format(PyExc_TypeError, "%s must be a buffer of %s, not of format '%s'", name, type, given);
    return false;
}

static bool get_int32(PyObject *value, Py_buffer *view, const char *name, bool writable) {
    return get_typed(value, view, name, "int32", "il", writable);
}

static bool get_integer(PyObject *value, const char *name, unsigned long long low, unsigned long long high,
                        unsigned long long *number) {
    PyObject *index = PyNumber_Index(value);
    if (index == NULL) {
        if (PyErr_ExceptionMatches(PyExc_TypeError)) {
            PyErr_Clear();
            wrong_type(value, name, "an integer");
        }
        return false;
    }
    *number = PyLong_AsUnsignedLongLong(index);
    Py_DECREF(index);
    if (PyErr_Occurred()) {
        if (!PyErr_ExceptionMatches(PyExc_OverflowError)) return false;
        PyErr_Clear(); /* negative or above 64 bits: out of range like any other */
    } else if (low <= *number && *number <= high) {
        return true;
    }
    PyErr_Format(PyExc_ValueError, "%s must be %llu..%llu", name, low, high);
    return false;
}

/* ---- ring ---- */

typedef void ring_kernel(enum path, uint8_t *, const uint8_t *, size_t);

static PyObject *call_ring(PyObject *const *args, Py_ssize_t nargs, ring_kernel *kernel) {
    Py_buffer acc = {0}, src = {0};
    PyObject *result = NULL;
    if (!expect_arguments(nargs, 2) || !get_units(args[0], &acc, "acc", 8, true) ||
        !get_units(args[1], &src, "src", 8, false))
        goto done;
    if (acc.len != src.len) {
        PyErr_Format(PyExc_ValueError, "src must have as many bytes as acc: %zd != %zd", src.len, acc.len);
        goto done;
    }
    WITHOUT_LOCK(acc.len, kernel(path_best(), acc.buf, src.buf, (size_t)acc.len / 8));
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&src);
    PyBuffer_Release(&acc);
    return result;
}

static PyObject *py_ring_add(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    return call_ring(args, nargs, ring_add);
}

static PyObject *py_ring_sub(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    return call_ring(args, nargs, ring_sub);
}

/* ---- lanes ---- */

static bool lanes_fill_words(const Py_buffer *lanes, const char *name, const Py_buffer *words,
                             const char *words_name, unsigned long long bits) {
    const Py_ssize_t per_word = (Py_ssize_t)(64 / bits), count = lanes->len / 4, size = words->len / 8;
    if (count % per_word == 0 && count / per_word == size) return true;
    PyErr_Format(PyExc_ValueError, "%s must hold %zd values for each word of %s: %zd words, %zd values", name,
                 per_word, words_name, size, count);
    return false;
}

static PyObject *py_pack_lanes(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer out = {0}, lanes = {0};
    unsigned long long bits;
    PyObject *result = NULL;
    if (!expect_arguments(nargs, 3) || !get_integer(args[2], "bits", 2, 32, &bits) ||
        !get_int32(args[1], &lanes, "lanes", false) || !get_units(args[0], &out, "out", 8, true) ||
        !lanes_fill_words(&lanes, "lanes", &out, "out", bits))
        goto done;
    WITHOUT_LOCK(out.len, lanes_pack(out.buf, lanes.buf, (size_t)out.len / 8, (unsigned)bits));
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&lanes);
    PyBuffer_Release(&out);
    return result;
}

static PyObject *py_unpack_lanes(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer out = {0}, words = {0};
    unsigned long long bits;
    PyObject *result = NULL;
    if (!expect_arguments(nargs, 3) || !get_integer(args[2], "bits", 2, 32, &bits) ||
        !get_int32(args[0], &out, "out", true) || !get_units(args[1], &words, "words", 8, false) ||
        !lanes_fill_words(&out, "out", &words, "words", bits))
        goto done;
    WITHOUT_LOCK(words.len, lanes_unpack(out.buf, words.buf, (size_t)words.len / 8, (unsigned)bits));
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&words);
    PyBuffer_Release(&out);
    return result;
}

/* ---- rotation ---- */

enum { BLOCK_MAX = 1 << 20 };

typedef void rotation_kernel(uint8_t *, const uint8_t *, size_t, size_t);

static PyObject *call_rotation(PyObject *const *args, Py_ssize_t nargs, rotation_kernel *kernel) {
    Py_buffer values = {0}, signs = {0};
    unsigned long long block;
    PyObject *result = NULL;
    if (!expect_arguments(nargs, 3) || !get_integer(args[2], "block", 1, BLOCK_MAX, &block) ||
        !get_typed(args[0], &values, "values", "float32", "f", true) ||
        !get_exactly(args[1], &signs, "signs", (values.len / 4 + 7) / 8))
        goto done;
    if ((block & (block - 1)) != 0) {
        PyErr_Format(PyExc_ValueError, "block must be a power of two: %llu", block);
        goto done;
    }
    WITHOUT_LOCK(values.len, kernel(values.buf, signs.buf, (size_t)values.len / 4, (size_t)block));
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&signs);
    PyBuffer_Release(&values);
    return result;
}

static PyObject *py_rotate(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    return call_rotation(args, nargs, rotate_values);
}

static PyObject *py_unrotate(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    return call_rotation(args, nargs, unrotate_values);
}

/* ---- masks ---- */

static PyObject *call_mask(PyObject *const *args, Py_ssize_t nargs, bool subtract) {
    Py_buffer acc = {0}, key = {0};
    unsigned long long first;
    PyObject *result = NULL;
    if (!expect_arguments(nargs, 3) || !get_units(args[0], &acc, "acc", 8, true) ||
        !get_exactly(args[1], &key, "key", 32) || !get_integer(args[2], "first_word", 0, MASK_WORDS, &first))
        goto done;
    const size_t words = (size_t)acc.len / 8;
    if (words > MASK_WORDS - first) {
        PyErr_Format(PyExc_ValueError, "first_word %llu and %zu words run past the counter's %llu", first,
                     words, (unsigned long long)MASK_WORDS);
        goto done;
    }
    WITHOUT_LOCK(acc.len, mask_apply(path_best(), acc.buf, words, key.buf, first, subtract));
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&key);
    PyBuffer_Release(&acc);
    return result;
}

static PyObject *py_mask_add(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    return call_mask(args, nargs, false);
}

static PyObject *py_mask_sub(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    return call_mask(args, nargs, true);
}

/* ---- Shamir sharing ---- */

static PyObject *py_shamir_share(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer secret = {0}, coefficients = {0};
    unsigned long long n;
    PyObject *shares = NULL;
    if (!expect_arguments(nargs, 3) || !get_exactly(args[0], &secret, "secret", GF16_ROW) ||
        !get_units(args[1], &coefficients, "coefficients", GF16_ROW, false) ||
        !get_integer(args[2], "n", 1, 65535, &n))
        goto done;
    const size_t rows = (size_t)coefficients.len / GF16_ROW;
    if (rows >= n) {
        PyErr_Format(PyExc_ValueError, "threshold %zu is above the number of members %llu", rows + 1, n);
        goto done;
    }
    shares = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(n * GF16_ROW));
    if (shares == NULL) goto done;
    uint8_t *out = (uint8_t *)PyBytes_AsString(shares);
    WITHOUT_LOCK(n * GF16_ROW, gf16_share(out, secret.buf, coefficients.buf, rows, (size_t)n));
done:
    PyBuffer_Release(&coefficients);
    PyBuffer_Release(&secret);
    return shares;
}

static bool read_points(PyObject *tuple, uint16_t *xs, Py_ssize_t count) {
    for (Py_ssize_t i = 0; i < count; i++) {
        unsigned long long x;
        if (!get_integer(PyTuple_GetItem(tuple, i), "x", 1, 65535, &x)) return false;
        xs[i] = (uint16_t)x;
    }
    return true;
}

static bool points_are_distinct(const uint16_t *xs, Py_ssize_t count) {
    uint8_t seen[65536 / 8] = {0};
    for (Py_ssize_t i = 0; i < count; i++) {
        const uint8_t bit = (uint8_t)(1 << xs[i] % 8);
        if (seen[xs[i] / 8] & bit) {
            PyErr_SetString(PyExc_ValueError, "xs must be distinct");
            return false;
        }
        seen[xs[i] / 8] |= bit;
    }
    return true;
}

static PyObject *py_shamir_combine(PyObject *Py_UNUSED(self), PyObject *const *args, Py_ssize_t nargs) {
    Py_buffer shares = {0};
    PyObject *tuple = NULL, *secret = NULL;
    uint16_t *xs = NULL;
    uint8_t out[GF16_ROW];
    if (!expect_arguments(nargs, 2) || (tuple = PySequence_Tuple(args[0])) == NULL) goto done;
    const Py_ssize_t count = PyTuple_Size(tuple);
    xs = PyMem_Malloc((size_t)count * sizeof *xs);
    if (xs == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    if (!read_points(tuple, xs, count) || !get_units(args[1], &shares, "shares", GF16_ROW, false)) goto done;
    if (count == 0 || shares.len / GF16_ROW != count) {
        PyErr_Format(PyExc_ValueError, "shares must be 32 bytes for each of xs, at least one: %zd xs, %zd shares",
                     count, shares.len / GF16_ROW);
        goto done;
    }
    if (!points_are_distinct(xs, count)) goto done;
    WITHOUT_LOCK(shares.len, gf16_combine(out, xs, shares.buf, (size_t)count));
    secret = PyBytes_FromStringAndSize((const char *)out, GF16_ROW);
done:
    PyBuffer_Release(&shares);
    PyMem_Free(xs);
    Py_XDECREF(tuple);
    return secret;
}

/* ---- the module ---- */

/* Through a plain function pointer, since the table has one type for all calling conventions. */
#define KERNEL(name, signature, summary) \
    {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, #name signature "\n--\n\n" summary}

static PyMethodDef methods[] = {
    KERNEL(ring_add, "(acc, src, /)", "Add src to acc, u64 words modulo 2^64."),
    KERNEL(ring_sub, "(acc, src, /)", "Subtract src from acc, u64 words modulo 2^64."),
    KERNEL(pack_lanes, "(out, lanes, bits, /)", "Pack int32 lanes into u64 words."),
    KERNEL(unpack_lanes, "(out, words, bits, /)", "Decode u64 words to int32 lanes."),
    KERNEL(rotate, "(values, signs, block, /)", "Flip signs, then transform blocks (Walsh-Hadamard)."),
    KERNEL(unrotate, "(values, signs, block, /)", "The inverse of rotate."),
    KERNEL(mask_add, "(acc, key, first_word, /)", "Add the mask's words from first_word on to acc."),
    KERNEL(mask_sub, "(acc, key, first_word, /)", "Subtract the mask's words from first_word on from acc."),
    KERNEL(shamir_share, "(secret, coefficients, n, /)", "Share 32 bytes among n members."),
    KERNEL(shamir_combine, "(xs, shares, /)", "Recover 32 bytes from shares at the points xs."),
    {NULL, NULL, 0, NULL},
};

static int execute(PyObject *module) {
    static const char *const names[PATHS] = {
        [PATH_PORTABLE] = "native-portable", [PATH_AVX2] = "native-avx2", [PATH_AVX512] = "native-avx512"};
    return PyModule_AddStringConstant(module, "IMPLEMENTATION", names[path_best()]);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, execute}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "whimbrel_kernels._native",
    .m_doc = "The kernels in C; `_numpy` is their twin and has the documentation.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
