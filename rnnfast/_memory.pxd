cdef object empty(Py_ssize_t rows, Py_ssize_t columns, int num)
