"""A tag for each character: the standard library's own source, its lexical classes by `tokenize`.
Is this letter part of a name, a keyword, a comment or a string? Other files judge the result."""

import importlib.util
import keyword
import tokenize

import numpy as np

from rnnfast.sklearn import SequenceTagger

TRAIN = ["ast", "bdb", "cmd", "configparser", "csv", "difflib", "dis", "fractions"]
TEST = ["textwrap", "shlex", "zipapp", "heapq"]
STEPS = 120  # characters in a sequence


def tagged(module):
    """(codes of the characters, their classes) of a module's source."""
    path = importlib.util.find_spec(module).origin
    with tokenize.open(path) as file:
        lines = file.readlines()
    starts = np.cumsum([0, *map(len, lines)])
    tags = np.full(starts[-1], "space", "<U8")
    for token in tokenize.generate_tokens(iter(lines).__next__):
        kind = tokenize.tok_name[token.type].lower()
        if "string" in kind:
            kind = "string"  # from Python 3.12 on an f-string comes in parts
        if kind == "name" and keyword.iskeyword(token.string):
            kind = "keyword"
        if kind in ("name", "keyword", "string", "comment", "number", "op"):
            (row, column), (last, stop) = token.start, token.end
            tags[starts[row - 1] + column : starts[last - 1] + stop] = kind
    return np.minimum([ord(c) for c in "".join(lines)], 127), tags


def stretches(modules):
    X, y = [], []
    for codes, tags in map(tagged, modules):
        X += [codes[k : k + STEPS] for k in range(0, len(codes), STEPS)]
        y += [tags[k : k + STEPS] for k in range(0, len(tags), STEPS)]
    return X, y


X, y = stretches(TRAIN)
X_test, y_test = stretches(TEST)
codes, tags = np.concatenate(X), np.concatenate(y)
print(f"{len(codes)} characters to learn from, {sum(map(len, X_test))} to judge by")
truth, common = np.concatenate(y_test), np.full(128, "string", tags.dtype)
for code in np.unique(codes):
    classes, counts = np.unique(tags[codes == code], return_counts=True)
    common[code] = classes[counts.argmax()]
by_letter = common[np.concatenate(X_test)]
print(f"each character's commonest class: right at {100 * (by_letter == truth).mean():.1f} %")
tagger = SequenceTagger(64, bidirectional=True, n_tokens=128, max_iter=4, random_state=0).fit(X, y)
print(f"bidirectional GRU: right at {100 * tagger.score(X_test, y_test):.1f} %")
guess = np.concatenate(tagger.predict(X_test))
for name in tagger.classes_:
    at = truth == name
    ours, letters = (100 * (found[at] == name).mean() for found in (guess, by_letter))
    print(f"  {name:8}{ours:6.1f} % of {at.sum():6}, by letter {letters:5.1f} %")
