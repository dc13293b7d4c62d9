ctypedef fused real_t:
    float
    double
