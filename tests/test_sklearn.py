"""The scikit-learn estimators: scikit-learn's own checks, and what those do not look at."""

import copy
import pickle
import re
import subprocess
import sys
import threading
from contextlib import nullcontext

import numpy as np
import pytest

pytest.importorskip("sklearn")

import joblib
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import (
    GridSearchCV,
    TimeSeriesSplit,
    cross_val_predict,
    cross_val_score,
)
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.estimator_checks import (
    check_param_validation,
    check_sample_weight_equivalence_on_dense_data,
    parametrize_with_checks,
)

import rnnfast
from rnnfast.sklearn import (
    SequenceClassifier,
    SequenceForecaster,
    SequenceRegressor,
    SequenceTagger,
    windows,
)

ALL = [SequenceClassifier, SequenceTagger, SequenceRegressor, SequenceForecaster]
SMALL = {"hidden_size": 6, "max_iter": 3, "random_state": 0}


def ragged(n=40, features=2, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((k, features)) for k in rng.integers(1, 9, n)]


def targets(cls, X):
    """Something to learn from sequences of any lengths."""
    means = np.array([a.mean() for a in X])
    if cls is SequenceClassifier:
        return np.where(means > 0, "up", "down")
    if cls is SequenceTagger:
        return [np.where(a[:, 0] > 0, "up", "down") for a in X]
    return means if cls is SequenceRegressor else None


def series(n=120, features=2):
    t = np.arange(n)[:, None] + 7 * np.arange(features)
    return np.sin(t / 4) + np.random.default_rng(0).normal(0, 0.05, (n, features))


def fitted(cls, **options):
    """(estimator, what it predicts from)."""
    if cls is SequenceForecaster:
        X = series()
        return cls(8, 3, **(SMALL | options)).fit(X), X
    X = ragged()
    return cls(**(SMALL | options)).fit(X, targets(cls, X)), X


def same(a, b):
    """Equal to the bit, lists of arrays item by item."""
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype


# ---- scikit-learn's own checks -------------------------------------------------------------------

WEIGHTS = {"check_sample_weight_equivalence_on_dense_data":
           "mini-batches of a repeated set are other mini-batches; tested below in whole batches"}
ROWS_ARE_STEPS = {
    "check_sample_weight_equivalence_on_dense_data": "a series with a step repeated is another",
    "check_methods_sample_order_invariance": "rows are time steps, not samples",
    "check_methods_subset_invariance": "rows are time steps, not samples",
    "check_fit1d": "one dimension is one series of one feature",
}  # fmt: skip


