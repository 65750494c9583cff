"""Pages that are written from files: the zoo's table, and results of the benchmarks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fastntk_sk import list_recipes, load_recipe

ROOT = Path(__file__).parents[1]


def zoo() -> str:
    """Return the tables of recipes."""
    recipes = [load_recipe(name) for name in list_recipes()]
    measured = [recipe for recipe in recipes if recipe.results]
    subsets = ("norm", "bias", "prompt", "prompt-deep")
    others = [recipe.name for recipe in recipes if not recipe.results and recipe.input_size]
    lines = [
        "# Zoo",
        "",
        "Backbones that are known by name. Any other timm model, `torchvision:NAME`, "
        "`hf-hub:ORG/NAME` or `nn.Module` works too.",
        "",
        "## Accuracy",
        "",
        "| name | data | ladder, the default | linear probe | measured |",
        "| --- | --- | --- | --- | --- |",
    ]
    for recipe in measured:
        found = recipe.results
        lines.append(
            f"| `{recipe.name}` | {found['dataset']} | {100 * found['accuracy']:.1f} "
            f"| {100 * found['accuracy_of_probe']:.1f} | {found['date']}, {found['versions']} |"
        )
    lines += [
        "",
        "Test accuracy in percent of one draw of training pictures, on 2,000 test pictures: its "
        "standard error is 0.7 to 0.9 points. The linear probe reads the network's features alone. "
        "Written by `examples/benchmarks/zoo_results.py`.",
        "",
        f"Not measured: {', '.join(f'`{name}`' for name in others)}. No package on PyPI ships their "
        "weights, and the machine that measured reaches neither the Hugging Face Hub nor torchvision's "
        "server. With a connection, `python examples/benchmarks/zoo_results.py NAME` measures one, or "
        "any backbone of yours, in a minute or two. `mlp` takes vectors, not pictures.",
        "",
        "## All recipes",
        "",
        "| name | source | licence | paper |",
        "| --- | --- | --- | --- |",
    ]
    for recipe in recipes:
        paper = f"[{recipe.paper}](https://arxiv.org/abs/{recipe.paper})" if recipe.paper else ""
        lines.append(f"| `{recipe.name}` | `{recipe.source}` | {recipe.license or ''} | {paper} |")
    lines += [
        "",
        "`ladder` is how many numbers a ladder pools; it has as many features at most. The columns "
        "after it are the sizes of trainable subsets, with 10 prompt tokens.",
        "",
        f"| name | pixels | weights | features | ladder | {' | '.join(subsets)} |",
        "| --- " + "| ---: " * (4 + len(subsets)) + "|",
    ]
    for recipe in recipes:
        weights = f"{recipe.n_weights / 1e6:.1f} M" if recipe.n_weights else ""
        sizes = " | ".join(f"{recipe.trainable[s]:,}" if s in recipe.trainable else "" for s in subsets)
        lines.append(
            f"| `{recipe.name}` | {recipe.input_size or ''} | {weights} | {recipe.n_features or 0:,} "
            f"| {recipe.n_pooled or 0:,} | {sizes} |"
        )
    return "\n".join(lines) + "\n"


def page(source: Path, folder: Path) -> str:
    """Return a page of the repository, and copy its pictures; it names files that it links to."""
    text = source.read_text(encoding="utf-8")
    for picture in re.findall(r"!\[[^]]*\]\((?!https?:)([^)]+)\)", text):
        shutil.copy(source.parent / picture, folder)
    return re.sub(r"(?<!!)\[([^]]+)\]\((?!https?:|#)([^)]+)\)", r"\1 (`\2`)", text)


def write(folder: Path) -> None:
    """Write all pages."""
    folder.mkdir(exist_ok=True)
    (folder / "zoo.md").write_text(zoo())
    sources = {
        "benchmarks": ROOT / "examples" / "benchmarks" / "README.md",
        "paper": ROOT / "examples" / "paper" / "README.md",
        "changelog": ROOT / "CHANGELOG.md",
    }
    for name, source in sources.items():
        (folder / f"{name}.md").write_text(page(source, folder))
