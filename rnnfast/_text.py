"""Text for the character model: reading, the held-out split, and what simpler models achieve."""

import numpy as np

HELDOUT_SHARE = 10  # one character in so many is held out
HELDOUT_BLOCKS = 20  # in so many blocks spread evenly over the text
SHORTEST_BLOCK = 500  # fewer blocks rather than shorter ones


class InputError(Exception):
    """Something the user gave cannot be used; the message is one line that says what."""


def default_text():
    """The language reference that every CPython carries: the texts of ``pydoc_data.topics`` in the
    order of their names.

    Paragraphs stand between empty lines, each once: a fifth of the topics' text repeats other
    topics word for word, and what is held out must not have been read in training.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise InputError("this Python carries no pydoc_data.topics: name a text FILE") from None
    text = "\n\n".join(topics[name].strip("\n") for name in sorted(topics))
    return "\n\n".join(dict.fromkeys(text.split("\n\n"))) + "\n"


def read_text(path):
    """The UTF-8 text of a file; a byte-order mark is dropped and line ends become "\\n"."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text: byte 0x{data[error.start]:02x} at offset "
                         f"{error.start}") from None
    if not text:
        raise InputError(f"{path}: the file is empty")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def place(text, position):
    """Where a character stands, for people: "line 3, column 7"."""
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"


def split(ids):
    """Training part and held-out part of a text.

    The text is cut into equal parts, at most 20, of which the last tenth each is held out.

    Parameters
    ----------
    ids : (N,) integers

    Returns
    -------
    train : (M,) integers
        What is left, joined.
    heldout : (n, K) integers
        One block a column.

    Examples
    --------
    >>> import numpy as np
    >>> train, heldout = split(np.arange(12_000))
    >>> train.shape, heldout.shape, heldout[0].tolist()
    ((10800,), (600, 2), [5400, 11400])
    """
    N = len(ids)
    K = max(1, min(HELDOUT_BLOCKS, N // (HELDOUT_SHARE * SHORTEST_BLOCK)))
    n = N // (HELDOUT_SHARE * K)
    out = np.zeros(N, bool)
    for k in range(K):
        end = (k + 1) * N // K
        out[end - n : end] = True
    return ids[~out], ids[out].reshape(K, n).T


def ngram_bits(train, heldout, V, order=5):
    """Bits per character of an n-gram model on held-out text.

    Interpolated modified Kneser-Ney smoothing: Chen and Goodman (1999), "An empirical study of
    smoothing techniques for language modeling". The highest order counts occurrences, the lower
    ones distinct left neighbours; each level has three discounts (for counts 1, 2 and more)
    estimated from its counts of counts; the lowest rests on the uniform distribution over V.

    Parameters
    ----------
    train : (M,) integers in [0, V)
    heldout : (n, K) integers in [0, V)
        K texts; the first character of each is only read, and near its start a context is as long
        as there are characters.
    V : int
    order : int
        5: four characters of context. 1: no context.

    Returns
    -------
    float
        Mean of -log2 p over the (n - 1) K predicted characters.
    """
    p = ngram_probabilities(train, heldout, V, order)
    return float(-np.log2(p).mean())


def ngram_probabilities(train, heldout, V, order=5):
    """p (n - 1, K) of `ngram_bits` for each predicted character."""
    texts = [np.asarray(train, np.int64), *np.asarray(heldout, np.int64).T]
    # grams[m - 1][s][i]: a number for the m characters of text s that end at i; equal numbers mean
    # equal m-grams. suffix[g] of an m-gram drops its first, context[g] its last character.
    grams, contexts, suffixes = [], [], []
    for m in range(1, order + 1):
        if m == 1:
            context = [np.zeros(len(t), np.int64) for t in texts]
            suffix = context
        else:
            context = [np.concatenate([[-1], g[:-1]]) for g in grams[-1]]
            suffix = grams[-1]
        # A context that would begin before its text is -1, and so is every gram with it.
        codes = [np.where(c >= 0, c * V + t, -1) for c, t in zip(context, texts, strict=True)]
        flat = np.concatenate(codes)
        unique, first, inverse = np.unique(flat, return_index=True, return_inverse=True)
        inverse -= unique[0] == -1
        first = first[1:] if unique[0] == -1 else first
        cuts = np.cumsum([len(t) for t in texts])[:-1]
        grams.append(np.split(inverse, cuts))
        contexts.append(np.concatenate(context)[first])
        suffixes.append(np.concatenate(suffix)[first])

    p = np.full((len(heldout) - 1) * heldout.shape[1], 1 / V)
    for m in range(1, order + 1):
        G = len(contexts[m - 1])
        if m == order:
            seen = grams[m - 1][0]
            counts = np.bincount(seen[seen >= 0], minlength=G)
        else:
            wider = np.unique(grams[m][0])
            counts = np.bincount(suffixes[m][wider[wider >= 0]], minlength=G)
        C = len(contexts[m - 2]) if m > 1 else 1
        totals = np.bincount(contexts[m - 1], counts, minlength=C)
        D = _discounts(counts)
        level = np.minimum(counts, 3)
        freed = np.bincount(contexts[m - 1], D[level], minlength=C)
        gram = np.concatenate([g[1:] for g in grams[m - 1][1:]])
        context = np.where(gram >= 0, contexts[m - 1][gram], 0)
        known = (gram >= 0) & (totals[context] > 0)
        gram, context = gram[known], context[known]
        p[known] = ((counts[gram] - D[level[gram]]) + freed[context] * p[known]) / totals[context]
    return p.reshape(heldout.shape[1], -1).T


def _discounts(counts):
    """(4,): what is taken from counts 0, 1, 2 and more."""
    n = np.bincount(np.minimum(counts, 5), minlength=6)[1:5].astype(float)
    D = np.zeros(4)
    if n[0] and n[1]:
        Y = n[0] / (n[0] + 2 * n[1])
        for k in (1, 2, 3):
            D[k] = k - (k + 1) * Y * n[k] / n[k - 1] if n[k - 1] else 0
    # A level with too few rare grams to estimate from (the letters of a long text) still leaves
    # some probability for what it has not seen.
    D[1:] = np.clip(D[1:], 0.1, [1, 2, 3])
    return D


def baselines(train, heldout, V):
    """Bits per character of what a model has to beat: {"uniform", "unigram", "5-gram"}."""
    return {"uniform": float(np.log2(V)), "unigram": ngram_bits(train, heldout, V, 1),
            "5-gram": ngram_bits(train, heldout, V, 5)}
