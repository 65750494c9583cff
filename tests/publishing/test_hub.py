"""Adapters on a Hub: the real client against a server on loopback."""

import copy
import json
import os
import subprocess
import sys
import time
import traceback
import warnings

import hostile
import numpy as np
import pytest
import timm
import torch
from hostile import Parts
from hub_server import connected_hub
from huggingface_hub import HfApi, ModelCard, constants
from huggingface_hub.utils import close_session
from timm.models import save_for_hf

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.loading import load_backbone
from fastntk_sk.exceptions import (
    BackboneNotFoundError,
    FastNTKError,
    HubError,
    PrivacyWarning,
    PublicationError,
    WeightsUnavailableError,
)

TOKEN, REPO = "hf_test", "me/adapter"
UPLOADS = (r"POST .*preupload", r"POST .*lfs/objects/batch", r"PUT /lfs-upload/", r"POST .*/commit/")


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its attempts
    with connected_hub(monkeypatch, tmp_path / "home") as running:
        yield running


@pytest.fixture(scope="module")
def fitted():
    draws, y = np.random.default_rng(0), np.arange(60) % 3
    X = draws.normal(size=(60, 4)) + 2 * np.eye(3, 4)[y]
    return FastNTKClassifier(random_state=0, n_components=16).fit(X, y)


@pytest.fixture
def clf(fitted):
    return copy.deepcopy(fitted)


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
    assert set(server.repos[REPO].files()) == {"README.md", "adapter.safetensors", "config.json"}
    for revision, expected in (
        (None, before), ("main", before), ("v1", before), (first, before), ("dev", after), (dev, after)
    ):  # fmt: skip
        pulled = pull(tmp_path, revision)
        np.testing.assert_array_equal(pulled.decision_function(X), expected)
    assert pulled.n_samples_forgotten_ == 5


def test_a_push_is_one_commit_that_says_what_changed(server, api, clf, blobs, tmp_path):
    X, y = blobs
    first = clf.push_to_hub(REPO, token=TOKEN)
    clf.unlearn(X[:5]).partial_fit(X[:2], y[:2])
    with pytest.warns(PrivacyWarning, match="purge_history=True"):
        second = clf.push_to_hub(REPO, token=TOKEN, metrics={"accuracy": 0.9})
    assert "value: 0.9" in server.read(REPO, "README.md").decode()
    commits = api.list_repo_commits(REPO)
    assert [commit.commit_id for commit in commits[:2]] == [second, first]
    assert commits[0].title == "Forget 5 rows and learn 2 rows"
    # the same again is no commit
    assert clf.push_to_hub(REPO, token=TOKEN, metrics={"accuracy": 0.9}) == second
    np.testing.assert_array_equal(pull(tmp_path, second).decision_function(X), clf.decision_function(X))


def test_another_process_without_the_data(server, clf, blobs, tmp_path):
    clf.push_to_hub(REPO, token=TOKEN)
    np.save(tmp_path / "X.npy", blobs[0])
    code = (
        "import numpy\n"
        "from fastntk_sk import FastNTKClassifier\n"
        "clf = FastNTKClassifier.from_pretrained('me/adapter')\n"
        "numpy.save('scores.npy', clf.decision_function(numpy.load('X.npy')))\n"
    )
    hub = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "hf")}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=os.environ | hub)
    np.testing.assert_array_equal(np.load(tmp_path / "scores.npy"), clf.decision_function(blobs[0]))


def test_a_purge_deletes_what_a_squash_leaves(server, api, clf, blobs, tmp_path):
    """And the cache does not hide what is gone."""
    X, _ = blobs
    first = clf.push_to_hub(REPO, private=True, token=TOKEN)
    api.create_tag(REPO, tag="v1")
    (old,) = server.objects
    for revision in (None, first, "v1"):
        pull(tmp_path, revision)
    clf.unlearn(X[:5])
    head = clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    assert old not in server.objects
    assert len(server.objects) == 1
    assert [commit.commit_id for commit in api.list_repo_commits(REPO)] == [head]
    for revision in (first, "v1"):
        with pytest.raises(HubError, match="purged"):
            pull(tmp_path, revision)
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), clf.decision_function(X))
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
    with pytest.raises(PublicationError, match="work.*Nothing was uploaded"):
        clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    with pytest.raises(PublicationError, match="Expected 'main'"):
        clf.push_to_hub(REPO, token=TOKEN, revision="work", purge_history=True)
    assert repository.refs == before


