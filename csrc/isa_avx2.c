/* 256-bit vectors: x86 CPUs since 2013 (Haswell), 2015 (Excavator). */
#include "isa_includes.h"

#if RF_X86_REGIONS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define RF_ISA avx2
#define RF_VEC_F32 "simd/vec_f32_avx2.h"
#define RF_VEC_F64 "simd/vec_f64_avx2.h"
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
