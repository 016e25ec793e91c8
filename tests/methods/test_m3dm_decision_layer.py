"""The folded decision layer beside scikit-learn's own answers."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.linear_model import SGDOneClassSVM

from mmad_fast.methods.m3dm.decision_layer import (
    DecisionRecipe,
    LinearDecision,
    fit_one_class_svm,
    plain_sum,
)

LAMBDAS = {"point": 1.0, "rgb": 0.1, "fusion": 2.0}


@pytest.fixture(scope="module")
def raw_scores() -> NDArray[np.float64]:
    """(200, 3) nominal scores before their lambdas."""
    return np.random.default_rng(0).gamma(4, [2.0, 30.0, 5.0], (200, 3))


def weighted(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.ascontiguousarray(scores * list(LAMBDAS.values()))


def decide(decision: LinearDecision, scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return scores @ [decision.weights[name] for name in LAMBDAS] + decision.offset


@pytest.mark.parametrize("answer", ["score_samples", "decision_function"])
def test_folded_decision_is_the_answer_of_the_machine(raw_scores: NDArray, answer: str):
    decision = fit_one_class_svm(
        weighted(raw_scores), LAMBDAS, DecisionRecipe(scores=answer), what="scores"
    )
    machine = SGDOneClassSVM(nu=0.5, max_iter=1000, random_state=42).fit(weighted(raw_scores))
    fresh = np.random.default_rng(1).gamma(4, [3.0, 20.0, 9.0], (50, 3))
    wanted = getattr(machine, answer)(weighted(fresh))
    np.testing.assert_allclose(decide(decision, fresh), wanted, rtol=1e-10, atol=1e-10)
    assert (decision.offset == 0) == (answer == "score_samples")


@pytest.mark.parametrize("num_scans", [30, 2500])
def test_paper_schedule_takes_a_thousand_steps(num_scans: int):
    scores = np.random.default_rng(2).gamma(4, [2.0, 30.0, 5.0], (num_scans, 3))
    recipe = DecisionRecipe(schedule="paper", scores="decision_function")
    decision = fit_one_class_svm(weighted(scores), LAMBDAS, recipe, what="scores")

    rng = np.random.default_rng(42)
    order = np.concatenate([rng.permutation(num_scans) for _ in range(40)])[:1000]
    machine = SGDOneClassSVM(nu=0.5, learning_rate="constant", eta0=1e-4)
    for row in weighted(scores)[order]:
        machine.partial_fit(row[None])
    folded = [decision.weights[name] / LAMBDAS[name] for name in LAMBDAS]
    np.testing.assert_allclose(folded, machine.coef_.ravel(), rtol=1e-9)
    assert decision.offset == pytest.approx(-machine.offset_[0], rel=1e-9)


def test_same_seed_gives_the_same_decision(raw_scores: NDArray):
    twice = [
        fit_one_class_svm(weighted(raw_scores), LAMBDAS, DecisionRecipe(seed=7), what="maps")
        for _ in range(2)
    ]
    assert twice[0] == twice[1]


def test_scores_of_zero_are_added_instead(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        decision = fit_one_class_svm(np.zeros((5, 3)), LAMBDAS, DecisionRecipe(), what="scores")
    assert decision == plain_sum(LAMBDAS) == LinearDecision(LAMBDAS, 0.0)
    assert "learnt nothing from the nominal scores" in caplog.text


def test_a_bank_whose_scores_are_zero_has_no_weight(
    raw_scores: NDArray, caplog: pytest.LogCaptureFixture
):
    scores = weighted(raw_scores) * [0, 1, 1]
    with caplog.at_level(logging.WARNING, logger="mmad_fast"):
        decision = fit_one_class_svm(scores, LAMBDAS, DecisionRecipe(), what="scores")
    assert decision.weights["point"] == 0
    assert min(decision.weights["rgb"], decision.weights["fusion"]) > 0
    assert "gives the bank point no weight for scores" in caplog.text
