"""A character-level language model: one-hot input, a recurrent stack, softmax over characters."""

import math

import numpy as np

from rnnfast import losses
from rnnfast._module import Module
from rnnfast.layers import GRU, LSTM, RNN, Linear, _positive, _probability

CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class UnknownCharacter(ValueError):
    """A character that is not in the vocabulary.

    Attributes
    ----------
    character : str
    position : int
        Its index in the text.
    """

    def __init__(self, character, position):
        self.character, self.position = character, position
        super().__init__(f"character {character!a} (U+{ord(character):04X}) at index "
                         f"{position} is not in the vocabulary")


def _codes(text):
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


class CharLM(Module):
    """A recurrent network that predicts the next character of a text.

    x_t is the one-hot vector of character t (looked up, never multiplied), h_t = cell(x_t, h_{t-1})
    through all layers, and p(next character) = softmax(W h_t + b). Bits per character are the mean
    of -log2 p.

    Parameters
    ----------
    vocabulary : str
        The characters the model knows, each once; their order is that of the logits.
    cell : {"lstm", "gru", "rnn"}
        An LSTM starts with forget bias 1 (Jozefowicz et al. 2015). In all, the input weights of
        the first layer start as U(-1, 1): of its one-hot input only one entry counts.
    hidden, layers : int
        Units per layer and number of layers, at least 1.
    dropout : float in [0, 1)
        Share of each layer's output that `loss_and_grads` sets to zero on its way up, the way to
        the softmax included (Zaremba et al. 2014, https://arxiv.org/abs/1409.2329).
    dtype : {"float32", "float64"}
    seed : int or None
        For the initial weights and dropout.

    Attributes
    ----------
    params, grads : dict
        "recurrent.weight_ih_l0" ... and "output.weight", "output.bias": the arrays of the two
        parts `recurrent` and `output` themselves.

    Examples
    --------
    >>> import rnnfast
    >>> from rnnfast.charlm import CharLM
    >>> text = "to be or not to be " * 20
    >>> model = CharLM("".join(sorted(set(text))), hidden=16, seed=0)
    >>> ids = model.encode(text)[:, None]
    >>> adam = rnnfast.optim.Adam(model, lr=0.03)
    >>> for _ in range(40):
    ...     adam.zero_grad()
    ...     loss, state = model.loss_and_grads(ids[:-1], ids[1:])
    ...     adam.step()
    >>> model.evaluate(ids) < 1
    True
    >>> len(model.sample(12, prime="to be", temperature=0.1))
    12
    """

    def __init__(self, vocabulary, cell="lstm", hidden=128, layers=1, dropout=0.0, dtype="float32",
                 seed=0):
        super().__init__(dtype)
        if not isinstance(vocabulary, str) or not vocabulary:
            raise ValueError("vocabulary must be a string of at least one character")
        if len(set(vocabulary)) < len(vocabulary):
            raise ValueError("vocabulary must hold each character once")
        if cell not in CELLS:
            raise ValueError(f"cell must be one of {tuple(CELLS)}, got {cell!r}")
        self.vocabulary, self.cell = vocabulary, cell
        self.hidden, self.layers = _positive("hidden", hidden), _positive("layers", layers)
        self.dropout = _probability("dropout", dropout)
        if self.dropout == 1:
            raise ValueError("dropout must be below 1: nothing would reach the softmax")
        V, options = len(vocabulary), {"forget_bias": 1.0} if cell == "lstm" else {}
        between = dropout if layers > 1 else 0.0
        self.recurrent = CELLS[cell](V, hidden, layers, dropout=between, dtype=dtype, seed=seed,
                                     **options)
        # Entries of U(-1/sqrt(H), 1/sqrt(H)) suit a sum of H inputs. Here one input is 1 and all
        # others 0: at that size the network hardly sees its text in the first epochs (819,000
        # characters of rnnfast train's default text led a GRU to 3.27 bits per character; from
        # U(-1, 1), to 2.08).
        self.recurrent.params["weight_ih_l0"] *= math.sqrt(hidden)
        # One generator for all random numbers of training: its state is all that a checkpoint
        # needs to know of them.
        self.training_rng = self.recurrent.training_rng
        self.output = Linear(hidden, V, dtype=dtype, seed=int(self.training_rng.integers(2**63)))
        for name, part in (("recurrent", self.recurrent), ("output", self.output)):
            self.params |= {f"{name}.{k}": a for k, a in part.params.items()}
            self.grads |= {f"{name}.{k}": a for k, a in part.grads.items()}
        codes = _codes(vocabulary)
        self._index = np.full(int(codes.max()) + 1, -1, np.int32)
        self._index[codes] = np.arange(V)

    @property
    def config(self):
        """The arguments that make this model, dtype as a string, without the seed."""
        return {"vocabulary": self.vocabulary, "cell": self.cell, "hidden": self.hidden,
                "layers": self.layers, "dropout": self.dropout, "dtype": str(self.dtype)}

    # ---- text --------------------------------------------------------------------------------

    def encode(self, text):
        """Indices (len(text),) int32 of the characters; `UnknownCharacter` for a stranger.

        Examples
        --------
        >>> from rnnfast.charlm import CharLM
        >>> CharLM("abc", hidden=4).encode("cab").tolist()
        [2, 0, 1]
        """
        codes = _codes(text)
        ids = np.full(codes.shape, -1, np.int32)
        near = codes < len(self._index)
        ids[near] = self._index[codes[near]]
        if (ids < 0).any():
            at = int((ids < 0).argmax())
            raise UnknownCharacter(text[at], at)
        return ids

    def decode(self, ids):
        """The text that `encode` turns into `ids`."""
        return "".join(self.vocabulary[i] for i in np.ravel(ids))

    # ---- training and evaluation -------------------------------------------------------------

    def loss_and_grads(self, inputs, targets, state=None):
        """Mean negative log-likelihood of one window; adds its gradient into `grads`.

        Truncated BPTT: pass the returned state to the next window; gradients stop at its border.

        Parameters
        ----------
        inputs, targets : (T, B) integers
            Characters, and the ones that follow them.
        state : as returned, optional
            Where the window before ended; zero by default.

        Returns
        -------
        loss : float
            In nats per character; divide by ln 2 for bits.
        state : array, or (array, array) for an LSTM
        """
        y, state, tape = self.recurrent.forward(inputs, state)
        mask = None
        if self.dropout:
            keep = self.training_rng.random(y.shape, np.float32) >= self.dropout
            mask = keep * self.dtype.type(1 / (1 - self.dropout))
            y = y * mask
        logits, rows = self.output.forward(y)
        loss, dlogits = losses.softmax_cross_entropy(logits, targets, inplace=True)
        dy = self.output.backward(rows, dlogits)
        if mask is not None:
            dy *= mask
        self.recurrent.backward(tape, dy, need_dx=False)
        return float(loss), state

    def evaluate(self, ids, *, state=None, chunk=256):
        """Bits per character of a text, the state carried from its first character to its last.

        Parameters
        ----------
        ids : (N,) or (N, B) integers
            A text, or B texts of equal length side by side, N >= 2. The first character of each
            is only read.
        state : as from `loss_and_grads`, optional
            Zero by default.
        chunk : int
            Time steps computed at once: changes memory, not the result up to rounding.

        Returns
        -------
        float
            Mean of -log2 p(character | all before it).
        """
        ids = np.asarray(ids)
        ids = ids[:, None] if ids.ndim == 1 else ids
        if ids.ndim != 2 or len(ids) < 2 or not ids.shape[1]:
            raise ValueError(f"evaluate: ids must be (N,) or (N, B) with N >= 2, got {ids.shape}")
        total, chunk = 0.0, _positive("chunk", chunk)
        for start in range(0, len(ids) - 1, chunk):
            stop = min(start + chunk, len(ids) - 1)
            y, state = self.recurrent(ids[start:stop], state)
            nats, _ = losses.softmax_cross_entropy(
                self.output(y), ids[start + 1 : stop + 1], reduction="sum", inplace=True)
            total += float(nats)
        return total / (math.log(2) * (len(ids) - 1) * ids.shape[1])

    # ---- sampling ----------------------------------------------------------------------------

    def generate(self, length, prime="", temperature=1.0, seed=0):
        """As `sample`, one character at a time: an iterator."""
        length = _positive("length", length, least=0)
        if not 0 < temperature < math.inf:
            raise ValueError(f"temperature must be positive and finite, got {temperature}")
        first = "\n" if "\n" in self.vocabulary else self.vocabulary[0]
        ids = self.encode(prime or first)[:, None]
        return self._generate(length, ids, float(temperature), np.random.default_rng(seed))

    def _generate(self, length, ids, temperature, rng):
        state = None
        for _ in range(length):
            y, state = self.recurrent(ids, state)
            z = self.output(y[-1, 0]).astype(np.float64)
            # The largest becomes 0 before the division, so that a temperature near 0 sends all
            # others to -inf and none to +inf.
            with np.errstate(over="ignore"):
                z = (z - z.max()) / temperature
            cumulative = np.cumsum(losses.softmax(z))
            u = rng.random() * cumulative[-1]
            k = int(np.searchsorted(cumulative, u, side="right"))
            yield self.vocabulary[k]
            ids = np.array([[k]])

    def sample(self, length, prime="", temperature=1.0, seed=0):
        """Text drawn from the model, each character from softmax(logits / temperature).

        Parameters
        ----------
        length : int
            Characters to draw.
        prime : str
            Text the model reads first; it is not part of the result. Where it is empty the model
            reads a line break, or the first character of the vocabulary if it knows none.
        temperature : float
            Positive. 1: the model's distribution; towards 0: always the most probable character;
            above 1: more surprising.
        seed : int
            The same seed gives the same text.

        Returns
        -------
        str
            Of `length` characters.

        Raises
        ------
        ValueError
            For a temperature that is not positive, or (`UnknownCharacter`) a prime with a
            character that is not in the vocabulary.

        Examples
        --------
        >>> from rnnfast.charlm import CharLM
        >>> model = CharLM("abc", hidden=4, seed=1)
        >>> model.sample(8, seed=2) == model.sample(8, seed=2)
        True
        """
        return "".join(self.generate(length, prime, temperature, seed))

    def __repr__(self):
        return (f"CharLM({len(self.vocabulary)} characters, cell={self.cell!r}, "
                f"hidden={self.hidden}, layers={self.layers}, dropout={self.dropout}, "
                f"dtype={self.dtype})")
