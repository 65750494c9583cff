"""Errors and warnings of the library: every error is a ValueError or a RuntimeError."""

from __future__ import annotations

import difflib
import sys
import warnings
from collections.abc import Iterable

_LIBRARIES = (__name__.split(".")[0], "sklearn")


class FastNTKError(Exception):
    """Base class of the errors that this library raises itself."""


class SampleError(FastNTKError, ValueError):
    """Rows cannot be read, or not be matched with what was learned.

    Parameters
    ----------
    message : str
        What is wrong and what to do next.

    indices : iterable of int, default=()
        Row numbers in what was passed in.
    """

    def __init__(self, message: str, indices: Iterable[int] = ()) -> None:
        super().__init__(message)
        self.indices = [int(i) for i in indices]

    def __reduce__(self):
        return type(self), (self.args[0], self.indices)


class PictureError(SampleError):
    """A picture cannot be decoded: its file is damaged, or is none of those that are read."""


class UnknownSampleError(SampleError):
    """A row was never learned, is already forgotten, or was learned with another label."""


class AmbiguousSampleError(SampleError):
    """The same content was learned under several labels, weights or ids."""


class HeavyRowError(SampleError):
    """A row is so heavy that rounding would leave traces of it when it is forgotten."""


class ForgetsEverythingError(FastNTKError, ValueError):
    """A deletion would leave no row to rest on."""


class BackboneNotFoundError(FastNTKError, ValueError):
    """No recipe, timm model or repository has this backbone name."""


class BackboneError(FastNTKError, ValueError):
    """A network cannot be a backbone as it is; the message says what to change, or how to wrap it."""


class WeightsUnavailableError(FastNTKError, RuntimeError):
    """The pretrained weights of a backbone cannot be loaded here."""


class SubsetError(FastNTKError, ValueError):
    """The trainable subset does not exist in the backbone."""


class JacobianError(FastNTKError, RuntimeError):
    """Features or Jacobians of a row are not finite, or depend on other rows."""


class PrecisionError(FastNTKError, ValueError):
    """A precision is too coarse for the Jacobians of a backbone."""


class FineTuningError(FastNTKError, RuntimeError):
    """Fine-tuning by SGD diverged."""


class InsufficientMemoryError(FastNTKError, RuntimeError):
    """The statistics would not fit in memory; nothing was allocated."""


class WorkerError(FastNTKError, RuntimeError):
    """A process that reads rows ahead was ended from outside; nothing was changed."""


class DistributedError(FastNTKError, RuntimeError):
    """A rank of a process group was lost; nothing was learned."""


class InexactDeletionError(FastNTKError, ValueError):
    """A strict deletion would be approximate; nothing was changed."""


class SolveError(FastNTKError, RuntimeError):
    """The normal equations lost positive definiteness; the statistics must be rebuilt."""


class StateMismatchError(FastNTKError, ValueError):
    """Two states, or a state and a backbone, do not belong together."""


class StateFormatError(FastNTKError, ValueError):
    """Files are not what this library writes: damaged, forged, incomplete, or of a newer format."""


class StateLockedError(FastNTKError, RuntimeError):
    """Another process or thread holds the file of a state."""


class StateWriteError(FastNTKError, OSError):
    """The file of a state cannot be written; it is as it was."""


class StaleStateError(FastNTKError, RuntimeError):
    """A save would undo what another process has saved since this estimator was loaded."""


class DecryptionError(StateFormatError):
    """A private state is encrypted with another key, or the key is missing or malformed."""


class NoPrivateStateError(FastNTKError, ValueError, AttributeError):
    """A published adapter predicts; what it rests on is not in it (bases as of NotFittedError)."""


class NoFeaturesError(FastNTKError, ValueError):
    """The features of rows were not kept, and the rows themselves were not passed."""


class InspectionError(FastNTKError, ValueError):
    """What rows do to a model has no closed form for this model."""


class RequestError(FastNTKError, ValueError):
    """A request to be forgotten is not there, or says nothing that can be done."""


class PublicationError(FastNTKError, ValueError):
    """What was asked for would publish more than it may."""


class ReceiptError(StateFormatError):
    """Receipts were changed, or are not complete."""


class HubError(FastNTKError, RuntimeError):
    """The Hub could not be reached, or refused; the message says what to do."""


class UnknownKeyWarning(UserWarning):
    """A file holds settings of a later version, which are ignored."""


class InexactDeletionWarning(UserWarning):
    """Something outside the linearised model has seen the forgotten rows."""


class NumericalDriftWarning(UserWarning):
    """Jacobians computed here differ from those that were learned."""


class PrivacyWarning(UserWarning):
    """Something that is about to happen says more about persons than it seems to."""


class EmptyClassWarning(UserWarning):
    """A class has no row left; its name is still in ``classes_``."""


class LinearityWarning(UserWarning):
    """The displaced network does not follow the linearised model, for which deletion is exact."""


class UnsavedParameterWarning(UserWarning):
    """A parameter of the estimator could not be saved; what was learned is not touched."""


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn at the line outside of this library and of scikit-learn that led here."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_globals.get("__name__", "").split(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """Return a sentence that suggests names like one that is unknown, or nothing."""
    near = difflib.get_close_matches(name, sorted(set(names)), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
