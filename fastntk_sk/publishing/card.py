"""The model card of an adapter: what it is, how to load it, what was forgotten, and what that means."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..backbones.recipes import find_recipe
from ..escaping import markdown
from ..sums.ridge import TANGENT_ALPHA
from .adapter import LADDER_IS_EXACT, Adapter
from .config import public_name


def model_card(
    classifier: Any,
    *,
    license: str | None = None,
    dataset: str | None = None,
    metrics: Mapping[str, float] | None = None,
    repository: str | None = None,
    revision: str | None = None,
) -> str:
    """Return the card of a fitted classifier: `card.md` filled in.

    Its links to arXiv list the adapter on the page of the paper. `repository` and `revision` stand in
    the example.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    adapter: Adapter = classifier._adapter
    model, settings = adapter.model, adapter.settings
    name = public_name(model)
    pictures = model.backbone.spec.size is not None
    title = repository.rpartition("/")[2] if repository else f"Fast-NTK on {name}"
    arguments = [repr(repository or "ORG/NAME")]
    arguments += [f"revision={revision!r}"] if revision else []
    arguments += (
        [] if settings.backbone is not None and name == model.backbone.name else ["backbone=..."]
    )
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=re.sub(r"\W+", "-", (dataset or "unnamed").lower()),
            dataset_name=dataset or "unnamed",
            metric_type=metric,
            metric_value=float(value),
        )
        for metric, value in sorted((metrics or {}).items())
    ]
    data = ModelCardData(
        library_name="fastntk_sk",
        tags=["fastntk_sk", "machine-unlearning", "neural-tangent-kernel", "arxiv:2312.14923"],
        pipeline_tag="image-classification" if pictures else None,
        base_model=model.origin["base_model"],
        license=license,
        metrics=sorted(metrics) if metrics else None,
        model_name=title if metrics else None,
        eval_results=results or None,
    )
    recipe = find_recipe(model.backbone.name)
    card = ModelCard.from_template(
        data,
        str(Path(__file__).with_name("card.md")),
        title=title,
        backbone=name,
        arguments=", ".join(arguments),
        pictures=pictures,
        revision=model.origin["revision"],
        summary={key: markdown(text) for key, text in adapter.summary().items()},
        alpha=_alpha(adapter),
        classes=[markdown(label) for label in adapter.classes.tolist()],
        finetuned=settings.anchor_has_seen,
        ladder=model.ladder is not None,
        ladder_alone=adapter.is_ladder_alone,
        LADDER_IS_EXACT=LADDER_IS_EXACT,
        timm=hasattr(model.backbone.net, "pretrained_cfg"),
        paper=recipe and recipe.paper,
    )
    return str(card)


def _alpha(adapter: Adapter) -> str:
    """Return the ridge that was asked for; a value that the sums chose is as private as they are."""
    if adapter.settings.alpha is not None:
        return f"{adapter.settings.alpha:.4g}"
    if adapter.model.projection.p:
        return f"{TANGENT_ALPHA:.4g} (auto)"
    return "chosen by the sums of the learned rows"
