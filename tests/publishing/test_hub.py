"""Adapters on a Hub: the real client against a server on loopback."""

import base64
import copy
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
import warnings

import numpy as np
import pytest
import timm
import torch
from hostile import Parts
from hub_server import connected_hub
from huggingface_hub import HfApi, constants
from huggingface_hub.utils import close_session

from fastntk_sk import FastNTKClassifier
from fastntk_sk.exceptions import (
    FastNTKError,
    HubError,
    PrivacyWarning,
    PublicationError,
    WeightsUnavailableError,
)
from fastntk_sk.publishing import hub

TOKEN, REPO = "hf_test", "me/adapter"
KEY = base64.urlsafe_b64encode(bytes(32))
UPLOADS = (r"POST .*preupload", r"POST .*lfs/objects/batch", r"PUT /lfs-upload/", r"POST .*/commit/")


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its attempts
    with connected_hub(monkeypatch, tmp_path / "home") as running:
        yield running


@pytest.fixture
def clf(blobs):
    return FastNTKClassifier(random_state=0, n_components=16).fit(*blobs)


@pytest.fixture
def api(server):
    return HfApi(token=TOKEN)


def pull(tmp_path, revision=None, token=TOKEN, name="cache"):
    return FastNTKClassifier.from_pretrained(
        REPO, revision=revision, token=token, cache_dir=tmp_path / name
    )


def test_branches_tags_and_pinned_commits(server, api, clf, blobs, tmp_path):
    X, _ = blobs
    first, before = clf.push_to_hub(REPO, token=TOKEN), clf.decision_function(X)
    api.create_tag(REPO, tag="v1")
    clf.unlearn(X[:5])
    with pytest.warns(PrivacyWarning):
        dev, after = clf.push_to_hub(REPO, revision="dev", token=TOKEN), clf.decision_function(X)
    assert set(server.repos[REPO].files()) == {
        ".gitattributes", "README.md", "adapter.safetensors", "config.json",
    }  # fmt: skip
    for revision, expected in (
        (None, before), ("main", before), ("v1", before), (first, before), ("dev", after), (dev, after)
    ):  # fmt: skip
        pulled = pull(tmp_path, revision)
        np.testing.assert_array_equal(pulled.decision_function(X), expected)
    assert pulled.n_samples_forgotten_ == 5
    assert not any("statistics" in path for _, path in server.log)


def test_a_push_after_a_deletion_says_what_changed(server, api, clf, blobs, tmp_path):
    X, y = blobs
    first = clf.push_to_hub(REPO, token=TOKEN)
    clf.unlearn(X[:5]).partial_fit(X[:2], y[:2])
    with pytest.warns(PrivacyWarning, match="purge_history=True"):
        second = clf.push_to_hub(REPO, token=TOKEN, metrics={"accuracy": 0.9})
    card = server.read(REPO, "README.md").decode()
    assert f"commit `{first[:12]}`: 5 rows forgotten, 2 rows learned" in card
    assert "from_pretrained('me/adapter')" in card
    assert "value: 0.9" in card
    titles = [commit.title for commit in api.list_repo_commits(REPO)]
    assert titles[:2] == ["Forget 5 rows", "Publish an adapter learned from 60 rows"]
    # the same again is no commit
    assert clf.push_to_hub(REPO, token=TOKEN, metrics={"accuracy": 0.9}) == second
    np.testing.assert_array_equal(pull(tmp_path, second).decision_function(X), clf.decision_function(X))


def test_another_process_without_the_data(server, clf, blobs, tmp_path):
    X, _ = blobs
    clf.unlearn(X[:5]).push_to_hub(REPO, token=TOKEN)
    np.save(tmp_path / "X.npy", X)
    code = (
        "import numpy, sys\n"
        "from fastntk_sk import FastNTKClassifier\n"
        "clf = FastNTKClassifier.from_pretrained('me/adapter')\n"
        "numpy.save('scores.npy', clf.decision_function(numpy.load('X.npy')))\n"
    )
    env = os.environ | {
        "HF_ENDPOINT": server.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "hf"),
    }
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=env)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), clf.decision_function(X))


