cimport numpy as cnp

cdef object allocate(int ndim, cnp.npy_intp *shape, int num)
cdef object empty(Py_ssize_t rows, Py_ssize_t columns, int num)