@pytest.mark.parametrize("where", [r"/super-squash/", r"GET .*/lfs-files", r"POST .*/lfs-files"])
def test_an_interrupted_purge_is_finished_by_another_call(server, clf, blobs, where):
    clf.push_to_hub(REPO, token=TOKEN)
    (old,) = server.objects
    clf.unlearn(blobs[0][:5])
    server.fail(times=100, match=where)
    with pytest.raises(HubError, match="a purge goes on"):
        clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    assert old in server.objects
    server.faults.clear()
    clf.push_to_hub(REPO, token=TOKEN, purge_history=True)
    assert old not in server.objects


def test_two_that_push_at_once(clf, blobs, tmp_path, monkeypatch, server):
    X, y = blobs
    clf.push_to_hub(REPO, token=TOKEN)
    other, create_commit = copy.deepcopy(clf).unlearn(X[:5]), HfApi.create_commit

    def meanwhile(*args, **kwargs):
        monkeypatch.setattr(HfApi, "create_commit", create_commit)
        with pytest.warns(PrivacyWarning):
            other.push_to_hub(REPO, token=TOKEN)
        return create_commit(*args, **kwargs)

    monkeypatch.setattr(HfApi, "create_commit", meanwhile)
    with pytest.raises(HubError, match="Somebody else"):
        clf.partial_fit(X[:2], y[:2]).push_to_hub(REPO, token=TOKEN)
    assert pull(tmp_path).n_samples_forgotten_ == 5
    # what the other has forgotten would come back, however many rows this one forgets
    for rows in (slice(10, 15), slice(15, 30)):
        with pytest.raises(PublicationError, match="older state"):
            clf.unlearn(X[rows]).push_to_hub(REPO, token=TOKEN)
    assert pull(tmp_path).n_samples_forgotten_ == 5
    before = copy.deepcopy(clf)
    with pytest.warns(PrivacyWarning, match="copies"):
        clf.unlearn(X[:5], redoes=other)
    with pytest.warns(PrivacyWarning, match="Earlier commits"):
        clf.push_to_hub(REPO, token=TOKEN)
    assert before.receipts_ != clf.receipts_
    refit = copy.deepcopy(clf).fit(X[5:], y[5:])
    with pytest.warns(PrivacyWarning, match="another fit"):
        refit.push_to_hub(REPO, token=TOKEN)


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


def test_a_public_repository_is_not_taken_for_a_private_one(server, clf):
    clf.push_to_hub(REPO, token=TOKEN)
    with pytest.raises(PublicationError, match="private"):
        clf.push_to_hub(REPO, private=True, token=TOKEN, metrics={"accuracy": 0.9})
    assert "0.9" not in server.read(REPO, "README.md").decode()


def test_interrupted_transfers_can_be_repeated(server, clf, blobs, tmp_path):
    """The client repeats uploads by itself, but no commit: the user calls again."""
    X, _ = blobs
    for where in UPLOADS[:-1]:
        server.fail(times=2, match=where)
    clf.push_to_hub(REPO, token=TOKEN)
    before = clf.decision_function(X)
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), before)
    clf.unlearn(X[:5])
    # the large file is there after the first commit that fails
    for break_off, where in [*((server.cut, where) for where in UPLOADS), (server.fail, UPLOADS[-1])]:
        break_off(match=where, times=100)
        with pytest.warns(PrivacyWarning), pytest.raises(HubError, match="call again"):
            clf.push_to_hub(REPO, token=TOKEN)
        server.faults.clear()
        np.testing.assert_array_equal(pull(tmp_path).decision_function(X), before)
    with pytest.warns(PrivacyWarning):
        clf.push_to_hub(REPO, token=TOKEN)
    server.cut(match=r"GET .*resolve.*safetensors", times=100)
    with pytest.raises(HubError):
        pull(tmp_path)
    server.faults.clear()
    np.testing.assert_array_equal(pull(tmp_path).decision_function(X), clf.decision_function(X))


@pytest.mark.parametrize("purge", [False, True])
def test_an_answer_that_is_lost_is_no_second_commit(server, api, clf, blobs, purge):
    clf.push_to_hub(REPO, private=True, token=TOKEN)
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
    assert bool(stored & set(server.objects)) is not purge


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
    assert any("weights.bin" in line for line in server.log)
    assert not bomb.exists()


FORGED = {
    "depth": {"model_args": {"depth": 10**9}},
    "modules": {"model_args": {"layers": [16_000] * 4}},
    "arguments": {"model_args": {"layers": [1] * 10**5}},
    "device": {"model_args": {"device": "cpu"}},
    "no object": [],
    "no arguments": {"model_args": 7},
    "no weights": {"pretrained_cfg": "x"},
    "deep": {"model_args": json.loads("[" * 900 + "]" * 900)},
    "length": {"label_names": "x" * 2**24},
    "weights": {"num_classes": 10},
    "named weights": {"pretrained_cfg": {"hf_hub_filename": "more.bin", "num_classes": 10}},
    "other weights": {"hf_hub_filename": "config.json", "num_classes": 10},
}


