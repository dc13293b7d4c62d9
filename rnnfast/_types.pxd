ctypedef fused real_t:
    float
    double

cdef extern from *:
    """
    #define RF_EPS 1e-5
    """
    const double EPS "RF_EPS"  # layer norm's epsilon, as in reference.sequence