@parametrize_with_checks(
    [SequenceClassifier(16, max_iter=40), SequenceRegressor(16, max_iter=40),
     SequenceTagger(8, max_iter=10), SequenceForecaster(3, 2, hidden_size=8, max_iter=10)],
    expected_failed_checks=lambda estimator: (
        ROWS_ARE_STEPS if isinstance(estimator, SequenceForecaster) else WEIGHTS),
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_estimator_checks(estimator, check, use_engine):
    # "fused": of all engines the one whose bits do not depend on who shares the batch, which
    # check_methods_subset_invariance asks for to 7 digits of float32 results
    use_engine("fused")
    check(estimator)


@pytest.mark.parametrize("cls", [SequenceClassifier, SequenceRegressor, SequenceTagger])
def test_a_weight_of_n_is_n_copies(cls):
    estimator = cls(8, dtype="float64", batch_size=1000, max_iter=5)
    check_sample_weight_equivalence_on_dense_data(cls.__name__, estimator)


@pytest.mark.parametrize("cls", ALL)
def test_parameters_are_validated(cls):
    check_param_validation(cls.__name__, cls())


# ---- what may be passed ----------------------------------------------------------------------


def test_lists_arrays_and_tables_of_the_same_numbers_agree(use_engine):
    use_engine("fused")
    table = np.random.default_rng(0).standard_normal((30, 7))
    y = table.max(axis=1)
    forms = [table, table[..., None], [row for row in table], table.tolist(),
             [row[:, None] for row in table]]  # fmt: skip
    results = [SequenceRegressor(**SMALL).fit(X, y).predict(X) for X in forms]
    assert all(same(results[0], other) for other in results[1:])


def test_a_sequence_is_judged_alone(use_engine):
    """Neither the batch nor what the other sequences' lengths are may matter."""
    use_engine("fused")
    for cls in (SequenceClassifier, SequenceRegressor, SequenceTagger):
        estimator, X = fitted(cls, bidirectional=True, num_layers=2)
        alone = [estimator.predict([a])[0] for a in X]
        assert same(list(estimator.predict(X)), alone)


@pytest.fixture
def four_threads():
    """As on a machine with four CPUs."""
    rnnfast.set_num_threads(4)
    yield
    rnnfast.set_num_threads(None)


@pytest.mark.parametrize("cls", ALL)
def test_n_jobs_changes_no_bit(cls, monkeypatch, use_engine, four_threads):
    """Neither of what is learnt, in layers that have work for several threads, nor of what is
    predicted, in several chunks or in one."""
    use_engine("fused")
    options = {"hidden_size": 96, "batch_size": 64, "bidirectional": True, "early_stopping": True,
               "max_iter": 2}  # fmt: skip
    models = [fitted(cls, n_jobs=n, **options) for n in (None, 3, -1)]
    one, X = models[0]
    many = [X] * 20 if cls is SequenceForecaster else X * 3
    for model, _ in models:
        assert model.loss_curve_ == one.loss_curve_
        assert model.validation_loss_curve_ == one.validation_loss_curve_
        for chunk in (256, 7):
            monkeypatch.setattr("rnnfast.sklearn.CHUNK", chunk)
            assert same(model.predict(many), one.predict(many))


@pytest.mark.parametrize("cls", ALL)
def test_n_jobs_is_the_number_of_threads(cls, monkeypatch, four_threads):
    """None is 1 outside of joblib's contexts, -1 all there are, and nobody gets more than that."""
    seen, forward = set(), cls._forward

    def look(self, x, keep):
        seen.add((threading.current_thread() is threading.main_thread(),
                  rnnfast.get_num_threads()))  # fmt: skip
        return forward(self, x, keep)

    monkeypatch.setattr(cls, "_forward", look)
    every = min(4, joblib.cpu_count())
    for n_jobs, context, want in ((None, None, 1), (3, None, 3), (-1, None, every), (64, None, 4),
                                  (None, 2, 2), (1, 2, 1)):  # fmt: skip
        with joblib.parallel_config(n_jobs=context) if context else nullcontext():
            model, X = fitted(cls, n_jobs=n_jobs, early_stopping=True)
            assert seen == {(True, want)}, n_jobs
            model.partial_fit(X, targets(cls, X))
            model.predict(X)  # one chunk: all threads are its
            assert seen == {(True, want)}, n_jobs
            seen.clear()
            many = [X] * 20 if cls is SequenceForecaster else X
            monkeypatch.setattr("rnnfast.sklearn.CHUNK", 5)  # 4 or 8 chunks
            model.predict(many)
            monkeypatch.setattr("rnnfast.sklearn.CHUNK", 256)
            assert seen == {(want == 1, 1)}, n_jobs
            seen.clear()
        assert rnnfast.get_num_threads() == 4
    with pytest.raises(ValueError, match="n_jobs"):
        fitted(cls, n_jobs=0)
    monkeypatch.setattr(cls, "_forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        fitted(cls, n_jobs=2)
    assert rnnfast.get_num_threads() == 4


def test_tokens_are_one_hot_vectors(use_engine):
    use_engine("fused")
    rng = np.random.default_rng(0)
    tokens = [rng.integers(0, 5, n) for n in rng.integers(1, 9, 40)]
    y = [int(a[0] == 2) for a in tokens]
    by_index = SequenceClassifier(n_tokens=5, **SMALL).fit(tokens, y)
    one_hot = [np.eye(5)[a] for a in tokens]
    dense = SequenceClassifier(standardize=False, **SMALL).fit(one_hot, y)
    assert np.allclose(by_index.predict_proba(tokens), dense.predict_proba(one_hot), atol=1e-5)
    table = np.stack([a[:1].repeat(4) for a in tokens])
    assert same(by_index.predict(table), by_index.predict(list(table)))
    for wrong in (table + 5, table - 5, table * 1.0, table[..., None].repeat(2, axis=2)):
        with pytest.raises(ValueError, match=r"n_tokens|must lie in \[0, 5\)"):
            by_index.predict(wrong)


def test_data_frames_keep_their_names():
    pd = pytest.importorskip("pandas")
    frame = pd.DataFrame(series(40, 3), columns=["a", "b", "c"])
    model = SequenceRegressor(**SMALL).fit(frame, frame["a"])
    assert model.feature_names_in_.tolist() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame[["b", "a", "c"]])
    forecaster = SequenceForecaster(5, 2, **SMALL).fit(frame)
    assert forecaster.predict(frame).shape == (2, 3)
    assert SequenceForecaster(5, 2, **SMALL).fit(frame["a"]).predict(frame["a"]).shape == (2,)


@pytest.mark.parametrize("X, message", [
    ([np.ones((3, 2)), np.ones((4, 3))], "of one I, got shapes"),
    ([np.ones((3, 2, 2))], "of one I, got shapes"),
    ([np.ones((0, 2)), np.ones((0, 2))], "0 sample"),
    (np.ones((4, 0, 2)), "must have steps and features"),
    ([np.array([[1.0, np.nan]]), np.ones((4, 2))], "NaN"),
    (np.full((4, 3, 2), np.inf), "infinity"),
])  # fmt: skip
def test_bad_input(X, message):
    with pytest.raises(ValueError, match=message):
        SequenceRegressor(**SMALL).fit(X, np.ones(len(X)))


def test_bad_targets():
    X = ragged(5)
    tagger, classifier = SequenceTagger(**SMALL), SequenceClassifier(**SMALL)
    with pytest.raises(ValueError, match=r"y\[1\] must have an entry for each of the"):
        tagger.fit(X, [np.zeros(len(X[0]))] + [np.zeros(50)] * 4)
    with pytest.raises(ValueError, match="X has 5 sequences, y has 4"):
        tagger.fit(X, [np.zeros(len(a)) for a in X[:4]])
    with pytest.raises(ValueError, match="must be \\(B, T\\), or a list"):
        tagger.fit(X, np.zeros(5))
    with pytest.raises(ValueError, match="X has 5 sequences, y has 4 labels"):
        classifier.fit(X, [0, 1, 0, 1])
    classifier.fit(X, [0, 1, 0, 1, 1])
    with pytest.raises(ValueError, match="features at each step"):
        classifier.predict([np.ones((4, 3))])
    with pytest.raises(ValueError, match="X has 5 sequences, y has 6 rows"):
        SequenceRegressor(**SMALL).fit(X, np.ones(6))


@pytest.mark.parametrize("cls", ALL)
def test_not_fitted(cls, tmp_path):
    with pytest.raises(NotFittedError):
        cls().predict(series())
    with pytest.raises(NotFittedError):
        cls().save(tmp_path / "model")


# ---- training ----------------------------------------------------------------------------------


def test_defaults_learn():
    """On each estimator a task that needs memory, beside what guessing gets."""
    rng = np.random.default_rng(0)
    X = [rng.standard_normal((n, 2)) for n in rng.integers(3, 12, 300)]
    train, test = X[:200], X[200:]

    def score(estimator, y):
        return estimator.set_params(random_state=0).fit(train, y[:200]).score(test, y[200:])

    first = [int(a[0, 0] > 0) for a in X]
    assert score(SequenceClassifier(), first) > 0.9 and 0.4 < np.mean(first) < 0.6
    largest = [1e4 + 500 * a[:, 1].max() for a in X]
    assert score(SequenceRegressor(), largest) > 0.9
    so_far = [a[:, 0].cumsum() > 0 for a in X]
    assert score(SequenceTagger(), so_far) > 0.9
    later = [np.full(len(a), a[-1, 0] > 0) for a in X]  # only the reverse direction can know
    assert score(SequenceTagger(bidirectional=True), later) > 0.9 > score(SequenceTagger(), later)


@pytest.mark.parametrize("relative", [False, True])
def test_forecaster_learns(relative):
    t = np.arange(400)
    y = 1e4 + 300 * np.sin(t / 3) + (50 * t if relative else 0)  # the trend leaves its range
    model = SequenceForecaster(20, 4, relative=relative, max_iter=40, random_state=0)
    model.fit(y[:300])
    X, truth = windows(y[300:], 20, 4)
    error = np.abs(model.predict(list(X)) - truth).mean()
    assert error < 0.1 * np.abs(X[:, -1:] - truth).mean()  # the last value again
    if relative:
        level = clone(model).set_params(relative=False).fit(y[:300])
        assert error < 0.1 * np.abs(level.predict(list(X)) - truth).mean()


def test_forecasting_one_series_from_another():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 2))
    y = np.roll(X[:, 0], 2) + np.roll(X[:, 1], 1)  # y[t + 1] = X[t - 1, 0] + X[t, 1]
    model = SequenceForecaster(5, 1, max_iter=40, random_state=0).fit(X[:250], y[:250])
    assert model.score(X[250:], y[250:]) > 0.95
    assert model.predict(X[:250]).shape == (1,)
    assert abs(model.predict(X[:250])[0] - y[250]) < 0.5
    with pytest.raises(ValueError, match="forecasts y, which must be passed"):
        model.score(X)
    with pytest.raises(ValueError, match="y must be None"):
        model.set_params(relative=True).fit(X, y)


