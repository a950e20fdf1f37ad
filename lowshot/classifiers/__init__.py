"""Low-shot classifiers: each `fit(problem, options, seed, device)` trains a problem's runs, returns their scorer."""

from lowshot.classifiers.convex import LogisticOptions, fit_logistic_regression
from lowshot.classifiers.linear import SGDOptions, fit_linear_sgd
from lowshot.classifiers.mlp import MLPOptions, fit_mlp
from lowshot.classifiers.problem import Problem, Run, Scorer

CLASSIFIERS = {
    "linear_sgd": fit_linear_sgd,
    "logistic_regression": fit_logistic_regression,
    "mlp": fit_mlp,
}

__all__ = ["CLASSIFIERS", "LogisticOptions", "MLPOptions", "Problem", "Run", "SGDOptions", "Scorer"]
