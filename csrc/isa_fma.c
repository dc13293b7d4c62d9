/* One lane at a time with hardware fma: what the wide builds are compared with. */
#include "isa_includes.h"

#if RF_X86_REGIONS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("fma")
#endif

#define RF_ISA fma
#define RF_VEC_F32 "simd/vec_f32_scalar.h"
#define RF_VEC_F64 "simd/vec_f64_scalar.h"
#define RF_HW_FMA 1
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
