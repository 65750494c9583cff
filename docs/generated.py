"""Pages that are written from files of the repository: the zoo, results, and what stands at its root."""

from __future__ import annotations

import os
import re
from pathlib import Path

from repository_links import PAGES

from fastntk_sk import list_recipes, load_recipe

ROOT = Path(__file__).parents[1]
RESULTS = (
    "Every picture and every table was written by the script that measured it, with versions and "
    "commit. Where another method is better, the first sentence under its table says so."
)


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
    """Return a page of the repository, whose links lead to the same files from another folder."""

    def moved(match: re.Match[str]) -> str:
        name, mark, anchor = match[1].partition("#")
        file = source.parent / name
        return f"]({os.path.relpath(file, folder)}{mark}{anchor})" if file.is_file() else match[0]

    return re.sub(r"\]\((?!https?:|#)([^)\s]+)\)", moved, source.read_text(encoding="utf-8"))


def results(folder: Path) -> str:
    """Return the page that shows every picture of the benchmarks and of the paper's table first."""
    lines = ["# Results", "", RESULTS, "", "```{toctree}", ":maxdepth: 1", ""]
    lines += ["benchmarks", "paper", "../comparison", "```", ""]
    for name in ("paper", "benchmarks"):
        text = (folder / f"{name}.md").read_text(encoding="utf-8")
        for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
            heading = section.partition("\n")[0]
            if pictures := re.findall(r"^!\[.*", section, flags=re.MULTILINE):
                anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
                link = f"[Tables and method]({name}.md#{anchor})"
                lines += [f"## {heading}", "", *pictures, "", link, ""]
    return "\n".join(lines)


def write(folder: Path) -> None:
    """Write all pages."""
    folder.mkdir(exist_ok=True)
    (folder / "zoo.md").write_text(zoo(), encoding="utf-8")
    for source, place in PAGES.items():
        text = page(ROOT / source, folder)
        (folder / Path(place).name).write_text(text, encoding="utf-8")
    (folder / "results.md").write_text(results(folder), encoding="utf-8")
