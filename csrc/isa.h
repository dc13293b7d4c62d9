/* Included by each isa_*.c inside its target region, with RF_ISA, RF_VEC_F32 and RF_VEC_F64 set:
 * every kernel in both dtypes, and the two tables that are all a stub exports. */
#include "fn.h"

#ifndef RF_REGISTERS
#define RF_REGISTERS 16 /* vector registers */
#endif

#include RF_VEC_F32
#include "kernels_tmpl.h"
#include "simd/vec_undef.h"

#include RF_VEC_F64
#include "kernels_tmpl.h"
#include "simd/vec_undef.h"
