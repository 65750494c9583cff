"""The estimator: parameters, and short methods that each read as their steps."""

from __future__ import annotations

import copy
import math
import os
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from numbers import Integral
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, _fit_context
from sklearn.utils import check_scalar, column_or_1d
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor, nn

from .backbones.inputs import Rows, check_device, content
from .backbones.kinds import check_images
from .backbones.loading import has_not_seen, pair, takes_vectors
from .backbones.trained import take_apart
from .distributed import ranks
from .exceptions import (
    EmptyClassWarning,
    FastNTKError,
    InexactDeletionError,
    InexactDeletionWarning,
    LinearityWarning,
    NoFeaturesError,
    NoPrivateStateError,
    NumericalDriftWarning,
    PrivacyWarning,
    SampleError,
    StateFormatError,
    StateMismatchError,
    warn,
)
from .modes import without_modes
from .progress import progress
from .publishing import exports, folder
from .publishing.adapter import Adapter
from .publishing.exactness import exactness
from .publishing.html import state_table
from .settings import Settings
from .state import State, Sums, Tuning, distinct, signature
from .store import persistence
from .store.ledger import Ledger, Match, Removal, check_unchanged
from .store.private import Private
from .store.receipts import chain_heads, export_receipts, lost, make_receipt
from .store.shares import Asked, follow, hand_out, leading, probes, sum_shares
from .sums.ridge import number
from .sums.solvers import coarse
from .tangents.linearize import linearize
from .tangents.model import LinearizedModel, working_dtype
from .tangents.subsets import as_entries
from .training.anchor import linearity, settle, tune
from .validation import (
    CONSTRAINTS,
    CheckedRows,
    check_choice,
    check_classes,
    check_ids,
    check_request_ids,
    check_threshold,
    check_together,
    check_training_rows,
    check_vectors,
    class_indices,
    draw_seed,
    encode_labels,
)

_NOT_FOLLOWED = 0.5  # at 0.5 the network told digits apart worse by 4 points, at 0.7 a ViT's by 20
_AT_ONCE = ("verbose", "num_workers", "on_error")  # parameters that are not fixed at fit
_AS_GIVEN = (
    "kernel", "n_directions", "n_components", "n_prompts", "lora_rank", "pretrained", "batch_size",
    "precision", "predict_with", "backbone_has_seen", "keep", "augment",
)  # fmt: skip
_NOT_PUBLIC = ("alpha_", "alpha_path_", "linearity_", "history_")  # come with the private half
_COMMITTING = threading.Lock()  # one for all estimators: pickle and deepcopy take no lock of an instance
_ANY = object()


def _can_add(classifier: Any) -> bool:
    if classifier.anchor != "pretrained" and not hasattr(classifier, "_adapter"):
        raise AttributeError(
            'Expected a fitted estimator, or anchor="pretrained": another anchor, or the scale of its '
            "targets, needs its rows together. Call fit first; partial_fit then adds rows there."
        )
    return True


def _led(method: Callable[..., Any]) -> Callable[..., Any]:
    """Within `share_rows`, let rank 0 run a method that forgets or rebuilds; other ranks follow it."""

    @wraps(method)
    def call(self: FastNTKClassifier, X: Any = None, *args: Any, **kwargs: Any) -> Any:
        if ranks().size == 1:
            return method(self, X, *args, **kwargs)
        check_is_fitted(self)
        rows = None if X is None else self._rows(X)
        # what `redoes` names is looked up by rank 0, and need not be there elsewhere
        named = [value for name, value in sorted(kwargs.items()) if name != "redoes"]
        others = [np.asarray(value).tolist() for value in (*args, *named)]
        alike = None if rows is None else len(rows), others
        model, classes = self._adapter.model, self.classes_
        return self._together(lambda: method(self, X, *args, **kwargs), rows, model, classes, alike)

    return call


class Training(NamedTuple):
    """Checked rows of a fit, the model that is to learn them, and what X says of its columns."""

    rows: Rows
    checked: CheckedRows
    classes: np.ndarray
    model: LinearizedModel
    columns: dict[str, Any]
    readout: Tensor | None  # the classifier of a module that is the anchor


class Scored(NamedTuple):
    """Scores of rows, and what turns them into labels and probabilities."""

    scores: np.ndarray
    classes: np.ndarray
    sharpness: float


