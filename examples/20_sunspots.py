"""Forecasting with a scikit-learn estimator: the sunspots of the next five years.
Data: yearly sunspot numbers, 1700 to 2008, from statsmodels. On so short a series the network
does as well as a linear model, not better."""

import numpy as np
from statsmodels.datasets import sunspots

from rnnfast.sklearn import SequenceForecaster, windows

YEARS, AHEAD = 22, 5  # read two cycles of eleven years, forecast half of one
series = sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()
train, test = series[:230], series[230 - YEARS :]  # forecasts are of the years from 1930 on
X, truth = windows(test, YEARS, AHEAD)


def report(name, forecast):
    print(f"{name}: mean absolute error {np.abs(forecast - truth).mean():.1f}")


report("this year again        ", X[:, -1:])
report("the mean of all years  ", train.mean())
report("as eleven years earlier", X[:, -11 : -11 + AHEAD])

past, future = windows(train, YEARS, AHEAD)
design = np.hstack([past, np.ones((len(past), 1))])
weights = np.linalg.lstsq(design, future)[0]
report("linear autoregression  ", np.hstack([X, np.ones((len(X), 1))]) @ weights)

# 204 windows are few: the last fifth of the training years decides when to stop
forecasts = []
for seed in range(5):
    model = SequenceForecaster(YEARS, AHEAD, early_stopping=True, validation_fraction=0.2,
                               random_state=seed).fit(train)  # fmt: skip
    forecasts.append(model.predict(list(X)))
    report(f"GRU, seed {seed}            ", forecasts[-1])
report("mean of the five       ", np.mean(forecasts, axis=0))
