/* The baseline: any CPU, the compiler's own flags; without hardware fma, an fma of ours. */
#include "isa_includes.h"

#define RF_ISA scalar
#define RF_VEC_F32 "simd/vec_f32_scalar.h"
#define RF_VEC_F64 "simd/vec_f64_scalar.h"
#include "isa.h"
