"""Adapters on the Hugging Face Hub: pulled, pushed as one commit, and purged."""

from __future__ import annotations

import os
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    errors,
    snapshot_download,
)
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from ..exceptions import HubError, PrivacyWarning, PublicationError, StateFormatError
from .adapter import Adapter
from .card import Earlier
from .config import check
from .files import parse_json, read
from .folder import ADAPTER, CARD, CONFIG

PRIVATE = "private_state"
_TRANSIENT = (429, 500, 502, 503, 504)
_HTTPError: type[Exception] = errors.HfHubHTTPError.__bases__[0]  # httpx's, or httpx2's, by version


def pull(
    repo_id: str,
    revision: str | None,
    *,
    token: str | bool | None,
    cache_dir: str | os.PathLike[str] | None,
) -> Path:
    """Download the public adapter of a repository, at one commit; return its folder in the cache.

    Raises
    ------
    HubError
        If there is no such repository, revision or adapter, or no connection and no copy in the cache.

    Warns
    -----
    PrivacyWarning
        If there is no connection, and the copy in the cache is used.
    """
    token = _checked(token)
    api = HfApi(token=token)
    with _named(repo_id, revision), _quiet():
        commit = _commit(api, repo_id, revision)
        folder = Path(
            snapshot_download(
                repo_id,
                revision=revision,
                token=token,
                cache_dir=None if cache_dir is None else Path(cache_dir),
                allow_patterns=[ADAPTER, CONFIG],
                local_files_only=commit is None,
            )
        )
    if commit not in (None, folder.name):
        raise HubError(f"{repo_id!r} changed, or the Hub was lost, while it was read. Call again.")
    if not (folder / ADAPTER).exists():
        raise HubError(
            f"Repository {repo_id!r} holds no {ADAPTER}: it is no adapter of this library, or its "
            "upload was not finished."
        )
    return folder


def push(
    repo_id: str,
    contents: Callable[[Earlier | None], dict[str, bytes]],
    *,
    adapter: Adapter,
    private: bool | None,
    branch: str,
    message: str | None,
    token: str | bool | None,
    include_private_state: bool,
    purge_history: bool,
) -> str:
    """Publish files as one commit, and return it; see :meth:`FastNTKClassifier.push_to_hub`.

    `contents` returns them by their names in the repository, given the version before.
    """
    if purge_history and branch != "main":
        raise PublicationError(
            f"Expected the branch 'main' with purge_history=True, got {branch!r}: the others keep the "
            "history that is to go. Push to main, or delete the branch. Nothing was uploaded."
        )
    api = HfApi(token=_checked(token))
    with _named(repo_id, branch), _quiet():
        exists = api.repo_exists(repo_id)
        if include_private_state and not exists and not private:
            raise PublicationError(
                f"The private state describes training rows, and {repo_id!r} would be public. Pass "
                "private=True, or leave include_private_state out. Nothing was uploaded."
            )
        if purge_history and exists:
            _check_branches(api, repo_id)
        if not exists:
            api.create_repo(repo_id, private=private, exist_ok=True)
        if branch != "main":
            api.create_branch(repo_id, branch=branch, exist_ok=True)
        parent = str(api.repo_info(repo_id, revision=branch).sha)
        there = api.list_repo_files(repo_id, revision=parent)
        if CONFIG in there and ADAPTER not in there:
            raise PublicationError(
                f"{repo_id!r} holds another model: its {CONFIG} would be overwritten. Push to another "
                "repository. Nothing was uploaded."
            )
        earlier = _earlier(api, repo_id, parent) if ADAPTER in there else None
        old_private = {name for name in there if name.startswith(f"{PRIVATE}/")}
        changes = _changes(contents(earlier), old_private)
        _check_visibility(api, repo_id, private, include_private_state or bool(old_private))
        _warn(repo_id, adapter, earlier, ADAPTER in there, bool(old_private), purge_history)
        title = message or _title(adapter, earlier)
        # after a lost answer the user calls again, and what is there already is no second commit
        api.create_commit(repo_id, changes, commit_message=title, revision=branch, parent_commit=parent)
        if purge_history:
            try:
                _purge(api, repo_id, branch)
            except (_HTTPError, OSError, RuntimeError) as error:
                raise HubError(
                    f"The adapter was pushed to {repo_id!r}, and the purge was not finished: earlier "
                    "versions may still be there. Call again."
                ) from error
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
        if _status(error) not in (None, *_TRANSIENT):
            raise
        warnings.warn(
            f"The Hub cannot be reached. If there is a copy of {repo_id!r} in the cache, it is used: it "
            "may be older than a deletion.",
            PrivacyWarning,
            stacklevel=4,
        )
        return None


def _title(adapter: Adapter, earlier: Earlier | None) -> str:
    if earlier is None:
        return f"Publish an adapter learned from {adapter.n_learned:,} rows"
    forgotten = adapter.n_forgotten - earlier.n_forgotten
    return f"Forget {forgotten:,} rows" if forgotten > 0 else "Update the adapter"


