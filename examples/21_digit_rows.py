"""Images as sequences: handwritten digits, eight rows of eight pixels, read from top to bottom.
Data: scikit-learn's digits, half to learn from, half to judge by; a grid search picks the cell."""

from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, train_test_split

from rnnfast.sklearn import SequenceClassifier

pixels, digit = load_digits(return_X_y=True)
train, test, y_train, y_test = train_test_split(pixels, digit, test_size=0.5, random_state=0,
                                                stratify=digit)  # fmt: skip

linear = LogisticRegression(max_iter=2000).fit(train / 16, y_train)
print(f"logistic regression on the 64 pixels: {100 * linear.score(test / 16, y_test):.1f} % right")

rows, test_rows = train.reshape(-1, 8, 8), test.reshape(-1, 8, 8)  # (B, T, I)
search = GridSearchCV(
    SequenceClassifier(48, bidirectional=True, max_iter=12, random_state=0),
    {"cell": ["rnn", "lstm", "gru"]}, cv=3).fit(rows, y_train)  # fmt: skip
for cell, score in zip(search.cv_results_["param_cell"], search.cv_results_["mean_test_score"],
                       strict=True):  # fmt: skip
    print(f"cross-validation, {cell:4}: {100 * score:.1f} % right")
best = search.best_estimator_
print(f"{best.cell}, both directions: {100 * best.score(test_rows, y_test):.1f} % right")

sure = best.predict_proba(test_rows).max(axis=1) > 0.99
right = best.score(test_rows[sure], y_test[sure])
print(f"more than 99 % sure of {sure.sum()} of {len(sure)} digits: {100 * right:.1f} % right")
