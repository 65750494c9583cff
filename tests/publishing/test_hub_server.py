"""The stand-in for the Hub makes the real client do, and raise, what the Hub makes it do."""

import threading
import time
from pathlib import Path

import httpx2
import pytest
from hub_server import Hub, connected_hub
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, errors

REPO = "someone/model"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with connected_hub(monkeypatch, tmp_path) as hub:
        yield hub


@pytest.fixture
def api(hub):
    api = HfApi(endpoint=hub.url, token="hf_test")
    api.create_repo(REPO)
    return api


@pytest.fixture
def waits(monkeypatch):
    """The pauses that the client would have made before it tried again."""
    seconds = []
    monkeypatch.setattr(time, "sleep", seconds.append)
    return seconds


@pytest.fixture
def publish(api, tmp_path):
    """Upload a folder with these weights, and nothing else; return the commit."""

    def upload(weights, **options):
        folder = tmp_path / "published"
        folder.mkdir(exist_ok=True)
        (folder / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
        (folder / "adapter.safetensors").write_bytes(weights)
        return api.upload_folder(repo_id=REPO, folder_path=folder, delete_patterns=["*"], **options).oid

    return upload


@pytest.fixture
def pull(api, tmp_path):
    """Download a snapshot to a cache of its own; return the weights."""
    numbers = iter(range(100))

    def download(revision=None, **options):
        cache = tmp_path / f"cache{next(numbers)}"
        folder = api.snapshot_download(
            REPO,
            revision=revision,
            cache_dir=cache,
            allow_patterns=["adapter*"],
            max_workers=1,
            **options,
        )
        assert [path.name for path in Path(folder).iterdir()] == ["adapter.safetensors"]
        return (Path(folder) / "adapter.safetensors").read_bytes()

    return download


def asked(hub, method, part=""):
    return [path for verb, path in hub.log if verb == method and part in path]


def test_publishing_and_pulling(hub, api, publish, pull, tmp_path):
    api.create_commit(REPO, [CommitOperationAdd("old/a.txt", b"old")], commit_message="Start")
    first = publish(b"one", commit_message="Publish")
    assert set(hub.repos[REPO].files()) == {".gitattributes", "README.md", "adapter.safetensors"}
    assert list(hub.objects.values()) == [b"one"]  # large by its suffix
    assert len(asked(hub, "PUT")) == 1
    api.create_branch(REPO, branch="dev/next")
    api.create_tag(REPO, tag="v1")
    second = publish(b"two", revision="dev/next")
    assert [pull(), pull("v1"), pull("dev/next"), pull(second)] == [b"one", b"one", b"two", b"two"]
    assert api.file_exists(REPO, "README.md", revision="v1")
    assert not api.file_exists(REPO, "old/a.txt")
    card = api.hf_hub_download(REPO, "README.md", revision=first, cache_dir=tmp_path / "cards")
    assert Path(card).read_bytes() == hub.read(REPO, "README.md", first)
    assert [commit.title for commit in api.list_repo_commits(REPO)] == [
        "Publish",
        "Start",
        "initial commit",
    ]
    assert publish(b"one") == first  # what has not changed is no commit
    operations = [CommitOperationDelete("README.md"), CommitOperationDelete("adapter.safetensors")]
    api.create_commit(REPO, operations, commit_message="Clear", parent_commit=first)
    assert api.list_repo_files(REPO) == [".gitattributes"]
    with pytest.raises(errors.HfHubHTTPError, match="A commit has happened since"):
        api.create_commit(REPO, operations, commit_message="Clear", parent_commit=first)


def test_references(hub, api, publish):
    commit = publish(b"one")
    api.create_branch(REPO, branch="dev")
    api.create_branch(REPO, branch="dev", exist_ok=True)
    api.create_tag(REPO, tag="v1", revision=commit)
    hub.repos[REPO].refs |= {"refs/pr/1": commit, "refs/convert/parquet": commit}
    refs = api.list_repo_refs(REPO, include_pull_requests=True)
    assert [ref.name for ref in refs.branches] == ["dev", "main"]
    assert [(ref.name, ref.target_commit) for ref in refs.tags] == [("v1", commit)]
    assert [ref.name for ref in [*refs.converts, *refs.pull_requests]] == ["parquet", "refs/pr/1"]
    assert api.repo_info(REPO, revision="refs/pr/1").sha == commit
    api.delete_branch(REPO, branch="dev")
    api.delete_tag(REPO, tag="v1")
    for gone in ("dev", "v1"):
        with pytest.raises(errors.RevisionNotFoundError):
            api.repo_info(REPO, revision=gone)
    with pytest.raises(errors.RevisionNotFoundError):
        api.delete_tag(REPO, tag="v1")
    with pytest.raises(errors.HfHubHTTPError, match="Cannot delete refs/heads/main"):
        api.delete_branch(REPO, branch="main")


def test_squashing_is_no_purge(hub, api, publish, pull):
    old = publish(b"one")
    api.create_tag(REPO, tag="v1")
    hub.repos[REPO].refs["refs/pr/1"] = old
    publish(b"two")
    api.super_squash_history(REPO, branch="main")
    assert [commit.title for commit in api.list_repo_commits(REPO)] == [
        "Super-squash branch 'main' using huggingface_hub"
    ]
    assert [pull("v1"), pull("refs/pr/1"), pull(old), pull()] == [b"one", b"one", b"one", b"two"]
    api.delete_tag(REPO, tag="v1")
    assert pull(old) == b"one"  # by the pull request
    del hub.repos[REPO].refs["refs/pr/1"]
    api.super_squash_history(REPO)
    with pytest.raises(errors.RevisionNotFoundError):
        pull(old)
    kept = api.repo_info(REPO, files_metadata=True).sha
    digests = {file.lfs.sha256 for file in api.list_repo_tree(REPO) if file.lfs}
    stored = list(api.list_lfs_files(REPO))
    assert [(file.filename, file.ref, file.size) for file in stored] == [
        ("adapter.safetensors", "main", 3)
    ] * 2
    assert set(hub.objects.values()) == {b"one", b"two"}
    api.permanently_delete_lfs_files(REPO, [file for file in stored if file.file_oid not in digests])
    assert list(hub.objects.values()) == [b"two"]
    assert {file.file_oid for file in api.list_lfs_files(REPO)} == digests
    assert api.repo_info(REPO).sha == kept
    assert pull() == b"two"


@pytest.mark.parametrize("rewrite", [True, False])
def test_deleting_a_large_file_that_history_names(hub, api, publish, pull, rewrite):
    old = publish(b"one")
    new = publish(b"two")
    first = next(iter(api.list_lfs_files(REPO)))
    api.permanently_delete_lfs_files(REPO, [first], rewrite_history=rewrite)
    assert pull() == b"two"
    assert (api.repo_info(REPO).sha == new) is not rewrite
    assert list(hub.objects.values()) == [b"two"]
    with pytest.raises(errors.RevisionNotFoundError if rewrite else errors.RemoteEntryNotFoundError):
        pull(old)


def test_who_may_see_and_change_what(hub, api, publish, pull):
    publish(b"one")
    api.create_repo("someone/secret", private=True)
    assert api.repo_info("someone/secret").private
    assert api.repo_info(REPO).private is False
    with pytest.raises(errors.HfHubHTTPError, match="409"):
        api.create_repo(REPO)
    assert api.create_repo(REPO, exist_ok=True).repo_id == REPO
    for token, status in [(False, 401), ("hf_other", 404)]:
        stranger = HfApi(endpoint=hub.url, token=token)
        assert not stranger.repo_exists("someone/secret")
        assert stranger.repo_exists(REPO)
        with pytest.raises(errors.RepositoryNotFoundError) as raised:
            stranger.repo_info("someone/secret")
        assert raised.value.response.status_code == status
        with pytest.raises(errors.HfHubHTTPError, match=r"401|403"):
            stranger.create_repo("someone/new")
        with pytest.raises(errors.HfHubHTTPError, match=r"401|403"):
            stranger.delete_branch(REPO, branch="main")
        assert pull(token=token) == b"one"


def test_an_expired_token(hub, api, publish, pull):
    publish(b"one")
    api.token = "hf_expired"
    for call in (
        lambda: publish(b"two"),
        pull,
        lambda: api.repo_exists(REPO),
        lambda: api.create_repo("a/b"),
    ):
        with pytest.raises(errors.HfHubHTTPError, match="Invalid credentials") as raised:
            call()
        assert type(raised.value) is errors.HfHubHTTPError
        assert raised.value.response.status_code == 401


def test_what_is_missing(hub, api, publish, pull, tmp_path):
    publish(b"one")
    for revision in ("v2", "0" * 40):
        with pytest.raises(errors.RevisionNotFoundError):
            pull(revision)
    with pytest.raises(errors.RemoteEntryNotFoundError):
        api.hf_hub_download(REPO, "none.json", cache_dir=tmp_path)
    with pytest.raises(errors.RepositoryNotFoundError):
        api.upload_folder(repo_id="someone/none", folder_path=tmp_path / "published")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        api.upload_file(path_or_fileobj=b"# No metadata", path_in_repo="README.md", repo_id=REPO)


@pytest.mark.parametrize(
    ("match", "patient"),
    [("/preupload/", True), ("objects/batch", True), ("PUT /lfs-upload/", True), ("/commit/", False)],
)
def test_errors_of_the_server_while_uploading(hub, publish, pull, waits, match, patient):
    publish(b"one")
    hub.fail(times=2, match=match)
    if not patient:
        for _ in range(2):
            with pytest.raises(errors.HfHubHTTPError, match="500"):
                publish(b"two")
            assert pull() == b"one"
    publish(b"two")
    assert waits == ([1, 2] if patient else [])
    assert pull() == b"two"


@pytest.mark.parametrize("reset", [False, True])
def test_connections_that_break(hub, publish, pull, waits, reset):
    publish(b"1" * 2_000_000)
    lost = httpx2.ReadError if reset else httpx2.RemoteProtocolError
    hub.cut(match="PUT /lfs-upload/", reset=reset)
    hub.cut(match="POST .*/commit/", reset=reset)
    with pytest.raises(lost):
        publish(b"2" * 2_000_000)
    assert len(asked(hub, "PUT")) == 3  # the client repeats an upload, but no commit
    assert waits == [1]
    assert pull() == b"1" * 2_000_000
    publish(b"2" * 2_000_000)
    hub.cut(match="GET .*adapter", reset=reset)
    if reset:
        with pytest.raises(httpx2.ReadError):
            pull()
    assert pull() == b"2" * 2_000_000  # without a reset, by asking for the other half
    assert len(asked(hub, "GET", "adapter")) == 3


def test_commits_of_which_the_answer_is_lost(hub, api, publish):
    hub.cut(match="/commit/", after=True)
    hub.fail(match="/commit/", status=504, after=True)
    for weights, error in [(b"one", httpx2.RemoteProtocolError), (b"two", errors.HfHubHTTPError)]:
        with pytest.raises(error):
            publish(weights)
        assert hub.read(REPO, "adapter.safetensors") == weights
    head = api.repo_info(REPO).sha
    assert publish(b"two") == head
    assert len(asked(hub, "POST", "/commit/")) == 2


def test_a_hub_that_is_gone(tmp_path, monkeypatch, waits):
    before = set(threading.enumerate())
    with connected_hub(monkeypatch, tmp_path) as hub:
        api = HfApi(endpoint=hub.url, token="hf_test")
        api.create_repo(REPO)
    assert set(threading.enumerate()) == before
    with pytest.raises(httpx2.ConnectError):
        api.repo_info(REPO)
    with pytest.raises(errors.LocalEntryNotFoundError):
        api.snapshot_download(REPO, cache_dir=tmp_path)


def test_hubs_are_independent():
    with Hub() as one, Hub() as other:
        assert one.url != other.url
        assert one.repos is not other.repos