def test_forecaster_takes_several_series():
    many = [series(40), series(60), series(3)]  # the last has no window: only forecasts
    model = SequenceForecaster(8, 3, **SMALL).fit(many)
    assert model.t_ == 3 * (40 - 10 + 60 - 10)
    assert model.predict(many).shape == (3, 3, 2)
    array = SequenceForecaster(8, 3, **SMALL).fit(np.stack([series(40)] * 2))
    assert array.predict(np.stack([series(40)] * 2)).shape == (2, 3, 2)
    with pytest.raises(ValueError, match="window \\+ horizon = 11 steps, got n_samples=3"):
        model.fit(series(3))


def test_windows():
    X, y = windows(series(20), 5, 2)
    assert X.shape == (14, 5, 2) and y.shape == (14, 2, 2)
    assert same(X[3], series(20)[3:8]) and same(y[3], series(20)[8:10])
    with pytest.raises(ValueError, match="N >= 7, got"):
        windows(series(6), 5, 2)
    with pytest.raises(ValueError, match="at least 1, got 0, 1"):
        windows(series(6), 0)


@pytest.mark.parametrize("cls", ALL)
def test_random_state_gives_the_bits_again(cls):
    options = {"dropout": 0.3, "num_layers": 2, "early_stopping": True}
    one, X = fitted(cls, **options)
    other, _ = fitted(cls, **options)
    assert one.loss_curve_ == other.loss_curve_ and same(one.predict(X), other.predict(X))
    assert fitted(cls, **(options | {"random_state": 1}))[0].loss_curve_ != one.loss_curve_


