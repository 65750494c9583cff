"""The table of the Fast-NTK paper, done again with oracles, noise floors and later methods.

    python examples/paper/reproduce.py            # all tasks; an interrupted run goes on
    python examples/paper/reproduce.py --small    # a minute, on vectors
    python examples/paper/reproduce.py --data my_data:load --network resnet18 --images 500

A data set is a function that returns X_train, y_train, X_test, y_test. A network is a backbone's name,
or a function that returns parameters of FastNTKClassifier.

Hyper-parameters are chosen on validation rows (training images that no draw learns), once for each
task; test images are read at the end only. Writes results.csv, the tables of README.md and a picture.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from methods import CLOSED, OURS, STEPPING, forget, measured
from tasks import (
    DATA,
    FORGET,
    LADDER_TASKS,
    NETWORKS,
    SMALL,
    TASKS,
    VALIDATION,
    Problem,
    Task,
    estimator,
    problem,
    remembering,
    with_settings,
)
from tqdm import tqdm

# after tasks, which makes the benchmarks' module importable
from _common import COMMIT, picture, put, stamp, table  # isort: skip

from fastntk_sk import FastNTKClassifier
from fastntk_sk.baselines import before_solve, retrain, untrained
from fastntk_sk.baselines.dual import dual_bytes
from fastntk_sk.evaluation import (
    algebraic_gap,
    relearn_curve,
    relearn_time,
    tug_of_war,
    unlearning_report,
)
from fastntk_sk.evaluation.report import Remembering
from fastntk_sk.publishing import files

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
LESS_SGD = {f"{name}_less_sgd": f"{COLUMNS[name]} - SGD" for name in list(COLUMNS)[:3]}
# what each group of rows compares with; every group has its own original, oracle and second oracle
GROUPS = {
    "SGD": "plain SGD on the subset; the oracle is a plain SGD retraining",
    "fine-tuned anchor": "SGD and the closing solve; the oracle is both, without the forget set",
    "pretrained anchor": "no SGD; the oracle is a fit without the forget set",
    "ladder": "a readout beside every block, no SGD; the oracle is a fit without the forget set, the "
    "second one has another sketch. Last come accuracies less those of plain SGD retraining",
}
# the estimator of each group but "SGD", which is the fine-tuned anchor before its closing solve
FITTED = {
    "pretrained anchor": {"anchor": "pretrained"},
    "fine-tuned anchor": {"anchor": "finetuned"},
    "ladder": {"anchor": "pretrained", "trainable": "ladder", "alpha": "auto"},
}
# what `unlearn` is called in each group where others are beside it
OWN = {
    "ladder": "ours, ladder",
    "pretrained anchor": "ours, pretrained anchor",
    "fine-tuned anchor": "ours, fine-tuned anchor",
    "SGD": "ours, SGD",
}
_kept: dict[str, Any] = {}
BEYOND = 2  # steps beyond the edge of a grid, where the best is there
JUDGED = 1000  # retained rows that tell settings apart
RELEARNING = {"n_steps": 60, "learning_rate": 2e-3, "every": 5}


def sets(rows: Problem) -> dict:
    return {"retain": rows.retain, "forget": rows.forget, "test": rows.test}


def choose(task: Task, path: Path, largest: int | None = None) -> dict:
    """Return the settings of every method that are best on validation rows, by its tug of war there.

    All compare with a plain SGD retraining; the ridge of ours belongs to the estimator. Every score is
    kept in tried.json as soon as it is known.
    """
    sheet = path.with_name("tried.json")
    known, noted = (json.loads(p.read_text()) if p.exists() else {} for p in (path, sheet))
    chosen: dict = known.setdefault(str(task), {})
    methods = {OURS: CLOSED[OURS], **STEPPING}
    if chosen.keys() >= methods.keys():
        return chosen
    rows = problem(task, VALIDATION)
    original = estimator(task, "finetuned", VALIDATION).fit(*rows.learned)
    target = Remembering(before_solve(retrain(original, *rows.retain, *rows.forget)))
    X, y = rows.retain
    judged = sets(rows) | {"retain": (X[:JUDGED], y[:JUDGED])}
    for name, method in methods.items():
        if name in chosen:
            continue
        start = original if name == OURS else before_solve(original)
        tried = noted.setdefault(str(task), {}).setdefault(name, [])
        grid = list(method.grid[:largest])
        grid += [settings for settings, _ in tried if settings not in grid]
        longest = largest or len(method.grid) + BEYOND
        common: dict | None = None
        for n_done, settings in enumerate(grid, 1):  # which grows
            if settings not in [of for of, _ in tried]:
                common = method.prepare(start, *rows.retain, *rows.forget) if common is None else common
                found = forget(method, common | settings, start, rows, 0)
                tried.append((settings, round(tug_of_war(found, target, **judged), 4)))
                replace(sheet, json.dumps(noted, indent=1))
            best = max(tried, key=lambda of_settings: of_settings[1])[0]
            if n_done == len(grid) < longest and (further := next_to(best, grid)):
                grid.append(further)
        chosen[name] = best
        print(task, name, [score for _, score in tried], flush=True)
        replace(path, json.dumps(known, indent=1))
    return chosen


def replace(path: Path, text: str) -> None:
    """Write a file that everybody may read, whole or not at all."""
    files.replace(path.parent, path.name, text.encode(), mode=0o644)


def next_to(best: dict, grid: list[dict]) -> dict | None:
    """Return what lies beyond settings at an edge of the learning rates or ridges that were tried."""
    name = "learning_rate" if "learning_rate" in best else "alpha"
    if name not in best:
        return None
    alike = [tried[name] for tried in grid if {**tried, name: best[name]} == best]
    if best[name] == min(alike):
        return best | {name: best[name] / 3}
    return best | {name: best[name] * 3} if best[name] == max(alike) else None


def run(task: Task, seed: int, group: str, chosen: dict) -> pd.DataFrame:
    """Return the lines of one task, seed and group; plain SGD belongs to the fine-tuned anchor."""
    rows = problem(task, seed)
    tuned = group == "fine-tuned anchor"
    settings = chosen[OURS] if tuned else {}
    unfitted = estimator(task, seed=seed, **FITTED[group] | settings)
    original, fitting = last(
        "original",
        (str(unfitted.get_params()), *as_bytes(rows.learned)),
        lambda: measured(lambda: unfitted.fit(*rows.learned)),
    )
    seen = last("features", (task.data, task.network, task.n, seed), dict)
    oracle, second, retraining = retrainings(original, rows, seed, seen)
    if settings:
        oracle, second = (with_settings(model, **settings) for model in (oracle, second))
    costs = {"original": fitting, "oracle": retraining}
    found = {}
    for name, method in (CLOSED if tuned else {OURS: CLOSED[OURS]}).items():
        if task.n > method.largest:
            needed = dual_bytes(task.n, len(original.classes_))
            print(f"{name}: left out above {method.largest:,} rows; kernel and factors of "
                  f"{task.n:,} need {needed:,} bytes", flush=True)  # fmt: skip
            continue
        found[name], costs[name] = measured(lambda: forget(method, {}, original, rows, seed))  # noqa: B023
    with remembering(seen):
        result = lines(group, (original, found, oracle, second), costs, rows, seed)
    if not tuned:
        gap = algebraic_gap(found[OURS], oracle)
        result.loc[result["model"] == OURS, "algebraic_gap"] = gap
    else:
        start, others = before_solve(original), {OURS: found[OURS]}
        for name, method in STEPPING.items():
            others[name], costs[name] = measured(
                lambda: forget(method, chosen[name], start, rows, seed)  # noqa: B023
            )
        models = start, others, before_solve(oracle), before_solve(second)
        result = pd.concat([result, lines("SGD", models, costs, rows, seed)])
    result.insert(0, "seed", seed)
    result.insert(0, "task", str(task))
    return result


def retrainings(
    original: FastNTKClassifier, rows: Problem, seed: int, seen: dict
) -> tuple[Any, Any, dict]:
    """Return two retrainings, with another seed the second, and the cost of the first.

    The last ones are kept: the flipped and the random set of a draw leave the same rows, and a ridge
    is exchanged afterwards.
    """

    def both() -> tuple[Any, Any, dict]:
        oracle, cost = measured(lambda: retrain(original, *rows.retain, *rows.forget))
        with remembering(seen):
            second = retrain(original, *rows.retain, *rows.forget, random_state=seed + 5000)
        return oracle, second, cost

    others = {k: v for k, v in original.get_params().items() if k not in ("alpha", "predict_with")}
    return last("retrainings", (str(others), *as_bytes(rows.retain)), both)


def last(name: str, key: tuple, make: Callable[[], Any]) -> Any:
    """Return what was made of this name the last time, if for the same key, or make it."""
    if _kept.get(name, (None,))[0] != key:
        _kept.pop(name, None)
        _kept[name] = key, make()
    return _kept[name][1]


def as_bytes(of: tuple) -> list[bytes]:
    return [part.tobytes() for part in of]


def lines(group: str, models: tuple, costs: dict, rows: Problem, seed: int) -> pd.DataFrame:
    """Return the report of one group, with relearning and costs."""
    original, found, oracle, second = models
    report = unlearning_report(
        found, original=original, oracle=oracle, second_oracle=second, **sets(rows)
    )
    relearning = found | {
        "oracle": oracle,
        report.index[-1]: second,
        "fresh model": untrained(original),
    }
    settings = RELEARNING | {"random_state": seed}
    loss = relearn_curve(original, *rows.learned, rows.forget, **settings | {"n_steps": 0})[0]
    steps = {"original": 0.0}
    for name, model in relearning.items():
        losses = relearn_curve(model, *rows.learned, rows.forget, **settings, until=loss)
        steps[name] = relearn_time(losses, loss, RELEARNING["every"])
    report.loc["fresh model"] = np.nan
    report["relearn_steps"] = pd.Series(steps)
    for name in ("seconds", "peak_mib"):
        report[name] = pd.Series({model: cost[name] for model, cost in costs.items()})
    report.insert(0, "group", group)
    return report.rename_axis("model").reset_index()


def markdown(results: pd.DataFrame) -> str:
    """Return a table for each task and group, behind its name: means and deviations over seeds."""
    parts = []
    for task, of_task in results.groupby("task", sort=False):
        parts.append(f"<details><summary>{task}</summary>")
        for group, meaning in GROUPS.items():
            of_group = of_task[of_task["group"] == group]
            if of_group.empty:
                continue
            columns = COLUMNS
            if group == "ladder":
                columns, of_group = COLUMNS | LESS_SGD, less_sgd(of_group, of_task)
            cells = [
                [model, *(_cell(rows[column].to_numpy(float), column) for column in columns)]
                for model, rows in of_group.groupby("model", sort=False)
            ]
            seeds = f"{of_group['seed'].nunique()} seed(s)"
            head = table(["model", *columns.values()], cells)
            parts.append(f"**{group}**, {seeds}: {meaning}.\n\n{head}\n\n{better(of_group)}".rstrip())
        parts.append("</details>")
    return "\n\n".join(parts)


def better(of_group: pd.DataFrame) -> str:
    """Return which approximate methods come closer to the oracle than ours, or are quicker."""
    means = of_group.groupby("model", sort=False)[["tow", "seconds"]].mean()
    others, (tow, seconds) = means[means.index.isin(STEPPING)], means.loc[OURS]
    closer = others["tow"][others["tow"] > tow].sort_values(ascending=False)
    quicker = others["seconds"][others["seconds"] < seconds].sort_values()
    said = []
    if len(closer):
        told = ", ".join(f"{name} ({value:.3f})" for name, value in closer.items())
        said.append(f"Closer to the oracle than ours (ToW {tow:.3f}): {told}.")
    if len(quicker):
        told = ", ".join(f"{name} ({value:.1f})" for name, value in quicker.items())
        said.append(f"Quicker than ours ({seconds:.1f} seconds): {told}.")
    return " ".join(said)


def summary(results: pd.DataFrame) -> str:
    """Return one line a task: accuracies of ladder and SGD, tugs of war of ours and of the others."""
    tests = results.groupby(["group", "model", "task"], sort=False)["accuracy_test"].mean() * 100
    tows = results.groupby(["group", "model", "task"], sort=False)["tow"].mean()
    lines, closer, below = [], [], []
    for task in results["task"].unique():
        test, tow = (means.xs(task, level="task") for means in (tests, tows))
        ladder, trained = test.get(("ladder", OURS)), test.get(("SGD", "oracle"))
        line = [task, *("" if value is None else f"{value:.1f}" for value in (ladder, trained))]
        line += [f"{tow[group, OURS]:.3f}" if (group, OURS) in tow else "" for group in OWN]
        rest = {name: tow["SGD", name] for name in STEPPING if ("SGD", name) in tow}
        if rest:
            best = max(rest, key=rest.__getitem__)
            floor = tow["SGD"].filter(like="second oracle").iloc[0]
            line += [f"{rest[best]:.3f} ({best})", f"{floor:.3f}"]
            if rest[best] > tow["SGD", OURS]:
                closer.append(task)
        else:
            line += ["", ""]
        if ladder is not None and trained is not None and ladder < trained:
            below.append(task)
        lines.append(line)
    head = ["task", "test %, ladder", "test %, SGD retraining"]
    head += [f"ToW, {title}" for title in OWN.values()]
    head += ["ToW, best approximate method", "ToW, second retraining"]
    n = len(results[results["group"] == "SGD"]["task"].unique())
    said = []
    if closer:
        said.append(
            "An approximate method comes closer to plain SGD retraining than `unlearn` of the same SGD "
            f"model in {len(closer)} of {n} tasks."
        )
    if below:
        said.append(f"The ladder is below SGD retraining on test rows: {'; '.join(below)}.")
    said.append("Accuracies after the deletion, means over seeds; ToW against the oracle of each group.")
    return f"{table(head, lines)}\n\n{' '.join(said)}"


def choices(chosen: dict[str, dict]) -> str:
    """Return what was chosen on validation rows."""
    names = [OURS, *STEPPING]
    lines = [
        [task, *(", ".join(f"{k} {v}" for k, v in of.get(name, {}).items()) for name in names)]
        for task, of in chosen.items()
    ]
    head = "<details><summary>What was chosen on validation rows</summary>"
    return f"{head}\n\n{table(['task', *names], lines)}\n\n</details>"


def less_sgd(of_group: pd.DataFrame, of_task: pd.DataFrame) -> pd.DataFrame:
    """Add accuracies less those of the plain SGD retraining of the same seed, where there is one."""
    oracles = of_task[(of_task["group"] == "SGD") & (of_task["model"] == "oracle")].set_index("seed")
    added = {
        less: of_group[name] - of_group["seed"].map(oracles[name])
        for name, less in zip(COLUMNS, LESS_SGD, strict=False)
    }
    return of_group.assign(**added)


def draw(results: pd.DataFrame, path: Path) -> None:
    """Draw the tug of war of every method, an approximate one's on plain SGD, in tasks that had SGD."""
    tows = results.groupby(["group", "model", "task"], sort=False)["tow"].mean().dropna()
    tasks = list(results["task"][results["group"] == "SGD"].unique())
    if not tasks:
        return
    second = next(name for name in tows.index.unique("model") if name.startswith("second oracle"))
    columns = {("SGD", "original"): "SGD, not forgotten"}
    columns |= {("SGD", name): name for name in STEPPING}
    columns |= {(group, OURS): title for group, title in OWN.items()}
    columns |= {("SGD", second): "SGD, second retraining"}
    grid = [[tows.get((*of, task), np.nan) for of in columns] for task in tasks]
    size = (11, 1.6 + 0.32 * len(tasks))
    with picture(path, 1, 1, figsize=size) as axes:
        ax = axes[0, 0]
        ax.grid(visible=False)
        ax.pcolormesh(np.array(grid), cmap="viridis", vmin=0, vmax=1)
        for (row, column), value in np.ndenumerate(grid):
            if not np.isnan(value):
                ink = "black" if value > 0.6 else "white"
                text = f"{value:.2f}"
                ax.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=8)
        ax.set_yticks(np.arange(len(tasks)) + 0.5, tasks)
        ax.set_xticks(np.arange(len(columns)) + 0.5, [*columns.values()], rotation=40, ha="left")
        ax.tick_params(length=0, top=False, bottom=False, labeltop=True, labelbottom=False)
        ax.invert_yaxis()


