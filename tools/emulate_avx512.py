"""Let a copy of csrc/ have the AVX-512 kernels on a CPU with AVX2 alone, slowly.

    python tools/emulate_avx512.py build/avx512/csrc

Each vector becomes two of AVX2's, operated on by the verbs of simd/vec_*_avx2.h. The tiles, tails
and number of registers of the AVX-512 kernels stay, so that the tests see what they compute; the
instructions themselves they do not see. `make test-avx512` builds such a copy and runs tests on it.
"""

import re
import sys
from pathlib import Path

VERBS = {  # by the number of their arguments
    1: ("sqrt", "rint", "abs", "neg", "pow2", "pow2_magic", "ilog2", "mantissa", "isnan"),
    2: ("add", "sub", "mul", "div", "max", "min", "copysign", "withsign", "lt", "le"),
    3: ("fma", "fnma", "fms", "select"),
}
PAIR = """\
typedef struct {{
    {vector} a, b;
}} FN(pair);
#undef v_t
#undef vm_t
#define v_t FN(pair)
#define vm_t FN(pair)
RF_INLINE v_t FN(pair_load)(const REAL *p) {{ return (v_t){{h_load(p), h_load(p + {half})}}; }}
RF_INLINE void FN(pair_store)(REAL *p, v_t v) {{
    h_store(p, v.a);
    h_store(p + {half}, v.b);
}}
RF_INLINE v_t FN(pair_loadn)(const REAL *p, ptrdiff_t n) {{
    return n < {half} ? (v_t){{h_loadn(p, n), h_zero()}}
                      : (v_t){{h_load(p), h_loadn(p + {half}, n - {half})}};
}}
RF_INLINE void FN(pair_storen)(REAL *p, ptrdiff_t n, v_t v) {{
    if (n < {half}) {{
        h_storen(p, n, v.a);
    }} else {{
        h_store(p, v.a);
        h_storen(p + {half}, n - {half}, v.b);
    }}
}}
RF_INLINE v_t FN(pair_set1)(REAL s) {{ return (v_t){{h_set1(s), h_set1(s)}}; }}
RF_INLINE v_t FN(pair_twice)(const REAL *p) {{ return (v_t){{h_load(p), h_load(p)}}; }}
RF_INLINE v_t FN(pair_set2)(const REAL *p, const REAL *q) {{
    return (v_t){{h_set1(*p), h_set1(*q)}};
}}
RF_INLINE v_t FN(pair_join)(v_t x, v_t y) {{ return (v_t){{x.a, y.a}}; }}
#define v_twice(p) FN(pair_twice)(p)
#define v_set2(p, q) FN(pair_set2)((p), (q))
#define v_join(x, y) FN(pair_join)((x), (y))
#define v_store_lower(p, v) h_store((p), (v).a)
#define v_store_upper(p, v) h_store((p), (v).b)
#define v_upper(v) ((v_t){{(v).b, (v).b}})
#define v_halves(p, q) ((v_t){{h_load(p), h_load(q)}})
#define v_load(p) FN(pair_load)(p)
#define v_store(p, v) FN(pair_store)((p), (v))
#define v_loadn(p, n) FN(pair_loadn)((p), (n))
#define v_storen(p, n, v) FN(pair_storen)((p), (n), (v))
#define v_set1(s) FN(pair_set1)(s)
#define v_zero() FN(pair_set1)(0)
#define v_first(v) h_first((v).a)
#define V_POW2_MAGIC H_POW2_MAGIC
"""
END = """\
#define v_scale(y, n) FN(v_scale)((y), (n))
#include "scale.h"
RF_INLINE void FN(transpose)(v_t *t) {
    REAL from[VL][VL], to[VL];
    for (int i = 0; i < VL; i++) v_store(from[i], t[i]);
    for (int i = 0; i < VL; i++) {
        for (int j = 0; j < VL; j++) to[j] = from[j][i];
        t[i] = v_load(to);
    }
}
#define v_transpose(t) FN(transpose)(t)
/* Element i of the result is element PLACE(i) of a and b side by side. */
#define RF_PLACES(name, PLACE)                          \
    RF_INLINE v_t FN(name)(v_t a, v_t b) {              \
        REAL from[2 * VL], to[VL];                      \
        v_store(from, a);                               \
        v_store(from + VL, b);                          \
        for (int i = 0; i < VL; i++) to[i] = from[PLACE]; \
        return v_load(to);                              \
    }
RF_PLACES(doubled, i / 2)
RF_PLACES(in_turn, i / 2 + i % 2 * (VL / 2))
RF_PLACES(apart, i % (VL / 2) * 2 + i / (VL / 2))
RF_PLACES(first_pairs, i / 4 * 4 + i % 4 / 2 + i % 2 * VL)
RF_PLACES(last_pairs, i / 4 * 4 + i % 4 / 2 + 2 + i % 2 * VL)
#undef RF_PLACES
RF_INLINE v_t FN(pair_of)(const REAL *p) {
    REAL to[VL];
    for (int i = 0; i < VL; i++) to[i] = p[i % 2];
    return v_load(to);
}
#define v_doubled(v) FN(doubled)((v), (v))
#define v_in_turn(v) FN(in_turn)((v), (v))
#define v_apart(v) FN(apart)((v), (v))
#define v_first_pairs(a, b) FN(first_pairs)((a), (b))
#define v_last_pairs(a, b) FN(last_pairs)((a), (b))
#define v_pair(p) FN(pair_of)(p)
"""


