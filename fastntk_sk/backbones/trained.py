"""A network that its owner has trained, taken apart into its features and its classifier."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..settings import Settings
from .loading import Backbone, load_backbone, preprocessing
from .modules import check_finite, exchange

_LARGEST_GAP = 1e-3  # between a network's outputs and those of its parts, relative


class Trained(NamedTuple):
    """The features of a network, the classifier that reads them, of shape (C, d + 1), and its name."""

    features: Backbone
    W: Tensor
    head: str


def take_apart(network: nn.Module, settings: Settings, dtype: torch.dtype) -> Trained:
    """Return the parts of a copy of a trained network.

    Its classifier is called `settings.head`, or is its last nn.Linear with an output for each class.
    Pictures are prepared as for the backbone that the settings name, or else for the network itself.
    Raise ValueError unless the classifier makes the network's outputs, one a class, of the features.
    """
    spec, size, device = None, settings.image_size, torch.device(settings.device)
    if settings.backbone is not None:
        spec = preprocessing(settings.backbone, size)
        size = spec.size
    loaded = load_backbone(
        network, image_size=size, n_features=settings.n_features, keep_classifier=True
    )
    loaded.spec = spec or loaded.spec
    loaded.net.to(dtype=dtype, device=device)
    check_finite(loaded.net, loaded.name)
    x = loaded.probe(settings.seed, settings.n_features, dtype, device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):  # the caller's
        W, head = _take_off(loaded.net, settings.head, x, settings.n_classes)
    return Trained(loaded, W.cpu(), head)


def _take_off(net: nn.Module, head: str | None, x: Tensor, C: int) -> tuple[Tensor, str]:
    """Replace the classifier of a network by the identity, and return its W and its name."""
    try:
        outputs = net(x.clone())  # it may write into its batch
    except Exception as error:  # torch, timm and modules raise anything for what they do not take
        raise ValueError(
            f"Expected a network as anchor that takes batches of shape {tuple(x.shape)}; "
            f"{type(net).__name__} fails on one: {error}. Wrap it in a module that does."
        ) from error
    if not isinstance(outputs, Tensor):
        raise ValueError(
            "Expected a network as anchor that returns a tensor, its scores, got "
            f"{type(outputs).__name__}. Wrap it in a module that picks them:\n"
            "class Scores(torch.nn.Module):\n"
            "    def __init__(self, net): super().__init__(); self.net = net\n"
            "    def forward(self, x): return self.net(x)[0]  # or .logits"
        )
    if outputs.shape != (2, C):
        raise ValueError(
            f"Expected a network as anchor with an output for each of the {C} classes, in the order of "
            f"classes_ (sorted), got outputs of shape {tuple(outputs.shape)} of two rows. Name all of "
            "its classes: fit(X, y, classes=...)."
        )
    linear = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.Linear)]
    fitting = [name for name, module in linear if module.out_features == C]
    head = head or next(reversed(fitting), "")
    try:
        classifier: Any = net.get_submodule(head)
        weight, bias = classifier.weight, getattr(classifier, "bias", None)
        bias = weight.new_zeros(C) if bias is None else bias
        W = torch.cat([weight, bias[:, None]], 1)
        exchange(net, classifier, nn.Identity())
        read = net(x.clone()) @ W[:, :-1].T + W[:, -1]
        gap = float((read - outputs).norm() / outputs.norm().clamp_min(1e-30))
        what = f"outputs that differ by {gap:.0%}"
    except Exception as error:  # as above, and for a name that it lacks
        gap, what = math.inf, f"{type(error).__name__}: {error}"
    if not gap <= _LARGEST_GAP:
        raise ValueError(
            f"Expected the outputs of the anchor to be those of its classifier {head!r}, a linear layer "
            f"with nothing behind it, got {what:.300}. Name the classifier, head=... (layers with {C} "
            f"outputs: {fitting}), and leave out what follows it, such as a softmax."
        )
    return W, head