def test_a_purge_deletes_what_a_squash_leaves(server, api, clf, blobs, tmp_path):
    X, _ = blobs
    first = clf.push_to_hub(REPO, token=TOKEN)
    api.create_tag(REPO, tag="v1")
    (old,) = server.objects
    clf.unlearn(X[:5])
    head = clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    assert old not in server.objects
    assert len(server.objects) == 1
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [head]
    for revision in (first, "v1"):
        with pytest.raises(HubError, match="a commit that was purged is gone"):
            pull(tmp_path, revision, name=f"cache-{revision}")
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), clf.decision_function(X))


def test_the_cache_does_not_hide_what_is_gone(server, api, clf, tmp_path):
    first = clf.push_to_hub(REPO, private=True, token=TOKEN)
    pull(tmp_path)
    pull(tmp_path, first)
    clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    with pytest.raises(HubError, match="no revision"):
        pull(tmp_path, first)
    with pytest.raises(HubError, match="expired"):
        pull(tmp_path, token="hf_expired")
    del server.repos[REPO]
    with pytest.raises(HubError, match="no repository"):
        pull(tmp_path)


def test_a_purge_names_what_it_cannot_reach(server, api, clf, blobs):
    clf.push_to_hub(REPO, token=TOKEN)
    repository = server.repos[REPO]
    repository.refs["refs/pr/1"] = repository.resolve("main")
    clf.unlearn(blobs[0][:5])
    with pytest.warns(PrivacyWarning, match=r"cannot be deleted .* \['1'\]|refs/pr/1"):
        clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    api.create_branch(REPO, branch="work")
    before = dict(repository.refs)
    with pytest.raises(PublicationError, match=r"\['work'\].*Nothing was uploaded"):
        clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    with pytest.raises(PublicationError, match="Expected the branch 'main'"):
        clf.push_to_hub(REPO, token=TOKEN, revision="work", purge_history=True)
    assert repository.refs == before


@pytest.mark.parametrize("where", [r"/super-squash/", r"GET .*/lfs-files", r"POST .*/lfs-files"])
def test_an_interrupted_purge_is_finished_by_another_call(server, clf, blobs, where):
    clf.push_to_hub(REPO, token=TOKEN)
    (old,) = server.objects
    clf.unlearn(blobs[0][:5])
    server.fail(times=100, match=where)
    with pytest.raises(HubError, match="the purge was not finished"):
        clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    assert old in server.objects
    server.faults.clear()
    clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    assert old not in server.objects


def test_two_that_push_at_once(server, clf, blobs, tmp_path, monkeypatch):
    X, _ = blobs
    clf.push_to_hub(REPO, token=TOKEN)
    other, original = copy.deepcopy(clf).unlearn(X[:5]), hub._title

    def meanwhile(*args):
        monkeypatch.setattr(hub, "_title", original)
        with pytest.warns(PrivacyWarning):
            other.push_to_hub(REPO, token=TOKEN)
        return original(*args)

    monkeypatch.setattr(hub, "_title", meanwhile)
    with pytest.raises(HubError, match="Somebody else has pushed"):
        clf.partial_fit(X[:2], blobs[1][:2]).push_to_hub(REPO, token=TOKEN)
    assert pull(tmp_path).n_samples_forgotten_ == 5
    # what the other has forgotten would come back
    with pytest.warns(PrivacyWarning, match="forgotten rows are published again"):
        clf.push_to_hub(REPO, token=TOKEN)
    assert "another model of 55 learned and 5 forgotten" in server.read(REPO, "README.md").decode()


