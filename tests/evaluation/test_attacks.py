from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from torch import nn

from fastntk_sk.evaluation import (
    MissingOracleError,
    gaussian_unlearning_score,
    klom,
    population_mia_auc,
    u_lira,
)


def normal(*shape, seed, loc=0.0):
    return np.random.default_rng(seed).normal(loc, size=shape)


def test_population_mia_by_counting():
    # the only feature is the probability of "yes"
    clf = SimpleNamespace(
        classes_=np.array(["no", "yes"]), predict_proba=lambda X: np.hstack([1 - np.array(X), X])
    )
    forget = [[0.9], [0.4], [0.2]], ["yes", "yes", "no"]  # p_y = 0.9 0.4 0.8
    test = [[0.4], [0.5]], ["yes", "no"]  # p_y = 0.4 0.5
    # of six pairs: 0.9 and 0.8 win both, 0.4 ties with 0.4 and loses
    assert population_mia_auc(clf, forget, test) == pytest.approx(4.5 / 6)
    assert population_mia_auc(clf, test, forget) == pytest.approx(1.5 / 6)
    assert population_mia_auc(clf, forget, forget) == pytest.approx(0.5)
    with pytest.raises(NotFittedError):
        population_mia_auc(SimpleNamespace(), forget, test)
    with pytest.raises(ValueError, match="in test"):
        population_mia_auc(clf, forget, ([], []))
    with pytest.raises(ValueError, match="maybe"):
        population_mia_auc(clf, forget, ([[0.9]], ["maybe"]))


def slow_u_lira(unlearned, oracle):
    """Model by model, example by example, with scipy's densities."""
    scores, members = [], []
    for i in range(unlearned.shape[1]):
        u, r = (part[~np.isnan(part[:, i]), i] for part in (unlearned, oracle))
        for attacked in (0, 1):
            shadows = u[1 - attacked :: 2], r[1 - attacked :: 2]
            fit_u, fit_r = ((s.mean(), max(s.std(ddof=1), 1e-6)) for s in shadows)
            for values, member in ((u, 1), (r, 0)):
                for m in values[attacked::2]:
                    scores.append(norm.logpdf(m, *fit_u) - norm.logpdf(m, *fit_r))
                    members.append(member)
    scores, members = np.array(scores), np.array(members)
    allowed = [
        np.mean(scores[members == 1] >= threshold)
        for threshold in np.append(scores, np.inf)
        if np.mean(scores[members == 0] >= threshold) <= 0.01
    ]
    return roc_auc_score(members, scores), max(allowed)


def test_u_lira_equals_a_slow_loop():
    unlearned, oracle = normal(11, 15, seed=0, loc=0.7), 1.5 * normal(9, 15, seed=1)
    unlearned[normal(11, 15, seed=2) > 1] = np.nan
    oracle[:3, 4] = oracle[1, 0] = np.nan
    result = u_lira(unlearned, oracle, n_bootstrap=10)
    auc, rate = slow_u_lira(unlearned, oracle)
    assert result.auc == pytest.approx(auc, abs=1e-12)
    assert result.tpr_at_1_percent_fpr == pytest.approx(rate, abs=1e-12)


def test_u_lira_tells_what_is_apart_and_only_that():
    never = normal(60, 40, seed=0)
    for loc in (10, -10):  # over-unlearning is told just as well
        apart = u_lira(normal(60, 40, seed=1, loc=loc), never)
        assert apart.auc > 0.999
        assert apart.tpr_at_1_percent_fpr > 0.99
    same = u_lira(normal(60, 40, seed=1), never)
    assert abs(same.auc - 0.5) < 3 * same.auc_standard_error < 0.1
    assert same.tpr_at_1_percent_fpr < 0.03


def test_u_lira_standard_error_is_that_of_repetitions():
    found = [
        u_lira(normal(20, 20, seed=s), normal(20, 20, seed=s + 999), n_bootstrap=50) for s in range(30)
    ]
    spread = np.std([result.auc for result in found])
    claimed = np.mean([result.auc_standard_error for result in found])
    assert 0.8 < claimed / spread < 2
    assert u_lira(normal(20, 20, seed=0), normal(20, 20, seed=999), n_bootstrap=50) == found[0]


def test_u_lira_at_its_limits():
    same = u_lira(np.ones((4, 3)), np.ones((5, 3)))  # no spread
    assert (same.auc, same.auc_standard_error) == (0.5, 0)
    assert u_lira(np.full((4, 3), 1.1), np.ones((5, 3))).auc == 1
    part = np.full((60, 1), np.nan)  # one example, four models that count
    part[:4] = normal(4, 1, seed=0)
    result = u_lira(part, part[::-1] + 1, n_bootstrap=100)
    assert 0 <= result.auc <= 1
    assert np.isfinite(result.auc_standard_error)


