"""Memory of the large arrays that every call makes anew: tapes, packed weights, outputs.

malloc gives memory of this size back to the system as soon as it is freed, and the next call pays
for every page again, which the system fills with zeros first: a quarter of a training step at
T x B x H = 64 x 32 x 128 (docs/performance.md). What was freed last is kept here instead, up to
`KEEP` bytes in all.
"""

cimport numpy as cnp
from libc.stdlib cimport free

cnp.import_array()

cdef extern from *:
    """
    #include <stdlib.h>
    #if defined(__SANITIZE_ADDRESS__)
    enum { RF_SMALL = 0x7fffffff }; /* the sanitizer is to see every array's own end */
    #else
    enum { RF_SMALL = 1 << 16 };
    #endif
    #if defined(_WIN32)
    static void *rf_allocate(size_t size) { return malloc(size); }
    #else
    #if defined(__linux__)
    #include <sys/mman.h>
    #endif
    /* From 4 MB on in huge pages where the system gives them on demand, as NumPy's arrays are: one
     * sequence that reads the 12 MB of a GRU's 1024 units is 1.05 to 1.2 times as fast
     * (docs/performance.md). */
    static void *rf_allocate(size_t size) {
        void *p = NULL;
        const size_t page = (size_t)1 << 21;
        const int huge = size >= 2 * page;
        if (posix_memalign(&p, huge ? page : 64, size)) return NULL;
    #if defined(MADV_HUGEPAGE)
        if (huge) madvise(p, size, MADV_HUGEPAGE);
    #endif
        return p;
    }
    #endif
    """
    enum:
        RF_SMALL  # smaller arrays are NumPy's business, which keeps memory of that size itself
    void *rf_allocate(size_t size) nogil

cdef enum:
    PLACES = 64

cdef size_t KEEP = 256 << 20
cdef void *kept[PLACES]     # the oldest first
cdef size_t sizes[PLACES]
cdef int count = 0
cdef size_t total = 0


cdef size_t rounded(size_t size):
    """To one of eight sizes between powers of two, so that what was freed fits again."""
    cdef size_t step = 1
    while step * 16 <= size:
        step *= 2
    return (size + step - 1) // step * step


cdef void *remove(int place):
    """Take a piece out of what is kept."""
    global count, total
    cdef void *p = kept[place]
    cdef int k
    total -= sizes[place]
    count -= 1
    for k in range(place, count):
        kept[k], sizes[k] = kept[k + 1], sizes[k + 1]
    return p


cdef class Piece:
    """Owner of an array's memory, under the GIL."""
    cdef void *memory
    cdef size_t size

    def __cinit__(self, size_t size):
        cdef int k
        self.size = size
        for k in range(count - 1, -1, -1):  # the newest may still be in a cache
            if sizes[k] == size:
                self.memory = remove(k)
                return
        self.memory = rf_allocate(size)
        if self.memory == NULL:
            raise MemoryError(f"{size} bytes")

    def __dealloc__(self):
        global count, total
        if self.memory == NULL:
            return
        if self.size > KEEP:
            free(self.memory)
            return
        while count == PLACES or total + self.size > KEEP:
            free(remove(0))
        kept[count], sizes[count] = self.memory, self.size
        count += 1
        total += self.size


cdef object allocate(int ndim, cnp.npy_intp *shape, int num):
    """np.empty of the dtype `num`."""
    cdef size_t size = sizeof(float) if num == cnp.NPY_FLOAT else sizeof(double)
    cdef int k
    for k in range(ndim):
        size *= shape[k]
    if size < RF_SMALL:
        return cnp.PyArray_EMPTY(ndim, shape, num, 0)
    cdef Piece piece = Piece(rounded(size))
    out = cnp.PyArray_SimpleNewFromData(ndim, shape, num, piece.memory)
    cnp.set_array_base(out, piece)
    return out


cdef object empty(Py_ssize_t rows, Py_ssize_t columns, int num):
    """np.empty((rows, columns)) of the dtype `num`."""
    cdef cnp.npy_intp shape[2]
    shape[0], shape[1] = rows, columns
    return allocate(2, shape, num)


def empty_array(tuple shape, cnp.dtype dtype):
    """np.empty(shape, dtype) for float32 and float64, of up to 8 dimensions."""
    cdef cnp.npy_intp sizes[8]
    cdef int k
    if len(shape) > 8 or dtype.type_num not in (cnp.NPY_FLOAT, cnp.NPY_DOUBLE):
        raise ValueError(f"cannot make {dtype} of shape {shape}")
    for k in range(len(shape)):
        if shape[k] < 0:
            raise ValueError(f"a size must not be negative, got {shape}")
        sizes[k] = shape[k]
    return allocate(len(shape), sizes, dtype.type_num)


def kept_bytes():
    """How much is kept."""
    return total


def release():
    """Give what is kept back to the system."""
    while count:
        free(remove(0))
