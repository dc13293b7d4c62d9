"""scikit-learn estimators for sequences: classifier, regressor, tagger and forecaster.

The networks are those of `rnnfast.models`; here are their training, the reading of what
scikit-learn users pass, and persistence. Needs the extra ``rnnfast[sklearn]``. Guide:
docs/sklearn.md.
"""

import importlib
import math
from contextlib import contextmanager
from numbers import Integral, Real
from typing import NamedTuple

import numpy as np
from joblib import Parallel, delayed, effective_n_jobs
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, _fit_context
from sklearn.metrics import accuracy_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import Interval, Options, StrOptions
from sklearn.utils.class_weight import compute_sample_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data

from rnnfast import _checkpoint, _kernels, clip_grad_norm, get_num_threads, losses, models, optim
from rnnfast._text import InputError
from rnnfast.layers import GRU, LSTM, RNN

__all__ = ["SequenceClassifier", "SequenceForecaster", "SequenceRegressor", "SequenceTagger",
           "windows"]  # fmt: skip

CELLS = {"gru": GRU, "lstm": LSTM, "rnn": RNN}
SOLVERS = {"adam": optim.Adam, "adamw": optim.AdamW, "rmsprop": optim.RMSprop, "sgd": optim.SGD}
#: Sequences that one call of the network scores; what threads share. Fixed, so that a result does
#: not depend on n_jobs.
CHUNK = 256
KIND = "rnnfast-sklearn"


class _Sequences(NamedTuple):
    """Sequence k is rows[starts[k] : starts[k] + lengths[k]]; sequences may overlap."""

    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    @classmethod
    def adjoining(cls, rows, lengths):
        """Sequences that lie one after the other."""
        lengths = np.asarray(lengths, np.int64)
        return cls(rows, lengths.cumsum() - lengths, lengths)

    def select(self, index):
        """Some of the sequences, of the same rows."""
        return self._replace(starts=self.starts[index], lengths=self.lengths[index])

    def batch(self):
        """(T, B, ...); past a sequence's end stands anything."""
        at = self.starts + np.arange(max(1, self.lengths.max()))[:, None]
        return self.rows[np.minimum(at, len(self.rows) - 1)]

    def last(self):
        """The last row of each sequence."""
        return self.rows[self.starts + self.lengths - 1]

    def within(self):
        """(T, B) bool: which entries of `batch` belong to a sequence."""
        return np.arange(max(1, self.lengths.max()))[:, None] < self.lengths


class _Data(NamedTuple):
    """Inputs, targets and weights of the same sequences.

    `fit` makes the mean weight 1; `partial_fit` takes weights as they are, since only the caller
    knows what those of the other calls are.
    """

    x: _Sequences
    y: _Sequences
    w: _Sequences

    def select(self, index):
        return _Data(*(part.select(index) for part in self))


def _as_items(X):
    """The sequences of a list or object array of arrays, else None: a table or a 3-D array.

    Plain lists of numbers of one length are the rows of a table, as everywhere in scikit-learn.
    """
    if isinstance(X, np.ndarray):
        if X.dtype != object or X.ndim != 1:
            return None
    elif not isinstance(X, list | tuple):
        return None
    if not len(X) or not all(hasattr(a, "__len__") and not isinstance(a, str | dict) for a in X):
        return None
    if all(hasattr(a, "ndim") for a in X) or len({len(a) for a in X}) > 1:
        return [np.asarray(a) for a in X]
    return None


def _layout(X):
    """What X is: "list" of arrays, "array" of three dimensions, or "table" (also of one)."""
    if _as_items(X) is not None:
        return "list"
    return "array" if _ndim(X) == 3 else "table"


def _ndim(X):
    """Dimensions of anything array-like that is not ragged."""
    return np.ndim(X[:1]) if isinstance(X, list | tuple) else getattr(X, "ndim", 2)


def _per_step(owner, name, values, lengths):
    """One row for each step of sequences of these lengths, from an array or a list of arrays."""
    if isinstance(values, np.ndarray) and values.dtype != object:
        items = values
    else:
        items = [np.asarray(v) for v in values]
    if len(items) != len(lengths):
        raise ValueError(f"{owner}: X has {len(lengths)} sequences, {name} has {len(items)}")
    for k, (item, n) in enumerate(zip(items, lengths, strict=True)):
        if item.ndim == 0 or len(item) != n:
            raise ValueError(f"{owner}: {name}[{k}] must have an entry for each of the {n} steps "
                             f"of X[{k}], got shape {item.shape}")  # fmt: skip
    return np.concatenate(list(items))


def _ragged(x, inputs):
    """Lengths for the network; None, which saves it the sorting, where all are whole."""
    return None if x.lengths.min() == len(inputs) else x.lengths


@contextmanager
def _threads(n):
    """Let calls on this thread use n threads at most."""
    before = _kernels.set_share(n)
    try:
        yield
    finally:
        _kernels.set_share(before)