def slow_klom(p, q, bins):
    low, high = min(p.min(), q.min()), max(p.max(), q.max())
    places = [np.minimum(((x - low) / (high - low) * bins).astype(int), bins - 1) for x in (p, q)]
    divergence = 0.0
    for b in range(bins):
        share, rival = (np.mean(place == b) for place in places)
        if share:
            divergence += share * np.log(share / max(rival, 1e-5))
    return divergence


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**16), st.integers(4, 50), st.integers(1, 30))
def test_klom_equals_a_slow_loop_and_is_never_negative(seed, n_models, bins):
    p, q = normal(2, n_models, 3, seed=seed)
    found = klom(p, q, bins=bins)
    expected = [slow_klom(p[:, i], q[:, i], bins) for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)
    assert (found >= -1e-12).all()
    assert (klom(p, p[::-1], bins=bins) == 0).all()


def test_klom_by_hand():
    low, high = np.zeros((4, 1)), np.ones((4, 1))
    assert klom(high, low) == pytest.approx(np.log(1e5))  # the oracle's bin is empty
    half = np.array([[0.0], [0.0], [1.0], [1.0]])
    assert klom(low, half) == pytest.approx(np.log(2))
    assert klom(500 * high, 300 * high) == 0  # both clipped to 100
    assert klom(500 * high, 300 * high, clip=1000) > 11
    with pytest.raises(ValueError, match="clip"):
        klom(high, low, clip=0)
    assert klom(np.vstack([low, [[np.nan]]]), half) == pytest.approx(np.log(2))


@pytest.mark.parametrize("attack", [u_lira, klom])
def test_attacks_on_margins_refuse(attack):
    good = normal(5, 3, seed=0)
    with pytest.raises(MissingOracleError, match="retrain"):
        attack(good, None)
    with pytest.raises(ValueError, match="4 unlearned models"):
        attack(good[:3], good)
    few = good.copy()
    few[:2, 1] = np.nan
    with pytest.raises(ValueError, match=r"oracle models .* \[1\]"):
        attack(good, few)
    with pytest.raises(ValueError, match="finite margins"):
        attack(good, np.where(few > 0, np.inf, good))
    for bad in (good[:, :2], good[0], good[None]):
        with pytest.raises(ValueError, match="shapes"):
            attack(good, bad)


def test_gus_by_hand():
    net = nn.Linear(2, 2, bias=False).double()
    net.weight.data = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    # the gradient of either label is along (3, 4) / 5, down for label 0 and up for label 1
    noise = [[1.0, 1.0], [5.0, 0.0], [0.0, 2.5]]
    net.train()
    scores = gaussian_unlearning_score(net, np.zeros((3, 2)), [0, 1, 1], noise, sigma=0.5, batch_size=2)
    np.testing.assert_allclose(scores, [-2.8, 6.0, 4.0])
    assert net.training
    assert net.weight.grad is None


def test_gus_is_standard_normal_if_the_noise_was_never_learned_and_negative_if_it_was():
    X, noise = normal(2, 200, 100, seed=0)
    y = np.random.default_rng(1).integers(3, size=200)

    def trained(inputs):
        net = nn.Linear(100, 3).double()
        net.weight.data = torch.from_numpy(LogisticRegression(C=10).fit(inputs, y).coef_)
        return gaussian_unlearning_score(net, X, y, noise, sigma=1.0)

    forgotten, learned = trained(X), trained(X + noise)
    error = 1 / np.sqrt(200)
    assert abs(forgotten.mean()) < 3 * error
    assert forgotten.std() == pytest.approx(1, abs=0.2)
    assert learned.mean() < -5 * error


def test_gus_errors():
    X, y = torch.zeros(2, 3), [0, 1]
    net = nn.Linear(3, 2)
    for bad in ((X[:0], [], X[:0]), (X, y, X[:, :2]), (X, [0], X)):
        with pytest.raises(ValueError, match="shapes"):
            gaussian_unlearning_score(net, *bad, sigma=1.0)
    with pytest.raises(ValueError, match="sigma"):
        gaussian_unlearning_score(net, X, y, X, sigma=0.0)
    nn.init.zeros_(net.weight)
    with pytest.raises(ValueError, match=r"rows \[0, 1\]"):
        gaussian_unlearning_score(net, X, y, X, sigma=1.0)