@pytest.mark.parametrize("cls", ALL)
def test_warm_start_goes_on(cls):
    whole, X = fitted(cls, max_iter=6)
    y = targets(cls, X)
    parts = cls(**whole.get_params()).set_params(max_iter=3, warm_start=True).fit(X, y)
    assert parts.loss_curve_ == whole.loss_curve_[:3] and parts.n_iter_ == 3
    parts.fit(X, y)
    assert len(parts.loss_curve_) == 6 and parts.n_iter_ == 3
    assert parts.loss_curve_[3] < parts.loss_curve_[0]
    assert len(parts.set_params(warm_start=False).fit(X, y).loss_curve_) == 3


@pytest.mark.parametrize("cls", ALL)
def test_partial_fit_is_an_epoch(cls):
    whole, X = fitted(cls, max_iter=4)
    y = targets(cls, X)
    parts = cls(**whole.get_params())
    for _ in range(4):
        parts.partial_fit(X, y)
    assert parts.loss_curve_ == whole.loss_curve_ and same(parts.predict(X), whole.predict(X))
    assert parts.n_iter_ == 4


def test_partial_fit_knows_all_classes():
    X = ragged(9)
    clf = SequenceClassifier(**SMALL).partial_fit(X[:6], [0, 1] * 3, classes=[0, 1, 2])
    clf.partial_fit(X[6:], [2, 2, 2])
    assert clf.predict_proba(X).shape == (9, 3)
    with pytest.raises(ValueError, match="label 3, which is not among the classes"):
        clf.partial_fit(X[6:], [2, 3, 2])
    with pytest.raises(ValueError, match="earlier calls had"):
        clf.partial_fit(X[6:], [2, 2, 2], classes=[1, 2])
    with pytest.raises(ValueError, match="pass a dict"):
        clf.set_params(class_weight="balanced").partial_fit(X[6:], [2, 2, 2])


