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
    """Return the table of recipes."""
    lines = [
        "# Zoo",
        "",
        "Backbones that are known by name. Any other timm model, `torchvision:NAME`, "
        "`hf-hub:ORG/NAME` or `nn.Module` works too. A ladder pools so many numbers, and has as many "
        "features at most; p is the size of a trainable subset.",
        "",
        "| name | source | licence | pixels | weights | features | ladder | trainable (p) | results |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for recipe in map(load_recipe, list_recipes()):
        subsets = ", ".join(f"{name} ({p:,})" for name, p in recipe.trainable.items())
        results = recipe.results
        lines.append(
            f"| `{recipe.name}` | `{recipe.source}` | {recipe.license or ''} "
            f"| {recipe.input_size or ''} | {(recipe.n_weights or 0) / 1e6:.1f} M "
            f"| {recipe.n_features} | {recipe.n_pooled or 0:,} | {subsets} "
            f"| {results.get('accuracy', 'not measured')} {results.get('dataset', '')} |"
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