def _need(name):
    """A library of the extra, imported where it is used."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise ImportError(f'{name} is not installed: pip install "rnnfast[sklearn]"') from None


def _store(estimator, arguments):
    """Keep the arguments of __init__ as they are, which is all that scikit-learn lets it do."""
    vars(estimator).update({k: v for k, v in arguments.items() if k != "self"})


def _moments(rows, weight=None):
    """Weighted mean and standard deviation of each column; 1 where it is constant."""
    rows = np.asarray(rows, np.float64)
    mean = np.average(rows, axis=0, weights=weight)
    scale = np.sqrt(np.average((rows - mean) ** 2, axis=0, weights=weight))
    return mean, np.where(scale > 1e-12 * np.abs(mean), scale, 1.0)


def windows(series, window, horizon=1):
    """Every stretch of `window` steps of a series, and the `horizon` steps that follow it.

    Parameters
    ----------
    series : (N, F) or (N,) array
    window, horizon : int
        W and h, at least 1; W + h <= N.

    Returns
    -------
    X : (N - W - h + 1, W, F) or (..., W) array
        A read-only view: nothing is copied.
    y : (N - W - h + 1, h, F) or (..., h) array

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import windows
    >>> X, y = windows(np.arange(6), window=3, horizon=2)
    >>> X.tolist(), y.tolist()
    ([[0, 1, 2], [1, 2, 3]], [[3, 4], [4, 5]])
    """
    series = np.asarray(series)
    if window < 1 or horizon < 1:
        raise ValueError(f"windows: window and horizon must be at least 1, got {window}, {horizon}")
    if series.ndim not in (1, 2) or len(series) < window + horizon:
        raise ValueError(f"windows: series must be (N,) or (N, F) with N >= {window + horizon}, "
                         f"got {series.shape}")  # fmt: skip
    both = np.lib.stride_tricks.sliding_window_view(series, window + horizon, axis=0)
    both = np.moveaxis(both, -1, 1)
    return both[:, :window], both[:, window:]


class _SequenceEstimator(BaseEstimator):
    """What the four estimators share; `SequenceClassifier` documents the parameters."""

    _parameter_constraints = {  # noqa: RUF012  scikit-learn reads it from the class
        "hidden_size": [Interval(Integral, 1, None, closed="left")],
        "cell": [StrOptions(set(CELLS))],
        "num_layers": [Interval(Integral, 1, None, closed="left")],
        "bidirectional": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "n_tokens": [Interval(Integral, 1, None, closed="left"), None],
        "standardize": ["boolean"],
        "solver": [StrOptions(set(SOLVERS))],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "max_grad_norm": [Interval(Real, 0, None, closed="neither"), None],
        "shuffle": ["boolean"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"),
                             Options(Real, {np.inf})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "warm_start": ["boolean"],
        "dtype": [StrOptions({"float32", "float64"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "n_jobs": [Integral, None],
    }  # fmt: skip

    _model = models.SequenceToOne
    _output = "linear"

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags

    @property
    def _me(self):
        return type(self).__name__

    # ---- reading what is passed ------------------------------------------------------------

    def _tokens(self):
        """How many classes the entries of X may have, None for real numbers."""
        return self.n_tokens

    def _read(self, X, reset):
        """X as `_Sequences` of rows as they came, checked; `reset` where the first fit reads."""
        tokens = self._tokens() if reset else self._built["tokens"]
        real = {"dtype": None if tokens else [np.float64, np.float32], "input_name": "X"}
        layout = _layout(X)
        if layout == "list":
            items = _as_items(X)
            widths = {a.shape[1:] for a in items if len(a)}
            if len(widths) > 1 or any(a.ndim not in (1, 2) for a in items):
                raise ValueError(f"{self._me}: sequences must all be (T,) or (T, I) of one I, "
                                 f"got shapes {[a.shape for a in items[:5]]}")  # fmt: skip
            lengths = [len(a) for a in items]
            rows = np.concatenate([a for a in items if len(a)] or [np.empty((0, 1))])
            rows = check_array(rows, ensure_2d=False, estimator=self, **real)
        elif layout == "table":
            lengths, rows = self._read_table(X, reset, real)
        else:
            X = check_array(X, ensure_2d=False, allow_nd=True, estimator=self, **real)
            if 0 in X.shape:
                raise ValueError(f"{self._me}: X must have steps and features, got {X.shape}")
            lengths, rows = np.full(len(X), X.shape[1]), X.reshape(-1, X.shape[2])
        rows = rows[:, None] if rows.ndim == 1 else rows
        if reset:
            self._table = layout == "table"
            if not self._table:
                self.n_features_in_ = rows.shape[1]
                vars(self).pop("feature_names_in_", None)
        if tokens:
            rows = self._check_tokens(rows, tokens)
        elif not reset and rows.shape[1] != self._built["input_size"]:
            raise ValueError(f"X has {rows.shape[1]} features at each step, but {self._me} is "
                             f"expecting {self._built['input_size']} features")  # fmt: skip
        return _Sequences.adjoining(rows, lengths)

    def _read_table(self, X, reset, real):
        """A 2-D array: each row a sequence of one feature."""
        if reset or self._table:
            real.pop("input_name")
            X = validate_data(self, X, reset=reset, **real)
        else:
            X = check_array(X, estimator=self, **real)
        return np.full(len(X), X.shape[1]), X.reshape(-1)

    def _check_tokens(self, rows, tokens):
        """(N,) of (N, 1)."""
        if rows.dtype.kind not in "iu" or rows.shape[1] != 1:
            raise ValueError(f"{self._me}: with n_tokens, X must hold integers, one a step; "
                             f"got {rows.shape[1]} of {rows.dtype}")  # fmt: skip
        if rows.min() < 0 or rows.max() >= tokens:
            raise ValueError(f"{self._me}: X must lie in [0, {tokens}), "
                             f"got {rows.min()} to {rows.max()}")  # fmt: skip
        return rows[:, 0]

    def _scaled(self, x):
        """The rows as the network takes them."""
        if self._built["tokens"]:
            return x
        rows = x.rows
        if self.input_mean_ is not None:
            rows = (rows - self.input_mean_) / self.input_scale_
        return x._replace(rows=np.ascontiguousarray(rows, self.network_.dtype))

    def _sample_weight(self, sample_weight, n):
        """(n,) weights or None."""
        if sample_weight is None:
            return None
        weight = check_array(sample_weight, ensure_2d=False, dtype=np.float64,
                             input_name="sample_weight", estimator=self)  # fmt: skip
        if weight.shape != (n,):
            raise ValueError(f"{self._me}: sample_weight must have shape {(n,)}, "
                             f"got {weight.shape}")  # fmt: skip
        if weight.min() < 0 or not weight.any():
            raise ValueError(f"{self._me}: sample_weight must be at least 0, and not all zero")
        return weight

    # ---- the network -----------------------------------------------------------------------

    def _build(self):
        """Network and optimiser as `_built` describes them."""
        b = self._built
        options = {"init": "keras", "dtype": b["dtype"], "seed": b["seeds"][0]}
        layer = CELLS[b["cell"]](
            b["input_size"], b["hidden_size"], b["num_layers"], dropout=b["dropout"],
            bidirectional=b["bidirectional"], **options)  # fmt: skip
        self.network_ = self._model(layer, b["outputs"], self._output, seed=b["seeds"][1])
        self._new_optimizer()

    def _new_optimizer(self):
        b = self._built
        options = {"momentum": 0.9, "nesterov": True} if b["solver"] == "sgd" else {}
        self._optimizer = SOLVERS[b["solver"]](
            self.network_, lr=b["lr"], weight_decay=b["weight_decay"], **options)  # fmt: skip

    def _start(self, input_size, outputs):
        """A new network from the parameters, with its generator of random numbers."""
        seed = check_random_state(self.random_state).randint(np.iinfo(np.int32).max)
        self._rng = np.random.default_rng(seed)
        self._built = {
            "cell": self.cell, "input_size": int(input_size), "hidden_size": int(self.hidden_size),
            "num_layers": int(self.num_layers), "dropout": float(self.dropout),
            "bidirectional": bool(self.bidirectional), "dtype": self.dtype,
            "outputs": int(outputs), "tokens": self._tokens(),
            "seeds": [int(s) for s in self._rng.integers(2**31, size=2)],
            "solver": self.solver, "lr": float(self.learning_rate_init),
            "weight_decay": float(self.weight_decay),
        }  # fmt: skip
        self._build()
        self.loss_curve_, self.validation_loss_curve_ = [], []
        self.t_ = 0

    def _forward(self, x, keep):
        """(z, tape): the outputs before their function."""
        inputs = self._inputs(x)
        return self.network_._run(inputs, _ragged(x, inputs), keep)

    def _inputs(self, x):
        """(T, B, I), or (T, B) integers."""
        return x.batch()

    def _targets(self, y):
        """(steps, B, K)."""
        return y.batch()

    def _loss(self, z, y, w):
        """(E, dE/dz): weighted quadratic error, mean over the sequences."""
        target = self._targets(y).swapaxes(0, 1).reshape(z.shape)
        each, dz = losses.quadratic_error(z, np.ascontiguousarray(target), reduction="none")
        weight = w.batch()[0] / len(z)
        return float(each @ weight), dz * weight[:, None].astype(z.dtype)

    def _outputs(self, x):
        """z of all sequences, a list of chunks."""
        x, n = self._scaled(x), self._n_threads()
        index = np.arange(len(x.lengths))
        chunks = [index[k : k + CHUNK] for k in range(0, len(index), CHUNK)]
        workers = max(1, min(n, len(chunks)))

        def score(at):
            with _threads(n // workers):
                return self._forward(x.select(at), False)[0]

        if workers == 1:
            return [score(at) for at in chunks]
        run = Parallel(n_jobs=workers, require="sharedmem")  # our kernels release the GIL
        return run(delayed(score)(at) for at in chunks)

    def _n_threads(self):
        """What `n_jobs` comes to: as joblib reads it, of the threads that there are for us."""
        return min(effective_n_jobs(self.n_jobs), get_num_threads())

    # ---- training --------------------------------------------------------------------------

    def _goes_on(self, incremental):
        """Whether training continues the network there is."""
        return hasattr(self, "network_") and (incremental or self.warm_start)

    def _train(self, data, held, incremental):
        """Train on scaled data: one epoch where incremental, else `max_iter` at most."""
        if not incremental:
            self._built |= {"solver": self.solver, "lr": float(self.learning_rate_init),
                            "weight_decay": float(self.weight_decay)}  # fmt: skip
            self._new_optimizer()
        best, since, weights = math.inf, 0, None
        before, epochs = len(self.loss_curve_), 1 if incremental else self.max_iter
        bar = _progress(self.verbose and not incremental, self._me, epochs)
        with _threads(self._n_threads()), bar as show:
            for _ in range(epochs):
                loss = self._epoch(data)
                self.loss_curve_.append(loss)
                if held is not None:
                    loss = self._evaluate(held)
                    self.validation_loss_curve_.append(loss)
                since = 0 if loss < best - self.tol else since + 1
                if loss < best:
                    best = loss
                    weights = self.network_.state_dict() if held is not None else None
                show(self.loss_curve_[-1], loss if held is not None else None)
                if since >= self.n_iter_no_change:
                    break
        if weights is not None:
            self.network_.load_state_dict(weights)
        done = len(self.loss_curve_) - before
        self.n_iter_ = self.n_iter_ + 1 if incremental and self.t_ else done
        self.loss_, self.best_loss_ = self.loss_curve_[-1], best
        self.t_ += done * len(data.x.lengths)
        return self

    def _epoch(self, data):
        """One pass over the data; the mean loss."""
        n, total = len(data.x.lengths), 0.0
        order = self._rng.permutation(n) if self.shuffle else np.arange(n)
        for k in range(0, n, self.batch_size):
            x, y, w = data.select(order[k : k + self.batch_size])
            self._optimizer.zero_grad()
            z, tape = self._forward(x, True)
            loss, dz = self._loss(z, y, w)
            if not math.isfinite(loss):
                raise FloatingPointError(f"{self._me}: the loss is {loss}; a smaller "
                                         "learning_rate_init may help")  # fmt: skip
            self.network_.backward(tape, dz, need_dx=False)
            if self.max_grad_norm is not None:
                clip_grad_norm(self.network_.grads, self.max_grad_norm)
            self._optimizer.step()
            total += loss * int(w.lengths.sum())
        return total / int(data.w.lengths.sum())

    def _evaluate(self, data):
        """The mean loss, nothing learnt."""
        n, total = len(data.x.lengths), 0.0
        for k in range(0, n, CHUNK):
            x, y, w = data.select(np.arange(k, min(n, k + CHUNK)))
            total += self._loss(self._forward(x, False)[0], y, w)[0] * int(w.lengths.sum())
        return total / int(data.w.lengths.sum())

    def _split(self, data, labels=None):
        """(training, validation) data, the latter None without early stopping."""
        if not self.early_stopping:
            return data, None
        index = np.arange(len(data.x.lengths))
        seed = int(self._rng.integers(2**31))
        kept, held = train_test_split(index, test_size=self.validation_fraction,
                                      random_state=seed, stratify=labels)  # fmt: skip
        return data.select(kept), data.select(held)

    # ---- persistence -----------------------------------------------------------------------

    def __getstate__(self):
        """Arrays, numbers and strings only: what skops and safetensors hold without a pickle."""
        state = dict(super().__getstate__())
        if "network_" in state:
            network, optimizer = state.pop("network_"), state.pop("_optimizer")
            state["_weights"] = network.state_dict()
            state["_optimizer_state"] = optimizer.state_dict()
            generators = (state.pop("_rng"), network.parts["layer"].training_rng)
            state["_random"] = [g.bit_generator.state for g in generators]
        return state

    def __setstate__(self, state):
        state = dict(state)
        weights, random = state.pop("_weights", None), state.pop("_random", None)
        optimizer = state.pop("_optimizer_state", None)
        super().__setstate__(state)
        if weights is not None:
            self._rng = np.random.default_rng(0)
            self._build()
            self.network_.load_state_dict(weights)
            self._optimizer.load_state_dict(optimizer)
            generators = (self._rng, self.network_.parts["layer"].training_rng)
            for generator, was in zip(generators, random, strict=True):
                generator.bit_generator.state = was

    def save(self, path):
        """Write the fitted estimator as a safetensors file: arrays and JSON, never a pickle.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        TypeError
            Where a parameter has no JSON form, such as a RandomState as random_state.
        """
        check_is_fitted(self)
        _need("safetensors")
        tensors = {}
        tree = _to_json(self.__getstate__(), tensors)
        _checkpoint._write(path, KIND, tensors, estimator=self._me, state=tree)

    @classmethod
    def load(cls, path):
        """The estimator that `save` wrote.

        Raises
        ------
        ValueError
            Where the file is damaged, or holds something else; it is named.
        """
        _need("safetensors")
        try:
            tensors, metadata = _checkpoint._read(path, KIND)
        except InputError as error:
            raise ValueError(str(error)) from None
        name = metadata.get("estimator", cls.__name__)
        if name != cls.__name__:
            raise ValueError(f"{path}: holds a {name}, not a {cls.__name__}")
        self = cls.__new__(cls)
        try:
            self.__setstate__(_from_json(metadata["state"], tensors))
            check_is_fitted(self, "network_")
        except (KeyError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: damaged ({type(error).__name__}: {error})") from None
        return self


def _to_json(value, tensors):
    """A tree of JSON values in which numbers of arrays are replaced by names in `tensors`."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind in "OUS":
            kind = "O" if value.dtype.kind == "O" else "U"
            return {"array": [_to_json(v, tensors) for v in value.tolist()], "dtype": kind}
        name = str(len(tensors))
        tensors[name] = np.ascontiguousarray(value)
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, _to_json(v, tensors)] for key, v in value.items()]}
    if isinstance(value, list | tuple):
        return [_to_json(v, tensors) for v in value]
    if isinstance(value, np.generic):
        return value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"a {type(value).__name__} cannot be saved: {value!r}")


