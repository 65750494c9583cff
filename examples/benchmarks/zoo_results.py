"""Accuracy of recipes, of the ladder and of a linear probe, for the table of the zoo.

1,000 training and 2,000 test pictures of Fashion-MNIST at 64 px; all else is the estimator's default.
The command prints a table. For recipes of the zoo it writes the result into zoo/*.toml, from which
`docs/generated.py` and `fastntk zoo` read it. A recipe of your own is a table in such a file
(zoo/README.md); a timm name needs none.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from _common import COMMIT, fashion_mnist, table, training_images

from fastntk_sk import FastNTKClassifier, list_recipes, load_recipe
from fastntk_sk.exceptions import FastNTKError, WeightsUnavailableError

ZOO = Path(__file__).parents[2] / "zoo"
N, N_TEST, PIXELS = 1000, 2000, 64


def measure(name: str) -> dict[str, object]:
    X, y = training_images(N)
    _, _, X_test, y_test = fashion_mnist()
    tests = np.random.default_rng(0).permutation(len(X_test))[:N_TEST]

    def accuracy(trainable: str) -> float:
        clf = FastNTKClassifier(name, trainable=trainable, image_size=PIXELS, random_state=0)
        return round(clf.fit(X, y).score(X_test[tests], y_test[tests]), 4)

    return {
        "dataset": f"Fashion-MNIST, {N:,} images, {PIXELS} px",
        "accuracy": accuracy("ladder"),
        "accuracy_of_probe": accuracy("head"),
        "versions": f"fastntk_sk {version('fastntk_sk')}, torch {version('torch')}, commit {COMMIT}",
        "date": time.strftime("%Y-%m-%d"),
    }


def write(name: str, results: dict[str, object]) -> None:
    """Put a results table below the recipe's own, in the file that has it."""
    lines = "\n".join(f"{key} = {value!r}".replace("'", '"') for key, value in results.items())
    block = f"[{name}.results]\n{lines}\n"
    for file in ZOO.glob("*.toml"):
        text = re.sub(rf"\n*\[{name}\.results\]\n(?:(?!\[).*\n)*", "\n\n", file.read_text())
        recipe = re.compile(rf"(\[{name}\]\n(?:.+\n)+)")
        if recipe.search(text):
            text = recipe.sub(lambda found: f"{found[1]}\n{block}", text)
            file.write_text(re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the accuracy of recipes on Fashion-MNIST: a minute or two each.",
        epilog="example: python examples/benchmarks/zoo_results.py tf_efficientnet_lite0 timm:resnet34",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="a recipe, or what backbone=... takes")
    parser.add_argument("--all", action="store_true", help="every recipe whose weights can be loaded")
    args = parser.parse_args()
    recipes = [name for name in list_recipes() if load_recipe(name).input_size]
    if args.all == bool(args.names):
        parser.error("Expected names or --all, got " + ("both." if args.all else "neither."))
    rows: list[list[object]] = []
    missing = []
    for name in recipes if args.all else args.names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        try:
            found = measure(name)
        except (FastNTKError, ValueError) as error:
            if not args.all or not isinstance(error, WeightsUnavailableError):
                sys.exit(f"{name}: {error}")
            missing.append(name)
            continue
        rows.append([name, found["accuracy"], found["accuracy_of_probe"]])
        if name in recipes:
            write(name, found)
    print(table(["backbone", "ladder, the default", "linear probe"], rows))
    if missing:
        print(f"Not measured, because their weights cannot be loaded here: {', '.join(missing)}.")


if __name__ == "__main__":
    main()
