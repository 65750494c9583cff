"""Out of an estimator and back: plain weights, and folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Self

from sklearn.utils.validation import check_is_fitted
from torch import nn

from . import persistence
from .state import State


class ExportMixin:
    """What a fitted classifier can be turned into; the classifier provides `_state`."""

    _state: State

    def to_module(self) -> nn.Module:
        """Return the network with the solved weights, for use without this library.

        Returns
        -------
        module : nn.Module
            A timm model with its classifier (`classes_` are its outputs), or a Sequential of
            "backbone" and "readout"; float tensors of normalised images in, scores out. In eval mode.
            This is what to release after a deletion: it holds the solved weights and nothing of SGD's.

        Raises
        ------
        ValueError
            For the pretrained anchor, where W reads the linearised model and not the network.
        """
        check_is_fitted(self)
        if self._state.frozen.anchor == "pretrained":
            raise ValueError(
                'Expected anchor="finetuned", got anchor="pretrained", whose predictions are not those '
                "of plain weights. Fit with the other anchor, or use save and load."
            )
        state = self._state
        return state.model.to_module(state.parameters, state.class_rows == 0)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Save the whole estimator, with its private statistics and ledger, to a folder.

        Parameters
        ----------
        path : str or path-like
            Made if it does not exist; a state that it holds is replaced at one instant.

        Raises
        ------
        StateFormatError
            If the folder holds something else.
        """
        check_is_fitted(self)
        persistence.save(self, path)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str | nn.Module | Callable[[], nn.Module] | None = None,
        device: str | None = None,
    ) -> Self:
        """Load what :meth:`save` wrote; nothing is unpickled.

        Parameters
        ----------
        path : str or path-like

        backbone : str, nn.Module or callable, default=None
            Where the backbone comes from now; needed if it was a module or a callable.

        device : str, default=None
            By default the saved one.

        Returns
        -------
        classifier : FastNTKClassifier
            Predicts bitwise the same, and goes on unlearning.

        Raises
        ------
        StateFormatError
            If the folder holds no complete state of a known format.

        StateMismatchError
            If the backbone's weights are not those that were saved.
        """
        return persistence.load(cls, path, backbone=backbone, device=device)