@pytest.mark.parametrize("case", FORGED)
def test_a_forged_repository_is_neither_built_nor_downloaded(server, api, case):
    """Whoever writes an adapter may name any repository, and may have written that too."""
    api.create_repo("evil/net")
    forged = FORGED[case]
    config = forged and {"architecture": "test_resnet", "pretrained_cfg": {}} | forged
    files = {"config.json": json.dumps(config).encode()}
    if "weights" in case:
        files |= dict.fromkeys(("model.safetensors", "more.bin"), bytes(24 * hostile.MIB))
    for name, data in files.items():
        api.upload_file(path_or_fileobj=data, path_in_repo=name, repo_id="evil/net")
    found = []

    def load():
        with pytest.raises(BackboneNotFoundError) as raised:
            load_backbone("hf-hub:evil/net", pretrained=True)
        found.append(raised.value)

    assert hostile.peak(load) < 200 * hostile.MIB
    assert "evil/net" in str(found[0])
    downloads = [line for line in server.log if line.startswith("GET") and "/resolve/" in line]
    assert all("config.json" in line for line in downloads)
    assert bool(downloads) is (case != "length")


def test_named_errors(server, api, clf, tmp_path):
    for token in ("hf_expired", None):
        with pytest.raises(HubError, match="hf auth login"):
            clf.push_to_hub(REPO, token=token)
    assert REPO not in server.repos
    clf.push_to_hub(REPO, private=True, token=TOKEN)
    api.create_repo("me/empty")
    for name, params, message in (
        (REPO, {"token": "hf_expired"}, "hf auth login"),
        (REPO, {"token": "hf_stranger"}, "hf auth login"),
        (REPO, {"token": False}, "hf auth login"),
        (REPO, {"revision": "v9"}, "no such branch"),
        ("me/nothing", {}, "no repository"),
        ("no/such/folder", {}, "ORG/NAME"),
        ("me/empty", {}, r"adapter\.safetensors"),
    ):
        with pytest.raises(HubError, match=message):
            FastNTKClassifier.from_pretrained(
                name, **{"token": TOKEN, "cache_dir": tmp_path / "cache"} | params
            )
    clf.push_to_hub("me/public", token=TOKEN)
    with pytest.raises(PublicationError, match=r'card of .*\n.*"license" must be'):
        clf.push_to_hub("me/public", license="home-made", token=TOKEN)
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
        pytest.raises(HubError, match="connection"),
    ):
        pull(tmp_path, name="cold")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    close_session()
    assert pull(tmp_path).n_samples_learned_ == 60
    with pytest.raises(HubError, match="connection"):
        clf.push_to_hub(REPO, token=TOKEN)
    close_session()
    with pytest.raises(HubError, match="connection"):
        clf.push_to_hub(REPO, token=TOKEN)


def upload_base(api, folder, seed):
    """Upload a timm model to "me/base", and return the commit."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        save_for_hf(timm.create_model("test_resnet"), folder, safe_serialization=True)
    api.create_repo("me/base", exist_ok=True)
    return api.upload_folder(repo_id="me/base", folder_path=folder).oid


def test_a_backbone_on_the_hub_is_pinned(server, api, digits, tmp_path):
    X, y = digits[0][:8], digits[1][:8] % 2
    params = {"image_size": 32, "batch_size": 4, "random_state": 0, "n_components": 16}
    commit = upload_base(api, tmp_path / "base", 0)
    clf = FastNTKClassifier("hf-hub:me/base@main", **params).fit(X, y)
    clf.push_to_hub(REPO, token=TOKEN)
    config = json.loads(server.read(REPO, "config.json"))["backbone"]
    assert (config["base_model"], config["revision"]) == ("me/base", commit)
    card = ModelCard(server.read(REPO, "README.md").decode()).data
    assert (card.base_model, card.base_model_relation) == ("me/base", "adapter")
    assert card.license == timm.get_pretrained_cfg("test_resnet").license
    # a later commit on that branch changes nothing
    upload_base(api, tmp_path / "base", 1)
    pulled = pull(tmp_path)
    np.testing.assert_array_equal(pulled.decision_function(X), clf.decision_function(X))
    pulled.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["backbone"] == config
    # nor does a lost connection, once it was downloaded
    server.cut(match="me/base", times=1000)
    again = FastNTKClassifier(f"hf-hub:me/base@{commit}", **params).fit(X, y)
    np.testing.assert_array_equal(again.decision_function(X), clf.decision_function(X))
    server.faults.clear()
    del server.repos["me/base"]
    with pytest.raises(WeightsUnavailableError):
        FastNTKClassifier("hf-hub:me/base@0000", **params).fit(X, y)
