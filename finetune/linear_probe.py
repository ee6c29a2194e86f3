"""The linear probe: logistic regression on a frozen encoder's features."""

from __future__ import annotations

import warnings
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgewright.errors import DataError

Features = NDArray[np.float32]  # (rows, dims)
Labels = NDArray[np.int64]  # (rows,) class indices
Floats = NDArray[np.float64]

FOLDS: Final = 5
# More rows than this add cost to a fit, and next to nothing to a linear model of a few hundred
# dimensions; every row gets its probability all the same.
FIT_ROWS: Final = 4000
_RARE_ROWS: Final = 20  # of each class, taken into a fit before the rest is drawn
# scikit-learn's C, the strongest penalty first. Wrong labels want a strong one, many classes of few
# rows a weak one, so held-out rows decide.
_INVERSE_PENALTIES: Final = (0.001, 0.01, 0.1, 1.0)
_STEPS: Final = 200  # a probe that has not converged by then ranks rows no worse


def fit_probe(
    features: Features,
    labels: Labels,
    classes: int,
    *,
    seed: int,
    inverse_penalty: float | None = None,
) -> tuple[Floats, Floats]:
    """Weights of a linear classifier on ``features`` as they are, fitted to them standardised.

    Multinomial logistic regression with an L2 penalty, by L-BFGS, in float64 on one BLAS thread,
    so that the same rows give the same bits. At most ``FIT_ROWS`` rows are used, drawn by ``seed``
    with every rare class in full. A class without a row gets weights of zero and a bias so far
    below the mean of the others' as its share under Laplace's rule would be, log(rows + 1).
    ``inverse_penalty`` is scikit-learn's C; None lets ``choose_penalty`` choose.

    Returns:
        weight, float64 of shape (classes, dims), and bias, (classes,): logits are x @ weight.T +
        bias.

    Raises:
        DataError: there are no rows, or a feature is not a finite number.
    """
    _check(features, rows=1)
    if inverse_penalty is None:
        inverse_penalty = choose_penalty(features, labels, classes, seed=seed)
    chosen = _fitted_rows(labels, np.random.default_rng(seed))
    inputs, targets = features[chosen].astype(np.float64), labels[chosen]
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0)
    scale[scale < 1e-9] = 1.0  # a constant dimension
    present, targets = np.unique(targets, return_inverse=True)
    coefficients, intercepts = _regress(
        (inputs - mean) / scale, targets, len(present), inverse_penalty
    )
    weight = np.zeros((classes, features.shape[1]))
    bias = np.full(classes, intercepts.mean() - np.log(len(chosen) + 1))
    weight[present] = coefficients / scale
    bias[present] = intercepts
    bias -= weight @ mean
    return weight, bias


def cross_validated_probabilities(
    features: Features,
    labels: Labels,
    classes: int,
    *,
    seed: int,
    folds: int = FOLDS,
    repeats: int = 1,
) -> Floats:
    """What a probe that has not seen a row makes of it, averaged over ``repeats`` of the folds.

    Each class is dealt over the folds as evenly as its rows allow. A class with a single row is
    unknown to the probe that judges it.

    Returns:
        float64 of shape (rows, classes), rows summing to 1.

    Raises:
        DataError: there are fewer than two rows, or a feature is not a finite number.
    """
    _check(features, rows=2)
    penalty = choose_penalty(features, labels, classes, seed=seed)
    rng = np.random.default_rng([seed, folds])
    total = np.zeros((len(labels), classes))
    for _ in range(repeats):
        fold_of = _deal(labels, min(folds, len(labels)), rng)
        for fold in range(fold_of.max() + 1):
            held = fold_of == fold
            draw = int(rng.integers(2**32))
            weight, bias = fit_probe(
                features[~held], labels[~held], classes, seed=draw, inverse_penalty=penalty
            )
            total[held] += softmax(features[held] @ weight.T + bias)
    return total / repeats


def choose_penalty(features: Features, labels: Labels, classes: int, *, seed: int) -> float:
    """Of a few strengths of the L2 penalty the one with the least held-out log-loss, as a C.

    One fold in five is held out, dealt by ``seed``, of at most ``FIT_ROWS`` rows.
    """
    rng = np.random.default_rng([seed, len(_INVERSE_PENALTIES)])
    rows = _fitted_rows(labels, rng)
    features, labels = features[rows], labels[rows]
    held = _deal(labels, min(FOLDS, len(labels)), rng) == 0
    if held.all():
        return _INVERSE_PENALTIES[0]
    losses = []
    for penalty in _INVERSE_PENALTIES:
        weight, bias = fit_probe(
            features[~held], labels[~held], classes, seed=seed, inverse_penalty=penalty
        )
        scores = softmax(features[held] @ weight.T + bias)
        losses.append(-np.log(scores[np.arange(len(scores)), labels[held]]).mean())
    return _INVERSE_PENALTIES[int(np.argmin(losses))]


def softmax(logits: Floats) -> Floats:
    """Probabilities over the last axis."""
    powers: Floats = np.exp(logits - logits.max(axis=-1, keepdims=True))
    scores: Floats = powers / powers.sum(axis=-1, keepdims=True)
    return scores


def _regress(
    inputs: Floats, targets: Labels, classes: int, inverse_penalty: float
) -> tuple[Floats, Floats]:
    """Coefficients (classes, dims) and intercepts (classes,) for targets 0 to classes - 1."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits

    if classes == 1:
        return np.zeros((1, inputs.shape[1])), np.zeros(1)
    model = LogisticRegression(C=inverse_penalty, max_iter=_STEPS)
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)
        model.fit(inputs, targets)
    weight, bias = np.asarray(model.coef_), np.asarray(model.intercept_)
    if classes == 2:  # one logit z, where two logits of -z/2 and z/2 say the same
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    return weight, bias


def _deal(labels: Labels, folds: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The fold of each row, shape (rows,): rows in random order, class by class, one fold each."""
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    fold_of = np.empty(len(labels), np.int64)
    fold_of[order] = np.arange(len(labels)) % folds
    return fold_of


def _fitted_rows(labels: Labels, rng: np.random.Generator) -> NDArray[np.int64]:
    """Rows to fit to, ascending: all, or ``FIT_ROWS`` of them with the rare classes in full."""
    if len(labels) <= FIT_ROWS:
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    by_class = np.argsort(labels[order], kind="stable")
    starts = np.searchsorted(labels[order][by_class], labels[order])
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels))
    is_common = rank - starts >= _RARE_ROWS
    return np.sort(order[np.argsort(is_common, kind="stable")][:FIT_ROWS])


def _check(features: Features, rows: int) -> None:
    if len(features) < rows:
        raise DataError(f"a probe needs {rows} rows or more, and there are {len(features)}")
    if not np.isfinite(features).all():
        raise DataError(
            "the encoder gives features that are not finite numbers; check the weights of --model"
        )