@pytest.mark.parametrize("cls", ALL)
def test_early_stopping_keeps_the_best_weights(cls):
    model, _ = fitted(cls, early_stopping=True, max_iter=60, n_iter_no_change=4,
                      learning_rate_init=0.1, validation_fraction=0.3)  # fmt: skip
    curve = model.validation_loss_curve_
    assert model.n_iter_ == len(curve) < 60 and model.best_loss_ == min(curve)
    assert np.argmin(curve) < len(curve) - 1  # later weights were worse and were not kept


def test_early_stopping_ends_with_the_weights_of_the_best_epoch():
    X = ragged(60)
    y = np.random.default_rng(0).standard_normal(60)  # noise: soon over-fitted
    options = {"learning_rate_init": 0.05, "early_stopping": True, "n_iter_no_change": 5}
    model = SequenceRegressor(**(SMALL | options | {"max_iter": 100})).fit(X, y)
    best = int(np.argmin(model.validation_loss_curve_)) + 1
    until = SequenceRegressor(**(SMALL | options | {"max_iter": best})).fit(X, y)
    assert best < model.n_iter_ and same(model.predict(X), until.predict(X))


def test_forecasts_are_validated_on_the_end_of_the_series(monkeypatch):
    kept = {}
    monkeypatch.setattr(SequenceForecaster, "_train", lambda self, data, held, incremental:
                        kept.update(data=data, held=held) or self)  # fmt: skip
    SequenceForecaster(4, 3, early_stopping=True, validation_fraction=0.25).fit(
        [np.arange(26.0), np.arange(16.0)])  # fmt: skip
    def reach(y):
        return {int(s) + k for s in y.starts for k in range(3)}

    train, held = reach(kept["data"].y), reach(kept["held"].y)
    assert not train & held and len(kept["held"].x.starts) == 5 + 3
    assert max(s for s in train if s < 26) < min(s for s in held if s < 26)
    with pytest.raises(ValueError, match="no window is left"):
        SequenceForecaster(4, 3, early_stopping=True).fit(np.arange(8.0))


@pytest.mark.parametrize("cls", [SequenceClassifier, SequenceTagger])
def test_class_weight_is_a_sample_weight(cls):
    X = [a[:1].repeat(4, axis=0) for a in ragged(40)]
    y = np.arange(40) % 5 == 0  # noise, a fifth of it True
    labels = y if cls is SequenceClassifier else [np.full(4, v) for v in y]
    weighted = cls(class_weight={True: 4.0, False: 1.0}, **SMALL).fit(X, labels)
    by_sample = cls(**SMALL).fit(X, labels, sample_weight=np.where(y, 4.0, 1.0))
    balanced = cls(class_weight="balanced", **SMALL).fit(X, labels)
    plain = cls(**SMALL).fit(X, labels)
    # not to the bit: sample_weight also weighs the standardisation of the inputs
    assert np.allclose(weighted.loss_curve_, by_sample.loss_curve_, rtol=0.05)
    assert np.allclose(weighted.loss_curve_, balanced.loss_curve_, rtol=1e-5)
    assert not np.allclose(weighted.loss_curve_, plain.loss_curve_, rtol=0.05)


@pytest.mark.parametrize("cls", ALL)
def test_partial_fit_takes_weights_as_they_are(cls):
    """A call whose sequences all weigh little teaches little."""
    model, X = fitted(cls)
    y, n = targets(cls, X), len(X)
    light, heavy = (copy.deepcopy(model).partial_fit(X, y, sample_weight=np.full(n, w))
                    for w in (0.5, 1.0))  # fmt: skip
    assert light.loss_curve_[-1] < 0.7 * heavy.loss_curve_[-1]
    whole = (clone(model).fit(X, y, sample_weight=np.full(n, w)).loss_curve_ for w in (0.5, 1.0))
    assert np.allclose(*whole, rtol=1e-5)


def test_forecaster_weights_its_windows():
    y = np.r_[series(100)[:, 0], -series(100)[:, 0]]
    first = np.r_[np.ones(100), np.zeros(100)]
    half = SequenceForecaster(8, **(SMALL | {"max_iter": 20})).fit(y, sample_weight=first)
    assert half.target_mean_ == pytest.approx(y[:100].mean())
    with pytest.raises(ValueError, match="not all zero"):
        half.fit(y, sample_weight=np.zeros(200))