@pytest.mark.parametrize("token", ["hf_SECRET\nhf_SECRET", "hf SECRET", "hf_S\u00c9CRET"])
def test_tokens_are_never_shown(server, clf, token):
    for call in (
        lambda: clf.push_to_hub(REPO, token=token),
        lambda: FastNTKClassifier.from_pretrained(REPO, token=token),
    ):
        with pytest.raises(HubError, match="printable characters") as caught:
            call()
        assert token not in "".join(traceback.format_exception(caught.value))
    clf.push_to_hub(REPO, token=f"{TOKEN}\n")  # as read from a file


def test_a_private_state_goes_to_private_repositories_only(server, api, clf, blobs, tmp_path):
    X, _ = blobs
    for private in (None, False):
        with pytest.raises(PublicationError, match="would be public"):
            clf.push_to_hub(REPO, private=private, include_private_state=True, token=TOKEN)
    assert REPO not in server.repos
    clf.push_to_hub(REPO, private=False, token=TOKEN)
    for include in (True, False):
        with pytest.raises(PublicationError, match="is public"):
            clf.push_to_hub(REPO, private=True, include_private_state=include, token=TOKEN)
    assert not any("private_state" in path for path in server.repos[REPO].files())
    clf.push_to_hub("me/backup", private=True, include_private_state=True, token=TOKEN)
    folder = api.snapshot_download("me/backup", cache_dir=tmp_path / "cache")
    again = FastNTKClassifier.load(f"{folder}/private_state").unlearn(X[:5])
    with pytest.warns(PrivacyWarning):
        again.push_to_hub("me/backup", include_private_state=True, token=TOKEN)
    files = [path for path in server.repos["me/backup"].files() if "private_state" in path]
    assert len(files) == 5
    server.repos["me/backup"].private = False
    with pytest.raises(PublicationError, match="a private state is in it"):
        again.push_to_hub("me/backup", token=TOKEN)
    server.repos["me/backup"].private = True
    # without it, what is there remembers too much to stay
    with pytest.warns(PrivacyWarning, match="still hold a private state"):
        again.push_to_hub("me/backup", token=TOKEN)
    assert not any("private_state" in path for path in server.repos["me/backup"].files())


@pytest.mark.parametrize("where", UPLOADS)
def test_an_interrupted_push_can_be_repeated(server, clf, blobs, tmp_path, where):
    X, _ = blobs
    clf.push_to_hub(REPO, token=TOKEN)
    before = clf.decision_function(X)
    clf.unlearn(X[:5])
    server.cut(match=where, times=100)
    with pytest.warns(PrivacyWarning), pytest.raises(HubError, match="call again"):
        clf.push_to_hub(REPO, token=TOKEN)
    server.faults.clear()
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), before)
    with pytest.warns(PrivacyWarning):
        clf.push_to_hub(REPO, token=TOKEN)
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), clf.decision_function(X))


@pytest.mark.parametrize("purge", [False, True])
@pytest.mark.parametrize("state", [False, True])
def test_an_answer_that_is_lost_is_no_second_commit(server, api, clf, blobs, purge, state):
    """The client repeats uploads by itself, but no commit: the user calls again."""
    clf.push_to_hub(REPO, private=True, include_private_state=state, token=TOKEN)
    stored = set(server.objects)
    clf.unlearn(blobs[0][:5])
    n_commits = len(api.list_repo_commits(REPO))
    for match in UPLOADS:
        server.cut(match=match, after=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PrivacyWarning)
        with pytest.raises(HubError, match="call again"):
            clf.push_to_hub(REPO, token=TOKEN)
        head = clf.push_to_hub(REPO, token=TOKEN, purge_history=purge)
    assert api.repo_info(REPO).sha == head
    assert len(api.list_repo_commits(REPO)) == (1 if purge else n_commits + 1)
    assert not any("private_state" in path for path in server.repos[REPO].files())
    assert bool(stored & set(server.objects)) is not purge