class FastNTKClassifier(ClassifierMixin, BaseEstimator):
    r"""Classifier on a frozen pretrained backbone that forgets rows in closed form.

    A readout W on the features h is learned by ridge regression, by default on those of a ladder, which
    pools the activations of all blocks. Beside it, or instead, a parameter-efficient subset theta of
    the backbone is linearised at its pretrained values, with probe directions V and a subspace Q that
    have seen no data:

    .. math::

        f(x) = W_h h(x) + b + J(x) \delta, \quad J = \partial_\theta (V h), \quad
        \delta = \theta - \theta_0 = Q z, \\
        \min_{W_h, b, z} \sum_i w_i \|f(x_i) - t_i\|^2
        + \alpha \big(c_h^2 (\|W_h\|^2 + \|b\|^2) + c_J^2 \|\delta\|^2 / s\big)

    with t_i = target_scale (onehot(y_i) - 1/C) and s = tangent_scale. The units c_h and c_J are powers
    of two that are measured on synthetic inputs (c_h = 1 with a ladder). Without tangents the last term
    is absent and b has no ridge. For other anchors and the other kernel see :doc:`what is minimised
    </user_guide/concepts>`.

    The rows enter the fit only through sums. :meth:`unlearn` subtracts the forgotten rows and solves
    again: the result has the parameters of a fit that never saw the rows, up to rounding, in any order,
    any number of times, without the rest of the data. It is exact for the linearised model, and for the
    model itself where that is linear, as a ladder or a head alone is. It does not cover a trained
    anchor, the backbone's own training data, hyper-parameters that were chosen with the rows, class
    names, and models that were published earlier (:doc:`what "exact" means </user_guide/exactness>`).

    Parameters
    ----------
    backbone : str, nn.Module or callable, default="mlp"
        A recipe (see :func:`list_recipes`) or timm name, "timm:NAME", "torchvision:NAME",
        "hf-hub:ORG/NAME[@REVISION]", "local-dir:PATH" (models of timm, and of transformers with the
        extra `[transformers]`); a module, which is copied, or a callable that returns one
        (:doc:`what it may return </user_guide/networks>`). "mlp" is a fixed random network on 2-D X.

    trainable : str or sequence of str, default="auto"
        What is trained; several entries are united.

        - "ladder" reads every block of the frozen network (a side adapter), by one forward pass a row:
          "ladder-grid" (results of the blocks on a grid of places, which suits aligned pictures) and
          "ladder-gap" (activations within the blocks, averaged over all places) with half of
          `n_components` each. Only at the pretrained anchor.
        - "head" is the readout alone, a linear probe.
        - "norm" (affine parameters of norm layers), "bias", "prompt" (visual prompt tokens of a ViT,
          inserted after the class token), "prompt-deep" (new ones in every block), "lora" (a product
          B A of rank `lora_rank` beside the weights of attention projections and of pointwise
          convolutions, of which the random A is frozen and B is trained from zero; it needs peft:
          ``pip install 'fastntk_sk[lora]'``), "full" (for small models) and glob patterns of parameter
          names are subsets of the network.
        - "auto" is "ladder" ("head" in a network without repeated blocks); for anchor="finetuned" it is
          the paper's subset, "prompt" for a ViT and "norm" for others; for a module as anchor "norm".

    anchor : {"pretrained", "finetuned"} or nn.Module, default="pretrained"
        Where the network is linearised. Both others follow the network further, and their result is
        plain weights (:meth:`to_module`). They have seen every row, so that a deletion is not exact
        against a retraining.

        - "finetuned" first trains the subset (in the subspace of `n_components`) and W by SGD, and
          solves there, with the ridge centred at the pretrained values.
        - A module is a network that you have trained, classifier included, with its outputs in the
          order of `classes_`. It is copied and takes the place of the backbone, whose name, if one is
          given, then only says how pictures are prepared. The ridge on the displacement is centred at
          its own values (:doc:`I have a trained model </user_guide/trained_model>`).

    head : str, default=None
        Name of the classifier in a module that is the anchor, such as "fc" or "classifier.1". None is
        its last nn.Linear with as many outputs as there are classes.

    kernel : {"full", "pseudo"}, default="full"
        "full" is the paper's: all classes share one displacement of the subset, at a backward pass for
        each class and row. "pseudo" takes the tangents of `n_directions` random directions of the
        features, which each class reads by itself, at as many backward passes a row whatever the number
        of classes. It is as exact and about as accurate; it cannot be written back as weights. Without
        tangents (a ladder or the head alone) it has no effect.

    n_directions : int, default=3
        r, of the pseudo kernel. More cost more and gain little.

    alpha : float or "auto", default="auto"
        Ridge, which is not rescaled by the number of rows: a deletion would change it. With a ladder or
        the head alone, "auto" chooses it from the sums (`alpha_`) by the evidence of Bayesian ridge
        regression on a fixed grid, so that a deletion chooses again what a fit without the rows would.
        It counts a row of weight w as w independent rows: give a number where rows are copies or mirror
        images of one another (but see `augment`), or where weights sum to one. With tangents "auto" is
        0.25, which was chosen on held-out training images (:doc:`benchmarks </generated/benchmarks>`).

    tangent_scale : float, default=1.0
        s, the weight of the subset against the readout. 0 leaves the readout alone.

    target_scale : float or "auto", default="auto"
        Scale of the targets. "auto" is 1 for the pretrained anchor, where predictions and parameters
        grow in proportion, and the mean margin on the rows, 1 at least, at an anchor that they trained.

    n_components : int, "auto" or None, default="auto"
        k, the dimension of a fixed random subspace of the subset, and of the features of a ladder. None
        is as many as there are, and so is any larger number. "auto" is 4096 at most, and fewer tangents
        for hundreds of classes. Memory grows as k^2, and the solve as k^3 with a ladder, as k^2 times
        classes times features with tangents, and as (r k)^3 with the pseudo kernel. With some hundred
        rows, 1024 is ten times faster and costs about a point of accuracy or less.

    n_prompts : int, default=10
        Number of prompt tokens.

    lora_rank : int, default=4
        r of "lora", which adds (8 / r) B A x to a layer: its scale is that of peft's defaults. It has
        r parameters for each output of a layer.

    image_size : int, tuple (height, width) or None, default=None
        Images are resized to it; None is the size that the weights were trained at. A module of your
        own needs it for pictures. The time of a pass grows with the area.

    pretrained : bool, default=True
        Load pretrained weights; False gives random ones, seeded by `random_state`.

    batch_size : int or "auto", default="auto"
        Rows in a pass. Smaller batches are padded to it, or, where few rows are forgotten, to a smaller
        size that gives synthetic rows bitwise as they were learned. "auto" is a power of two from 8 to
        32 on the CPU, and up to 512 on a GPU: it depends on the backbone, the subset, the size of the
        input and the kind of device, never on free memory.

    max_epochs : int, default=15
        Epochs of fine-tuning.

    learning_rate : float, default=2e-3
        Learning rate of the readout in fine-tuning. The coordinates of the subspace learn ten times as
        fast.

    finetune_params : dict, default=None
        Further arguments of :class:`skorch.NeuralNetClassifier`: "callbacks" (added to the one-cycle
        schedule, which "callbacks__schedule": None removes), "train_split", "optimizer" (AdamW by
        default), "criterion" (:class:`torch.nn.CrossEntropyLoss` by default;
        `training.finetuning.SquaredLoss` is the squared loss), "batch_size". The subset is trained as a
        displacement: "optimizer__weight_decay" pulls it toward the pretrained values, and the readout
        toward zero.

    predict_with : {"auto", "linear", "network"}, default="auto"
        "linear" evaluates the linearised model, by one directional derivative where there are tangents
        and by one forward pass where there are none. "network" puts the displaced weights into the
        network, by two forward passes at the pretrained anchor and one at others; a ladder has none.
        "auto" is "linear" for the pretrained anchor and "network" for others.

    precision : {"auto", "float32", "float64", "bfloat16"}, default="auto"
        Precision of the backbone's passes. "auto" is float64 for "mlp" and float32 for others.
        "bfloat16" learns and forgets in torch's autocast: faster on processors that know it, and
        deletion is as exact. It is an error where Jacobians would be off by more than 5 %, as in batch
        norms, or where the predictions of a ladder, or of the head, that has learned synthetic rows
        would change by more than 10 %. Predictions, fine-tuning, sums and solves are never in bfloat16.

    backbone_has_seen : bool, "unknown" or "auto", default="auto"
        Whether the backbone was trained on rows that are learned here, which no deletion takes back:
        with True or "unknown", receipts say that a deletion is not exact, and why. "auto" is False for
        published weights of timm and torchvision and for random ones, and "unknown" for all others.

    keep : {"features"} or None, default=None
        "features" keeps, in the private half, each row's features as they entered the sums, and its
        sample id in clear. Then :meth:`unlearn` needs no picture (``unlearn(sample_ids=["anna"])``) and
        no pass of the backbone, :meth:`rebuild` no data, and :meth:`find` tells what is held like a
        picture. It takes 4 bytes a feature (16 KB a row at width 4096), 8 in float64, in memory and in
        the file, for a ladder, the head alone or the pseudo kernel. Features describe persons:
        forgetting erases them, and until then whoever has the private half has them. None keeps sums
        and keyed digests only.

    augment : {"flip"} or None, default=None
        "flip" learns every picture together with its mirror image (left and right), at twice the
        passes: the features, and Jacobians, of a row are means over both, so that its scores are the
        means of both views' scores. Both are one row, which one request forgets; a file with the mirror
        image is another content, and was not learned. Not for digits, text, or whatever else is told
        apart by left and right. Only for pictures.

    num_workers : int, default=0
        Processes that read and decode pictures ahead of the passes. Where none can be started (within a
        process of joblib or of a pool), this process reads, with a warning.

    on_error : {"raise", "skip"}, default="raise"
        What :meth:`fit` and :meth:`partial_fit` do with pictures that cannot be decoded: "skip" decodes
        all of them once before anything else, leaves those rows out, and lists them in `skipped_`.
        Predictions and deletions always raise a `PictureError`. For 2-D X it has no effect.

    device : str, default="cpu"
        Device of the backbone's passes and, if it has float64, of the sums over their rows and of
        solves; "auto" takes a GPU if there is one.

    random_state : int, RandomState instance or None, default=None
        Seeds the probe directions V, the subspace Q, prompts, the A of "lora", random weights and
        batches. None draws a seed from the system and not from numpy's global generator, which a fit
        neither reads nor advances. Pass an int to make a refit comparable.

    verbose : int, default=0
        1 shows progress bars.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels. A class whose rows were all forgotten stays here and is never predicted.

    n_features_in_ : int
        Number of features; only for 2-D X.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Column names; only for a 2-D DataFrame whose column names are all strings.

    trainable_ : list of str
        What is trained, with "auto" resolved.

    readout_ : ndarray of shape (n_classes, d + 1), or (n_classes, d + r k + 1)
        W = [W_h, b], on d features (of a ladder, its k) and a constant; with the pseudo kernel, on
        features, tangent features and a constant.

    alpha_ : float
        The ridge in force. Private, and so is the next attribute.

    alpha_path_ : dict of float to float
        Where the sums chose `alpha_`: minus twice the log evidence for each class, by value of alpha
        from 1e-4 to 100; else empty. `alpha_` is its first minimum from the largest alpha on.

    displacement_ : ndarray of shape (p,); (0,) for the pseudo kernel, and where p is 0
        Displacement of the trainable parameters from their pretrained values, or from those of a module
        that is the anchor.

    history_ : list of dict
        Epochs of fine-tuning as skorch records them, on all rows of the fit. Only for the fine-tuned
        anchor.

    linearity_ : float
        Relative difference between the centred scores of the network and of the linearised model, for
        which alone deletion is exact, on rows of the fit. Not for the pretrained anchor. Above 0.5
        `fit` warns where the network predicts: predict with "linear", train for fewer epochs, or raise
        alpha where a module is the anchor.

    n_samples_learned_ : int
        Number of rows that the model rests on.

    n_samples_forgotten_ : int
        Number of rows removed so far.

    receipts_ : list of dict
        One for each deletion.

    skipped_ : list of dict
        "row" and "reason" of what the last :meth:`fit` or :meth:`partial_fit` left out, as `on_error`
        asks. Rows are counted as in its X. It is neither saved nor published.

    See Also
    --------
    FastNTKClassifierCV : The same with `alpha` and `tangent_scale` chosen by cross-validation.
    unlearn : The same for a classifier inside a Pipeline or a search.

    Notes
    -----
    Parameters that are set after fit take effect at the next fit; :meth:`unlearn` and
    :meth:`partial_fit` warn of them. `verbose`, `num_workers` and `on_error` take effect at once.

    After :meth:`from_pretrained`, and in ranks other than 0 that have learned within
    :func:`share_rows`, methods that need more than what predicts raise a `NoPrivateStateError`, and
    private attributes are absent or empty.

    A pickle, and what :meth:`save` writes, hold the statistics and the ledger, which describe the
    remaining training data, and a trained anchor, which has seen forgotten rows too: they are
    private. What is public is the adapter of :meth:`save_pretrained` and :meth:`push_to_hub`.

    References
    ----------
    .. [1] Li et al., "Fast-NTK: Parameter-Efficient Unlearning for Large-Scale Models",
       arXiv:2312.14923.
    .. [2] Golatkar et al., "Mixed-Privacy Forgetting in Deep Networks", arXiv:2012.13431.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_iris
    >>> from fastntk_sk import FastNTKClassifier
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = FastNTKClassifier(random_state=0).fit(X, y)
    >>> clf.unlearn(X[:10]).n_samples_learned_
    140
    >>> refit = FastNTKClassifier(random_state=0).fit(X[10:], y[10:])
    >>> bool(np.allclose(clf.decision_function(X), refit.decision_function(X), rtol=1e-8))
    True
    """

    _adapter: Adapter
    _private: Private | None
    _parameter_constraints: ClassVar[dict[str, list[Any]]] = CONSTRAINTS

    def __init__(
        self,
        backbone: str | nn.Module | Callable[[], nn.Module] = "mlp",
        *,
        trainable: str | Sequence[str] = "auto",
        anchor: str | nn.Module = "pretrained",
        head: str | None = None,
        kernel: str = "full",
        n_directions: int = 3,
        alpha: float | str = "auto",
        tangent_scale: float = 1.0,
        target_scale: float | str = "auto",
        n_components: int | str | None = "auto",
        n_prompts: int = 10,
        lora_rank: int = 4,
        image_size: int | tuple[int, int] | None = None,
        pretrained: bool = True,
        batch_size: int | str = "auto",
        max_epochs: int = 15,
        learning_rate: float = 2e-3,
        finetune_params: dict[str, Any] | None = None,
        predict_with: str = "auto",
        precision: str = "auto",
        backbone_has_seen: bool | str = "auto",
        keep: str | None = None,
        augment: str | None = None,
        num_workers: int = 0,
        on_error: str = "raise",
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.trainable = trainable
        self.anchor = anchor
        self.head = head
        self.kernel = kernel
        self.n_directions = n_directions
        self.alpha = alpha
        self.tangent_scale = tangent_scale
        self.target_scale = target_scale
        self.n_components = n_components
        self.n_prompts = n_prompts
        self.lora_rank = lora_rank
        self.image_size = image_size
        self.pretrained = pretrained
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.finetune_params = finetune_params
        self.predict_with = predict_with
        self.precision = precision
        self.backbone_has_seen = backbone_has_seen
        self.keep = keep
        self.augment = augment
        self.num_workers = num_workers
        self.on_error = on_error
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=True)
    @without_modes
    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, sample_ids: Any = None, classes: Any = None
    ) -> Self:
        """Learn from scratch: fine-tuning if the anchor asks for it, one pass and one solve.

        Parameters
        ----------
        X : array-like
            Images: an array of shape (n, H, W), (n, H, W, 3) or (n, H, W, 4), a tensor of shape
            (n, 3, H, W), or a list, column or dataset of PIL images, arrays, tensors or file paths;
            uint8, uint16, bool or float in [0, 1]. Pictures are turned upright, and composited on white;
            of animations the first frame is taken (:doc:`pictures </user_guide/pictures>`). Datasets are
            read on demand, three of their rows four times more, to see that no transform is random. For
            "mlp": a numeric array of shape (n, n_features).

        y : array-like of shape (n,)
            Class labels.

        sample_weight : array-like of shape (n,), default=None
            Nonnegative; rows of weight zero are dropped before anything else.

        sample_ids : array-like of shape (n,), default=None
            What deletion requests will name, such as a person's id, text or integers; it may repeat.
            Only a keyed digest is kept, unless `keep` is set; a missing one (None, NaN) names nobody.

        classes : array-like of shape (n_classes,), default=None
            All class labels, for rows that lack one of them; by default those of `y`.

        Returns
        -------
        self : FastNTKClassifier

        Raises
        ------
        ValueError
            If a parameter or the data is not valid, or a dataset gives another picture each time.

        WorkerError
            If a process that reads rows ahead was ended.

        InsufficientMemoryError
            If the statistics would not fit; it names an `n_components` that would.

        HeavyRowError
            If rounding would leave traces of a row when it is forgotten; `indices` names such rows.

        FineTuningError
            If SGD diverged.

        PictureError
            If a picture cannot be read (with on_error="skip", if none can); `indices` names its row.

        Warns
        -----
        UserWarning
            If rows were left out, and if pictures have further frames.
        """
        training = self._prepare(X, y, sample_weight, sample_ids, classes)
        state = self._first_state(training)
        rows, checked, classes = training.rows, training.checked, training.classes
        found = training.columns | {"skipped_": checked.skipped}

        def learn() -> FastNTKClassifier:
            private = Private(state, Ledger(), [], secrets.token_hex(8))
            private = self._learn(private, rows, checked)
            if state.settings.anchor_has_seen:
                private = self._with_linearity(private, rows)
            return self._commit(private.adapter(classes), private, found=found)

        alike = _alike(rows, checked)
        return self._together(learn, rows, state.model, classes, alike, found)

    @available_if(_can_add)
    @_fit_context(prefer_skip_nested_validation=True)
    @without_modes
    def partial_fit(
        self, X: Any, y: Any, sample_weight: Any = None, sample_ids: Any = None, classes: Any = None
    ) -> Self:
        """Learn more rows; the result is that of one fit on all of them.

        Rows can so be learned in parts, with :meth:`save` between them: after an interruption,
        :meth:`load` what was saved and go on with the next part.

        Parameters
        ----------
        X, y, sample_weight, sample_ids
            As in :meth:`fit`.

        classes : array-like of shape (n_classes,), default=None
            All class labels. Where classes have tangents of their own (kernel="full" with a subset of
            the network) the first call needs them, unless `y` holds each of them. Else a new class,
            in `y` or here, can enter at any time, wherever it sorts: the result is that of a fit that
            knew it from the start.

        Returns
        -------
        self : FastNTKClassifier

        Raises
        ------
        ValueError
            If there is a label that is not in `classes_`, and classes have tangents of their own.

        AttributeError
            If the anchor is not "pretrained" and the estimator is not fitted.

        HeavyRowError, PictureError
            As in :meth:`fit`.
        """
        if not hasattr(self, "_adapter"):
            return self.fit(X, y, sample_weight, sample_ids, classes)
        model, known = self._adapter.model, self.classes_
        before = None if ranks().rank else self._held  # rank 0 alone has it
        self._warn_of_changed_parameters()
        vectors = model.settings.n_features is not None
        checked = check_training_rows(
            self, X, y, sample_weight, sample_ids, vectors=vectors, reset=False
        )
        rows = Rows(checked.X, model.backbone.spec, self.num_workers, checked.numbers)
        rows.check_repeatable()
        names = check_classes(checked.y, classes, known)
        checked = checked.encoded(names)

        def learn() -> FastNTKClassifier:
            assert before is not None
            after = self._learn(_with_classes(before, known, names), rows, checked)
            return self._commit(after.adapter(names), after, before=before)

        self._together(learn, rows, model, names, _alike(rows, checked))
        self.skipped_ = checked.skipped
        return self

    def unlearn(
        self,
        X_forget: Any = None,
        y_forget: Any = None,
        *,
        sample_ids: Any = None,
        copies: str = "one",
        on_unknown: str = "raise",
        request_id: str | Sequence[str] = (),
        redoes: Any = None,
    ) -> Self:
        """Forget rows: the result is that of statistics which never saw them.

        Only the forgotten rows are needed. When an error is raised, nothing has changed.

        Parameters
        ----------
        X_forget : array-like, default=None
            The rows, exactly as they were learned: they are matched by content. None, with
            keep="features", forgets every row that was learned under `sample_ids`.

        y_forget : array-like of shape (n,), default=None
            Their labels; by default the ledger's.

        sample_ids : array-like of shape (n,), default=None
            Match only rows that were learned under these ids (None among them: under any); the receipt
            then counts the rows that are left under them. Without X_forget, any number of ids.

        copies : {"one", "all"}, default="one"
            How many learned copies of its content each row of the request removes.

        on_unknown : {"raise", "skip"}, default="raise"
            Whether a row that was not learned stops the request, or is left out of it.

        request_id : str or sequence of str, default=()
            What the receipt calls the request, or several: opaque names of the caller's, which are
            kept and may be shown to an auditor. Let them say nothing about persons.

        redoes : str, path-like or FastNTKClassifier, default=None
            For a state that was restored from a backup: what knows the deletions that it lacks, as
            `against` of :meth:`load`. The receipt then says that this deletion stands for them.

        Returns
        -------
        self : FastNTKClassifier

        Raises
        ------
        UnknownSampleError
            If rows were never learned, are already forgotten, or were learned with another label or id;
            `indices` names them.

        AmbiguousSampleError
            If rows were learned with several labels, weights or ids and the request leaves it open.

        ForgetsEverythingError
            If no row would be left.

        StateMismatchError
            If a row is another one when it is read again, or another thread changed the estimator
            meanwhile.

        SolveError
            If rounding has used the statistics up: call :meth:`rebuild`.

        PictureError
            If a picture cannot be read, whatever `on_error` is; `indices` names its row.

        Warns
        -----
        NumericalDriftWarning
            If what the backbone gives here differs from what was learned.

        EmptyClassWarning
            If a class has no row left.

        PrivacyWarning
            If copies of what was forgotten are still learned.
        """
        return self._forget(
            X_forget, y_forget, sample_ids, copies, on_unknown, request_id, redoes=redoes
        )

    @without_modes
    @_led
    def _forget(
        self,
        X=None,
        y=None,
        sample_ids=None,
        copies="one",
        on_unknown="raise",
        request_id=(),
        *,
        matched=None,
        redoes=None,
        seen_by=(),
        searched_by=(),
        strict=False,
    ) -> Self:
        """Match (unless that was done), sum, subtract, write the receipt, commit."""
        started, before = time.perf_counter(), self._held
        check_choice("on_unknown", on_unknown, ("raise", "skip"))
        self._warn_of_changed_parameters()
        if matched is None:
            matched = self._match(before, X, y, sample_ids, copies)
            matched[1].check(on_unknown)
        rows, match = matched
        removals = match.removals
        ledger, features = before.ledger.removed(removals), before.ledger.features(removals)
        check_summable(rows, removals, features)
        # what was kept is what was learned, whatever the backbone gives by now
        by_features = all(row is not None for row in features)
        model, drift = self._proven(before.state, features)
        hold = len(removals) <= before.state.most_held
        sums = self._sum(before, model, rows, removals, features, "forgetting", hold=hold)
        after = replace(before, state=before.state.subtract(sums, drift=drift), ledger=ledger)
        measured = _measured(after.state, drift, seen_by, searched_by)
        if strict and not measured["exactness"]["exact"]:
            reasons = "; ".join([*measured["exactness"]["reasons"], *seen_by])
            raise InexactDeletionError(
                f"The deletion would not be exact: {reasons}. Nothing was changed."
            )
        n_copies_left = ledger.n_copies(match.found)
        after = self._with_receipt(
            before,
            after,
            started,
            measured,
            request_id,
            redoes,
            n_rows=len(removals),
            n_left=ledger.owned_rows(check_ids(sample_ids)),
            n_copies_left=n_copies_left,
            kept_features=by_features,
        )
        self._warn_of_empty_classes(before.state, after.state)
        _warn_of_copies(n_copies_left)
        _warn_of_steps(seen_by)
        return self._commit(after.adapter(self.classes_), after, before=before)

    @without_modes
    @_led
    def rectify(
        self,
        X: Any,
        y_new: Any,
        *,
        y_old: Any = None,
        sample_ids: Any = None,
        copies: str = "one",
        request_id: str | Sequence[str] = (),
        redoes: Any = None,
    ) -> Self:
        """Forget rows with the labels that they were learned with, and learn them with others.

        It is one step, with one solve and one receipt: the result is that of a fit with the right
        labels. Weights and sample ids stay. When an error is raised, nothing has changed. In a Pipeline,
        call it on the last step, with rows as they enter that.

        Parameters
        ----------
        X : array-like
            Learned rows, matched by content as in :meth:`unlearn`.

        y_new : array-like of shape (n,)
            Their right labels, of `classes_`.

        y_old : array-like of shape (n,), default=None
            The labels that they were learned with; by default the ledger's.

        sample_ids, copies, request_id, redoes
            As in :meth:`unlearn`.

        Returns
        -------
        self : FastNTKClassifier
            `n_samples_learned_` and `n_samples_forgotten_` stay.

        Raises
        ------
        UnknownSampleError, AmbiguousSampleError, StateMismatchError, SolveError, PictureError
            As in :meth:`unlearn`.

        ValueError
            If a label is no class of the model, or two right labels are given for the same copies.

        Warns
        -----
        NumericalDriftWarning, EmptyClassWarning
            As in :meth:`unlearn`.

        PrivacyWarning
            If further copies of the rows are learned with other labels than the new ones.

        Examples
        --------
        >>> import numpy as np
        >>> from sklearn.datasets import load_iris
        >>> from fastntk_sk import FastNTKClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> wrong = np.where(np.arange(150) == 7, 2, y)
        >>> clf = FastNTKClassifier(random_state=0).fit(X, wrong).rectify(X[7:8], y[7:8])
        >>> right = FastNTKClassifier(random_state=0).fit(X, y)
        >>> bool(np.allclose(clf.decision_function(X), right.decision_function(X), rtol=1e-8))
        True
        """
        started, before = time.perf_counter(), self._held
        self._warn_of_changed_parameters()
        if X is None:
            raise ValueError("Expected the rows that get other labels, got None. Pass X.")
        rows, match = self._match(before, X, y_old, sample_ids, copies)
        labels = class_indices(y_new, self.classes_)
        check_consistent_length(rows, labels)
        match.check()
        wanted = match.wanted(labels.tolist())
        if copies == "all" and any(len(each) > 1 for each in wanted.values()):
            raise ValueError(
                "Expected one right label for all copies of a content, got several for the same. Pass "
                'each content once, or copies="one" and y_old.'
            )
        removals = match.removals
        labels = labels[[removal.row for removal in removals]].tolist()
        features = before.ledger.features(removals)
        by_features = all(row is not None for row in features)
        model, drift = self._proven(before.state, features)
        right = [removal.labelled(label) for removal, label in zip(removals, labels, strict=True)]
        old = self._sum(before, model, rows, removals, features, "forgetting")
        new = self._sum(before, model, rows, right, features, "learning")
        ledger = before.ledger.rectified(removals, right)
        after = replace(before, state=before.state.exchange(old, new, drift=drift), ledger=ledger)
        n_copies_left = ledger.n_labelled_otherwise(wanted)
        after = self._with_receipt(
            before,
            after,
            started,
            _measured(after.state, drift),
            request_id,
            redoes,
            n_rows=len(removals),
            n_rectified=len(removals),
            n_copies_left=n_copies_left,
            kept_features=by_features,
        )
        self._warn_of_empty_classes(before.state, after.state)
        if n_copies_left:
            warn(
                f"Copies of these rows that are still learned with yet other labels: {n_copies_left:,}. "
                "Pass copies='all' to give all copies of a content the same one.",
                PrivacyWarning,
            )
        return self._commit(after.adapter(self.classes_), after, before=before)

    def _with_receipt(
        self,
        before: Private,
        after: Private,
        started: float,
        measured: dict[str, Any],
        request_id: str | Sequence[str],
        redoes: Any,
        **said: Any,
    ) -> Private:
        """Return what is left after a deletion, with its receipt."""
        receipt = make_receipt(
            request_ids=check_request_ids(request_id),
            redoes=[] if redoes is None else list(self._lost(redoes)),
            chain=before.chain,
            previous=chain_heads(before.receipts, before.chain)[before.chain],
            n_samples_learned=after.state.n_rows,
            **measured,
            **said,
            seconds=time.perf_counter() - started,
            environment=after.state.environment,
        )
        return after.with_receipt(receipt)

    @without_modes
    def can_unlearn(
        self,
        X_forget: Any = None,
        y_forget: Any = None,
        *,
        sample_ids: Any = None,
        copies: str = "one",
        on_unknown: str = "raise",
    ) -> dict[str, Any]:
        """Try a deletion without doing it.

        Parameters
        ----------
        X_forget, y_forget, sample_ids, copies, on_unknown
            As in :meth:`unlearn`.

        Returns
        -------
        report : dict
            With the keys

            - "possible" : bool, and "reason" : str, why not.
            - "indices" : list of int, rows of the request that are in the way.
            - "n_rows" : int, learned copies that would go.
            - "n_bytes" : int, and "seconds" : float, estimates of the peak of memory and of the time.
            - "exactness" : dict of "exact" (bool) and "reasons" (list of str) as in a receipt, as far as
              it is known before the rows are summed.
            - "rows" : list of dict, one for each row of the request: "result" is "found", "unknown",
              "elsewhere" (learned with another label or id) or "ambiguous"; "n_rows" learned copies of
              the row would go, and "copies_left" would stay.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from fastntk_sk import FastNTKClassifier
        >>> X, y = load_iris(return_X_y=True)
        >>> clf = FastNTKClassifier(random_state=0).fit(X[:100], y[:100])
        >>> report = clf.can_unlearn(X[98:102])
        >>> report["possible"], report["indices"]
        (False, [2, 3])
        >>> [row["result"] for row in report["rows"]]
        ['found', 'found', 'unknown', 'unknown']
        """
        check_choice("on_unknown", on_unknown, ("raise", "skip"))
        report: dict[str, Any] = {"possible": False, "reason": "", "indices": [], "rows": []}
        report |= {"n_rows": 0, "n_bytes": 0, "seconds": 0.0}
        try:
            held = self._held
            rows, match = self._match(held, X_forget, y_forget, sample_ids, copies)
            going = Counter(removal.row for removal in match.removals)
            after = held.ledger.without(match.removals)
            report["rows"] = [
                {"result": result, "n_rows": going[row], "copies_left": after.n_copies(known)}
                for row, (result, known) in enumerate(zip(match.results, match.known, strict=True))
            ]
            match.check(on_unknown)
            held.ledger.removed(match.removals)
            features = held.ledger.features(match.removals)
            check_summable(rows, match.removals, features)
        except FastNTKError as error:
            indices = error.indices if isinstance(error, SampleError) else []
            verdict = {"exact": False, "reasons": [str(error)]}
            return report | {"reason": str(error), "indices": indices, "exactness": verdict}
        state, n_passing, drift = held.state, sum(row is None for row in features), 0.0
        if n_passing:
            model, probe = state.proven(n_passing)
            size = model.settings.batch_size
            n_passing, drift = size * math.ceil(n_passing / size), state.drift(probe)
        return report | {
            "possible": True,
            "n_rows": len(match.removals),
            "n_bytes": state.model.memory_needed(),
            "seconds": n_passing * state.seconds_per_row + state.seconds_per_solve,
            "exactness": _measured(state, drift)["exactness"],
        }

    @without_modes
    @_led
    def rebuild(self, X: Any = None, y: Any = None) -> Self:
        """Make the statistics anew, after numerical drift or on another machine.

        Parameters
        ----------
        X : array-like, default=None
            Exactly the rows that are still learned, each as often as it was learned, in any order. None
            takes the features that keep="features" has kept.

        y : array-like of shape (n,), default=None
            Their labels; by default the ledger's.

        Returns
        -------
        self : FastNTKClassifier
            Its ledger and receipts are kept.

        Raises
        ------
        UnknownSampleError
            If a row is not among the learned ones.

        StateMismatchError
            If rows are missing, or another thread changed the estimator meanwhile.
        """
        before = self._held
        if X is None:
            rows, removals = None, before.ledger.all_rows()
        else:
            rows, match = self._match(before, X, y, None, "one")
            assert rows is not None
            rows.check_repeatable()
            match.check()
            removals = match.removals
        if len(removals) != before.ledger.n_rows:
            raise StateMismatchError(
                f"Expected exactly the {before.ledger.n_rows} rows that are learned, got "
                f"{len(removals)} of them. Pass every row once for each time it was learned."
            )
        ledger, features = before.ledger, before.ledger.features(removals)
        check_summable(rows, removals, features)
        if rows is not None:
            features = [None] * len(removals)  # the backbone gives them anew
        sums = self._sum(before, before.state.model, rows, removals, features, "rebuilding")
        if rows is not None and before.state.settings.keep:
            ledger = ledger.with_features(removals, sums.features)
            kept = [one for one in ledger.features(removals) if one is not None]
            sums = before.state.with_features(sums, kept, *learned_as(removals))
        state = before.state.rebuild(sums, here=rows is not None)
        if rows is not None:
            state = replace(state, probes=distinct(probes(ranks(), state, state.probes[0])))
        after = replace(before, state=state, ledger=ledger)
        return self._commit(after.adapter(self.classes_), after, before=before)

    @without_modes
    def find(self, X: Any, *, n: int = 5, threshold: float = 0.9) -> list[list[dict[str, Any]]]:
        r"""Find the learned rows that are like pictures; needs keep="features".

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`; the pictures need not have been learned.

        n : int, default=5
            At most so many rows for each picture.

        threshold : float, default=0.9
            The least similarity: the cosine of the angle between the features of two rows, less the
            mean over the learned rows. A picture that was encoded again mostly comes first, at 0.8 to 1
            by its content and the quality: look at what comes nearest, with a threshold of -1, before
            you answer that nothing is held. With augment="flip" the mirror image is as near. The
            similarity tells little where very few rows are learned. The very content is found by its
            digest, as 1.

        Returns
        -------
        found : list of list of dict
            For each picture, the most similar rows first: "similarity", "sample_id" (None without one),
            "label", "n_copies" and "same" (bool: the very content).

        Raises
        ------
        NoFeaturesError
            If no features are kept.

        ValueError
            If `n` is no positive integer, or no similarity can reach `threshold`.

        Examples
        --------
        >>> from sklearn.datasets import load_digits
        >>> from fastntk_sk import FastNTKClassifier
        >>> X, y = load_digits(return_X_y=True)
        >>> names = [f"person {i}" for i in range(100)]
        >>> clf = FastNTKClassifier(keep="features", random_state=0)
        >>> clf = clf.fit(X[:100], y[:100], sample_ids=names)
        >>> (found,) = clf.find(X[7:8] + 0.1)
        >>> found[0]["sample_id"], found[0]["same"]
        ('person 7', False)
        """
        check_scalar(n, "n", Integral, min_val=1)
        check_threshold(threshold)
        held = self._held
        rows = self._rows(X, held.state.model)
        wanted = [h.cpu().numpy() for h, _ in held.state.model.all_tangents(rows)]
        found = held.nearest(np.concatenate(wanted), [content(row) for row in rows], n, threshold)
        names = self.classes_.tolist()
        return [[row | {"label": names[row["label"]]} for row in each] for each in found]

    @without_modes
    def merge(self, others: FastNTKClassifier | Iterable[FastNTKClassifier]) -> Self:
        """Add what other estimators have learned apart: sums, ledgers and receipts, never pictures.

        Parameters
        ----------
        others : FastNTKClassifier or iterable of them
            Fitted with the same parameters, the same integer `random_state` and the same classes;
            they are not changed.

        Returns
        -------
        self : FastNTKClassifier
            The estimator of one fit on all rows (of one anchor). Each part keeps its ledger and key.

        Raises
        ------
        StateMismatchError
            If the set-ups differ; the message says in what.

        Warns
        -----
        PrivacyWarning
            If a part has so few rows that its statistics can be inverted.
        """
        before = self._held
        parts = [others] if isinstance(others, FastNTKClassifier) else list(others)
        theirs = [part._held for part in parts]
        for part in parts:
            _check_same_columns(self, part)
        ledger = before.ledger.merged([other.ledger for other in theirs])
        state = before.state.merge([other.state for other in theirs])
        width, _ = state.model.sizes
        for other in theirs:
            if other.state.n_rows <= width:
                warn(
                    f"Statistics of {other.state.n_rows} rows in {width} features can be inverted into "
                    "the rows themselves. Do not let them travel.",
                    PrivacyWarning,
                )
        receipts = [receipt for part in (before, *theirs) for receipt in part.receipts]
        after = Private(state, ledger, receipts, before.chain)
        return self._commit(after.adapter(self.classes_), after, before=before)

    @without_modes
    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of the model (see `predict_with`), about target_scale * (onehot - 1/C).

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`.

        Returns
        -------
        scores : ndarray of shape (n,) for two classes, else (n, n_classes)
            For two classes, the second score less the first. A class without rows has -inf.

        Raises
        ------
        PictureError
            As in :meth:`predict`.
        """
        scores = self._scores(X).scores
        return scores[:, 1] - scores[:, 0] if scores.shape[1] == 2 else scores

    @without_modes
    def predict(self, X: Any) -> np.ndarray:
        """Predict class labels.

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`.

        Returns
        -------
        labels : ndarray of shape (n,)

        Raises
        ------
        PictureError
            If a picture cannot be read, whatever `on_error` is: its row has no prediction.
        """
        found = self._scores(X)
        return found.classes[found.scores.argmax(axis=1)]

    @without_modes
    def predict_proba(self, X: Any) -> np.ndarray:
        r"""Return scores as numbers that sum to one: not calibrated probabilities.

        A softmax of :math:`\log(99 (C - 1)) f(x) / target\_scale`, so that a row that is fitted
        exactly gets 0.99; :func:`fastntk_sk.inspection.calibrate` puts one fitted number in place of
        the factor. Or wrap the classifier in :class:`~sklearn.calibration.CalibratedClassifierCV`,
        fitted on rows that need not be forgotten: what it learns has seen them.

        Parameters
        ----------
        X : array-like
            As in :meth:`fit`.

        Returns
        -------
        probabilities : ndarray of shape (n, n_classes)
        """
        found = self._scores(X)
        return softmax(found.sharpness * found.scores, axis=1)

    @property
    def receipts_(self) -> list[dict[str, Any]]:
        """One receipt for each deletion, as plain values; private, and copied when it is asked for.

        Each is a dict with the keys

        - "time" (UTC, ISO 8601) and "seconds" that it took; "method" : str.
        - "n_rows" that went, "n_rectified" of them that were learned again with other labels, and
          "n_samples_learned" that the model rests on afterwards.
        - "n_copies_left" : learned copies of what was forgotten that stay, and, for a request by sample
          ids, "n_rows_left_under_sample_ids".
        - "exactness" : dict of "exact" (bool) and "reasons" (list of str). What decides it stands beside
          it: "residual", "drift", "position_gap", "rounding", "seen_by" (fitted steps), "searched_by",
          "anchor" and "kept_features".
        - "request_ids" of the caller, and "redoes" : checksums of lost receipts that it stands for.
        - Where it was made: "versions", "machine", "cpu", "device", "precision" and "threads".
        - "chain", "previous" and "checksum", which tie the receipts to one another.
        """
        return [] if self._private is None else copy.deepcopy(self._private.receipts)

    @without_modes
    def to_module(self) -> nn.Module:
        """Return the network with the solved weights, for use without this library.

        Returns
        -------
        module : nn.Module
            In eval mode: a timm model whose outputs are `classes_`, a copy of the module that was the
            anchor, or a Sequential of "backbone" (of a ladder, the frozen network with its rungs) and
            "readout"; with augment="flip", such a "module" within one that averages its scores over
            pictures and their mirror images. Float tensors of normalised images in, scores out. It holds
            the solved weights and nothing of SGD's; beside them, the frozen weights of a module that was
            the anchor.

        Raises
        ------
        ValueError
            For tangents at the pretrained anchor: W reads the linearised model and not a network.
        """
        check_is_fitted(self)
        if not self._adapter.settings.anchor_has_seen and self._adapter.model.projection.p:
            raise ValueError(
                'Expected a ladder or the head alone with anchor="pretrained", got tangents of '
                f"{self._adapter.trained}, whose predictions are not those of plain "
                'weights. Fit with trainable="ladder" or another anchor, or publish the adapter.'
            )
        return self._adapter.to_module()

    @without_modes
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
            For a ladder, for tangents at the pretrained anchor, for augment="flip", and for networks
            that are no plain timm models (with prompts, or of another library).
        """
        check_is_fitted(self)
        if self._adapter.settings.augment is not None:
            raise ValueError(
                'Expected augment=None, got "flip": a timm model scores a picture alone, and not the '
                "mean with its mirror image. Use to_module() or export_onnx(), or publish the adapter."
            )
        labels = [str(label) for label in self.classes_]
        exports.save_for_timm(self.to_module(), self._adapter.model.backbone.spec, Path(path), labels)

    @without_modes
    def export_peft(self, path: str | os.PathLike[str]) -> None:
        """Save the LoRA layers so that peft loads them onto the network that they were learned on.

        ``peft.PeftModel.from_pretrained(net, PATH)`` gives, for a model of timm or an image classifier
        of transformers with as many outputs as there are `classes_`, the scores of :meth:`to_module`.
        Other networks get their LoRA layers alone: the features come out, which `readout_` reads.

        Parameters
        ----------
        path : str or path-like
            Gets `adapter_config.json` and `adapter_model.safetensors`.

        Raises
        ------
        ImportError
            Without the extra: ``pip install 'fastntk_sk[lora]'``.

        ValueError
            Unless trainable="lora", by itself, with anchor="finetuned" and augment=None.
        """
        check_is_fitted(self)
        adapter, settings = self._adapter, self._adapter.settings
        found = adapter.trained, settings.anchor, settings.augment
        if found != (["lora"], "finetuned", None):
            raise ValueError(
                'Expected trainable="lora", anchor="finetuned" and augment=None, got '
                f"{', '.join(map(repr, found))}, whose predictions are not those of a network with LoRA "
                "layers. Fit so, or publish the adapter of this library: save_pretrained."
            )
        base, rank = adapter.model.origin["base_model"], settings.lora_rank
        exports.save_for_peft(adapter.to_module(merged=False), rank, base, Path(path))

    @without_modes
    def export_onnx(self, path: str | os.PathLike[str]) -> None:
        """Save the network of :meth:`to_module` as one ONNX file, for onnxruntime and others.

        Its input "batch" is what `to_module` takes, any number of float32 rows; pictures have the shape
        (n, channels, height, width). Its output "scores" has a column for each of `classes_`, with minus
        infinity for a class without rows. The metadata hold "classes" (as text) and "preprocessing"
        (size, channels, mean and standard deviation of values in 0..1, interpolation) in JSON.

        Parameters
        ----------
        path : str or path-like
            The file, which is replaced at one instant; its folder is made. Weights of about 2 GB or
            more go to a second file beside it.

        Raises
        ------
        ImportError
            Without the extra: ``pip install 'fastntk_sk[onnx]'``.

        IsADirectoryError
            If the path is a folder.

        ValueError
            Where :meth:`to_module` raises one.
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
        exports.save_onnx(module.float().cpu(), example, model.backbone.spec, labels, path)

    @without_modes
    def save(
        self,
        path: str | os.PathLike[str],
        *,
        key: bytes | str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Save the whole estimator to one file: the public adapter and the private state.

        The file is an SQLite database. A save is one transaction: the file holds the old state or the
        new, on disk when the call returns, and of forgotten rows nothing.

        Parameters
        ----------
        path : str or path-like
            Such as "model.fastntk"; a new file is readable by its owner only. A file that this
            estimator was loaded from or saved to is updated.

        key : bytes of length 32 or str, default=None
            Encrypts the whole file by SQLCipher: with a raw key (``secrets.token_bytes(32)``) or a
            passphrase. Needs the extra ``pip install 'fastntk_sk[encryption]'``. A lost key is a lost
            state.

        overwrite : bool, default=False
            Replace a file that this estimator was neither loaded from nor saved to, and its receipts.

        Raises
        ------
        StaleStateError
            If the file holds another state, or has moved on since it was loaded: the message says which
            deletions would be undone.

        StateLockedError
            If another process or thread is writing to the file for more than a minute.

        StateWriteError
            If the disk is full or the place cannot be written; the file is as it was.

        StateFormatError
            If the file is something else, or class labels or a parameter are no plain values.

        DecryptionError
            If the file has another key or none, or an encrypted estimator is saved without a key.
        """
        check_is_fitted(self)
        persistence.save(self, path, key, overwrite=overwrite)

    @classmethod
    @without_modes
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str | nn.Module | Callable[[], nn.Module] | None = None,
        device: str | None = None,
        key: bytes | str | None = None,
        against: Any = None,
    ) -> Self:
        """Load what :meth:`save` wrote; nothing is unpickled.

        Parameters
        ----------
        path : str or path-like

        backbone : str, nn.Module or callable, default=None
            Where the backbone comes from now; needed if it was a module or a callable. If a module was
            the anchor, that module.

        device : str, default=None
            By default the saved one.

        key : bytes of length 32 or str, default=None
            Of an encrypted file; a file that is not encrypted is refused with it.

        against : str, path-like or FastNTKClassifier, default=None
            What knows the deletions that were made: exported receipts, the folder of a published
            adapter, or what :meth:`from_pretrained` made of one. A state that was restored from a backup
            and lacks one of them is refused.

        Returns
        -------
        classifier : FastNTKClassifier
            Predicts bitwise the same, and goes on unlearning.

        Raises
        ------
        StateFormatError
            If the file is damaged, or holds no state of a known format.

        DecryptionError
            If the file is encrypted and not with this key, or not encrypted and a key is given.

        NoPrivateStateError
            If the path is the folder of a public adapter.

        StateMismatchError
            If the backbone's weights are not those that were saved.

        StaleStateError
            If the state lacks deletions that `against` knows; the message says which, and how to redo
            them.
        """
        loaded = persistence.load(cls, path, backbone=backbone, device=device, key=key)
        if against is not None:
            persistence.check_complete(loaded._lost(against))
        return loaded

    @classmethod
    @contextmanager
    @without_modes
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        backbone: str | nn.Module | Callable[[], nn.Module] | None = None,
        device: str | None = None,
        key: bytes | str | None = None,
        timeout: float = 60.0,
    ) -> Iterator[Self]:
        """Load an estimator, change it and save it, while nobody else can write to its file.

        ``with FastNTKClassifier.open(path) as clf: clf.unlearn(X)`` is what a service uses: requests
        that come at once wait for one another. The state is saved at the end of the block, if it has
        changed, and not after an error.

        Parameters
        ----------
        path, backbone, device, key
            As in :meth:`load`.

        timeout : float, default=60.0
            Seconds to wait for another who writes.

        Returns
        -------
        context : context manager of a FastNTKClassifier

        Raises
        ------
        StateLockedError
            If the file is still held by another after `timeout` seconds.

        StateFormatError, DecryptionError, StateMismatchError, StateWriteError
            As in :meth:`load` and :meth:`save`.
        """
        with persistence.opened(
            cls, path, backbone=backbone, device=device, key=key, timeout=timeout
        ) as (classifier, _):
            yield classifier

    @staticmethod
    def rekey(path: str | os.PathLike[str], *, key: bytes | str, new_key: bytes | str) -> None:
        """Encrypt the file of a state with another key, in one transaction.

        Parameters
        ----------
        path : str or path-like
            An encrypted file of :meth:`save`.

        key, new_key : bytes of length 32 or str
            The key that opens it now, and the one that will. Estimators that are loaded go on.

        Raises
        ------
        DecryptionError
            If `key` does not open the file, or it is not encrypted.

        ValueError
            If a key is neither 32 bytes nor text.
        """
        persistence.rekey(Path(path), key, new_key)

    @without_modes
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
            Identifier of the Hub for the adapter's licence. By default it is that of the backbone's
            weights, where timm states it, and the card says so.

        dataset : str, default=None
            What the model was learned from, for the card. "ORG/NAME" or "NAME", as the Hub names data
            sets, is linked, and lists the model under the data set.

        metrics : mapping of str to float, default=None
            Results that were measured, such as {"accuracy": 0.91}, for the card.

        Raises
        ------
        PublicationError
            If the folder holds a private state or something else, or predictions need weights that have
            seen the rows: a module as anchor, or anchor="finetuned" with predict_with="linear".

        StateFormatError
            If class labels or a parameter are no plain values.
        """
        from .publishing.card import model_card

        check_is_fitted(self)
        card = model_card(self, license=license, dataset=dataset, metrics=metrics)
        folder.save_adapter(self, path, card)

    @classmethod
    @without_modes
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
        if os.path.isfile(path_or_repo):
            raise StateFormatError(
                f"Expected a folder or a repository, got the file {str(path_or_repo)!r}. What save() "
                "wrote is read with FastNTKClassifier.load."
            )
        local = os.path.isdir(path_or_repo) or not isinstance(path_or_repo, str)
        if local and revision is not None:
            raise ValueError(f"Expected no revision with a folder, got {revision!r}. Leave it out.")
        if local:
            place = Path(path_or_repo)
        else:
            from .publishing import hub

            place = hub.pull(str(path_or_repo), revision, token=token, cache_dir=cache_dir)
        return folder.load_adapter(cls, place, backbone=backbone, device=device)

    @without_modes
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
            By default it tells how many rows were forgotten and learned since.

        token : str or bool, default=None
            By default the one of this machine.

        license, dataset, metrics
            As in :meth:`save_pretrained`.

        purge_history : bool, default=False
            Delete what earlier commits uploaded: the branch is squashed, tags go, and so do all large
            files that its last commit does not hold. Only for the branch "main", as the only one.
            References that cannot be deleted (of pull requests, or converted) are named in a warning;
            for forks, caches and what others downloaded see :doc:`publishing </user_guide/publish>`.

        Returns
        -------
        commit : str
            The commit on the branch afterwards.

        Raises
        ------
        HubError
            If the Hub could not be reached, or refused. The call can be repeated.

        PublicationError
            For a public repository where `private` is True, for a repository that holds another model,
            for a card that the Hub refuses, such as one with a licence that it does not list, and for a
            history that other branches share.

        Warns
        -----
        PrivacyWarning
            Before anything is uploaded, if earlier commits will still hold what was forgotten; and if
            `purge_history` left something behind.
        """
        from .publishing import hub
        from .publishing.card import model_card

        check_is_fitted(self)
        card = model_card(
            self,
            license=license,
            dataset=dataset,
            metrics=metrics,
            repository=repo_id,
            revision=revision,
        )
        return hub.push(
            repo_id,
            folder.adapter_files(self, card),
            adapter=self._adapter,
            known=self._known_deletions(),
            private=private,
            branch=revision or "main",
            message=commit_message,
            token=token,
            purge_history=purge_history,
        )

    def export_receipts(self, path: str | os.PathLike[str], *, signing_key: bytes | None = None) -> None:
        """Write `receipts_` as JSON lines, for :func:`verify_receipts`.

        Parameters
        ----------
        path : str or path-like

        signing_key : bytes of length 32, default=None
            The owner's Ed25519 key (``secrets.token_bytes(32)``), to be kept: it signs where the chains
            end and when. The last line then holds the signature and the public key, which you give to
            an auditor by another way too. Needs the extra "encryption".
        """
        export_receipts(self._held.receipts, path, signing_key)

    @property
    def _held(self) -> Private:
        """The private half; raise NotFittedError or NoPrivateStateError where there is none."""
        check_is_fitted(self)
        if self._private is None:
            raise NoPrivateStateError(
                "Expected an estimator with its private state, got one that holds no statistics, no "
                "ledger and no receipts: a published adapter, or what share_rows() leaves in ranks "
                "other than 0. Call this in rank 0, or load what save() wrote with "
                "FastNTKClassifier.load."
            )
        return self._private

    @property
    def _state(self) -> State:
        return self._held.state

    def _prepare(self, X, y, sample_weight, sample_ids, classes, **chosen: Any) -> Training:
        """Check everything and build the model; the estimator does not change."""
        check_together(self)
        named = isinstance(self.backbone, str) and self.backbone != "mlp"
        trained = self.anchor if isinstance(self.anchor, nn.Module) else None
        source: Any = self.backbone if trained is None or named else trained
        vectors = takes_vectors(source, X)
        if vectors and self.augment is not None:
            raise ValueError(
                f"Expected augment=None for vectors, which have no mirror image, got {self.augment!r}. "
                "Pass pictures, and a backbone that takes them."
            )
        twin = type(self)(**self.get_params(deep=False))  # gets n_features_in_ and feature_names_in_
        checked = check_training_rows(twin, X, y, sample_weight, sample_ids, vectors=vectors, reset=True)
        names = check_classes(checked.y, classes)
        n_features = checked.X.shape[1] if vectors else None
        settings = replace(self._settings(source, n_features, len(names)), **chosen)
        readout = None
        if trained is not None:
            source, readout, head = take_apart(trained, settings, working_dtype(settings.precision))
            settings = replace(settings, head=head)
        model = linearize(source, settings)
        if model.ladder is not None and settings.predict_with == "network":
            raise ValueError(
                'Expected predict_with="linear" or "auto" with a ladder, which reads the frozen '
                'network, got "network". Choose trainable="norm" to displace weights.'
            )
        if self.keep is not None and model.sizes[1]:
            raise ValueError(
                f"Expected keep=None where every class has tangents of its own, got {self.keep!r}. "
                'Choose trainable="ladder", "head" or kernel="pseudo".'
            )
        rows = Rows(checked.X, model.backbone.spec, self.num_workers, checked.numbers)
        rows.check_repeatable()
        columns = {name: value for name, value in vars(twin).items() if name.endswith("_")}
        return Training(rows, checked.encoded(names), names, model, columns, readout)

    def _settings(self, source: Any, n_features: int | None, n_classes: int) -> Settings:
        """Resolve what the parameters leave open, but for what `linearize` resolves."""
        chosen: dict[str, Any] = {name: getattr(self, name) for name in _AS_GIVEN}
        name = source if isinstance(source, str) else None
        anchor: Any = self.anchor if isinstance(self.anchor, str) else "trained"
        if self.precision == "auto":
            chosen["precision"] = "float64" if name and n_features is not None else "float32"
        if self.predict_with == "auto":
            chosen["predict_with"] = "linear" if anchor == "pretrained" else "network"
        if self.backbone_has_seen == "auto":
            not_seen = has_not_seen(self.backbone, self.pretrained)
            chosen["backbone_has_seen"] = False if not_seen else "unknown"
        elif self.backbone_has_seen != "unknown":
            chosen["backbone_has_seen"] = bool(self.backbone_has_seen)
        device = str(self.device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        check_device(device)
        return Settings(
            **chosen,
            seed=ranks().agree(draw_seed(self.random_state)),
            n_classes=n_classes,
            n_features=n_features,
            backbone=name,
            trainable=as_entries(self.trainable),
            anchor=anchor,
            head=self.head if anchor == "trained" else None,
            image_size=pair(self.image_size),
            device=device,
            alpha=number(self.alpha),
            tangent_scale=float(self.tangent_scale),
            target_scale=1.0 if self.target_scale == "auto" else float(self.target_scale),
            searched_by=(),
            temperature=None,
        )

    def _first_state(self, training: Training) -> State:
        """Return the state before the first row, at the anchor that is asked for."""
        shared = ranks()
        plain = (str, int, float, type(None))
        params = self.get_params(deep=False).items()
        asked = sorted((name, value) for name, value in params if isinstance(value, plain))
        shared.check_same(repr((len(training.checked.labels), asked)).encode())
        model, checked = training.model, training.checked
        if not model.settings.anchor_has_seen:
            return State.empty(model)
        learned = training.rows, checked.labels, checked.weights
        rescale = self.target_scale == "auto"
        if training.readout is not None:
            model = settle(model, training.readout, *learned, rescale=rescale, ranks=shared)
            return State.empty(model, Tuning(training.readout, []))
        model, tuned = tune(
            model,
            *learned,
            max_epochs=self.max_epochs,
            learning_rate=float(self.learning_rate),
            params=self.finetune_params,
            rescale=rescale,
            ranks=shared,
            verbose=self.verbose,
        )
        return State.empty(model, Tuning(tuned.W, tuned.history))

    def _together(
        self,
        work: Callable[[], Any],
        rows: Rows | None,
        model: LinearizedModel,
        classes: np.ndarray,
        alike: Any,
        found: dict[str, Any] | None = None,
    ) -> Any:
        """Run what commits a change; where ranks share rows, rank 0 does and others follow it.

        `alike` is what all ranks have to be called with, and `found` that of `_commit`.
        """
        shared = ranks()
        if shared.size == 1:
            return work()
        shared.check_same(repr((signature(model), classes.tolist(), alike)).encode())
        if shared.rank:
            return self._commit(follow(shared, model, rows, classes), found=found)
        with leading(shared):
            return work()

    def _learn(self, private: Private, rows: Rows, checked: CheckedRows) -> Private:
        """Return the private half that has also learned rows: a share of them in every rank."""
        shared, state, n = ranks(), private.state, len(rows)
        labels, weights, ids = checked.labels, checked.weights, checked.ids
        places = probes(shared, state, None if state.n_rows else state.probes[0])
        self._warn_of_drift(state, places)
        asked = Asked(np.arange(n), labels, weights, np.zeros(n, dtype=np.int64))
        sums, digests = self._sum_shares(private, state.model, rows, asked, "learning")
        features = None
        if state.settings.keep:
            features = private.ledger.settled(digests, sums.features)
            sums = state.with_features(sums, features, labels, weights)
        ledger = private.ledger.added(digests, labels.tolist(), weights.tolist(), ids, features)
        state = state.learn(sums)
        return replace(
            private, state=replace(state, probes=distinct([*state.probes, *places])), ledger=ledger
        )

    def _match(self, held: Private, X, y, sample_ids, copies) -> tuple[Rows | None, Match]:
        """Find the learned copies that a request names."""
        check_choice("copies", copies, ("one", "all"))
        ledger, labels = held.ledger, None
        if X is None:
            ids = check_ids(sample_ids)
            if not ids or y is not None:
                raise ValueError(
                    "Expected X_forget, or sample_ids alone, got neither, or labels without rows."
                )
            return None, ledger.find_ids(ids)
        rows = self._rows(X, held.state.model)
        if y is not None:
            y = column_or_1d(y)
            check_consistent_length(rows, y)
            labels = encode_labels(y, self.classes_).tolist()
        contents = (content(row) for row in rows)
        return rows, ledger.find(contents, labels, check_ids(sample_ids, len(rows)), copies)

    def _sum(
        self,
        private: Private,
        model: LinearizedModel,
        rows: Rows | None,
        removals,
        features,
        what: str,
        *,
        hold: bool = False,
    ) -> Sums:
        """Take the sums over matched rows: kept features, and a share of other rows in every rank."""
        state = private.state
        hold = hold and ranks().size == 1
        pairs = list(zip(removals, features, strict=True))
        held = [(removal, row) for removal, row in pairs if row is not None]
        if held:
            kept, known = zip(*held, strict=True)
            shown = self._progress(known, what, len(known))
            sums = state.sum_features(shown, *learned_as(kept), hold=hold)
        others = [removal for removal, row in pairs if row is None]
        if rows is None or not others:
            return sums
        places, segments = np.array([(one.row, one.segment) for one in others]).T
        asked = Asked(places, *learned_as(others), segments)
        found, digests = self._sum_shares(private, model, rows, asked, what, hold=hold)
        check_unchanged(digests, others)
        return found.plus(sums) if held else found

    def _sum_shares(
        self,
        private: Private,
        model: LinearizedModel,
        rows: Rows,
        asked: Asked,
        what: str,
        *,
        hold: bool = False,
    ) -> tuple[Sums, list[bytes]]:
        n_threads, show = private.state.environment["threads"], bool(self.verbose)
        return sum_shares(
            ranks(), model, private.ledger, rows, asked, n_threads, what, hold=hold, show=show
        )

    def _proven(
        self, state: State, features: Sequence[np.ndarray | None]
    ) -> tuple[LinearizedModel, float]:
        """Return the model that rows without kept features pass through, and its drift."""
        n_passing = sum(row is None for row in features)
        if not n_passing:
            return state.model, 0.0
        if ranks().size > 1:
            return state.model, self._warn_of_drift(state, probes(ranks(), state))
        model, probe = state.proven(n_passing)
        return model, self._warn_of_drift(state, [probe])

    def _warn_of_drift(self, state: State, places: list[Tensor]) -> float:
        """Measure how far what the backbone gives, in any rank, is from what was learned, and warn."""
        drift = float(np.max([state.drift(probe) for probe in places]))
        if drift:
            warn(
                f"What the backbone gives differs by {drift:.1e} (relative) from what was learned: sums "
                "learned there and rows subtracted here do not cancel exactly. rebuild(X, y) restores "
                "exactness.",
                NumericalDriftWarning,
            )
        return drift

    def _with_linearity(self, private: Private, rows: Rows) -> Private:
        """Measure how far the network is from the linearised model, and warn where it is far."""
        state = private.state
        assert state.tuning is not None
        gap = linearity(state.model, state.parameters, rows)
        if state.settings.predict_with == "network" and gap > _NOT_FOLLOWED:
            remedy = "raise alpha" if state.settings.anchor == "trained" else "train for fewer epochs"
            warn(
                f"The displaced network's scores are {gap:.0%} away from those of the linearised model "
                "(linearity_), for which alone deletion is exact. Predict with the latter "
                f"(predict_with='linear'), or {remedy}.",
                LinearityWarning,
            )
        return replace(private, state=replace(state, tuning=replace(state.tuning, linearity=gap)))

    def _rows(self, X: Any, model: LinearizedModel | None = None) -> Rows:
        model = self._adapter.model if model is None else model
        if model.settings.n_features is not None:
            X = check_vectors(self, X, reset=False)
        else:
            X = check_images(X)
        return Rows(X, model.backbone.spec, self.num_workers)

    def _scores(self, X: Any) -> Scored:
        """Return scores, all of one adapter: another thread may commit the next meanwhile."""
        check_is_fitted(self)
        adapter = self._adapter
        rows = self._rows(X, adapter.model)
        scores = adapter.scores(self._progress(rows, "predicting", len(rows)))
        return Scored(scores, adapter.classes, adapter.settings.sharpness)

    def _commit(
        self,
        adapter: Adapter,
        private: Private | None = None,
        *,
        before: Any = _ANY,
        found: dict[str, Any] | None = None,
    ) -> Self:
        """Take a public half, and the private one where there is one, at one moment.

        `before` is the private half that was changed: where another thread has committed meanwhile,
        nothing is taken. `found` holds further attributes of a fit; those of the fit before go.
        """
        if private is not None:
            adapter = private.described(adapter)
            if ranks().leads:
                hand_out(ranks(), adapter)
        attributes = _attributes(adapter, private) | (found or {})
        with _COMMITTING:
            if before is not _ANY and self._private is not before:
                raise StateMismatchError(
                    "Another thread changed this estimator during the call, which has changed nothing. "
                    "Call again, and hold a lock around calls that change an estimator."
                )
            if found is not None or not hasattr(self, "_adapter"):
                self._params_at_fit = {
                    name: copy.copy(value) if isinstance(value, (dict, list)) else value
                    for name, value in self.get_params(deep=False).items()
                }
                self._mark = None  # it goes on from no file
            if found is not None:
                for name in {name for name in vars(self) if name.endswith("_")} - attributes.keys():
                    delattr(self, name)
            if private is None:
                for name in vars(self).keys() & set(_NOT_PUBLIC):
                    delattr(self, name)
            self.__dict__.update(attributes)
            self._adapter = adapter
            self._private = private  # the last one: who reads it first finds the rest as new, or newer
        return self

    def _known_deletions(self) -> tuple[set[str], set[str]]:
        """Return the chains of receipts that this estimator goes on, and the deletions it has made."""
        if self._private is None:
            return set(self._adapter.heads), set(self._adapter.heads.values())
        receipts = self._private.receipts
        chains = {self._private.chain} | {receipt["chain"] for receipt in receipts}
        redone = {head for receipt in receipts for head in receipt["redoes"]}
        return chains, redone | {receipt["checksum"] for receipt in receipts}

    def _lost(self, against: Any) -> dict[str, Mapping[str, Any]]:
        """Return the deletions that others know and this estimator lacks."""
        return lost(*self._known_deletions(), against)

    def _halves(self) -> tuple[Adapter, Private]:
        """Return both halves, of one commit."""
        with _COMMITTING:
            return self._adapter, self._held

    def _warn_of_changed_parameters(self) -> None:
        """Warn of parameters that were set after fit, which take effect at the next fit only."""
        known = self._params_at_fit
        changed = [
            name
            for name, value in self.get_params(deep=False).items()
            if name not in _AT_ONCE and value is not known[name] and repr(value) != repr(known[name])
        ]
        if changed:
            warn(
                f"The parameters {changed} were set after fit, and take effect at the next fit only. "
                "Call fit again to apply them."
            )

    def _warn_of_empty_classes(self, before: State, after: State) -> None:
        emptied = self.classes_[(after.class_rows == 0) & (before.class_rows > 0)]
        if len(emptied):
            warn(
                f"No rows are left of the classes {emptied.tolist()}. They are never predicted any "
                "more; their names are still in classes_ and are published with it.",
                EmptyClassWarning,
            )

    def _progress(self, rows: Iterable, what: str, total: int) -> Iterable:
        return progress(rows, what, total, unit="row", show=self.verbose)

    def _html_repr(self) -> str:
        return super()._html_repr() + (state_table(self) if hasattr(self, "_adapter") else "")

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_adapter")

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        vectors = not isinstance(self.backbone, str) or self.backbone == "mlp"
        tags.input_tags.two_d_array = vectors
        tags.input_tags.three_d_array = not vectors
        tags.input_tags.string = not vectors
        return tags


def _attributes(adapter: Adapter, private: Private | None) -> dict[str, Any]:
    """Return the fitted attributes; arrays are copies, which nobody can predict with."""
    found = {
        "classes_": adapter.classes,
        "readout_": adapter.parameters.W.numpy().copy(),
        "displacement_": adapter.displacement.numpy().copy(),
        "n_samples_learned_": adapter.n_learned,
        "n_samples_forgotten_": adapter.n_forgotten,
        "trainable_": adapter.trained,
    }
    if private is not None:
        state = private.state
        found |= {"alpha_": state.alpha, "alpha_path_": dict(state.alpha_path)}
        if state.tuning is not None:
            found |= {"linearity_": state.tuning.linearity}
            if state.settings.anchor == "finetuned":
                found |= {"history_": copy.deepcopy(state.tuning.history)}
    return found


def _alike(rows: Rows, checked: CheckedRows) -> list[Any]:
    """Return what all ranks that learn rows together have to be called with."""
    if ranks().size == 1:
        return []
    seen = [content(rows[i]) for i in sorted({0, len(rows) // 2, len(rows) - 1})]
    return [seen, checked.labels.tobytes(), checked.weights.tobytes(), checked.ids]


def _measured(state: State, drift: float, seen_by=(), searched_by=()) -> dict[str, Any]:
    """Return what tells whether a deletion is exact, and the verdict."""
    settings = state.settings
    measured: dict[str, Any] = {
        "drift": drift,
        "position_gap": state.model.position_gap,
        "residual": coarse(state.residual),
        "rounding": state.rounding,
        "seen_by": seen_by,
        "searched_by": [*searched_by, *settings.searched_by],
        "anchor": settings.anchor,
    }
    seen = settings.backbone_has_seen
    return measured | {"exactness": exactness(**measured, backbone_has_seen=seen)}


def learned_as(removals: Sequence[Removal]) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels and weights with which rows were learned."""
    labels = np.array([removal.entry.label for removal in removals], dtype=np.int64)
    return labels, np.array([removal.entry.weight for removal in removals])


def check_summable(
    rows: Rows | None, removals: Sequence[Removal], features: Sequence[np.ndarray | None]
) -> None:
    """Raise NoFeaturesError where neither a row nor its features are there to be summed."""
    n = 0 if rows is None else len(rows)
    if any(row is None and removal.row >= n for removal, row in zip(removals, features, strict=True)):
        raise NoFeaturesError(
            "Expected the rows themselves, got none: their features were not kept, and the rows have to "
            'be summed. Pass X, or fit with keep="features".'
        )


def _warn_of_copies(n_copies_left: int) -> None:
    if n_copies_left:
        warn(
            f"Copies of forgotten rows that are still learned, perhaps under other labels or ids: "
            f"{n_copies_left:,}. Pass copies='all' to forget a content as a whole.",
            PrivacyWarning,
        )


def _warn_of_steps(seen_by: Sequence[str]) -> None:
    if seen_by:
        warn(
            f"The fitted steps {', '.join(seen_by)} have seen the forgotten rows and still remember "
            "them: the deletion is approximate. Fit them on other data, or use steps that learn "
            "nothing.",
            InexactDeletionWarning,
        )


def _with_classes(private: Private, known: np.ndarray, names: np.ndarray) -> Private:
    """Return a private half that also knows the classes of new rows."""
    if len(names) == len(known):
        return private
    state, new = private.state, np.setdiff1d(names, known).tolist()
    if state.settings.anchor_has_seen:
        raise ValueError(
            f"Expected labels among classes_ = {known.tolist()}, got {new}: the anchor was trained for "
            'those classes. Call fit again with all rows, or take anchor="pretrained".'
        )
    if state.model.sizes[1]:
        raise ValueError(
            f"Expected labels among classes_ = {known.tolist()}, got {new}: every class has tangents of "
            "its own, which learned rows lack for a new one. Name all classes in the first call, "
            'partial_fit(X, y, classes=...), or fit with trainable="ladder" or kernel="pseudo", which '
            "take new classes at any time."
        )
    places = np.searchsorted(names, known).tolist()
    return replace(
        private,
        state=state.with_classes(places, len(names)),
        ledger=private.ledger.relabelled(places),
    )


def _check_same_columns(one: FastNTKClassifier, other: FastNTKClassifier) -> None:
    """Raise StateMismatchError unless two estimators have the same classes and columns."""
    if not np.array_equal(other.classes_, one.classes_):
        raise StateMismatchError(
            f"Expected classes {one.classes_.tolist()}, got {other.classes_.tolist()}. Fit every part "
            "with partial_fit(X, y, classes=...)."
        )
    named = [site for site in (one, other) if hasattr(site, "feature_names_in_")]
    columns = [site.feature_names_in_.tolist() for site in named]
    if len(columns) == 2 and columns[0] != columns[1]:
        raise StateMismatchError(
            f"Expected columns {columns[0]}, got {columns[1]}. Put the columns of the other part in "
            "this order and fit it again."
        )
