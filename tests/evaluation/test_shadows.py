"""Shadow models and relearning: known answers, and audits that catch what they should."""

import numpy as np
import pytest
import torch

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import finetune, untrained
from fastntk_sk.evaluation import (
    klom,
    margins,
    relearn_curve,
    relearn_time,
    shadow_margins,
    u_lira,
)
from fastntk_sk.sums.statistics import Statistics


def small():
    return FastNTKClassifier(n_components=8, alpha=0.01, random_state=0)


def test_shadow_margins_are_those_of_the_estimator(blobs):
    """Learn and unlearn through the public estimator, with the same parts."""
    X, y = blobs
    unlearned, oracle = shadow_margins(small().fit(X, y), X, y, n_models=3, random_state=5)
    draws = np.random.RandomState(5)
    draws.permutation(60)  # the order of the second pass
    for i in range(3):
        order = draws.permutation(60)
        clf = small().fit(X[order[:45]], y[order[:45]], classes=[0, 1, 2])
        clf.unlearn(X[order[30:45]])
        for found, rows in ((unlearned, order[30:45]), (oracle, order[45:])):
            np.testing.assert_allclose(found[i, rows], margins(clf, X[rows], y[rows]), rtol=1e-5)
            assert np.isfinite(found[i]).sum() == 15


def test_exact_deletion_passes_both_audits_and_a_sloppy_one_does_not(blobs, monkeypatch):
    X, y = blobs
    y = np.random.default_rng(1).permutation(y)  # labels that only memory gets right
    clf = FastNTKClassifier(alpha=1e-3, random_state=0).fit(X, y)
    exact = shadow_margins(clf, X, y, n_models=60)
    attack = u_lira(*exact)
    assert abs(attack.auc - 0.5) < 4 * attack.auc_standard_error
    floor = klom(*exact).mean()
    add = Statistics.add
    monkeypatch.setattr(
        Statistics, "add", lambda self, *rows: None if (rows[-1] < 0).all() else add(self, *rows)
    )
    nothing = shadow_margins(clf, X, y, n_models=60)
    assert u_lira(*nothing).auc > 0.9
    assert klom(*nothing).mean() > 2 * floor


def test_shadow_errors(blobs):
    X, y = blobs
    clf = small().fit(X, y)
    for shares in ({"retain": 0.9}, {"forget": 0.49}, {"retain": 0.0}, {"forget": -1.0}):
        with pytest.raises(ValueError, match="shares"):
            shadow_margins(clf, X[:20], y[:20], **shares)
    with pytest.raises(ValueError, match="predict_with"):
        shadow_margins(FastNTKClassifier(predict_with="network").fit(X, y), X, y)
    with pytest.raises(ValueError, match="labels"):
        shadow_margins(clf, X, y + 7)
    tuned = FastNTKClassifier(anchor="finetuned", max_epochs=1, random_state=0).fit(X, y)
    with pytest.raises(ValueError, match="anchor"):
        shadow_margins(tuned, X, y)


def test_relearning(blobs):
    X, y = blobs
    forget = X[:9], (y[:9] + 1) % 3
    learned = np.vstack([X[9:], forget[0]]), np.r_[y[9:], forget[1]]
    clf = FastNTKClassifier(anchor="finetuned", random_state=0).fit(X[9:], y[9:])
    settings = {"n_steps": 30, "learning_rate": 5e-3, "batch_size": 20}
    before = torch.random.get_rng_state()
    curve = relearn_curve(clf, *learned, forget, **settings)
    assert torch.equal(before, torch.random.get_rng_state())
    assert curve.shape == (31,)
    proba = clf.predict_proba(forget[0])
    assert curve[0] == pytest.approx(-np.log(proba[np.arange(9), forget[1]]).mean(), rel=1e-6)
    assert curve[-1] < curve[0]
    np.testing.assert_array_equal(curve, relearn_curve(clf, *learned, forget, **settings))
    short = relearn_curve(clf, *learned, forget, **settings, until=curve[4])
    np.testing.assert_array_equal(short, curve[: 1 + int(relearn_time(curve, curve[4]))])
    again = finetune(clf, *learned, *forget, epochs=10, learning_rate=5e-3, random_state=0)
    assert relearn_curve(again, *learned, forget, **settings)[0] < curve[0]
    seldom = relearn_curve(clf, *learned, forget, **settings, every=3)
    np.testing.assert_array_equal(seldom, curve[::3])
    assert relearn_time([3.0, 2.0, 1.0, 2.0, 0.5], 1.0) == 2
    assert relearn_time([3.0, 2.0, 1.0, 2.0, 0.5], 1.0, every=3) == 6
    assert relearn_time([3.0, 2.0], 1.0) == np.inf
    fresh = relearn_curve(untrained(clf), *learned, forget, **settings)
    assert fresh[0] == pytest.approx(np.log(3))


def test_a_shadow_without_rows_of_a_class_does_not_count_for_it(blobs):
    X, y = blobs
    rows = np.r_[np.flatnonzero(y < 2), np.flatnonzero(y == 2)[:2]]
    found = shadow_margins(small().fit(X[rows], y[rows]), X[rows], y[rows], n_models=20)
    assert not np.isinf(found).any()
    counted = np.isfinite(found[0]).sum(1)
    assert counted.max() == round(0.25 * len(rows))
    assert counted.min() < counted.max()
