"""Adapters on the Hugging Face Hub: pulled, pushed as one commit, and purged."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, errors
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ..exceptions import HubError, PrivacyWarning, PublicationError, StateFormatError, warn
from ..wording import counted
from .adapter import Adapter
from .config import Config, check
from .files import parse_json, read
from .folder import ADAPTER, CONFIG

_TRANSIENT = (None, 429, 500, 502, 503, 504)  # None is a lost connection
_HTTPError: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # httpx's, or httpx2's, by version
_LOG_IN = "Check the name, and pass token=... or log in with `hf auth login`."
_ADVICE: dict[type[Exception] | int, str] = {
    errors.HFValidationError: "Expected a folder that exists, or a repository 'ORG/NAME'.",
    errors.RevisionNotFoundError: "There is no such branch, tag or commit, or it was purged.",
    errors.RepositoryNotFoundError: f"There is no repository of this name that you may see. {_LOG_IN}",
    errors.RemoteEntryNotFoundError: f"It holds no {ADAPTER}: it is no adapter of this library.",
    errors.LocalTokenNotFoundError: f"There is no token on this machine. {_LOG_IN}",
    401: f"The token is missing, wrong or expired. {_LOG_IN}",
    403: "The token may not do this: use one with write access to the repository.",
    404: "What was asked for is not there (any more).",
    412: "Somebody else has pushed meanwhile. Look at what, and call again.",
}
_OTHERS = (
    ConnectionError,
    RuntimeError,
    errors.HFValidationError,
    errors.LocalEntryNotFoundError,
    errors.LocalTokenNotFoundError,
)
_READ_AGAIN = "Check the connection and call again."
_PUSH_AGAIN = (
    "Check the connection and call again: nothing is half done, what was uploaded is not uploaded "
    "twice, and a purge goes on."
)


def pull(
    repo_id: str,
    revision: str | None,
    *,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    """Download the public adapter of a repository; return its folder in the cache.

    Raise HubError if there is none, or no connection and no copy in the cache; warn where there is a
    copy and no connection.
    """
    api = HfApi(token=_checked(token))
    with _calling(repo_id):
        commit = _commit(api, repo_id, revision)
        file = api.hf_hub_download(
            repo_id,
            ADAPTER,
            revision=revision,
            cache_dir=None if cache_dir is None else Path(cache_dir),
            local_files_only=commit is None,
        )
    folder = Path(file).parent
    if commit not in (None, folder.name):
        raise HubError(f"{repo_id!r} changed, or the Hub was lost, while it was read. Call again.")
    return folder


def push(
    repo_id: str,
    contents: dict[str, bytes],
    *,
    adapter: Adapter,
    known: tuple[set[str], set[str]],
    private: bool | None,
    branch: str,
    message: str | None,
    token: str | bool | None,
    purge_history: bool,
) -> str:
    """Publish files as one commit, and return it; see :meth:`FastNTKClassifier.push_to_hub`.

    `known` are the chains of receipts that the estimator goes on, and the deletions in them.
    """
    api = HfApi(token=_checked(token))
    with _calling(repo_id, _PUSH_AGAIN):
        api.create_repo(repo_id, private=private, exist_ok=True)
        if private and not api.repo_info(repo_id).private:
            raise PublicationError(
                f"Expected {repo_id!r} to be private, got a public repository. Make it private "
                "(HfApi().update_repo_settings), or delete it: what was public may have been copied. "
                "Nothing was uploaded."
            )
        if purge_history:
            _check_branches(api, repo_id, branch)
        if branch != "main":
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        parent = str(api.repo_info(repo_id, revision=branch).sha)
        there = api.list_repo_files(repo_id, revision=parent)
        if CONFIG in there and ADAPTER not in there:
            raise PublicationError(
                f"{repo_id!r} holds another model: its {CONFIG} would be overwritten. Push to another "
                "repository. Nothing was uploaded."
            )
        earlier = None
        if ADAPTER in there:
            earlier = _earlier(api, repo_id, parent)
            _check_complete(repo_id, earlier, *known)
            _warn(repo_id, adapter, earlier, purge_history)
        # after a lost answer the user calls again, and what is there already is no second commit
        try:
            api.create_commit(
                repo_id,
                [CommitOperationAdd(name, data) for name, data in sorted(contents.items())],
                commit_message=message or _title(adapter, earlier),
                revision=branch,
                parent_commit=parent,
            )
        except ValueError as error:
            if type(error) is not ValueError:
                raise
            # what the client makes of the Hub's answer to a card, such as a licence that it lacks
            raise PublicationError(f"The Hub refused the card of {repo_id!r}. {error}") from error
        if purge_history:
            _purge(api, repo_id, branch)
        return str(api.repo_info(repo_id, revision=branch).sha)


def _checked(token: str | bool | None) -> str | bool | None:
    """Return a token as it may stand in a header; what the client raises for others shows them."""
    if not isinstance(token, str):
        return token
    token = token.strip()
    if not re.fullmatch(r"[!-~]+", token):
        raise HubError("Expected a token of printable characters without spaces, got another one.")
    return token


def _commit(api: HfApi, repo_id: str, revision: str | None) -> str | None:
    """Return the commit of a revision, or None if the Hub cannot be asked.

    The client's own fallback to its cache does not tell a lost connection from a repository that was
    deleted, or a commit that was purged.
    """
    try:
        return str(api.repo_info(repo_id, revision=revision).sha)
    except errors.OfflineModeIsEnabled:
        return None
    except _HTTPError as error:
        if _status(error) not in _TRANSIENT:
            raise
        warn(
            f"The Hub cannot be reached. If there is a copy of {repo_id!r} in the cache, it is used: it "
            "may be older than a deletion.",
            PrivacyWarning,
        )
        return None


def _title(adapter: Adapter, earlier: Config | None) -> str:
    """Return what changed since the published version, as far as the counts tell."""
    if earlier is None:
        return f"Publish an adapter learned from {counted(adapter.n_learned, 'row')}"
    forgotten = adapter.n_forgotten - earlier.n_samples_forgotten
    learned = adapter.n_learned - earlier.n_samples_learned + forgotten
    if forgotten < 0 or learned < 0:
        return f"Replace the adapter by one learned from {counted(adapter.n_learned, 'row')}"
    counts = {"forget": forgotten, "learn": learned}
    changes = [f"{verb} {counted(n, 'row')}" for verb, n in counts.items() if n]
    return (" and ".join(changes) or "update the card").capitalize()


def _earlier(api: HfApi, repo_id: str, commit: str) -> Config | None:
    """Return the configuration of the version on the Hub, if it can be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            api.hf_hub_download(repo_id, CONFIG, revision=commit, local_dir=folder)
            return check(parse_json(read(Path(folder), CONFIG), CONFIG), CONFIG)
        except (errors.EntryNotFoundError, StateFormatError):
            return None


