"""A series with a trend: carbon dioxide over Mauna Loa, a quarter of a year ahead.
Data: weekly means, 1958 to 2001, from statsmodels. The levels to forecast are higher than any in
the training years, so `relative=True` reads and forecasts changes. A linear model still wins."""

import numpy as np
from statsmodels.datasets import co2

from rnnfast.sklearn import SequenceForecaster, windows

WEEKS, AHEAD, YEAR = 104, 13, 52
series = co2.load_pandas().data["co2"].interpolate().to_numpy()  # 59 weeks are missing
cut = int(0.8 * len(series))
train, test = series[:cut], series[cut - WEEKS :]
X, truth = windows(test, WEEKS, AHEAD)
now = X[:, -1:]
print(f"highest level in training {train.max():.0f} ppm, in the test years {test.max():.0f} ppm")


def report(name, forecast):
    print(f"{name}: mean absolute error {np.abs(forecast - truth).mean():.2f} ppm")


a_year_ago = X[:, -YEAR : AHEAD - YEAR]
report("this week again           ", now)
report("a year ago and the rise   ", a_year_ago + now - X[:, -YEAR - 1 : -YEAR])

past, future = windows(train, WEEKS, AHEAD)
design = np.hstack([past - past[:, -1:], np.ones((len(past), 1))])
weights = np.linalg.lstsq(design, future - past[:, -1:])[0]
report("linear autoregression     ", now + np.hstack([X - now, np.ones((len(X), 1))]) @ weights)

for relative in (False, True):
    model = SequenceForecaster(WEEKS, AHEAD, relative=relative, max_iter=10, random_state=0)
    report(f"GRU, {'relative to now' if relative else 'levels as they are':20} ",
           model.fit(train).predict(list(X)))  # fmt: skip
