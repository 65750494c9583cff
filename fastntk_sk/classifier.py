"""The estimator: parameters, input validation and orchestration."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if
from torch import nn

from .backbones.inputs import Rows
from .deletion import UnlearningMixin
from .exporting import ExportMixin
from .fitting import first_state, with_classes
from .prediction import PredictionMixin
from .progress import progress
from .publishing.adapter import Adapter
from .publishing.html import state_table
from .state import State
from .sums.ridge import at_least
from .validation import check_training_rows, encode_labels

_COLUMNS = ("n_features_in_", "feature_names_in_")


def _can_add(classifier: Any) -> bool:
    if classifier.anchor == "finetuned" and not hasattr(classifier, "_adapter"):
        raise AttributeError(
            'Expected a fitted estimator for anchor="finetuned": SGD needs its rows together. Call fit '
            "first; partial_fit then adds rows at the anchor that it found."
        )
    return True


class FastNTKClassifier(PredictionMixin, UnlearningMixin, ExportMixin, ClassifierMixin, BaseEstimator):
    r"""Classifier on a frozen pretrained backbone that forgets rows in closed form.

    A readout W on the features h is learned by ridge regression: by default on those of a ladder, a
    fixed sketch of the activations of all blocks. Beside it, or instead, a parameter-efficient subset
    theta of the backbone is linearised at its pretrained values, with a readout V and a subspace Q
    that have seen no data, and displaced by Q z:

    .. math::

        f(x) = W [h(x), 1] + \sqrt{s} J(x) Q z, \quad J = \partial_\theta (V h), \quad
        \min_{W, z} \sum_i w_i \|f(x_i) - t(y_i)\|^2 + \alpha (\|W\|^2 + \|z\|^2) .

    The fit needs the rows only through sums, so that :meth:`unlearn` subtracts the forgotten rows
    and solves again: exact for the linearised model, that is, the parameters of a fit that never
    saw the rows, up to rounding; in any order, any number of times, without the rest of the data.
    With a ladder alone nothing is linearised away: what is exact is the model.
    What exactness does not cover (a fine-tuned anchor, the backbone's own pretraining data,
    hyper-parameters that were chosen with the rows, class names, models published earlier) is listed
    in docs/user_guide/exactness.md.

    Parameters
    ----------
    backbone : str, nn.Module or callable, default="mlp"
        A recipe (see :func:`list_recipes`) or timm name, "timm:NAME", "hf-hub:ORG/NAME[@REVISION]",
        "local-dir:PATH"; a module that returns features (copied), or a callable that returns one.
        "mlp" is a fixed random network on plain 2-D X.

    trainable : str or sequence of str, default="auto"
        What is trained. "ladder" puts a readout beside every block of the frozen network (a side
        adapter): one forward pass a row, and a model that is linear in its parameters, so that what
        is exact for the linearised model is exact for the model; at the pretrained anchor only.
        "ladder-grid" reads the blocks' results on a grid of places, which suits pictures that are
        aligned, "ladder-gap" activations within blocks, averaged over all places; "ladder" is both,
        with half of `n_components` each. "head" is the readout alone: a linear probe. Subsets of the
        network are "norm" (affine parameters of norm layers), "bias", "prompt" (visual prompt
        tokens of a ViT, inserted after the class token), "prompt-deep" (new ones in every block),
        "full" (small models), or glob patterns of parameter names. Several are united. "auto" is
        "ladder" ("head" in a network without repeated blocks), and for anchor="finetuned" the
        paper's subset: "prompt" for a ViT, else "norm".

    anchor : {"pretrained", "finetuned"}, default="pretrained"
        Where the network is linearised. "finetuned" first trains the subset (in the subspace of
        `n_components`) and W by SGD, and solves there, with the ridge still centred at the
        pretrained values. It follows the network further, and its result is plain weights
        (:meth:`to_module`); but the anchor has seen every row, so that against a real retraining a
        deletion is approximate.

    kernel : {"full", "pseudo"}, default="full"
        "full" is the paper's: one displacement of the subset for all classes, which costs a backward
        pass for each class and row. "pseudo" takes the tangents of `n_directions` random directions
        of the features instead, and every class reads them by itself: the passes then do not
        grow with the number of classes, and sums and solve grow little. It is as exact, about as
        accurate, and cannot be written back as weights.

    n_directions : int, default=3
        r, of the pseudo kernel: backward passes a row. More cost more and gain little.

    alpha : float or "auto", default="auto"
        Ridge on the sum of squared errors, in units of the backbone's energy on synthetic inputs;
        with a ladder or the head alone, the intercept has none. "auto" lets the sums choose it
        there (`alpha_`), by the evidence of Bayesian ridge regression on a fixed grid: after a
        deletion it is what a fit without the rows would choose. It takes a row of weight w for w rows,
        and copies for independent ones: give a number where a row comes with its mirror image, or
        where weights sum to one. With tangents "auto" is 0.25.
        A number is never rescaled by the number of rows, or a deletion would change it. Defaults were
        chosen on held-out training images (examples/benchmarks).

    tangent_scale : float, default=1.0
        s, the weight of the trainable subset against the readout; 0 leaves the readout alone, which is
        a linear probe, or the ladder.

    target_scale : float or "auto", default="auto"
        Scale of the targets. "auto" is 1 for the pretrained anchor, where predictions and parameters
        grow in proportion, and the mean margin that SGD left for the fine-tuned one.

    n_components : int, "auto" or None, default="auto"
        k, the dimension of a fixed random subspace of the subset, and of a ladder's features ("auto":
        4096, None: as many as it pools). Memory grows as k^2, the solve with a ladder as k^3, with
        tangents as k^2 times classes times features (with the pseudo kernel as (r k)^2 and (r k)^3).
        "auto" is p up to 4096, fewer for hundreds of classes (pseudo: for all directions together);
        None is p. Values above p mean p. With some hundred rows the solve takes longer than the
        passes, in fit and at every deletion: 1024 is ten times faster then, and costs about a point
        of accuracy or less.

    n_prompts : int, default=10
        Number of prompt tokens.

    image_size : int, tuple (height, width) or None, default=None
        Images are resized to it; None is the size that the weights were trained at. Smaller is
        faster, roughly in proportion to the area.

    pretrained : bool, default=True
        Load pretrained weights; False gives random ones, seeded by `random_state`.

    batch_size : int, default=32
        Rows a pass. Learning and forgetting pad every batch to it, because a row's Jacobian must be
        the same both times.

    max_epochs : int, default=15
        Of fine-tuning; the pretrained anchor has none.

    learning_rate : float, default=2e-3
        Of the readout in fine-tuning. The subspace's coordinates learn ten times as fast.

    finetune_params : dict, default=None
        Further arguments of :class:`skorch.NeuralNetClassifier`: "callbacks" (added to the one-cycle
        schedule, which "callbacks__schedule": None takes away), "train_split", "optimizer",
        "criterion" (:class:`torch.nn.CrossEntropyLoss`; `finetuning.SquaredLoss` for squared loss),
        "batch_size". As the subset is trained as a displacement, "optimizer__weight_decay" pulls it
        toward the pretrained values (and the readout toward zero): decoupled with the default AdamW,
        an L2 penalty with :class:`torch.optim.SGD` or :class:`torch.optim.Adam`.

    predict_with : {"auto", "linear", "network"}, default="auto"
        "linear" evaluates the linearised model: one directional derivative where there are tangents, one
        forward pass where there are none; "network", not for a ladder, puts the
        displaced weights into the network (two forward passes at the pretrained anchor, one at the
        fine-tuned). "auto" is "linear" for the pretrained anchor and "network" for the fine-tuned.

    precision : {"auto", "float32", "float64", "bfloat16"}, default="auto"
        Of the backbone's passes. "auto" is float64 for "mlp", else float32. "bfloat16" learns and
        forgets in torch's autocast: faster for transformers where the processor knows it, with
        Jacobians a percent or two off (and deletion as exact); where they would be off by more than
        5 %, as batch norms make them, it is an error. Predictions, fine-tuning, sums and solves are
        never in bfloat16.

    num_workers : int, default=0
        Processes that read and decode pictures ahead of the passes.

    device : str, default="cpu"
        Of the backbone's passes; "auto" takes a GPU if there is one.

    random_state : int, RandomState instance or None, default=None
        Seeds the readout V, the subspace Q, prompts, random weights and batches; global generators
        are never touched. Pass an int to make a refit comparable.

    verbose : int, default=0
        1 shows progress bars.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        Class labels. A class whose rows were all forgotten stays here and is never predicted.

    n_features_in_ : int
        Number of features; only for 2-D X.

    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Only for a 2-D DataFrame whose column names are all strings.

    trainable_ : list of str
        What is trained, in place of "auto".

    readout_ : ndarray of shape (n_classes, d + 1), or (n_classes, d + r k + 1)
        W on features (of a ladder, d is its k), for the pseudo kernel tangent features, and a constant.

    alpha_ : float
        The ridge in force. Private, as the next: absent after :meth:`from_pretrained`.

    alpha_path_ : dict of float to float
        Where the sums chose `alpha_`: minus twice the log evidence a class, by value of alpha, 1e-4
        to 100; else empty. `alpha_` is its first minimum from the largest alpha on: the smallest one
        where it falls all the way, as with fewer rows than features.

    displacement_ : ndarray of shape (p,); (0,) for the pseudo kernel, and where p is 0
        The move of the trainable parameters from their pretrained values.

    history_ : list of dict
        Only for the fine-tuned anchor: its epochs as skorch records them, on all rows of the fit.

    linearity_ : float
        Only for the fine-tuned anchor: relative difference between the centred scores of the network
        and of the linearised model, at fit, on rows of the fit (some may be forgotten since).
        Deletion is exact for the linearised model: the smaller this is, the closer does the network
        follow it (examples/benchmarks prints it beside what was forgotten). Above 0.5 `fit` warns:
        predict with "linear", or train for fewer epochs.

    n_samples_learned_ : int
        Number of rows that the model rests on now.

    n_samples_forgotten_ : int
        Number of rows removed so far.

    receipts_ : list of dict
        One for each deletion: time, rows, in what sense it is exact, residual of the normal
        equations, digests of the adapter before and after, versions, device, precision, and the
        digest of the receipt before it. Private: empty after :meth:`from_pretrained`.

    See Also
    --------
    unlearn : The same for a classifier inside a Pipeline or a search.

    Notes
    -----
    A pickle, and the folder of :meth:`save`, hold the statistics and the ledger, which describe the
    remaining training data, and a fine-tuned anchor, which has seen forgotten rows too: they are
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

    def __init__(
        self,
        backbone: str | nn.Module | Callable[[], nn.Module] = "mlp",
        *,
        trainable: str | Sequence[str] = "auto",
        anchor: str = "pretrained",
        kernel: str = "full",
        n_directions: int = 3,
        alpha: float | str = "auto",
        tangent_scale: float = 1.0,
        target_scale: float | str = "auto",
        n_components: int | str | None = "auto",
        n_prompts: int = 10,
        image_size: int | tuple[int, int] | None = None,
        pretrained: bool = True,
        batch_size: int = 32,
        max_epochs: int = 15,
        learning_rate: float = 2e-3,
        finetune_params: dict[str, Any] | None = None,
        predict_with: str = "auto",
        precision: str = "auto",
        num_workers: int = 0,
        device: str = "cpu",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.backbone = backbone
        self.trainable = trainable
        self.anchor = anchor
        self.kernel = kernel
        self.n_directions = n_directions
        self.alpha = alpha
        self.tangent_scale = tangent_scale
        self.target_scale = target_scale
        self.n_components = n_components
        self.n_prompts = n_prompts
        self.image_size = image_size
        self.pretrained = pretrained
        self.batch_size = batch_size
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.finetune_params = finetune_params
        self.predict_with = predict_with
        self.precision = precision
        self.num_workers = num_workers
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def fit(
        self,
        X: Any,
        y: Any,
        sample_weight: Any = None,
        sample_ids: Any = None,
        classes: Any = None,
        checkpoint_dir: str | os.PathLike[str] | None = None,
    ) -> FastNTKClassifier:
        """Learn from scratch: fine-tuning if the anchor asks for it, one pass and one solve.

        Parameters
        ----------
        X : array-like
            Images: an array of shape (n, H, W) or (n, H, W, 3), uint8 or float in [0, 1], or a list
            of PIL images or file paths. Memory maps, torch datasets and columns of Hugging Face
            datasets are read on demand. For "mlp": a numeric array of shape (n, n_features).

        y : array-like of shape (n,)
            Class labels.

        sample_weight : array-like of shape (n,), default=None
            Nonnegative, at most 1e9 times alpha; rows of weight zero are dropped before anything else.

        sample_ids : array-like of shape (n,), default=None
            What deletion requests will name, such as a person's id; it may repeat. Only a keyed
            digest is kept; a missing one (None, NaN) names nobody.

        classes : array-like of shape (n_classes,), default=None
            All class labels, for rows that lack one of them; by default those of `y`.

        checkpoint_dir : str or path-like, default=None
            A folder that gets the sums so far every two minutes, and is deleted at the end. After an
            interruption, the same call goes on from there, and ends with the same model. Private: it
            describes the rows.

        Returns
        -------
        self : FastNTKClassifier
            Fitted estimator.

        Raises
        ------
        ValueError
            If a parameter or the data is not valid.

        InsufficientMemoryError
            If the statistics would not fit; it names an `n_components` that would.

        FineTuningError
            If SGD diverged.

        StateMismatchError
            If the checkpoint is of another fit.

        DistributedError
            If a rank of the process group was lost.

        Notes
        -----
        In an initialised process group of torch.distributed, every rank is called alike and learns its
        share of the rows; all of them end with the same model. So do :meth:`partial_fit` and
        :meth:`unlearn`.
        """
        return self._start(X, y, classes, sample_weight, sample_ids, checkpoint_dir)

    @available_if(_can_add)
    def partial_fit(
        self,
        X: Any,
        y: Any,
        classes: Any = None,
        sample_weight: Any = None,
        sample_ids: Any = None,
    ) -> FastNTKClassifier:
        """Learn more rows; the result is that of one fit on all of them.

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
            Fitted estimator.

        Raises
        ------
        ValueError
            If there is a label that is not in `classes_`, and classes have tangents of their own.

        AttributeError
            If anchor="finetuned" and the estimator is not fitted: SGD needs its rows together.
        """
        if not hasattr(self, "_adapter"):
            return self._start(X, y, classes, sample_weight, sample_ids)
        before = self._state
        X, y, weights, ids = check_training_rows(
            self,
            X,
            y,
            sample_weight,
            sample_ids,
            alpha=at_least(before.settings.alpha),
            vectors=self._vectors,
            reset=False,
        )
        rows = Rows(X, before.model.backbone.spec, self.num_workers)
        grown, names = with_classes(before, self.classes_, y, classes)
        labels = encode_labels(y, names)
        return self._replace(before, grown.learn(rows, labels, weights, ids, self._progress), names)

    def _start(self, X, y, classes, sample_weight, sample_ids, checkpoint_dir=None) -> FastNTKClassifier:
        """Build the model and learn the first rows; the estimator changes at the end."""
        columns = copy.copy(self)  # gets n_features_in_ and feature_names_in_
        for name in _COLUMNS:
            columns.__dict__.pop(name, None)
        rows = X, y, classes, sample_weight, sample_ids
        state, names = first_state(columns, *rows, self._progress, checkpoint_dir)
        for name in _COLUMNS:
            self.__dict__.pop(name, None)
            if hasattr(columns, name):
                setattr(self, name, getattr(columns, name))
        return self._commit(state, names)

    def _commit(self, held: State | Adapter, classes: np.ndarray) -> FastNTKClassifier:
        """Take a state with both halves, or the public half alone."""
        state = held if isinstance(held, State) else None
        adapter = held if isinstance(held, Adapter) else held.adapter
        self._private, self._adapter = state, replace(adapter, classes=classes)
        self.classes_ = classes
        self.readout_ = adapter.parameters.W.numpy()
        self.displacement_ = adapter.displacement.numpy()
        self.n_samples_learned_ = adapter.n_learned
        self.n_samples_forgotten_ = adapter.n_forgotten
        self.trainable_ = adapter.trained
        for name in ("alpha_", "alpha_path_", "history_", "linearity_"):
            self.__dict__.pop(name, None)
        if state is not None:
            self.alpha_, self.alpha_path_ = state.alpha, dict(state.alpha_path)
        if state is not None and adapter.settings.is_finetuned:
            self.history_, self.linearity_ = state.history, state.linearity
        return self

    @property
    def receipts_(self) -> list[dict[str, Any]]:
        """Receipts of the deletions, copied when they are asked for: there may be thousands."""
        return [] if self._private is None else copy.deepcopy(self._private.receipts)

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
