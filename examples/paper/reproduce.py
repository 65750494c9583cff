"""The table of the Fast-NTK paper, done again with oracles, noise floors and later methods.

    python examples/paper/reproduce.py            # all tasks; an interrupted run goes on
    python examples/paper/reproduce.py --small    # a minute, on vectors

Hyper-parameters of every method are chosen by tug of war on validation rows (training images that no
draw learns), once for each task; test images are read at the end only. Writes results.csv and the
tables of README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
from methods import METHODS, forget, measured, unlearn
from tasks import SMALL, TASKS, VALIDATION, Problem, Task, estimator, problem, with_ridge
from tqdm import tqdm

# after tasks, which makes the benchmarks' module importable
from _common import COMMIT, table  # isort: skip

from fastntk_sk.baselines import retrain
from fastntk_sk.baselines.dual import dual_bytes
from fastntk_sk.evaluation import (
    algebraic_gap,
    relearn_curve,
    relearn_time,
    tug_of_war,
    unlearning_report,
)

HERE = Path(__file__).parent
COLUMNS = {
    "accuracy_retain": "retain %",
    "accuracy_forget": "forget %",
    "accuracy_test": "test %",
    "tow": "ToW",
    "activation_distance_test": "activation distance",
    "mia_auc": "MIA AUC",
    "relearn_steps": "relearn steps",
    "seconds": "seconds",
    "peak_mib": "peak MiB",
}
OURS = {"finetuned": "ours, fine-tuned anchor", "pretrained": "ours, pretrained anchor"}
# of alpha and of the targets' scale, which the estimator itself uses
RIDGES = (0.03, 0.1, 0.25)
RELEARN_STEPS = 40


def sets(rows: Problem) -> dict:
    return {"retain": rows.retain, "forget": rows.forget, "test": rows.test}


def choose(task: Task, path: Path) -> dict:
    """Return the settings of each method that have the best tug of war on validation rows."""
    known = json.loads(path.read_text()) if path.exists() else {}
    if str(task) in known:
        return known[str(task)]
    rows = problem(task, VALIDATION)
    chosen: dict = {}
    original = estimator(task, "finetuned", VALIDATION).fit(*rows.learned)
    oracle = retrain(original, *rows.retain, *rows.forget)
    found = unlearn(original, *rows.retain, *rows.forget)
    scores = [
        tug_of_war(with_ridge(found, alpha), with_ridge(oracle, alpha), **sets(rows)) for alpha in RIDGES
    ]
    chosen["alpha"] = alpha = RIDGES[int(np.argmax(scores))]
    original, oracle = with_ridge(original, alpha), with_ridge(oracle, alpha)
    print(task, "ridge", [round(score, 4) for score in scores], flush=True)
    for name, method in METHODS.items():
        if task.n > method.largest:
            continue
        scores = [0.0]
        if len(method.grid) > 1:
            scores = [
                tug_of_war(forget(method, settings, original, rows, 0), oracle, **sets(rows))
                for settings in method.grid
            ]
        chosen[name] = method.grid[int(np.argmax(scores))]
        print(task, name, [round(s, 4) for s in scores], flush=True)
    path.write_text(json.dumps(known | {str(task): chosen}, indent=1))
    return chosen


def run(task: Task, seed: int, chosen: dict) -> pd.DataFrame:
    """Return the lines of one task and seed."""
    frames = []
    for anchor in ("finetuned", "pretrained"):
        rows = problem(task, seed)
        settings = {"alpha": chosen["alpha"]} if anchor == "finetuned" else {}
        costs: dict[str, dict[str, float]] = {}
        original, costs["original"] = measured(
            lambda: estimator(task, anchor, seed, **settings).fit(*rows.learned)  # noqa: B023
        )
        oracle, costs["oracle"] = measured(
            lambda: retrain(original, *rows.retain, *rows.forget)  # noqa: B023
        )
        second = retrain(original, *rows.retain, *rows.forget, random_state=seed + 5000)
        methods = METHODS if anchor == "finetuned" else {OURS[anchor]: METHODS[OURS["finetuned"]]}
        found = {}
        for name, method in methods.items():
            if task.n > method.largest:
                n_classes = len(original.classes_)
                print(
                    f"{name}: not run at {task.n:,} rows; its kernel alone needs "
                    f"{dual_bytes(task.n, n_classes):,} bytes",
                    flush=True,
                )
                continue
            found[name], costs[name] = measured(
                lambda: forget(method, chosen.get(name, {}), original, rows, seed)  # noqa: B023
            )
        report = unlearning_report(
            found, original=original, oracle=oracle, second_oracle=second, **sets(rows)
        )
        steps: dict[str, float] = {}
        for name, model in {"original": original, **found, "oracle": oracle}.items():
            losses = relearn_curve(
                model, *rows.learned, rows.forget, n_steps=RELEARN_STEPS, random_state=seed
            )
            if model is original:
                loss = losses[0]
            steps[name] = relearn_time(losses, loss)
        report["relearn_steps"] = pd.Series(steps)
        for name in ("seconds", "peak_mib"):
            report[name] = pd.Series({model: cost[name] for model, cost in costs.items()})
        if anchor == "pretrained":
            report.loc[OURS[anchor], "algebraic_gap"] = algebraic_gap(found[OURS[anchor]], oracle)
        report.insert(0, "anchor", anchor)
        frames.append(report.rename_axis("model").reset_index())
    result = pd.concat(frames)
    result.insert(0, "seed", seed)
    result.insert(0, "task", str(task))
    return result


def markdown(results: pd.DataFrame) -> str:
    """Return one table a task: mean and standard deviation over the seeds."""
    parts = []
    for task, of_task in results.groupby("task", sort=False):
        lines = []
        for (anchor, model), rows in of_task.groupby(["anchor", "model"], sort=False):
            cells = [f"{model}" if model in OURS.values() else f"{model} ({anchor})"]
            if anchor == "finetuned" and model in METHODS:
                cells = [f"**{model}**" if model in OURS.values() else model]
            for column in COLUMNS:
                values = rows[column].to_numpy(float) * (100 if column.startswith("accuracy") else 1)
                cells.append(_cell(values, column))
            lines.append(cells)
        seeds = of_task["seed"].nunique()
        parts.append(
            f"### {task}\n\nMean and standard deviation over {seeds} seed(s).\n\n"
            + table(["model", *COLUMNS.values()], lines)
        )
    return "\n\n".join(parts)


def _cell(values: np.ndarray, column: str) -> str:
    if np.isnan(values).all():
        return ""
    digits = {"tow": 3, "activation_distance_test": 3, "mia_auc": 3, "peak_mib": 0}.get(column, 1)
    if np.isinf(values).any():
        return f"> {RELEARN_STEPS}"
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    return f"{values.mean():.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--small", action="store_true", help="vectors, two tasks, one seed")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", default="", help="only tasks whose name starts with this")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of results.csv and README.md")
    args = parser.parse_args()
    tasks, seeds = (SMALL, 1) if args.small else (TASKS, args.seeds)
    args.out.mkdir(parents=True, exist_ok=True)
    lines, page = args.out / "results.csv", args.out / "README.md"
    done = pd.read_csv(lines) if lines.exists() else pd.DataFrame(columns=["task", "seed"])
    jobs = [
        (task, seed)
        for task in tasks
        for seed in range(seeds)
        if str(task).startswith(args.tasks)
        and not ((done["task"] == str(task)) & (done["seed"] == seed)).any()
    ]
    for task, seed in tqdm(jobs, "paper", unit="run"):
        frame = run(task, seed, choose(task, args.out / "chosen.json"))
        frame["commit"] = COMMIT
        done = frame if done.empty else pd.concat([done, frame])
        partial = lines.with_suffix(".partial")
        done.to_csv(partial, index=False)
        os.replace(partial, lines)
        packages = ("fastntk_sk", "torch", "timm", "scikit-learn", "skorch", "numpy")
        stamp = (
            f"_`python examples/paper/reproduce.py`, {time.strftime('%Y-%m-%d')}, commit {COMMIT}, "
            f"Python {platform.python_version()}, "
            + ", ".join(f"{package} {version(package)}" for package in packages)
            + f", {os.cpu_count()} cores._"
        )
        text = page.read_text() if page.exists() else "<!-- results -->\n<!-- /results -->\n"
        section = f"<!-- results -->\n{markdown(done)}\n\n{stamp}\n<!-- /results -->"
        found = re.compile(r"<!-- results -->.*?<!-- /results -->", re.DOTALL)
        page.write_text(found.sub(lambda _, new=section: new, text))
    print(markdown(done))


if __name__ == "__main__":
    main()