def _check_complete(repo_id: str, earlier: Config | None, chains: set[str], deletions: set[str]) -> None:
    """Raise PublicationError where the version on the Hub knows deletions that this one lacks."""
    heads = {} if earlier is None else earlier.receipts
    if any(chain in chains and head and head not in deletions for chain, head in heads.items()):
        raise PublicationError(
            f"The adapter in {repo_id!r} knows a deletion that this estimator lacks: it was restored "
            "from an older state, and would publish forgotten rows again. load(..., against=...) says "
            "what is missing, and unlearn(..., redoes=...) forgets it. Nothing was uploaded."
        )
    if heads and not heads.keys() & chains:
        warn(
            f"The adapter in {repo_id!r} comes from another fit. Make sure that this one was "
            "fitted without the rows that were forgotten there.",
            PrivacyWarning,
        )


def _warn(repo_id: str, adapter: Adapter, earlier: Config | None, purge_history: bool) -> None:
    """Warn, before anything is uploaded, of what earlier commits will still tell."""
    same = earlier is not None and earlier.tensors_checksum == adapter.checksum
    if adapter.n_forgotten and not same and not purge_history:
        warn(
            f"Earlier commits of {repo_id!r} will still hold an adapter from before a deletion: who has "
            "both versions can reconstruct forgotten rows. push_to_hub(..., purge_history=True) deletes "
            "what can be deleted.",
            PrivacyWarning,
        )


def _check_branches(api: HfApi, repo_id: str, branch: str) -> None:
    """Raise PublicationError unless "main" is pushed to and is the only branch, so that all can go."""
    names = {ref.name for ref in api.list_repo_refs(repo_id).branches} | {branch}
    if names != {"main"}:
        raise PublicationError(
            f"Expected 'main' as the only branch of {repo_id!r} with purge_history=True, got "
            f"{sorted(names)}: the others keep the history that is to go. Delete them "
            "(HfApi().delete_branch). Nothing was uploaded."
        )


def _purge(api: HfApi, repo_id: str, branch: str) -> None:
    """Delete earlier commits, tags and files of a repository, and name what is out of reach.

    Squashing alone is no purge: tags keep old commits, and large files stay downloadable.
    """
    refs = api.list_repo_refs(repo_id, include_pull_requests=True)
    for tag in refs.tags:
        api.delete_tag(repo_id, tag=tag.name)
    api.super_squash_history(repo_id, branch=branch)
    tree = list(api.list_repo_tree(repo_id, recursive=True, revision=branch))
    kept = {entry.lfs.sha256 for entry in tree if isinstance(entry, RepoFile) and entry.lfs}
    old = [file for file in api.list_lfs_files(repo_id) if file.file_oid not in kept]
    if old:
        api.permanently_delete_lfs_files(repo_id, old)
    left = [ref.name for ref in [*(refs.pull_requests or []), *refs.converts]]
    if left:
        warn(
            f"References of {repo_id!r} that cannot be deleted may hold earlier versions: {left}. "
            "Delete the repository to be rid of them.",
            PrivacyWarning,
        )


def _status(error: Exception) -> int | None:
    """Return the status that a server answered; None for a lost connection."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def _calling(repo_id: str, again: str = _READ_AGAIN) -> Iterator[None]:
    """Keep the client from drawing bars, and turn what it raises into errors that say what to do."""
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except (_HTTPError, *_OTHERS) as error:
        causes = [*type(error).__mro__, _status(error)]
        advice = next((_ADVICE[cause] for cause in causes if cause in _ADVICE), again)
        raise HubError(f"{type(error).__name__} for {repo_id!r}. {advice}") from error
    finally:
        if not silent:
            enable_progress_bars()
