/* Names and inlining shared by everything that is compiled once per dtype and ISA. */
#ifndef RF_FN_H
#define RF_FN_H

#define RF_CAT3_(a, b, c) a##_##b##_##c
#define RF_CAT3(a, b, c) RF_CAT3_(a, b, c)

/* FN(tanh) is tanh_f32_avx2 while vec_f32_avx2.h is in force and RF_ISA is avx2. */
#define FN(name) RF_CAT3(name, RF_T, RF_ISA)

#define RF_INLINE static inline __attribute__((always_inline, unused))

#endif
