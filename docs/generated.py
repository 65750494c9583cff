"""Pages that are written from files: the zoo's table, and results of the benchmarks."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from fastntk_sk import list_recipes, load_recipe

ROOT = Path(__file__).parents[1]


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
