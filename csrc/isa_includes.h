/* System headers go before a target region: inside it they would be compiled for the region. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#endif
#include "cpu.h"
#include "rnnfast.h"
#include "tables.h"
