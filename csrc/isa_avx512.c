/* 512-bit vectors with masks: Skylake-SP, Zen 4 and later. */
#include "isa_includes.h"

#if RF_X86_REGIONS
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#endif

#define RF_ISA avx512
#define RF_REGISTERS 32
#define RF_VEC_F32 "simd/vec_f32_avx512.h"
#define RF_VEC_F64 "simd/vec_f64_avx512.h"
#include "isa.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