def report(results: pd.DataFrame, out: Path) -> None:
    """Write the picture and the page of a folder."""
    page, settings = out / "README.md", out / "chosen.json"
    if not page.exists():
        page.write_text("<!-- results -->\n<!-- /results -->\n")
    draw(results, out / "tow.svg")
    pictured = (results["group"] == "SGD").any()
    parts = ["![Tug of war of every method](tow.svg)"] if pictured else []
    parts.append(summary(results))
    if settings.exists():
        parts.append(choices(json.loads(settings.read_text())))
    parts += [markdown(results), "As a file: [results.csv](results.csv). " + stamp("paper/reproduce.py")]
    put(page, "results", "\n\n".join(parts))


def _cell(values: np.ndarray, column: str) -> str:
    values = values[~np.isnan(values)]
    if not len(values):
        return ""
    if column == "relearn_steps":
        late = int(np.isinf(values).sum())
        median = f"{np.median(values):.0f}" if 2 * late < len(values) else f"> {RELEARNING['n_steps']}"
        return median + (f" ({late} of {len(values)} later)" if late and median[0] != ">" else "")
    if column.startswith("accuracy"):
        values = 100 * values
    digits = {"tow": 3, "activation_distance_test": 3, "mia_auc": 3, "peak_mib": 0}.get(column, 1)
    spread = f" ± {values.std(ddof=1):.{digits}f}" if len(values) > 1 else ""
    sign = "+" if column in LESS_SGD else ""
    return f"{values.mean():{sign}.{digits}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--small", action="store_true", help="vectors, two tasks, one seed")
    parser.add_argument("--data", default="fashion-mnist", help=f"of {[*DATA]}, or module:function")
    parser.add_argument(
        "--network", help=f"of {[*NETWORKS]}, a backbone of the library, or module:function"
    )
    parser.add_argument("--images", type=int, default=1000, help="to learn, with --data or --network")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tasks", default="", help="only tasks whose name starts with this")
    parser.add_argument("--groups", nargs="+", default=[*FITTED], choices=FITTED, help="default: all")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of results.csv and README.md; default: of this script, or ./results for other data",
    )
    args = parser.parse_args()
    tasks, ladder_tasks, seeds = TASKS, LADDER_TASKS, args.seeds
    if args.small:
        tasks, ladder_tasks, seeds = SMALL, SMALL, [0]
    elif args.network or args.data != "fashion-mnist":
        sys.path.insert(0, "")  # where a plug-in may be
        tasks = [Task(args.network or "lite0", args.images, kind, args.data) for kind in FORGET]
        ladder_tasks = tasks
        args.out = args.out or Path("results")
    args.out = args.out or HERE
    args.out.mkdir(parents=True, exist_ok=True)
    sheet = args.out / "results.csv"
    done = pd.read_csv(sheet) if sheet.exists() else pd.DataFrame(columns=["task", "seed", "group"])
    known = set(done[["task", "seed", "group"]].itertuples(index=False, name=None))
    jobs = [
        (task, seed, group)
        for seed in seeds  # first one draw of every task, then the next
        for group in args.groups
        for task in (ladder_tasks if group == "ladder" else tasks)
        # neighbours may share their originals and retrainings
        if str(task).startswith(args.tasks) and (str(task), seed, group) not in known
    ]
    for task, seed, group in tqdm(jobs, "paper", unit="run"):
        chosen = {}
        if group == "fine-tuned anchor":
            chosen = choose(task, args.out / "chosen.json", 2 if args.small else None)
        frame = run(task, seed, group, chosen)
        frame["commit"] = COMMIT
        done = frame if done.empty else pd.concat([done, frame])
        replace(sheet, done.to_csv(index=False))
        report(done, args.out)
    if len(done):
        report(done, args.out)
        print(summary(done))


if __name__ == "__main__":
    main()
