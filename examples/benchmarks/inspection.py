"""What the inspection of rows finds, how exact it is, and what it costs.

Fashion-MNIST on lite0 at 64 px. Each part is measured by itself (`--part`), and the results lie in
inspection.json, from which the tables are written.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from typing import Any

import numpy as np
import torch
from _common import HERE, fashion_mnist, publish, table, with_error
from scipy.special import logsumexp

from fastntk_sk import FastNTKClassifier
from fastntk_sk.inspection import calibrate, influence, label_issues, leave_one_out

FILE = HERE / "inspection.json"
SEEDS = (0, 1, 2)
TAKEN_FOR = {6: 0, 4: 2, 9: 7}  # a shirt for a T-shirt, a coat for a pullover, a boot for a sneaker
LITE0: dict[str, Any] = {
    "backbone": "tf_efficientnet_lite0",
    "image_size": 64,
    "keep": "features",
    "backbone_has_seen": False,
    "random_state": 0,
}


def timed(call: Any) -> tuple[float, Any]:
    """Return the seconds of a call, and its result."""
    begun = time.perf_counter()
    found = call()
    return time.perf_counter() - begun, found


def drawn(seed: int, n_train: int, n_val: int = 0) -> tuple[np.ndarray, ...]:
    """Return X, y of training rows, and of validation rows, in an order that a seed decides."""
    X, y, _, _ = fashion_mnist()
    rows = np.random.default_rng(seed).permutation(len(X))
    train, val = rows[:n_train], rows[n_train : n_train + n_val]
    return X[train], y[train], X[val], y[val]


def flipped(y: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a tenth is wrong, and which."""
    draws = np.random.default_rng(seed)
    wrong = np.zeros(len(y), dtype=bool)
    wrong[draws.choice(len(y), len(y) // 10, replace=False)] = True
    return np.where(wrong, (y + draws.integers(1, 10, len(y))) % 10, y), wrong


def mistaken(y: np.ndarray, seed: int) -> np.ndarray:
    """Return labels of which a tenth is wrong by the habits of one annotator."""
    rows = np.flatnonzero(np.isin(y, list(TAKEN_FOR)))
    rows = np.random.default_rng(seed).choice(rows, len(y) // 10, replace=False)
    changed = y.copy()
    changed[rows] = [TAKEN_FOR[label] for label in y[rows].tolist()]
    return changed


def exactness(n_deletions: int) -> dict[str, Any]:
    """Compare leave-one-out scores and influence with real deletions, in float64."""
    X, y, X_val, y_val = drawn(0, n_deletions, 100)
    clf = FastNTKClassifier(**LITE0, n_components=1024, alpha=0.1, precision="float64").fit(X, y)
    seconds_scores, scores = timed(lambda: leave_one_out(clf, X, y))
    seconds, found = timed(lambda: influence(clf, X, y, X_val, y_val))
    model = clf._state.model
    h, h_val = (  # of learned rows those that were kept
        torch.cat([part for part, _ in model.all_tangents(clf._rows(rows))]) for rows in (X, X_val)
    )
    targets = np.eye(10)[y_val] - 0.1
    loss = lambda clf: ((scores_of(clf, h_val) - targets) ** 2).sum(1).mean()  # noqa: E731
    before, gaps, gaps_loss, deletions = loss(clf), [], [], 0.0
    for i in range(n_deletions):
        spent, without = timed(lambda i=i: copy.deepcopy(clf).unlearn(X[i : i + 1]))
        deletions += spent
        gaps.append(abs(scores_of(without, h[i : i + 1])[0] - scores[i]).max())
        gaps_loss.append(abs(loss(without) - before - found.loss[i]))
    return {
        "n": n_deletions,
        "scores": float(max(gaps)),
        "scores_median": float(np.median(gaps)),
        "loss": float(max(gaps_loss)),
        "loss_median": float(np.median(gaps_loss)),
        "size": float(abs(scores).max()),
        "loss_size": float(abs(found.loss).max()),
        "seconds_scores": seconds_scores,
        "seconds_influence": seconds,
        "seconds_deletions": deletions,
    }


def cost(n_rows: int, n_val: int) -> dict[str, Any]:
    """Time influence at 4,096 features, of a random network, beside deletions."""
    width, draws = 4096, np.random.default_rng(0)
    y = draws.integers(0, 10, n_rows + n_val)
    X = (draws.normal(size=(len(y), 64)) + 2 * np.eye(10, 64)[y]).astype(np.float32)

    def network() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, width), torch.nn.Tanh())

    new = {"trainable": "head", "alpha": 0.1, "keep": "features", "random_state": 0}
    clf = FastNTKClassifier(network, backbone_has_seen=False, **new).fit(X[:n_rows], y[:n_rows])
    rows, val = (X[:n_rows], y[:n_rows]), (X[n_rows:], y[n_rows:])
    seconds, _ = timed(lambda: influence(clf, *rows, *val))
    scores, _ = timed(lambda: leave_one_out(clf, *rows))
    one = min(timed(lambda i=i: clf.unlearn(X[i : i + 1]))[0] for i in range(3))
    return {
        "n_rows": n_rows,
        "n_val": n_val,
        "seconds": seconds,
        "scores": scores,
        "deletion": one,
    }


def found_of(ranked: np.ndarray, wrong: np.ndarray, n: int | None = None) -> dict[str, float]:
    """Return precision and recall of the first n rows of a ranking, by default of all."""
    chosen = ranked if n is None else ranked[:n]
    right = float(wrong[chosen].sum())
    return {"rows": len(chosen), "precision": right / max(1, len(chosen)), "recall": right / wrong.sum()}


def issues(seed: int, n_rows: int) -> dict[str, Any]:
    """Look for flipped labels: ours, cleanlab on a cross-validated probe, and the loss of a fit."""
    from cleanlab.filter import find_label_issues
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    X, clean, _, _ = drawn(seed, n_rows)
    y, wrong = flipped(clean, seed)
    clf = FastNTKClassifier(**LITE0, n_components=1024).fit(X, y)
    held = clf._held
    features = np.stack(held.ledger.features(clf._match(held, X, None, None, "one")[1].removals))
    seconds, ours = timed(lambda: label_issues(clf, X, y))
    probe = LogisticRegression(max_iter=1000)
    spent, probabilities = timed(
        lambda: cross_val_predict(probe, features[:, :-1], y, cv=5, method="predict_proba")
    )
    theirs = find_label_issues(y, probabilities, return_indices_ranked_by="self_confidence", n_jobs=1)
    taken, fitted = timed(lambda: clf.decision_function(X))
    own = fitted[np.arange(n_rows), y]
    losses = np.argsort(-(logsumexp(np.log(99 * 9) * fitted, axis=1) - np.log(99 * 9) * own))
    n_wrong = int(wrong.sum())
    by_probe = np.argsort(probabilities[np.arange(n_rows), y])
    by_ours = np.argsort(ours.self_confidence)
    return {
        "ours": found_of(ours.indices, wrong) | {"seconds": seconds},
        "cleanlab": found_of(theirs, wrong) | {"seconds": spent},
        "ours, ranked": found_of(by_ours, wrong, n_wrong) | {"seconds": seconds},
        "probe, ranked": found_of(by_probe, wrong, n_wrong) | {"seconds": spent},
        "loss, ranked": found_of(losses, wrong, n_wrong) | {"seconds": taken},
    }


def story(seed: int, n_rows: int) -> dict[str, Any]:
    """Return test accuracies with wrong labels, after both remedies, and with clean labels."""
    X, clean, _, _ = drawn(seed, n_rows)
    y = mistaken(clean, seed)
    clf = FastNTKClassifier(**LITE0).fit(X, y)
    doubtful = label_issues(clf, X, y).indices
    forgot = copy.deepcopy(clf).unlearn(X[doubtful])
    # an oracle looks at the rows that are pointed out, as a person would
    put_right = copy.deepcopy(clf).rectify(X[doubtful], clean[doubtful])
    ideal = FastNTKClassifier(**LITE0).fit(X, clean)
    _, _, X_test, y_test = fashion_mnist()
    models = {"wrong": clf, "forgotten": forgot, "rectified": put_right, "clean": ideal}
    # one pass over the test rows serves all four: they read the same features
    model = clf._state.model
    h = torch.cat([part for part, _ in model.all_tangents(clf._rows(X_test))]).double()
    accuracies = {
        name: float((one.classes_[scores_of(one, h).argmax(1)] == y_test).mean())
        for name, one in models.items()
    }
    errors = {}
    calibrated = calibrate(copy.deepcopy(ideal))
    for name, one in (("before", ideal), ("after", calibrated)):
        scores = one._adapter.sharpness * scores_of(one, h)
        errors[name] = calibration_error(np.exp(scores - logsumexp(scores, axis=1)[:, None]), y_test)
    return {"rows": len(doubtful), "accuracies": accuracies, "calibration": errors}


def scores_of(clf: FastNTKClassifier, h: torch.Tensor) -> np.ndarray:
    """Return the scores of augmented features."""
    return (h @ clf._state.parameters.W.double().T).numpy()


def calibration_error(probabilities: np.ndarray, y: np.ndarray, n_bins: int = 15) -> float:
    """Return the expected calibration error, with bins of equal width."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == y
    bins = np.minimum((confidence * n_bins).astype(int), n_bins - 1)
    parts = [(bins == b, (bins == b).mean()) for b in range(n_bins) if (bins == b).any()]
    return float(sum(share * abs(confidence[of].mean() - right[of].mean()) for of, share in parts))


def tables(found: dict[str, Any]) -> str:
    """Return the tables of what was measured."""
    exact, spent = found["exactness"], found["cost"]
    rows = [
        ["leave-one-out scores", f"{exact['scores']:.1e}", f"{exact['scores_median']:.1e}"],
        ["change of the validation loss", f"{exact['loss']:.1e}", f"{exact['loss_median']:.1e}"],
    ]
    parts = [
        f"{exact['n']:,} deletions of one row each, 1,024 features, float64, alpha = 0.1 (scores are up "
        f"to {exact['size']:.2f}, changes of the loss up to {exact['loss_size']:.1e}):",
        table(["against real deletions", "largest difference", "median"], rows),
        f"All scores took {exact['seconds_scores']:.1f} s and all influences "
        f"{exact['seconds_influence']:.1f} s; the deletions {exact['seconds_deletions']:.0f} s. At "
        f"4,096 features, {spent['n_rows']:,} rows and {spent['n_val']:,} validation rows, influence "
        f"takes {spent['seconds']:.0f} s and leave-one-out {spent['scores']:.0f} s with kept features; "
        f"one deletion {spent['deletion']:.2f} s, and as many deletions would take "
        f"{spent['n_rows'] * spent['deletion'] / 3600:.0f} hours.",
    ]
    of = [found[f"issues {seed}"] for seed in SEEDS]
    names = {
        "ours": "label_issues (leave-one-out, cleanlab chooses)",
        "cleanlab": "cleanlab, 5-fold logistic regression on the same features",
        "ours, ranked": "lowest leave-one-out confidence, as many as are wrong",
        "probe, ranked": "lowest 5-fold confidence, as many as are wrong",
        "loss, ranked": "largest loss of the fitted model, as many as are wrong",
    }
    rows = [
        [
            text,
            with_error([one[name]["rows"] for one in of], 0),
            *(with_error([100 * one[name][key] for one in of], 1) for key in ("precision", "recall")),
            with_error([one[name]["seconds"] for one in of], 1),
        ]
        for name, text in names.items()
    ]
    parts += [
        f"A tenth of {found['n_issues']:,} labels is wrong, three draws, 1,024 features; seconds are "
        "without the first pass, which all share:",
        table(["rows pointed out by", "rows", "precision, %", "recall, %", "seconds"], rows),
        f"The cross-validated probe finds as many: {rows[1][3]} % of the wrong labels against "
        f"{rows[0][3]} %, for {rows[1][4]} seconds against {rows[0][4]}. Ranking by the loss of the "
        "fitted model is as good here, since a ridge on so many features hardly memorises labels "
        "without a habit.",
    ]
    of = [found[f"story {seed}"] for seed in SEEDS]
    rows = [
        [text, with_error([100 * one["accuracies"][name] for one in of], 1)]
        for name, text in (
            ("wrong", "learned with the wrong labels"),
            ("forgotten", "after `unlearn` of the rows of `label_issues`"),
            ("rectified", "after `rectify` of them, as somebody who looks would"),
            ("clean", "learned with clean labels"),
        )
    ]
    pairs = [[one["calibration"][name] for one in of] for name in ("before", "after")]
    parts += [
        f"The story: {found['n_story']:,} pictures, a tenth of the labels wrong by habit (a shirt taken "
        "for a T-shirt, a coat for a pullover, a boot for a sneaker), three draws, all 10,000 test "
        "pictures:",
        table(["model", "accuracy, %"], rows),
        f"Expected calibration error (15 bins) of the last one: {with_error(pairs[0], 3)} before "
        f"`calibrate`, {with_error(pairs[1], 3)} after it.",
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--part", choices=("exactness", "cost", "issues", "story", "tables"))
    parser.add_argument("--deletions", type=int, default=1000)
    parser.add_argument("--rows", type=int, default=50_000)
    args = parser.parse_args()
    found = json.loads(FILE.read_text()) if FILE.exists() else {}

    def measure(name: str, call: Any) -> None:
        if args.part in (None, name.split()[0]) and name not in found:
            found[name] = call()
            FILE.write_text(json.dumps(found, indent=1) + "\n")
            print(name, found[name], flush=True)

    found |= {"n_issues": 3000, "n_story": 1000}
    for seed in SEEDS:
        measure(f"story {seed}", lambda seed=seed: story(seed, found["n_story"]))
        measure(f"issues {seed}", lambda seed=seed: issues(seed, found["n_issues"]))
    measure("exactness", lambda: exactness(args.deletions))
    measure("cost", lambda: cost(args.rows, 1000))
    publish("inspection", tables(found))


if __name__ == "__main__":
    main()