def _earlier(api: HfApi, repo_id: str, commit: str) -> Earlier | None:
    """Return what is known of the version on the Hub, if it can be read."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in (CONFIG, CARD):
                api.hf_hub_download(repo_id, name, revision=commit, local_dir=folder)
            config = check(parse_json(read(Path(folder), CONFIG), CONFIG), CONFIG)
        except (errors.EntryNotFoundError, StateFormatError):
            return None
        card = read(Path(folder), CARD).decode(errors="replace")
    counts = config.n_samples_learned, config.n_samples_forgotten
    return Earlier(commit, *counts, config.tensors_checksum, card)


def _warn(
    repo_id: str,
    adapter: Adapter,
    earlier: Earlier | None,
    published: bool,
    state_published: bool,
    purge_history: bool,
) -> None:
    """Warn, before anything is uploaded, of what earlier commits will still tell."""
    if earlier is not None and earlier.n_forgotten > adapter.n_forgotten:
        warnings.warn(
            f"The adapter in {repo_id!r} has forgotten {earlier.n_forgotten:,} rows, and this one "
            f"{adapter.n_forgotten:,}. If it is an older state, forgotten rows are published again.",
            PrivacyWarning,
            stacklevel=4,
        )
    same = earlier is not None and earlier.checksum == adapter.checksum
    if not purge_history and (state_published or (published and adapter.n_forgotten and not same)):
        what = "a private state" if state_published else "an adapter from before a deletion"
        warnings.warn(
            f"Earlier commits of {repo_id!r} will still hold {what}: who has both versions can "
            "reconstruct forgotten rows. push_to_hub(..., purge_history=True) deletes what can be "
            "deleted.",
            PrivacyWarning,
            stacklevel=4,
        )


def _check_visibility(api: HfApi, repo_id: str, private: bool | None, holds_state: bool) -> None:
    """Raise PublicationError if a repository is not as private as it must be now."""
    if (private or holds_state) and not api.repo_info(repo_id).private:
        reason = "a private state is in it or would be" if holds_state else "private=True was asked for"
        raise PublicationError(
            f"{repo_id!r} is public, and {reason}. Make it private (HfApi().update_repo_settings), or "
            "delete it: what was public may have been copied. Nothing was uploaded."
        )


def _changes(
    contents: dict[str, bytes], old_private: set[str]
) -> list[CommitOperationAdd | CommitOperationDelete]:
    """Return what brings these files to a branch, and takes other private ones from it."""
    return [
        *(CommitOperationAdd(name, data) for name, data in sorted(contents.items())),
        *(CommitOperationDelete(name) for name in sorted(old_private - contents.keys())),
    ]


def _check_branches(api: HfApi, repo_id: str) -> None:
    """Raise PublicationError if other branches hold the history that is to go."""
    refs = api.list_repo_refs(repo_id)
    others = sorted(ref.name for ref in refs.branches if ref.name != "main")
    if others:
        raise PublicationError(
            f"Other branches of {repo_id!r} keep the history that purge_history is to delete: {others}. "
            "Delete them (HfApi().delete_branch). Nothing was uploaded."
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
    stored = list(api.list_lfs_files(repo_id))
    old = [file for file in stored if file.file_oid not in kept]
    if old:
        api.permanently_delete_lfs_files(repo_id, old)
    left = [ref.name for ref in [*(refs.pull_requests or []), *refs.converts]]
    if left:
        warnings.warn(
            f"References of {repo_id!r} that cannot be deleted may hold earlier versions: {left}. "
            "Delete the repository to be rid of them.",
            PrivacyWarning,
            stacklevel=4,
        )


def _reason(error: BaseException | None) -> Exception | None:
    """Return the HTTP error behind what the client raised, if there is one."""
    while error is not None and not isinstance(error, errors.OfflineModeIsEnabled):
        if isinstance(error, _HTTPError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return error
        error = error.__cause__
    return None


def _status(error: BaseException | None) -> int | None:
    """Return the status that a server answered; None for a lost connection."""
    return getattr(getattr(error, "response", None), "status_code", None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the client from drawing bars: an adapter is small."""
    silent = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not silent:
            enable_progress_bars()


@contextmanager
def _named(repo_id: str, revision: str | None) -> Iterator[None]:
    """Turn what the client raises into errors that say what to do, and never show a token."""
    try:
        yield
    except HubError:
        raise
    except errors.HFValidationError as error:
        raise HubError(
            f"Expected a folder that exists, or a repository 'ORG/NAME', got {repo_id!r}."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(
            f"Repository {repo_id!r} has no revision {revision!r}. Pass a branch, tag or commit that it "
            "has; a commit that was purged is gone."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"There is no repository {repo_id!r}, or it is private and the token may not see it. Check "
            "the name, and pass token=... or log in with `hf auth login`."
        ) from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError(
            "There is no token on this machine. Pass token=..., or log in with `hf auth login`."
        ) from error
    except (_HTTPError, OSError, RuntimeError) as error:
        reason = _reason(error)
        status = _status(reason)
        if reason is None and not isinstance(error, (ConnectionError, errors.LocalEntryNotFoundError)):
            raise
        if status is None:
            raise HubError(
                f"The Hub cannot be reached for {repo_id!r} ({type(reason or error).__name__}). Nothing "
                "is half done: check the connection and call again."
            ) from error
        advice = {
            401: "The token is missing, wrong or expired: pass token=..., or `hf auth login`.",
            403: "The token may not do this: use one with write access to the repository.",
            404: "What was asked for is not there (any more).",
            412: "Somebody else has pushed meanwhile. Look at what, and call again.",
        }.get(status, "What was there is unchanged, or the push is complete: call again.")
        raise HubError(f"The Hub answered {status} for {repo_id!r}. {advice}") from error
