"""The model card of an adapter: what it is, how to load it, what was forgotten, and what that means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backbones.recipes import find_recipe
from ..sums.ridge import TANGENT_ALPHA
from ..tangents.model import LinearizedModel
from .adapter import LADDER_IS_EXACT, Adapter
from .config import public_name
from .exactness import exactness_text

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

_TEXT = """\
# {title}

A classifier of {n_classes} classes on the frozen backbone `{backbone}`, made with fastntk_sk, an
implementation of [Fast-NTK](https://arxiv.org/abs/2312.14923) that forgets training rows in closed form.

## Use

```python
from fastntk_sk import FastNTKClassifier

clf = FastNTKClassifier.from_pretrained({arguments})
clf.predict(X)  # {inputs}
```

The adapter predicts. It holds no training rows, no statistics and no ledger: to forget rows, their
owner needs the private state.

## What it rests on

| | |
| --- | --- |
| backbone | `{backbone}`, {revision} |
{learned}
| anchor, kernel | {anchor}, {kernel} |
| alpha | {alpha} |
| learned rows | {n_learned:,} |
| forgotten rows | {n_forgotten:,} |
| classes | {classes} |
{results}
## Deletions

{deletions}

What exactness does not cover: the pretraining data of the backbone; hyper-parameters that were chosen on
data with the forgotten rows in it; the list of classes{anchor_limit}; and versions of this model
that were published before a deletion. Whoever holds the adapter of before and of after a deletion can
reconstruct the deleted rows almost exactly ([arXiv:2405.20272](https://arxiv.org/abs/2405.20272)). If
earlier versions were purged here, forks, pull requests, caches and what somebody downloaded were not.

## Limits

The scores are those of a squared-loss model: `predict_proba` is not calibrated. The adapter is only as
good, and as biased, as its backbone and the rows that it has seen.

## Citation

```bibtex
@article{{li2023fastntk,
  title   = {{Fast-NTK: Parameter-Efficient Unlearning for Large-Scale Models}},
  author  = {{Li, Guihong and Hsu, Hsiang and Chen, Chun-Fu and Marculescu, Radu}},
  journal = {{arXiv:2312.14923}},
  year    = {{2023}}
}}
```
{ladder_citation}{backbone_citation}"""
_LADDER = """
The ladder's features are known ones, those of a side adapter: side tuning
([arXiv:1912.13503](https://arxiv.org/abs/1912.13503)), Head2Toe
([arXiv:2201.03529](https://arxiv.org/abs/2201.03529)), LayUP
([arXiv:2312.08888](https://arxiv.org/abs/2312.08888)) and RanPAC
([arXiv:2307.02251](https://arxiv.org/abs/2307.02251)).
"""
_TIMM = """
The backbone{paper} is built by timm{base}:

```bibtex
@misc{{rw2019timm,
  title     = {{PyTorch Image Models}},
  author    = {{Wightman, Ross}},
  publisher = {{GitHub}},
  doi       = {{10.5281/zenodo.4414861}},
  year      = {{2019}}
}}
```
"""


@dataclass(frozen=True)
class Earlier:
    """The version of an adapter that a push follows; `checksum` is that of its tensors."""

    commit: str
    n_learned: int
    n_forgotten: int
    checksum: str
    card: str


def model_card(
    classifier: Any,
    *,
    license: str | None = None,
    dataset: str | None = None,
    metrics: Mapping[str, float] | None = None,
    earlier: Earlier | None = None,
    repository: str = "ORG/NAME",
    revision: str | None = None,
) -> ModelCard:
    """Return the card of a fitted classifier.

    Its links to arXiv list the adapter on the page of the paper. `earlier` is the published version
    before this one; `repository` and `revision` stand in the example.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    adapter: Adapter = classifier._adapter
    model, settings = adapter.model, adapter.settings
    name, origin = public_name(model), model.origin
    base, stored = origin["base_model"], settings.backbone is not None
    arguments = [repr(repository)]
    arguments += [f"revision={revision!r}"] if revision else []
    arguments += [] if stored and name == model.backbone.name else ["backbone=..."]
    vectors = model.backbone.spec.size is None
    title = repository.rpartition("/")[2] if earlier or revision else f"Fast-NTK on {name}"
    data = ModelCardData(
        library_name="fastntk_sk",
        tags=["fastntk_sk", "machine-unlearning", "neural-tangent-kernel", "arxiv:2312.14923"],
        pipeline_tag=None if vectors else "image-classification",
        base_model=base,
        license=license,
        metrics=sorted(metrics) if metrics else None,
        model_name=title if metrics else None,
        eval_results=[
            EvalResult(
                task_type="image-classification",
                dataset_type=re.sub(r"\W+", "-", (dataset or "unnamed").lower()),
                dataset_name=dataset or "unnamed",
                metric_type=metric,
                metric_value=float(value),
            )
            for metric, value in sorted(metrics.items())
        ]
        if metrics
        else None,
    )
    text = _TEXT.format(
        title=title,
        backbone=name,
        arguments=", ".join(arguments),
        inputs="an array of shape (n, n_features)" if vectors else "arrays, PIL images or file paths",
        revision=f"revision {origin['revision']}" if origin["revision"] else "revision unknown",
        learned="\n".join(f"| {name} | {_cell(text)} |" for name, text in adapter.described().items()),
        anchor=settings.anchor,
        kernel=settings.kernel,
        alpha=_alpha(adapter),
        n_learned=adapter.n_learned,
        n_forgotten=adapter.n_forgotten,
        n_classes=len(adapter.empty),
        classes=_listed(classifier.classes_.tolist()),
        results=_results(metrics, dataset),
        deletions=_deletions(adapter, earlier),
        anchor_limit="; the fine-tuned anchor, which has seen every row"
        if settings.is_finetuned
        else "",
        ladder_citation="" if model.ladder is None else _LADDER,
        backbone_citation=_backbone_citation(model, base),
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _backbone_citation(model: LinearizedModel, base: str | None) -> str:
    if not hasattr(model.backbone.net, "pretrained_cfg"):
        return ""
    name = model.backbone.name
    recipe = find_recipe(name)
    paper = recipe.paper if recipe else None
    return _TIMM.format(
        paper=f" ([arXiv:{paper}](https://arxiv.org/abs/{paper}))" if paper else "",
        base=f", with weights of [{base}](https://huggingface.co/{base})" if base else "",
    )


def _listed(labels: list[Any]) -> str:
    shown = ", ".join(_cell(str(label)) for label in labels[:20])
    return f"{shown}, ... ({len(labels)} in all)" if len(labels) > 20 else shown


def _cell(text: str) -> str:
    return re.sub(r"([|*])", r"\\\1", re.sub(r"\s+", " ", text))


def _alpha(adapter: Adapter) -> str:
    """Return the ridge that was asked for; a value that the sums chose is as private as they are."""
    if adapter.settings.alpha is not None:
        return f"{adapter.settings.alpha:.4g}"
    if adapter.model.projection.p:
        return f"{TANGENT_ALPHA:.4g} (auto)"
    return "chosen by the sums of the learned rows"


def _results(metrics: Mapping[str, float] | None, dataset: str | None) -> str:
    if not metrics:
        return ""
    where = f" on {dataset}" if dataset else ""
    lines = "\n".join(f"| {metric} | {value:.4g} |" for metric, value in sorted(metrics.items()))
    return (
        f"\n## Results\n\nMeasured by the author of the adapter{where}.\n\n"
        f"| | |\n| --- | --- |\n{lines}\n"
    )


def _deletions(adapter: Adapter, earlier: Earlier | None) -> str:
    if not adapter.n_forgotten:
        return "No row has been forgotten yet." + _changes(adapter, earlier)
    alone = adapter.is_ladder_alone
    limit = LADDER_IS_EXACT if alone else "That holds for the linearised model only."
    return (
        f"{adapter.n_forgotten:,} rows were forgotten; which ones is not recorded here. The deletions "
        f"are {exactness_text(adapter.exactness, ladder_alone=alone)}.\n\nExact means: the parameters "
        f"are those of a model that never saw the rows, up to rounding. {limit}"
    ) + _changes(adapter, earlier)


def _changes(adapter: Adapter, earlier: Earlier | None) -> str:
    """Return what changed since the published version, as far as the counts and receipts tell."""
    if earlier is None:
        return ""
    if earlier.checksum == adapter.checksum:  # the same again: what its card says is still so
        found = re.search(r"\n\n(Since the version|Replaces the version) [^\n]*", earlier.card)
        return found[0] if found else ""
    before = f"version of commit `{earlier.commit[:12]}`"
    forgotten = adapter.n_forgotten - earlier.n_forgotten
    learned = adapter.n_learned - earlier.n_learned + forgotten
    if forgotten < 0 or learned < 0:
        return (
            f"\n\nReplaces the {before}, another model of {earlier.n_learned:,} learned and "
            f"{earlier.n_forgotten:,} forgotten rows."
        )
    return f"\n\nSince the {before}: {forgotten:,} rows forgotten, {learned:,} rows learned."