def _from_json(value, tensors):
    if isinstance(value, list):
        return [_from_json(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return np.array(tensors[value["tensor"]])
    if "array" in value:
        return np.array(_from_json(value["array"], tensors), dtype=value["dtype"])
    return {key: _from_json(v, tensors) for key, v in value["dict"]}


class _progress:
    """A bar of epochs with their losses, or nothing."""

    def __init__(self, wanted, name, epochs):
        self.bar = None
        if wanted:
            tqdm = _need("tqdm").tqdm

            self.bar = tqdm(total=epochs, desc=name, unit="epoch")

    def __enter__(self):
        return self.show

    def __exit__(self, *error):
        if self.bar is not None:
            self.bar.close()

    def show(self, loss, held):
        if self.bar is not None:
            losses = {"loss": f"{loss:.4g}"} | ({} if held is None else {"held out": f"{held:.4g}"})
            self.bar.set_postfix(losses, refresh=False)
            self.bar.update()


class _Labels(_SequenceEstimator):
    """What classifier and tagger share: classes, their weights, and cross-entropy."""

    _parameter_constraints = _SequenceEstimator._parameter_constraints | {
        "class_weight": [StrOptions({"balanced"}), dict, None],
    }
    _output = "softmax"

    def __init__(self, hidden_size=32, *, cell="gru", num_layers=1, bidirectional=False,
                 dropout=0.0, n_tokens=None, standardize=True, class_weight=None, solver="adam",
                 weight_decay=0.0, learning_rate_init=0.01, batch_size=32, max_iter=100,
                 max_grad_norm=1.0, shuffle=True, tol=1e-4, n_iter_no_change=10,
                 early_stopping=False, validation_fraction=0.1, warm_start=False, dtype="float32",
                 random_state=None, verbose=False, n_jobs=None):  # fmt: skip
        _store(self, locals())

    def _labels(self, y, lengths):
        """All labels, one after the other, and how many each sequence has."""
        raise NotImplementedError

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Train.

        Parameters
        ----------
        X : sequences
            As the class describes.
        y : labels
            As the class describes.
        sample_weight : (B,) array, optional
            At least 0; one a sequence.

        Returns
        -------
        self
        """
        return self._learn(X, y, sample_weight, False)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, classes=None, sample_weight=None):
        """One pass over these sequences, on top of what was learnt before; no early stopping.

        Parameters
        ----------
        X, y, sample_weight
            As in `fit`. The first call fixes the standardisation of the inputs.
        classes : array, optional
            All labels there will ever be; by default those of the first call. Later calls may
            repeat it.

        Returns
        -------
        self
        """
        if self.class_weight == "balanced":
            raise ValueError(f"{self._me}: class_weight 'balanced' needs all labels at once: "
                             "pass a dict to partial_fit")  # fmt: skip
        if classes is not None and hasattr(self, "network_") and not np.array_equal(
                np.unique(classes), self.classes_):  # fmt: skip
            raise ValueError(f"{self._me}: classes is {np.unique(classes)}, earlier calls had "
                             f"{self.classes_}")  # fmt: skip
        return self._learn(X, y, sample_weight, True, classes)

    def _learn(self, X, y, sample_weight, incremental, classes=None):
        first = not self._goes_on(incremental)
        if y is None:
            raise ValueError(f"{self._me} requires y to be passed, but the target y is None.")
        x = self._read(X, first)
        labels, counts = self._labels(y, x.lengths)
        check_classification_targets(labels)
        if first:
            self.classes_ = np.unique(labels if classes is None else classes)
        codes = np.searchsorted(self.classes_, labels)
        known = self.classes_[np.minimum(codes, len(self.classes_) - 1)] == labels
        if not np.all(known):
            raise ValueError(f"{self._me}: y has the label {labels[~known].tolist()[0]!r}, which "
                             f"is not among the classes {self.classes_}")  # fmt: skip
        given = self._sample_weight(sample_weight, len(x.lengths))
        if first:
            tokens = self._tokens()
            self.input_mean_ = self.input_scale_ = None
            if self.standardize and not tokens:
                per_row = None if given is None else np.repeat(given, x.lengths)
                self.input_mean_, self.input_scale_ = _moments(x.rows, per_row)
            self._start(tokens or x.rows.shape[1], len(self.classes_))
        weight = np.ones(len(codes)) if given is None else np.repeat(given, counts)
        if self.class_weight is not None:
            weight *= compute_sample_weight(self.class_weight, labels)
        if not weight.any():
            raise ValueError(f"{self._me}: class_weight and sample_weight leave only zero weights")
        if not incremental:
            weight /= weight.mean()
        y = _Sequences.adjoining(codes.astype(np.int64), counts)
        data = _Data(self._scaled(x), y, y._replace(rows=weight))
        data, held = self._split(data, self._strata(codes)) if not incremental else (data, None)
        return self._train(data, held, incremental)

    def _strata(self, codes):
        """What the validation share is stratified by."""

    def _loss(self, z, y, w):
        """(E, dE/dz): weighted cross-entropy, mean over the labels."""
        targets, within = y.batch(), y.within()
        weight = np.where(within, w.batch(), 0) / max(1, w.lengths.sum())
        loss, dz = losses.softmax_cross_entropy(
            z.reshape(*targets.shape, -1), np.where(within, targets, -100), weight=weight,
            reduction="sum")  # fmt: skip
        return loss, dz.reshape(z.shape)


class SequenceClassifier(ClassifierMixin, _Labels):
    """One label for each sequence.

    A recurrent network reads the sequence; its final state, or those of both directions, gives
    softmax(V s + c); cross-entropy is minimised over mini-batches.

    Parameters
    ----------
    hidden_size : int
        Units of each layer and direction.
    cell : {"gru", "lstm", "rnn"}
    num_layers : int
    bidirectional : bool
    dropout : float in [0, 1)
        Between layers, in training.
    n_tokens : int or None
        Where given, X holds integers in [0, n_tokens), one a step, which stand for one-hot vectors.
    standardize : bool
        Bring each feature to mean 0 and standard deviation 1 over all steps of the training data.
    class_weight : dict, "balanced" or None
        As everywhere in scikit-learn; multiplies sample_weight.
    solver : {"adam", "adamw", "rmsprop", "sgd"}
        sgd has Nesterov momentum of 0.9.
    weight_decay : float
        As in `rnnfast.optim`.
    learning_rate_init : float
    batch_size : int
        Sequences in a mini-batch.
    max_iter : int
        Epochs at most, in each call of `fit`.
    max_grad_norm : float or None
        Gradients are scaled together to this norm at most.
    shuffle : bool
        Draw a new order of the sequences for each epoch.
    tol, n_iter_no_change : float, int or inf
        Stop where the loss has not fallen by tol for so many epochs.
    early_stopping : bool
        Set a share of the sequences aside (stratified), judge by the loss on them, and end with
        the weights that were best there.
    validation_fraction : float in (0, 1)
    warm_start : bool
        `fit` goes on from the weights there are, with the standardisation and classes of the first
        fit.
    dtype : {"float32", "float64"}
        Of the network.
    random_state : int, RandomState or None
        An int gives the same bits each time.
    verbose : bool or int
        A progress bar (tqdm).
    n_jobs : int or None
        Threads of `fit` and of predictions, as everywhere in scikit-learn: None is 1 unless
        ``joblib.parallel_config`` says otherwise, -1 all; but no more than
        `rnnfast.get_num_threads`. The results do not depend on it.

    Attributes
    ----------
    classes_ : (C,) array
    network_ : rnnfast.models.SequenceToOne
    loss_curve_ : list of float
        The mean training loss of each epoch, all calls of warm starts and `partial_fit` included.
    validation_loss_curve_ : list of float
        The loss on the validation share after each epoch; empty without early stopping.
    loss_, best_loss_ : float
        The last training loss; the lowest loss among those that decide when to stop.
    n_iter_ : int
        Epochs of the last `fit`, and of each `partial_fit` since.
    t_ : int
        Sequences trained on so far, counted each time.
    n_features_in_ : int
        Columns of a 2-D X, else features of each step.
    input_mean_, input_scale_ : (I,) arrays or None
        The standardisation.

    Notes
    -----
    X is an array (B, T, I); or a list of arrays (T_i, I) or (T_i,), of any lengths; or a table
    (B, T), which is read as sequences of one feature and must keep its width. y is (B,).

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceClassifier
    >>> rng = np.random.default_rng(0)
    >>> X = [rng.standard_normal((n, 2)) for n in rng.integers(3, 9, 80)]
    >>> y = ["rising" if a[-1, 0] > a[0, 0] else "falling" for a in X]
    >>> clf = SequenceClassifier(16, random_state=0).fit(X, y)
    >>> clf.score(X, y) > 0.95, clf.predict_proba(X[:3]).shape
    (True, (3, 2))
    """

    def _labels(self, y, lengths):
        y = check_array(y, ensure_2d=False, dtype=None, input_name="y", estimator=self)
        y = column_or_1d(y, warn=True)
        if len(y) != len(lengths):
            raise ValueError(f"{self._me}: X has {len(lengths)} sequences, y has {len(y)} labels")
        return y, np.ones(len(y), np.int64)

    def _strata(self, codes):
        return codes

    def predict_proba(self, X):
        """Probabilities (B, C) of the classes in the order of ``classes_``."""
        check_is_fitted(self)
        return losses.softmax(np.concatenate(self._outputs(self._read(X, False))))

    def predict_log_proba(self, X):
        """Their logarithms."""
        return np.log(self.predict_proba(X))

    def predict(self, X):
        """The likeliest class of each sequence, (B,)."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


class SequenceTagger(_Labels):
    """One label for each step of each sequence.

    softmax(V h_t + c) at every step; with ``bidirectional`` each step is judged by all of the
    sequence. Cross-entropy is minimised over mini-batches, every step counting alike.

    Parameters
    ----------
    hidden_size, cell, num_layers, bidirectional, dropout, n_tokens, standardize, class_weight
        As in `SequenceClassifier`; a class weight counts for each step.
    solver, weight_decay, learning_rate_init, batch_size, max_iter, max_grad_norm, shuffle, tol
        As in `SequenceClassifier`.
    n_iter_no_change, early_stopping, validation_fraction, warm_start, dtype, random_state
        As in `SequenceClassifier`; the validation share is not stratified.
    verbose, n_jobs
        As in `SequenceClassifier`.

    Attributes
    ----------
    classes_, loss_curve_, validation_loss_curve_, loss_, best_loss_, n_iter_, t_, ...
        As in `SequenceClassifier`.
    network_ : rnnfast.models.SequenceTagger

    Notes
    -----
    X is as in `SequenceClassifier`. y is a list of arrays (T_i,) or an array (B, T); a column
    (B, 1) is the label of all steps of a sequence. Predictions are laid out like X: a list of
    arrays for a list, else an array.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceTagger
    >>> X = np.random.default_rng(0).standard_normal((60, 12))
    >>> y = (X.cumsum(axis=1) > 0).astype(int)  # is the sum so far positive?
    >>> tagger = SequenceTagger(16, random_state=0).fit(X, y)
    >>> tagger.score(X, y) > 0.95, tagger.predict(X).shape, tagger.predict_proba(X).shape
    (True, (60, 12), (60, 12, 2))
    """

    _model = models.SequenceTagger

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output, tags.target_tags.single_output = True, False
        return tags

    def _labels(self, y, lengths):
        if not isinstance(y, list | tuple):
            y = np.asarray(y)
            if y.dtype != object and y.ndim != 2:
                raise ValueError(f"{self._me}: y must be (B, T), or a list of arrays (T,); "
                                 f"got shape {y.shape}")  # fmt: skip
            if y.ndim == 2 and y.shape[1] == 1 and len(y) == len(lengths):
                y = np.repeat(y[:, 0], lengths)
                return self._checked(y), lengths
        return self._checked(_per_step(self._me, "y", y, lengths)), lengths

    def _checked(self, labels):
        return check_array(labels, ensure_2d=False, dtype=None, input_name="y", estimator=self)

    def _forward(self, x, keep):
        inputs = self._inputs(x)
        z, _, tape = self.network_._run(inputs, None, _ragged(x, inputs), keep)
        return z, tape

    def _probabilities(self, X):
        """(rows of probabilities, sequences)."""
        check_is_fitted(self)
        x = self._read(X, False)
        rows, k = [], 0
        for z in self._outputs(x):
            within = x.select(slice(k, k + z.shape[1])).within()
            rows.append(z.swapaxes(0, 1)[within.T])
            k += z.shape[1]
        return losses.softmax(np.concatenate(rows)), x

    def _like(self, X, rows, x):
        """Rows laid out as X was."""
        if _layout(X) == "list":
            return np.split(rows, x.lengths.cumsum()[:-1])
        return rows.reshape(len(x.lengths), -1, *rows.shape[1:])

    def predict_proba(self, X):
        """Probabilities of the classes at each step, (B, T, C), or a list of (T_i, C)."""
        rows, x = self._probabilities(X)
        return self._like(X, rows, x)

    def predict(self, X):
        """The likeliest class at each step, (B, T), or a list of (T_i,)."""
        rows, x = self._probabilities(X)
        return self._like(X, self.classes_[rows.argmax(axis=1)], x)

    def score(self, X, y, sample_weight=None):
        """The share of steps whose class is right, each sequence's steps weighted alike."""
        rows, x = self._probabilities(X)
        labels, _ = self._labels(y, x.lengths)
        weight = self._sample_weight(sample_weight, len(x.lengths))
        weight = None if weight is None else np.repeat(weight, x.lengths)
        return accuracy_score(labels, self.classes_[rows.argmax(axis=1)], sample_weight=weight)


class SequenceRegressor(RegressorMixin, _SequenceEstimator):
    """One number, or several, for each sequence.

    V s + c of the final state s; half the square error is minimised over mini-batches. Targets
    are standardised inside and predictions scaled back, so the losses are in units of the
    targets' variance.

    Parameters
    ----------
    hidden_size, cell, num_layers, bidirectional, dropout, n_tokens, standardize
        As in `SequenceClassifier`.
    solver, weight_decay, learning_rate_init, batch_size, max_iter, max_grad_norm, shuffle, tol
        As in `SequenceClassifier`.
    n_iter_no_change, early_stopping, validation_fraction, warm_start, dtype, random_state
        As in `SequenceClassifier`; the validation share is not stratified.
    verbose, n_jobs
        As in `SequenceClassifier`.

    Attributes
    ----------
    target_mean_, target_scale_ : (K,) arrays
    network_, loss_curve_, validation_loss_curve_, loss_, best_loss_, n_iter_, t_, ...
        As in `SequenceClassifier`.

    Notes
    -----
    X is as in `SequenceClassifier`, y is (B,) or (B, K); predictions have the shape of y.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceRegressor
    >>> X = np.random.default_rng(0).random((100, 10))
    >>> y = 1000 * X.max(axis=1)
    >>> reg = SequenceRegressor(random_state=0).fit(X, y)
    >>> reg.score(X, y) > 0.9, reg.predict(X).shape
    (True, (100,))
    """

    def __init__(self, hidden_size=32, *, cell="gru", num_layers=1, bidirectional=False,
                 dropout=0.0, n_tokens=None, standardize=True, solver="adam", weight_decay=0.0,
                 learning_rate_init=0.01, batch_size=32, max_iter=100, max_grad_norm=1.0,
                 shuffle=True, tol=1e-4, n_iter_no_change=10, early_stopping=False,
                 validation_fraction=0.1, warm_start=False, dtype="float32", random_state=None,
                 verbose=False, n_jobs=None):  # fmt: skip
        _store(self, locals())

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Train.

        Parameters
        ----------
        X : sequences
            As the class describes.
        y : (B,) or (B, K) array
        sample_weight : (B,) array, optional
            At least 0.

        Returns
        -------
        self
        """
        return self._learn(X, y, sample_weight, False)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y, sample_weight=None):
        """One pass over these sequences, on top of what was learnt before.

        Parameters as in `fit`. The first call fixes the standardisation of inputs and targets.
        """
        return self._learn(X, y, sample_weight, True)

    def _learn(self, X, y, sample_weight, incremental):
        first = not self._goes_on(incremental)
        if y is None:
            raise ValueError(f"{self._me} requires y to be passed, but the target y is None.")
        x = self._read(X, first)
        y = check_array(y, ensure_2d=False, dtype=np.float64, input_name="y", estimator=self)
        if len(y) != len(x.lengths):
            raise ValueError(f"{self._me}: X has {len(x.lengths)} sequences, y has {len(y)} rows")
        flat, y = y.ndim == 1, y.reshape(len(y), -1)
        weight = self._sample_weight(sample_weight, len(y))
        if first:
            self._flat = flat
            self.target_mean_, self.target_scale_ = _moments(y, weight)
            tokens = self._tokens()
            self.input_mean_ = self.input_scale_ = None
            if self.standardize and not tokens:
                per_row = None if weight is None else np.repeat(weight, x.lengths)
                self.input_mean_, self.input_scale_ = _moments(x.rows, per_row)
            self._start(tokens or x.rows.shape[1], y.shape[1])
        elif y.shape[1] != self._built["outputs"]:
            raise ValueError(f"{self._me}: y has {y.shape[1]} columns, earlier it had "
                             f"{self._built['outputs']}")  # fmt: skip
        rows = ((y - self.target_mean_) / self.target_scale_).astype(self.network_.dtype)
        weight = np.ones(len(y)) if weight is None else weight
        if not incremental:
            weight = weight / weight.mean()
        ones = np.ones(len(y), np.int64)
        data = _Data(self._scaled(x), _Sequences.adjoining(rows, ones),
                     _Sequences.adjoining(weight, ones))  # fmt: skip
        data, held = self._split(data) if not incremental else (data, None)
        return self._train(data, held, incremental)

    def predict(self, X):
        """(B,) or (B, K) float64."""
        check_is_fitted(self)
        z = np.concatenate(self._outputs(self._read(X, False))).astype(np.float64)
        y = z * self.target_scale_ + self.target_mean_
        return y[:, 0] if self._flat else y


class SequenceForecaster(_SequenceEstimator):
    """The next `horizon` steps of a series, from its last `window` steps.

    Trained on every window of the series and the steps that follow it. All steps of the forecast
    come at once from the final state, V s + c, so no error is fed back.

    Parameters
    ----------
    window, horizon : int
        W and h.
    relative : bool
        Read each window, and forecast, relative to the window's last step: for series with a trend,
        whose levels leave the range of the training data. Forecasts the series itself only.
    hidden_size, cell, num_layers, bidirectional, dropout, standardize
        As in `SequenceClassifier`; targets are always standardised inside.
    solver, weight_decay, learning_rate_init, batch_size, max_iter, max_grad_norm, shuffle, tol
        As in `SequenceClassifier`; a mini-batch has windows in place of sequences.
    n_iter_no_change, early_stopping, validation_fraction, warm_start, dtype, random_state
        As in `SequenceClassifier`; the validation share is the end of each series, and no step is a
        target of both shares.
    verbose, n_jobs
        As in `SequenceClassifier`.

    Attributes
    ----------
    target_mean_, target_scale_ : (K,) arrays
    network_, loss_curve_, validation_loss_curve_, loss_, best_loss_, n_iter_, t_, ...
        As in `SequenceClassifier`.

    Notes
    -----
    X is one series, (N,) or (N, F), its rows being time steps; or several, (B, N, F) or a list of
    (N_i, F) or (N_i,). y is laid out alike: the series to forecast from that of X; by default X
    itself. Rows are not samples here: of scikit-learn's splitters use TimeSeriesSplit.

    Examples
    --------
    >>> import numpy as np
    >>> from rnnfast.sklearn import SequenceForecaster
    >>> series = np.sin(np.arange(300) / 5)
    >>> model = SequenceForecaster(window=20, horizon=3, max_iter=20, random_state=0)
    >>> model.fit(series[:250]).predict(series[:250]).shape
    (3,)
    >>> model.score(series[250:]) > 0.95
    True
    """

    _parameter_constraints = {
        "window": [Interval(Integral, 1, None, closed="left")],
        "horizon": [Interval(Integral, 1, None, closed="left")],
        "relative": ["boolean"],
    } | {k: v for k, v in _SequenceEstimator._parameter_constraints.items() if k != "n_tokens"}

    def __init__(self, window=24, horizon=1, *, relative=False, hidden_size=32, cell="gru",
                 num_layers=1, bidirectional=False, dropout=0.0, standardize=True, solver="adam",
                 weight_decay=0.0, learning_rate_init=0.01, batch_size=32, max_iter=100,
                 max_grad_norm=1.0, shuffle=True, tol=1e-4, n_iter_no_change=10,
                 early_stopping=False, validation_fraction=0.1, warm_start=False, dtype="float32",
                 random_state=None, verbose=False, n_jobs=None):  # fmt: skip
        _store(self, locals())

    def _tokens(self):
        return None

    def _read_table(self, X, reset, real):
        """A 1-D or 2-D array: one series, its rows the steps."""
        if _ndim(X) == 1 and (reset or self._built["input_size"] == 1):
            X = np.asarray(X)[:, None]
        real.pop("input_name")
        X = validate_data(self, X, reset=reset, **real)
        return [len(X)], X

    def _steps(self, name, values, x, X):
        """One row a step of values laid out like X, checked."""
        values = _per_step(self._me, name, [values] if _layout(X) == "table" else values, x.lengths)
        return check_array(values, ensure_2d=False, dtype=np.float64, input_name=name,
                           estimator=self)  # fmt: skip

    def _series(self, X, y, reset):
        """Series of inputs and of targets, as they came."""
        x = self._read(X, reset)
        if y is None:
            if reset:
                one = _as_items(X)[0] if _layout(X) == "list" else X
                self._flat, self._own = _ndim(one) == 1, True
            if not self._own:
                raise ValueError(f"{self._me}: it forecasts y, which must be passed")
            return x, x
        if self.relative if reset else self._built["relative"]:
            raise ValueError(f"{self._me}: relative forecasts the series itself, y must be None")
        rows = self._steps("y", y, x, X)
        if reset:
            self._flat, self._own = rows.ndim == 1, False
        return x, x._replace(rows=rows.reshape(len(rows), -1))

    def _windows(self, x, y, window, horizon):
        """(windows, the steps after each, how many each series has)."""
        counts = np.maximum(x.lengths - window - horizon + 1, 0)
        n = int(counts.sum())
        if not n:
            raise ValueError(f"{self._me}: a series needs at least window + horizon = "
                             f"{window + horizon} steps, got n_samples={x.lengths.max()}")
        first = np.repeat(x.starts - (counts.cumsum() - counts), counts) + np.arange(n)
        return (x._replace(starts=first, lengths=np.full(n, window)),
                y._replace(starts=first + window, lengths=np.full(n, horizon)), counts)  # fmt: skip

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None, sample_weight=None):
        """Train.

        Parameters
        ----------
        X : (N,) or (N, F) array, or several series
        y : (N,) or (N, K) array, or several, optional
            The series to forecast; X itself by default.
        sample_weight : (N,) array, or several, optional
            At least 0, one a step; a window has the weight of its last step.

        Returns
        -------
        self
        """
        return self._learn(X, y, sample_weight, False)

    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X, y=None, sample_weight=None):
        """One pass over these series, on top of what was learnt before.

        Parameters as in `fit`. The first call fixes the standardisation.
        """
        return self._learn(X, y, sample_weight, True)

    def _learn(self, X, y, sample_weight, incremental):
        first = not self._goes_on(incremental)
        x, y = self._series(X, y, first)
        b = {} if first else self._built
        window, horizon = b.get("window", self.window), b.get("horizon", self.horizon)
        parts, ahead, counts = self._windows(x, y, window, horizon)
        weight = np.ones(len(x.rows))
        if sample_weight is not None:
            weight = self._steps("sample_weight", sample_weight, x, X)
            if weight.ndim != 1 or weight.min() < 0 or not weight[ahead.starts - 1].any():
                raise ValueError(f"{self._me}: sample_weight must be at least 0, one a step, and "
                                 "not all zero")  # fmt: skip
        if first:
            self.target_mean_, self.target_scale_ = _moments(y.rows, weight)
            if self.relative:
                change = y.rows[ahead.starts + horizon - 1] - y.rows[ahead.starts - 1]
                size = np.sqrt((np.asarray(change, np.float64) ** 2).mean(axis=0))
                self.target_scale_ = np.where(size > 0, size, 1.0)
            self.input_mean_ = self.input_scale_ = None
            if self.standardize:
                self.input_mean_, self.input_scale_ = (
                    (self.target_mean_, self.target_scale_) if self._own
                    else _moments(x.rows, weight))  # fmt: skip
            self._start(x.rows.shape[1], horizon * y.rows.shape[1])
            self._built |= {"window": int(window), "horizon": int(horizon),
                            "relative": bool(self.relative)}  # fmt: skip
        elif horizon * y.rows.shape[1] != b["outputs"]:
            raise ValueError(f"{self._me}: y has {y.rows.shape[1]} columns, earlier it had "
                             f"{b['outputs'] // horizon}")  # fmt: skip
        rows = ((y.rows - self.target_mean_) / self.target_scale_).astype(self.network_.dtype)
        if not incremental:
            weight = weight / weight[ahead.starts - 1].mean()
        ends = _Sequences(weight, ahead.starts - 1, np.ones(len(ahead.starts), np.int64))
        data, held = _Data(self._scaled(parts), ahead._replace(rows=rows), ends), None
        if self.early_stopping and not incremental:
            data, held = self._split_in_time(data, counts, horizon)
        return self._train(data, held, incremental)

    def _split_in_time(self, data, counts, horizon):
        """(training, validation) windows: the end of each series is held out."""
        held = np.ceil(counts * self.validation_fraction).astype(int)
        place = np.arange(len(data.x.lengths)) - np.repeat(counts.cumsum() - counts, counts)
        boundary = np.repeat(counts - held, counts)
        train, test = place < boundary - (horizon - 1), place >= boundary
        if not train.any():
            raise ValueError(f"{self._me}: no window is left to train on beside the validation "
                             f"share of {self.validation_fraction}")  # fmt: skip
        return data.select(np.flatnonzero(train)), data.select(np.flatnonzero(test))

    def _inputs(self, x):
        return x.batch() - x.last() if self._built["relative"] else x.batch()

    def _targets(self, y):
        return y.batch() - y.rows[y.starts - 1] if self._built["relative"] else y.batch()

    def _forecast(self, x):
        """(B, h, K) float64."""
        z = np.concatenate(self._outputs(x)).astype(np.float64)
        z = z.reshape(len(z), self._built["horizon"], -1) * self.target_scale_
        return z + (x.last()[:, None] if self._built["relative"] else self.target_mean_)

    def predict(self, X):
        """What follows the end of each series.

        Parameters
        ----------
        X : (N,) or (N, F) array, or several series
            The last `window` steps are read, or all where there are fewer.

        Returns
        -------
        (h, K) array, or (B, h, K) for several series
            Without the last axis where the series to forecast was one-dimensional in `fit`.
        """
        check_is_fitted(self)
        x = self._read(X, False)
        if not x.lengths.all():
            raise ValueError(f"{self._me}: a series must have at least one step")
        n = np.minimum(x.lengths, self._built["window"])
        y = self._forecast(x._replace(starts=x.starts + x.lengths - n, lengths=n))
        y = y[..., 0] if self._flat else y
        return y[0] if _layout(X) == "table" else y

    def score(self, X, y=None):
        """R² of the forecasts from every window of X, averaged over outputs and steps ahead."""
        check_is_fitted(self)
        b = self._built
        x, y = self._series(X, y, False)
        parts, ahead, _ = self._windows(x, y, b["window"], b["horizon"])
        truth = ahead.batch().swapaxes(0, 1)
        return r2_score(truth.reshape(len(truth), -1),
                        self._forecast(parts).reshape(len(truth), -1))  # fmt: skip

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        tags.target_tags.multi_output = True
        return tags
