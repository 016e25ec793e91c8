"""The decision layer: how the scores of several banks become one. Fitted, then folded to a sum."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import SGDOneClassSVM

logger = logging.getLogger("mmad_fast")

PAPER_LEARNING_RATE = 1e-4
PAPER_STEPS = 1000


@dataclass(frozen=True)
class DecisionRecipe:
    """How the decision layer is fitted.

    Attributes:
        scores: What the machine answers: "score_samples" (w.s) or "decision_function"
            (w.s - offset).
        schedule: "code": scikit-learn's decreasing learning rate over whole passes until it
            converges. "paper": 1000 steps of one scan or pixel at a learning rate of 1e-4.
        nu: Bound on the fraction of outliers, in (0, 1].
        max_iter: Most passes of the schedule "code".
        seed: Of the order of the steps.
    """

    scores: str = "score_samples"
    schedule: str = "code"
    nu: float = 0.5
    max_iter: int = 1000
    seed: int = 42


@dataclass(frozen=True)
class LinearDecision:
    """A score is sum_b weights[b] * s_b + offset.

    Attributes:
        weights: By bank.
        offset: What is added.
    """

    weights: dict[str, float]
    offset: float = 0.0


def plain_sum(lambdas: Mapping[str, float]) -> LinearDecision:
    """The scores added, each times its lambda."""
    return LinearDecision(dict(lambdas))


def fit_one_class_svm(
    scores: NDArray[np.float64], lambdas: Mapping[str, float], recipe: DecisionRecipe, *, what: str
) -> LinearDecision:
    """The decision of a linear one-class support vector machine, lambdas folded into its weights.

    Where it learns nothing, since all scores are 0, the decision is the plain sum; a bank whose
    scores are all 0, since it holds every patch of the training scans, gets no weight. Warnings say
    so.

    Args:
        scores: (R, B) float64, C-contiguous: nominal scores or pixels, one column per bank in the
            order of `lambdas`, already times their lambdas.
        lambdas: Factor of each bank's score.
        recipe: Of the machine.
        what: "scores" or "maps", for the warning.

    Source: M3DM, section 3.4, equations 4 and 5; the code takes scikit-learn's SGDOneClassSVM and
    as the score its `score_samples`, which is the dot product without the offset (method facts
    5.5).
    """
    machine = _machine(recipe).fit(_steps(scores, recipe))
    weights, offset = machine.coef_.ravel(), float(machine.offset_[0])
    if not (np.isfinite(weights).all() and np.isfinite(offset) and weights.any()):
        logger.warning(
            "the decision layer learnt nothing from the nominal %s, which are all 0 or all alike; "
            "the banks are added with their lambdas instead: fit on more, and different, scans",
            what,
        )
        return plain_sum(lambdas)
    if ignored := [name for name, w in zip(lambdas, weights, strict=True) if w == 0]:
        logger.warning(
            "the decision layer gives the bank %s no weight for %s: it holds every distinct patch "
            "of the training scans, whose distances are 0 then, as where the object covers little "
            "of the image; a method that adds the banks, such as m3dm-rgb+3d-add, keeps it",
            " and ".join(ignored),
            what,
        )
    folded = {name: float(w) * lambdas[name] for name, w in zip(lambdas, weights, strict=True)}
    return LinearDecision(folded, -offset if recipe.scores == "decision_function" else 0.0)


def _machine(recipe: DecisionRecipe) -> SGDOneClassSVM:
    shared = {"nu": recipe.nu, "random_state": recipe.seed}
    if recipe.schedule == "code":
        return SGDOneClassSVM(**shared, max_iter=recipe.max_iter)
    constant = {"learning_rate": "constant", "eta0": PAPER_LEARNING_RATE}
    # One pass over the steps that `_steps` has drawn.
    return SGDOneClassSVM(**shared, **constant, max_iter=1, tol=None, shuffle=False)


def _steps(scores: NDArray[np.float64], recipe: DecisionRecipe) -> NDArray[np.float64]:
    """The rows in the order of the steps: all of them, or the paper's 1000, shuffled anew each
    time that they are used up."""
    if recipe.schedule == "code":
        return scores
    rng = np.random.default_rng(recipe.seed)
    num_passes = -(-PAPER_STEPS // len(scores))
    order = np.concatenate([rng.permutation(len(scores)) for _ in range(num_passes)])
    return scores[order[:PAPER_STEPS]]
