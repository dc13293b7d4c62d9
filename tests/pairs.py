"""All-pairs covers: few rows in which every pair of values of every two factors occurs."""

from itertools import combinations


def all_pairs(factors):
    """Rows (dicts) that hold every pair of values of every two factors; greedy, deterministic.

    factors: dict of name to a list of values, at least two names.
    """
    names = list(factors)
    open_pairs = {
        ((a, i), (b, j))
        for a, b in combinations(names, 2)
        for i in range(len(factors[a]))
        for j in range(len(factors[b]))
    }

    def gain(row, name, value):
        """How many open pairs the row would close by taking this value."""
        return sum(
            tuple(sorted([(other, row[other]), (name, value)], key=lambda p: names.index(p[0])))
            in open_pairs
            for other in row
        )

    rows = []
    while open_pairs:
        row = dict(min(open_pairs))
        for name in names:
            if name not in row:
                row[name] = max(range(len(factors[name])), key=lambda v: gain(row, name, v))
        open_pairs -= {((a, row[a]), (b, row[b])) for a, b in combinations(names, 2)}
        rows.append({name: factors[name][row[name]] for name in names})
    return rows
