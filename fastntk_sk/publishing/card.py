"""The model card of an adapter: what it is, how to load it, what was forgotten, and what that means."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..escaping import markdown, visible
from ..sums.ridge import TANGENT_ALPHA
from ..tangents.model import LinearizedModel
from .adapter import LINEAR_IS_EXACT, Adapter
from .config import public_name

# of the licences that timm states, those in the Hub's list; it refuses a card with another identifier
_LICENSES = {
    "apache-2.0", "apple-amlr", "apple-ascl", "bsd-3-clause", "cc-by-nc-4.0",
    "fair-noncommercial-research-license", "gemma", "mit", "other", "unknown",
}  # fmt: skip


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

    The Hub lists a model under every paper on arXiv that its card links to: `card.md` links to that of
    the method alone. `repository` and `revision` stand in the example.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    wrong = {name: value for name, value in (metrics or {}).items() if not math.isfinite(value)}
    if wrong:
        raise ValueError(f"Expected metrics to be finite numbers, got {wrong}. Leave those out.")
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
    base_model = model.origin["base_model"]
    on_hub = dataset if dataset and _is_identifier(dataset) else None
    licence: dict[str, Any] = {"license": license} if license else _license_of_weights(model)
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=on_hub or re.sub(r"\W+", "-", (dataset or "unnamed").lower()),
            dataset_name=dataset or "unnamed",
            metric_type=metric,
            metric_value=float(value),
        )
        for metric, value in sorted((metrics or {}).items())
    ]
    data = ModelCardData(
        library_name="fastntk-sk",  # the Hub's form: lower case with hyphens
        tags=["machine-unlearning", "neural-tangent-kernel", "arxiv:2312.14923"],
        pipeline_tag="image-classification" if pictures else None,
        base_model=base_model,
        base_model_relation="adapter" if base_model else None,
        datasets=[on_hub] if on_hub else None,
        **licence,
        metrics=sorted(metrics) if metrics else None,
        model_name=title if metrics else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        data,
        str(Path(__file__).with_name("card.md")),
        title=title,
        backbone=visible(name).replace("`", "'"),  # it stands in code
        arguments=", ".join(arguments),
        pictures=pictures,
        revision=model.origin["revision"],
        dataset=dataset and markdown(dataset),
        on_hub=on_hub,
        licence=markdown(licence.get("license_name") or licence.get("license") or "not stated"),
        of_weights=bool(licence) and not license,
        summary={key: markdown(text) for key, text in adapter.summary().items()},
        alpha=_alpha(adapter),
        classes=[markdown(label) for label in adapter.classes.tolist()],
        empty=int(adapter.empty.sum()),
        finetuned=settings.anchor_has_seen,
        frozen=settings.anchor == "pretrained"
        and (settings.predict_with == "linear" or not model.projection.p),
        calibrated=settings.temperature is not None,
        ladder=model.ladder is not None,
        is_linear=adapter.is_linear,
        LINEAR_IS_EXACT=LINEAR_IS_EXACT,
        timm=hasattr(model.backbone.net, "pretrained_cfg"),
    )
    return str(card)


def _is_identifier(dataset: str) -> bool:
    """Return whether a text has the form of the Hub's identifiers, "ORG/NAME" or "NAME"."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(dataset)
    except HFValidationError:
        return False
    return True


def _license_of_weights(model: LinearizedModel) -> dict[str, Any]:
    """Return a card's fields for the licence that timm states of the weights, if it is known."""
    base_model = model.origin["base_model"]
    stated = (getattr(model.backbone.net, "pretrained_cfg", None) or {}).get("license")
    if not base_model or not stated:
        return {}
    if stated in _LICENSES:
        return {"license": stated}
    link = f"https://huggingface.co/{base_model}"
    return {"license": "other", "license_name": stated, "license_link": link}


def _alpha(adapter: Adapter) -> str:
    """Return the ridge that was asked for; a value that the sums chose is as private as they are."""
    if adapter.settings.alpha is not None:
        return f"{adapter.settings.alpha:.4g}"
    if adapter.model.projection.p:
        return f"{TANGENT_ALPHA:.4g} (auto)"
    return "chosen by the sums of the learned rows"
