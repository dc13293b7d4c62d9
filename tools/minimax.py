"""Derive the polynomial coefficients of the elementary functions.

Run ``python tools/minimax.py``: it prints, for float32 and float64, the constants that stand in
``csrc/elementary_tmpl.h`` and ``rnnfast/reference/elementary.py``, and the largest error that each
polynomial leaves in its function (in units of the format's half-ULP of 1, evaluated exactly).

Method: Remez exchange in mpmath on a weighted error. Coefficients are then rounded to the target
format one after the other, lowest power first, and the remaining ones are fitted again around the
rounded ones, so that the rounding of one coefficient is compensated by those after it.
"""

from mpmath import mp, mpf

mp.prec = 240


def round_to(x, bits):
    """Round x to `bits` significant bits, ties to even."""
    if x == 0:
        return mpf(0)
    _, e = mp.frexp(x)
    return mp.ldexp(mp.nint(mp.ldexp(x, bits - e)), e - bits)


def hexfloat(x, bits):
    """Write x, which has at most `bits` significant bits, as a C hex float."""
    if x == 0:
        return "0x0.0p+0"
    sign = "-" if x < 0 else ""
    m, e = mp.frexp(abs(x))
    digits = (bits + 2) // 4
    q = int(mp.ldexp(2 * m - 1, 4 * digits))
    assert mp.ldexp(q, -4 * digits) == 2 * m - 1
    return f"{sign}0x1.{q:0{digits}x}p{int(e) - 1:+d}"


def remez(g, w, a, b, powers, steps=40):
    """Coefficients c for which max |w(x) (sum c_k x^powers_k - g(x))| on [a, b] is least."""
    n = len(powers)
    m = 40 * (n + 1)
    # The grid of the exchange, dense at the ends. Points where the weight vanishes (the middle, for
    # exp) say nothing about the error and would make the system singular.
    grid = [(a + b) / 2 - (b - a) / 2 * mp.cos(mp.pi * i / m) for i in range(m + 1)]
    heaviest = max(w(x) for x in grid)
    grid = [x for x in grid if w(x) > heaviest / 500]
    gg = [(x, g(x), w(x)) for x in grid]
    xs = [grid[(len(grid) - 1) * i // n] for i in range(n + 1)]
    for _ in range(steps):
        rows, rhs = mp.matrix(n + 1, n + 1), mp.matrix(n + 1, 1)
        for i, x in enumerate(xs):
            for j, p in enumerate(powers):
                rows[i, j] = w(x) * x**p
            rows[i, n] = (-1) ** i
            rhs[i] = w(x) * g(x)
        sol = mp.lu_solve(rows, rhs)
        c, level = [sol[j] for j in range(n)], abs(sol[n])
        err = [wx * (sum(cj * x**p for cj, p in zip(c, powers, strict=True)) - gx)
               for x, gx, wx in gg]
        # Alternation: the largest error of each run of equal sign.
        best = []
        for (x, _, _), e in zip(gg, err, strict=True):
            if best and (e > 0) == (best[-1][1] > 0):
                if abs(e) > abs(best[-1][1]):
                    best[-1] = (x, e)
            else:
                best.append((x, e))
        while len(best) > n + 1:
            best.pop(0 if abs(best[0][1]) < abs(best[-1][1]) else -1)
        top = max(abs(e) for e in err)
        assert len(best) == n + 1, "the error does not alternate"
        if top <= level * (1 + mpf(10) ** -3):
            break
        xs = [x for x, _ in best]
    return c, top


def fit(g, w, a, b, count, bits):
    """`count` coefficients rounded to `bits` bits, and the weighted error they leave."""
    done = []
    for k in range(count):
        known = list(done)

        def rest(x, known=known):
            return g(x) - sum(c * x**i for i, c in enumerate(known))

        c, _ = remez(rest, w, a, b, list(range(k, count)))
        done.append(round_to(c[0], bits))
    pts = [a + (b - a) * (mpf(i) + 0.5) / 2000 for i in range(2000)] + [a, b]
    err = max(abs(w(x) * (sum(c * x**i for i, c in enumerate(done)) - g(x))) for x in pts)
    return done, err


# exp: e^r = 1 + r + r^2 P(r); error relative to e^r.
def exp_g(r):
    return (mp.expm1(r) - r) / r**2


def exp_w(r):
    return r**2 * mp.exp(-r)


# tanh a = a + a t Q(t), t = a^2; error relative to tanh a.
def tanh_g(t):
    a = mp.sqrt(t)
    return (mp.tanh(a) / a - 1) / t


def tanh_w(t):
    a = mp.sqrt(t)
    return t * a / mp.tanh(a)


# 2 atanh s = 2 s + s z R(z), z = s^2; error relative to 2 atanh s.
def log_g(z):
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) / s - 2) / z


def log_w(z):
    s = mp.sqrt(z)
    return z * s / (2 * mp.atanh(s))


TANH_SPLIT = mpf(55) / 100
TABLE = [
    # name, g, weight, interval, number of coefficients in float32 and float64
    ("EXP", exp_g, exp_w, (-mp.log(2) / 2, mp.log(2) / 2), {24: 5, 53: 10}),
    ("TANH", tanh_g, tanh_w, (mpf(10) ** -30, TANH_SPLIT**2), {24: 4, 53: 10}),
    ("LOG", log_g, log_w, (mpf(10) ** -30, mpf(1) / 9), {24: 4, 53: 10}),
]


def main():
    for bits, suffix in ((24, "f"), (53, "")):
        print(f"\n/* {bits}-bit significand */")
        ln2 = mp.log(2)
        for name, value in (("LOG2E", 1 / ln2), ("LN2", ln2)):
            hi = round_to(value, bits)
            lo = round_to(value - hi, bits)
            print(f"{name}_HI {hexfloat(hi, bits)}{suffix}  {name}_LO {hexfloat(lo, bits)}{suffix}")
        for name, g, w, (a, b), counts in TABLE:
            c, err = fit(g, w, a, b, counts[bits], bits)
            print(f"{name}: error 2^{float(mp.log(err, 2)):.2f} "
                  f"({float(err * 2**bits):.3f} x 2^-{bits})")
            for i, x in enumerate(c):
                print(f"  {name}_{i} {hexfloat(x, bits)}{suffix}")


if __name__ == "__main__":
    main()