def test_a_private_state_is_pushed_without_files_on_this_machine(server, clf, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    clf.push_to_hub("me/state", private=True, include_private_state=True, key=KEY, token=TOKEN)
    names = [path for path in server.repos["me/state"].files() if "private_state" in path]
    assert sum(name.endswith(".fernet") for name in names) == 4
    assert len(names) == 5


def test_a_pickle_in_place_of_a_backbone_is_not_executed(server, api, clf, digits, tmp_path):
    """An adapter may name any repository: its weights are read by a loader that executes nothing."""
    X, y = digits[0][:8], digits[1][:8] % 2
    params = {"image_size": 32, "batch_size": 4, "random_state": 0, "n_components": 8}
    net = FastNTKClassifier("test_resnet", pretrained=False, **params).fit(X, y)
    net.save_pretrained(tmp_path / "adapter")
    parts = Parts.of(tmp_path / "adapter")
    api.create_repo("evil/net")
    config = {
        "architecture": "test_resnet",
        "num_features": 512,
        "pretrained_cfg": {"hf_hub_filename": "weights.bin", "input_size": [3, 32, 32]},
    }
    bomb = tmp_path / "executed"
    pickled = f"cos\nmkdir\n(V{bomb}\ntR.".encode()
    for name, data in {"config.json": json.dumps(config).encode(), "weights.bin": pickled}.items():
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="evil/net")
    parts.config["backbone"]["source"] = "hf-hub:evil/net"
    parts.config["settings"]["pretrained"] = True
    parts.write(tmp_path / "forged")
    with pytest.raises(FastNTKError):
        FastNTKClassifier.from_pretrained(tmp_path / "forged")
    assert any("weights.bin" in path for _, path in server.log)
    assert not bomb.exists()


def test_a_server_that_fails_twice(server, clf, tmp_path, blobs):
    """Uploads are repeated by the client, commits by the user."""
    for where in UPLOADS[:-1]:
        server.fail(times=2, status=500, match=where)
    clf.push_to_hub(REPO, token=TOKEN)
    np.testing.assert_array_equal(pull(tmp_path).predict(blobs[0]), clf.predict(blobs[0]))
    server.fail(times=1, status=500, match=r"POST .*/commit/")
    with pytest.raises(HubError, match="answered 500"):
        clf.partial_fit(blobs[0][:1], blobs[1][:1]).push_to_hub(REPO, token=TOKEN)


def test_a_download_that_is_cut_leaves_nothing_to_load(server, clf, tmp_path, blobs):
    clf.push_to_hub(REPO, token=TOKEN)
    server.cut(match=r"GET .*resolve.*safetensors", times=100)
    with pytest.raises(HubError):
        pull(tmp_path)
    server.faults.clear()
    np.testing.assert_array_equal(pull(tmp_path).predict(blobs[0]), clf.predict(blobs[0]))


def test_named_errors(server, api, clf, tmp_path):
    for token, call in (
        ("hf_expired", lambda token: clf.push_to_hub(REPO, token=token)),
        (None, lambda token: clf.push_to_hub(REPO, token=token)),
    ):
        with pytest.raises(HubError, match="hf auth login"):
            call(token)
    assert REPO not in server.repos
    clf.push_to_hub(REPO, private=True, token=TOKEN)
    for token in ("hf_expired", "hf_stranger", False):
        with pytest.raises(HubError, match="hf auth login"):
            pull(tmp_path, token=token, name=f"cache-{token}")
    with pytest.raises(HubError, match="no revision 'v9'"):
        pull(tmp_path, "v9")
    with pytest.raises(HubError, match="no repository 'me/nothing'"):
        FastNTKClassifier.from_pretrained("me/nothing", token=TOKEN, cache_dir=tmp_path / "cache")
    with pytest.raises(HubError, match="Expected a folder that exists, or a repository"):
        FastNTKClassifier.from_pretrained("no/such/folder", cache_dir=tmp_path / "cache")
    api.create_repo("me/empty")
    with pytest.raises(HubError, match=r"holds no adapter\.safetensors"):
        FastNTKClassifier.from_pretrained("me/empty", token=TOKEN, cache_dir=tmp_path / "cache")
    clf.push_to_hub("me/public", token=TOKEN)
    with pytest.raises(HubError, match="write access"):
        clf.push_to_hub("me/public", token="hf_stranger")