def test_divergence_is_an_error():
    X = [1e30 * a for a in ragged()]
    model = SequenceRegressor(cell="rnn", standardize=False, max_grad_norm=None, solver="sgd",
                              learning_rate_init=1e30, **SMALL)  # fmt: skip
    with pytest.raises(FloatingPointError), np.errstate(all="ignore"):
        model.fit(X, targets(SequenceRegressor, X))


def test_progress_bar(capfd):
    pytest.importorskip("tqdm")
    fitted(SequenceClassifier, verbose=True, early_stopping=True)
    err = capfd.readouterr().err
    assert "SequenceClassifier: 100%" in err and "3/3" in err
    assert re.search(r"loss=0\.\d+, held out=0\.\d+", err)
    fitted(SequenceClassifier)
    assert not capfd.readouterr().err


# ---- scikit-learn's machinery ----------------------------------------------------------------


def test_pipeline_grid_search_and_cross_validation():
    X = ragged(60)
    y = targets(SequenceClassifier, X)
    doubled = FunctionTransformer(lambda X: [2 * a for a in X])
    pipe = make_pipeline(doubled, SequenceClassifier(**(SMALL | {"max_iter": 20})))
    grid = {"sequenceclassifier__cell": ["gru", "rnn"], "sequenceclassifier__hidden_size": [4, 12]}
    search = GridSearchCV(pipe, grid, cv=3, error_score="raise").fit(X, y)
    assert len(search.cv_results_["params"]) == 4 and search.best_score_ > 0.6
    assert search.predict(X).shape == (60,)
    assert len(cross_val_score(pipe, X, y, cv=3, error_score="raise")) == 3
    assert cross_val_predict(pipe, X, y, cv=3, method="predict_proba").shape == (60, 2)
    table = make_pipeline(StandardScaler(), SequenceRegressor(**SMALL))
    assert len(cross_val_score(table, series(), series()[:, 0], cv=3, error_score="raise")) == 3


def test_grid_search_in_processes_gives_the_same(tmp_path):
    X = ragged(40)
    y = targets(SequenceTagger, X)
    grid = {"hidden_size": [3, 6], "cell": ["gru", "lstm"]}
    results = [
        GridSearchCV(SequenceTagger(**SMALL), grid, cv=2, n_jobs=n, error_score="raise")
        .fit(X, y).cv_results_["mean_test_score"] for n in (1, 2)]  # fmt: skip
    assert same(*results)


def test_forecaster_in_a_search_over_time():
    search = GridSearchCV(SequenceForecaster(**SMALL), {"window": [4, 8], "horizon": [1, 2]},
                          cv=TimeSeriesSplit(3), error_score="raise").fit(series())  # fmt: skip
    assert search.best_estimator_.predict(series()).shape == (search.best_params_["horizon"], 2)


def test_metadata_routing():
    X = ragged(30)
    y, weight = targets(SequenceRegressor, X), np.arange(30.0)
    with config_context(enable_metadata_routing=True):
        model = SequenceRegressor(**SMALL).set_fit_request(sample_weight=True)
        model.set_score_request(sample_weight=True)
        scores = cross_val_score(model, X, y, cv=2, params={"sample_weight": weight},
                                 error_score="raise")  # fmt: skip
    assert len(scores) == 2


def test_dask_cluster():
    da = pytest.importorskip("dask.array")
    distributed = pytest.importorskip("distributed")
    joblib = pytest.importorskip("joblib")
    X = np.random.default_rng(0).standard_normal((60, 7, 2))
    y = X[:, 0, 0] > 0
    search = GridSearchCV(SequenceClassifier(**SMALL), {"hidden_size": [3, 8]}, cv=2,
                          error_score="raise")  # fmt: skip
    here = clone(search).fit(X, y)
    cluster = distributed.LocalCluster(processes=True, n_workers=2, threads_per_worker=1,
                                       dashboard_address=None, silence_logs="ERROR")  # fmt: skip
    with cluster, distributed.Client(cluster) as client:
        with joblib.parallel_config(backend="dask"):
            search.fit(X, y)
        used = client.run(lambda: "rnnfast.sklearn" in __import__("sys").modules)
        on_each = client.gather([client.submit(search.predict, X, workers=[worker], pure=False)
                                 for worker in used])  # fmt: skip
        blocks = da.from_array(X, chunks=(20, -1, -1))
        labels = blocks.map_blocks(search.predict, drop_axis=(1, 2), dtype=bool,
                                   meta=np.empty(0, bool)).compute()  # fmt: skip
        chances = blocks.map_blocks(search.predict_proba, drop_axis=2, dtype=np.float32,
                                    chunks=(blocks.chunks[0], (2,)),
                                    meta=np.empty((0, 0), np.float32)).compute()  # fmt: skip
    # the workers did the fits; one of them may have been quick enough to do them all
    assert any(used.values()) and len(used) == 2
    assert all(same(result, here.predict(X)) for result in on_each)
    for result in ("mean_test_score", "split0_test_score", "params"):
        assert np.array_equal(search.cv_results_[result], here.cv_results_[result])
    assert same(labels, here.predict(X))
    assert np.allclose(chances, here.predict_proba(X), atol=1e-6)


