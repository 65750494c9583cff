"""Out of an estimator and back: folders, the Hub, and plain weights."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted
from torch import nn

from .publishing import files, folder, hub
from .publishing.card import Earlier, model_card
from .publishing.exports import onnx_bytes, save_for_timm
from .state import Halves
from .store import persistence, receipts


class ExportMixin(Halves):
    """What a fitted classifier can be turned into."""

    classes_: np.ndarray

    def to_module(self) -> nn.Module:
        """Return the network with the solved weights, for use without this library.

        Returns
        -------
        module : nn.Module
            A timm model with its classifier (`classes_` are its outputs), or a Sequential of
            "backbone" and "readout"; float tensors of normalised images in, scores out. In eval mode.
            It holds the solved weights and nothing of SGD's. With a ladder alone the "backbone" is the
            frozen network with its rungs, which torch.export takes.

        Raises
        ------
        ValueError
            For tangents at the pretrained anchor: W reads the linearised model and not a network.
        """
        check_is_fitted(self)
        if self._adapter.settings.anchor == "pretrained" and self._adapter.model.projection.p:
            raise ValueError(
                'Expected a ladder or the head alone with anchor="pretrained", got tangents of '
                f"{self._adapter.trained}, whose predictions are not those of plain "
                'weights. Fit with trainable="ladder" or the other anchor, or publish the adapter.'
            )
        return self._adapter.to_module()

    def export_timm(self, path: str | os.PathLike[str]) -> None:
        """Save the network of :meth:`to_module` so that timm loads it by itself.

        ``timm.create_model("local-dir:PATH", pretrained=True)``, or "hf-hub:ORG/NAME" after the folder
        was uploaded, gives a model whose outputs are the scores of `classes_`.

        Parameters
        ----------
        path : str or path-like
            Gets `config.json` and `model.safetensors`.

        Raises
        ------
        ValueError
            For a ladder, for tangents at the pretrained anchor, and for networks that are no plain timm
            models (with prompts, or of another library).
        """
        labels = [str(label) for label in self.classes_]
        save_for_timm(self.to_module(), self._adapter.model.backbone.spec, Path(path), labels)

    def export_onnx(self, path: str | os.PathLike[str]) -> None:
        """Save the network of :meth:`to_module` as one ONNX file, for onnxruntime and others.

        Its input "batch" is what `to_module` takes: any number of float32 rows, pictures of shape
        (n, channels, height, width), resized, divided by 255 and normalised. Its output "scores" has a
        column for each of `classes_`, two for two classes, and minus infinity for a class without rows.
        The metadata hold "classes" (as text) and "preprocessing" (size, channels, mean and standard
        deviation of values in 0..1, interpolation) in JSON. Exporting takes from seconds to a minute.

        Parameters
        ----------
        path : str or path-like
            The file, which is replaced at one instant; its folder is made.

        Raises
        ------
        ImportError
            Without the extra: ``pip install 'fastntk_sk[onnx]'``.

        IsADirectoryError
            If the path is a folder.

        ValueError
            Where :meth:`to_module` raises one, and for weights of 2 GiB or more.
        """
        path = Path(path)
        if path.is_dir():
            raise IsADirectoryError(
                f"Expected the path of a file to write, got the folder {str(path)!r}."
            )
        module = self.to_module()
        model = self._adapter.model
        example = model.backbone.synthetic(2, 0, model.settings.n_features, torch.float32)
        labels = [str(label) for label in self.classes_]
        data = onnx_bytes(module.float().cpu(), example, model.backbone.spec, labels)
        files.make_folder(path.parent)
        files.replace(path.parent, path.name, data, mode=files.PUBLIC)

    def save(self, path: str | os.PathLike[str], *, key: bytes | str | None = None) -> None:
        """Save the whole estimator: the public adapter and the private state.

        Parameters
        ----------
        path : str or path-like
            Made if it does not exist; a state that it holds is replaced at one instant. Its files are
            readable by their owner only. One process at a time may write to it.

        key : bytes or str, default=None
            Encrypts the files (Fernet of the package cryptography: ``Fernet.generate_key()``).

        Raises
        ------
        StateFormatError
            If the folder holds something else, or class labels or a parameter are no plain values.

        DecryptionError
            If the key is malformed.

        NoPrivateStateError
            If this is a published adapter.
        """
        check_is_fitted(self)
        persistence.save(self, path, key)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str | nn.Module | Callable[[], nn.Module] | None = None,
        device: str | None = None,
        key: bytes | str | None = None,
    ) -> Self:
        """Load what :meth:`save` wrote; nothing is unpickled.

        Parameters
        ----------
        path : str or path-like

        backbone : str, nn.Module or callable, default=None
            Where the backbone comes from now; needed if it was a module or a callable.

        device : str, default=None
            By default the saved one.

        key : bytes or str, default=None
            Of an encrypted state; a state that is not encrypted is refused with it.

        Returns
        -------
        classifier : FastNTKClassifier
            Predicts bitwise the same, and goes on unlearning.

        Raises
        ------
        StateFormatError
            If the folder holds no complete state of a known format.

        DecryptionError
            If the state is encrypted and not with this key, or not encrypted and a key is given.

        NoPrivateStateError
            If the folder holds a public adapter.

        StateMismatchError
            If the backbone's weights are not those that were saved.
        """
        return persistence.load(cls, path, backbone=backbone, device=device, key=key)

    def save_pretrained(
        self,
        path: str | os.PathLike[str],
        *,
        license: str | None = None,
        dataset: str | None = None,
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        """Save the public adapter: what predicts, and nothing that describes rows.

        Parameters
        ----------
        path : str or path-like
            Gets `config.json`, `adapter.safetensors` and the model card `README.md`.

        license : str, default=None
            Identifier of the Hub for the adapter's licence.

        dataset : str, default=None
            What the model was learned from, for the card.

        metrics : mapping of str to float, default=None
            Results that were measured, such as {"accuracy": 0.91}, for the card.

        Raises
        ------
        PublicationError
            If the folder holds a private state or something else, or predictions need a fine-tuned
            anchor.

        StateFormatError
            If class labels or a parameter are no plain values.

        NotFittedError
            If there is nothing to publish.
        """
        check_is_fitted(self)
        card = model_card(self, license=license, dataset=dataset, metrics=metrics)
        folder.save_adapter(self, path, str(card))

    @classmethod
    def from_pretrained(
        cls,
        path_or_repo: str | os.PathLike[str],
        *,
        revision: str | None = None,
        backbone: str | nn.Module | Callable[[], nn.Module] | None = None,
        device: str | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> Self:
        """Load a public adapter from a folder or from the Hub.

        Parameters
        ----------
        path_or_repo : str or path-like
            A folder of :meth:`save_pretrained`, or "ORG/NAME" on the Hub.

        revision : str, default=None
            Branch, tag or commit on the Hub.

        backbone : str, nn.Module or callable, default=None
            Where the backbone comes from; by default what the adapter names.

        device : str, default=None
            By default the CPU.

        token : str or bool, default=None
            For the Hub; by default the one of this machine.

        cache_dir : str or path-like, default=None
            Of the Hub's client.

        Returns
        -------
        classifier : FastNTKClassifier
            It predicts bitwise the same, and cannot learn or forget rows: it holds neither statistics
            nor ledger.

        Raises
        ------
        HubError
            If the Hub could not be reached, or has no such repository, revision or adapter.

        StateFormatError
            If the files are damaged, forged, or of a newer format.

        StateMismatchError
            If the backbone's weights are not those that it was learned with.

        WeightsUnavailableError
            If the backbone's weights cannot be loaded here.

        Warns
        -----
        PrivacyWarning
            If the Hub cannot be reached, and a copy in the cache is used.

        UnknownKeyWarning
            If it was written by a later version.
        """
        local = os.path.isdir(path_or_repo) or not isinstance(path_or_repo, str)
        if local and revision is not None:
            raise ValueError(f"Expected no revision with a folder, got {revision!r}. Leave it out.")
        if local:
            found = Path(path_or_repo)
        else:
            found = hub.pull(str(path_or_repo), revision, token=token, cache_dir=cache_dir)
        return folder.load_adapter(cls, found, backbone=backbone, device=device)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        license: str | None = None,
        dataset: str | None = None,
        metrics: Mapping[str, float] | None = None,
        include_private_state: bool = False,
        key: bytes | str | None = None,
        purge_history: bool = False,
    ) -> str:
        """Publish the adapter on the Hub, as one commit.

        Parameters
        ----------
        repo_id : str
            "ORG/NAME"; made if it does not exist.

        private : bool, default=None
            For a repository that is made; None is the default of the organisation. A repository that
            exists is left as it is.

        revision : str, default=None
            Branch; made if it does not exist.

        commit_message : str, default=None
            By default it tells how many rows were forgotten.

        token : str or bool, default=None
            By default the one of this machine.

        license, dataset, metrics
            As in :meth:`save_pretrained`.

        include_private_state : bool, default=False
            Also upload what :meth:`save` writes, to the folder `private_state`; only to a private
            repository. Without it, a private state that is in the repository is deleted from the
            branch, because it remembers the rows forgotten since.

        key : bytes or str, default=None
            Encrypts the private state.

        purge_history : bool, default=False
            Delete what earlier commits uploaded: the branch is squashed, tags go, and so do all large
            files that its last commit does not hold. Only for the branch "main", as the only one.
            References that cannot be deleted (of pull requests, or converted) are named in a warning;
            forks, caches and what others downloaded in docs/user_guide/deletion.md.

        Returns
        -------
        commit : str
            The commit on the branch afterwards.

        Raises
        ------
        HubError
            If the Hub could not be reached, or refused. The call can be repeated.

        PublicationError
            For a private state in a public repository, for a repository that holds another model, and
            for a history that other branches share.

        NoPrivateStateError
            If `include_private_state` is set and this is a published adapter.

        Warns
        -----
        PrivacyWarning
            Before anything is uploaded, if earlier commits will still hold what was forgotten or a
            private state; and if `purge_history` left something behind.
        """
        check_is_fitted(self)
        folder.check_publishable(self._adapter)
        if key is not None and not include_private_state:
            raise ValueError(
                "Expected no key without include_private_state=True, got one. Leave it out."
            )
        if include_private_state:
            persistence.check_savable(self, key)

        def contents(earlier: Earlier | None) -> dict[str, bytes]:
            card = model_card(
                self,
                license=license,
                dataset=dataset,
                metrics=metrics,
                earlier=earlier,
                repository=repo_id,
                revision=revision,
            )
            found = folder.adapter_files(self, str(card))
            if include_private_state:
                state = persistence.state_files(self, key)
                found |= {f"{hub.PRIVATE}/{name}": data for name, data in state.items()}
            return found

        return hub.push(
            repo_id,
            contents,
            adapter=self._adapter,
            private=private,
            branch=revision or "main",
            message=commit_message,
            token=token,
            include_private_state=include_private_state,
            purge_history=purge_history,
        )

    def export_receipts(self, path: str | os.PathLike[str]) -> None:
        """Write `receipts_` as JSON lines, for :func:`verify_receipts`.

        Parameters
        ----------
        path : str or path-like

        Raises
        ------
        NoPrivateStateError
            If this is a published adapter: receipts are private.
        """
        check_is_fitted(self)
        receipts.export_receipts(self._state.receipts, path)
