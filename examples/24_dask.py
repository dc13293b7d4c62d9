"""Beyond one process: a grid search over dask's workers, and scoring blocks of a dask array.
The cluster here is two processes of this machine; a real one needs only another address. Data:
scikit-learn's digits as sequences of rows."""

import dask.array as da
import joblib
import numpy as np
from dask.distributed import Client, LocalCluster
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV, train_test_split

from rnnfast.sklearn import SequenceClassifier


def main():
    pixels, digit = load_digits(return_X_y=True)
    train, test, y_train, y_test = train_test_split(pixels.reshape(-1, 8, 8), digit,
                                                    random_state=0)  # fmt: skip
    model = SequenceClassifier(bidirectional=True, max_iter=8, random_state=0)
    search = GridSearchCV(model, {"hidden_size": [8, 32]}, cv=2)

    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None,
                     silence_logs="ERROR") as cluster,
        Client(cluster) as client,
    ):
        with joblib.parallel_config(backend="dask"):
            search.fit(train, y_train)
        for params, score in zip(search.cv_results_["params"],
                                 search.cv_results_["mean_test_score"], strict=True):  # fmt: skip
            print(f"{params}: {100 * score:.1f} % right in cross-validation")

        best = client.scatter(search.best_estimator_, broadcast=True)  # sent once, not per block
        images = da.from_array(test, chunks=(100, -1, -1))
        guess = images.map_blocks(
            lambda block, model: model.predict(block), best, drop_axis=(1, 2), dtype=int,
            meta=np.empty(0, int))  # fmt: skip
        guess = guess.compute()

    commonest = np.bincount(y_train).argmax()
    print(f"always {commonest}: {100 * (y_test == commonest).mean():.1f} % right")
    print(f"the best, in {images.npartitions} blocks: {100 * (guess == y_test).mean():.1f} % right")
    alone = search.best_estimator_.predict(test)
    print(f"differences from scoring here: {(guess != alone).sum()}")


if __name__ == "__main__":  # workers import this file
    main()