# ---- persistence -----------------------------------------------------------------------------


def goes_on_alike(a, b, X):
    """Predictions, and training with dropout and the optimiser's state, to the bit."""
    assert same(a.predict(X), b.predict(X))
    y = targets(type(a), X)
    assert a.partial_fit(X, y).loss_curve_ == b.partial_fit(X, y).loss_curve_
    assert same(a.predict(X), b.predict(X))


def by_safetensors(model, path):
    pytest.importorskip("safetensors")
    model.save(path)
    return type(model).load(path)


def by_skops(model, path):
    io = pytest.importorskip("skops.io")
    io.dump(model, path)
    unknown = io.get_untrusted_types(file=path)
    assert unknown == [f"rnnfast.sklearn.{type(model).__name__}"]
    return io.load(path, trusted=unknown)


@pytest.mark.parametrize("way", [
    by_safetensors, by_skops, lambda model, path: pickle.loads(pickle.dumps(model)),
    lambda model, path: copy.deepcopy(model)],
    ids=["safetensors", "skops", "pickle", "deepcopy"])  # fmt: skip
@pytest.mark.parametrize("cls", ALL)
def test_persistence(cls, way, tmp_path):
    model, X = fitted(cls, num_layers=2, dropout=0.2, bidirectional=True, solver="sgd")
    loaded = way(model, tmp_path / "model")
    assert loaded.get_params() == model.get_params()
    # what was built is kept, not what the parameters say now
    model.set_params(hidden_size=3, cell="rnn")
    goes_on_alike(model, way(model, tmp_path / "again"), X)


def test_saved_parameters_of_every_kind(tmp_path):
    pytest.importorskip("safetensors")
    X = ragged()
    y = np.array(["yes", "no"], dtype=object)[np.arange(40) % 2]
    model = SequenceClassifier(class_weight={"yes": 2, "no": 1}, n_iter_no_change=np.inf, **SMALL)
    model.fit(X, y).save(tmp_path / "model")
    loaded = SequenceClassifier.load(tmp_path / "model")
    assert loaded.get_params() == model.get_params()
    assert same(loaded.predict(X), model.predict(X))
    with pytest.raises(TypeError, match="RandomState cannot be saved"):
        model.set_params(random_state=np.random.RandomState(0)).save(tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_damaged_files(tmp_path):
    pytest.importorskip("safetensors")
    model, _ = fitted(SequenceClassifier)
    path = tmp_path / "model"
    model.save(path)
    with pytest.raises(ValueError, match="holds a SequenceClassifier, not a SequenceTagger"):
        SequenceTagger.load(path)
    data = path.read_bytes()
    for cut in (0, 5, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        with pytest.raises(ValueError, match="model"):
            SequenceClassifier.load(path)
    for was in (b"_weights", b"_built", b"float32"):
        assert was in data
        path.write_bytes(data.replace(was, bytes([was[0] ^ 1]) + was[1:]))
        with pytest.raises(ValueError, match=r"model: damaged \("):
            SequenceClassifier.load(path)


def test_imported_only_when_asked_for():
    code = """import sys, rnnfast, rnnfast.keras
bridged = {'sklearn', 'joblib', 'pandas', 'torch', 'onnx', 'keras', 'dask', 'safetensors'}
assert not bridged & set(sys.modules)"""
    subprocess.run([sys.executable, "-c", code], check=True)