def header(avx2):
    """The text of a vec_*_avx512.h from that of its vec_*_avx2.h."""
    half = int(re.search(r"#define VL (\d+)", avx2)[1])
    vector = re.search(r"#define v_t (\w+)", avx2)[1]
    head, rest = avx2.split("#define v_load(", 1)
    verbs = "#define v_load(" + rest.split('#include "scale.h"')[0]
    verbs = re.sub(r"#define v_scale.*\n", "", verbs)
    verbs = re.sub(r"\bv_(?!t\b)(\w+)", r"h_\1", verbs).replace("V_POW2_MAGIC", "H_POW2_MAGIC")
    text = head.replace(f"#define VL {half}", f"#define VL {2 * half}") + verbs
    text += PAIR.format(vector=vector, half=half)
    for count, names in VERBS.items():
        arguments = ["x", "y", "z"][:count]
        for name in names:
            halves = ", ".join(f"h_{name}({', '.join(f'{x}.{part}' for x in arguments)})"
                               for part in "ab")  # fmt: skip
            text += (f"RF_INLINE v_t FN(pair_{name})({', '.join(f'v_t {x}' for x in arguments)}) "
                     f"{{ return (v_t){{{halves}}}; }}\n"
                     f"#define v_{name}({', '.join(arguments)}) FN(pair_{name})"
                     f"({', '.join(f'({x})' for x in arguments)})\n")  # fmt: skip
    return text + END


def main(csrc):
    simd, halves = csrc / "simd", set()
    for dtype in ("f32", "f64"):
        text = header((simd / f"vec_{dtype}_avx2.h").read_text())
        (simd / f"vec_{dtype}_avx512.h").write_text(text)
        halves |= set(re.findall(r"#define ([hH]_\w+)", text))
    with (simd / "vec_undef.h").open("a") as undef:
        undef.writelines(f"#undef {name}\n" for name in sorted(halves))
    stub = csrc / "isa_avx512.c"
    stub.write_text(re.sub(r"avx512\w+,", "", stub.read_text()))
    cpu = csrc / "cpu.c"
    text, replaced = re.subn(r"(int rf_cpu_has_avx512\(void\) \{\n)    return [^;]*;",
                             r"\1    return rf_cpu_has_avx2();", cpu.read_text())  # fmt: skip
    if replaced != 1:
        sys.exit(f"{cpu}: rf_cpu_has_avx512 is not as expected")
    cpu.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