def test_a_branch_that_holds_something_else(server, api, clf, tmp_path):
    api.create_repo("me/other")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="me/other")
    with pytest.raises(PublicationError, match="holds another model"):
        clf.push_to_hub("me/other", token=TOKEN)
    api.create_repo(REPO)
    api.upload_file(path_or_fileobj=b"text", path_in_repo="notes.txt", repo_id=REPO)
    api.upload_file(path_or_fileobj=b"{", path_in_repo="config.json", repo_id=REPO)
    api.upload_file(path_or_fileobj=b"x", path_in_repo="adapter.safetensors", repo_id=REPO)
    clf.push_to_hub(REPO, token=TOKEN)
    assert server.read(REPO, "notes.txt") == b"text"
    assert pull(tmp_path).n_samples_learned_ == 60


def test_without_a_connection(monkeypatch, clf, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    with connected_hub(monkeypatch, tmp_path / "home"):
        clf.push_to_hub(REPO, token=TOKEN)
        pull(tmp_path)
    # what was pulled once is there without a connection, and a word of warning with it
    with pytest.warns(PrivacyWarning, match="may be older than a deletion"):
        assert pull(tmp_path).n_samples_learned_ == 60
    with (
        pytest.warns(PrivacyWarning, match="cannot be reached"),
        pytest.raises(HubError, match="not in the cache|connection"),
    ):
        pull(tmp_path, name="cold")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert pull(tmp_path).n_samples_learned_ == 60
    with pytest.raises(HubError, match="offline mode|connection"):
        clf.push_to_hub(REPO, token=TOKEN)
    close_session()
    with pytest.raises(HubError, match="connection"):
        clf.push_to_hub(REPO, token=TOKEN)


def test_a_backbone_on_the_hub_is_pinned(server, api, digits, tmp_path):
    X, y = digits[0][:20], digits[1][:20] % 2
    params = {"image_size": 32, "batch_size": 4, "random_state": 0, "n_components": 16}
    base = FastNTKClassifier("test_resnet", pretrained=False, anchor="finetuned", max_epochs=1, **params)
    base.fit(X, y).export_timm(tmp_path / "base")
    api.create_repo("me/base")
    commit = api.upload_folder(repo_id="me/base", folder_path=tmp_path / "base").oid
    net = timm.create_model("hf-hub:me/base", pretrained=True).eval()
    with torch.no_grad():
        spec = base._adapter.model.backbone.spec
        scores = net(spec.normalise([spec.pixels(x) for x in X], torch.float32))
    np.testing.assert_allclose(
        scores[:, 1] - scores[:, 0], base.decision_function(X), rtol=1e-4, atol=1e-4
    )
    clf = FastNTKClassifier("hf-hub:me/base", **params).fit(X, y)
    clf.push_to_hub(REPO, token=TOKEN)
    config = json.loads(server.read(REPO, "config.json"))
    assert config["backbone"]["base_model"] == "me/base"
    assert config["backbone"]["revision"] == commit
    assert "base_model: me/base" in server.read(REPO, "README.md").decode()
    pulled = pull(tmp_path)
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    branch = FastNTKClassifier("hf-hub:me/base@main", **params).fit(X, y)
    branch.save_pretrained(tmp_path / "branch")
    # a later commit there changes nothing, nor does a copy that this machine loads from a folder
    other = base.unlearn(X[:3])
    other.export_timm(tmp_path / "base")
    api.upload_folder(repo_id="me/base", folder_path=tmp_path / "base")
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), clf.decision_function(X))
    from_branch = FastNTKClassifier.from_pretrained(tmp_path / "branch")
    np.testing.assert_array_equal(from_branch.decision_function(X), branch.decision_function(X))
    pulled.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["backbone"] == config["backbone"]
    del server.repos["me/base"]
    with pytest.raises(WeightsUnavailableError, match="cannot be loaded here"):
        FastNTKClassifier("hf-hub:me/base@0000", **params).fit(X, y)
