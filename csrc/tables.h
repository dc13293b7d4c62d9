#ifndef RNNFAST_TABLES_H
#define RNNFAST_TABLES_H
#include "rnnfast.h"

extern const rf_table_f32 rf_table_f32_scalar, rf_table_f32_fma, rf_table_f32_avx2,
    rf_table_f32_avx512;
extern const rf_table_f64 rf_table_f64_scalar, rf_table_f64_fma, rf_table_f64_avx2,
    rf_table_f64_avx512;

#endif
