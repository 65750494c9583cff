"""Receipts form a chain that notices what was changed, left out or moved."""

import copy
import json
import stat

import numpy as np
import pytest
from hostile import checked

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.exceptions import (
    PrivacyWarning,
    ReceiptError,
    StaleStateError,
    StateFormatError,
    StateMismatchError,
    UnknownSampleError,
)


def make(**changes):
    return FastNTKClassifier(**({"trainable": "norm", "random_state": 0, "n_components": 16} | changes))


def published(clf, folder):
    clf.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text())


@pytest.fixture
def exported(blobs, tmp_path):
    X, y = blobs
    clf = make().fit(X, y, sample_ids=np.arange(60) // 3)
    clf.unlearn(X[0:2], sample_ids=[0, 0])
    for start in (3, 5):
        clf.unlearn(X[start : start + 2])
    clf.export_receipts(tmp_path / "receipts.jsonl")
    return clf, tmp_path / "receipts.jsonl"


def test_what_a_receipt_says(exported, tmp_path):
    clf, path = exported
    receipts = verify_receipts(path)
    assert receipts == clf.receipts_
    first = receipts[0]
    assert (first["n_rows"], first["n_samples_learned"]) == (2, 58)
    assert first["n_rows_left_under_sample_ids"] == 1
    assert first["exactness"] == {"exact": True, "reasons": []}
    assert 0 <= first["residual"] < 1e-10
    assert (first["drift"], first["seen_by"]) == (0, [])
    assert first["rounding"] < 1e-8
    assert {"torch", "timm", "numpy"} <= first["versions"].keys()
    assert (first["device"], first["precision"]) == ("cpu", "float64")
    assert (first["request_ids"], first["n_copies_left"], first["kept_features"]) == ([], 0, False)
    # nothing is a function of the rows, which who has the state could compare with
    assert not any("adapter" in key or "digest" in key for key in first)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_chain_goes_on_after_a_load(blobs, exported, tmp_path):
    clf, path = exported
    clf.save(tmp_path / "state")
    again = FastNTKClassifier.load(tmp_path / "state").unlearn(blobs[0][10:12])
    again.export_receipts(path)
    receipts = verify_receipts(path, adapter=again)
    checksums = [receipt["checksum"] for receipt in receipts]
    assert [receipt["previous"] for receipt in receipts] == ["", *checksums[:-1]]


def _changed(line, **changes):
    return json.dumps(json.loads(line) | changes)


def _forged(line, **changes):
    return json.dumps(checked(json.loads(line) | changes))


@pytest.mark.parametrize(
    ("forge", "message"),
    [
        (lambda lines: [_changed(lines[0], n_rows=3), *lines[1:]], "Receipt 1"),
        (lambda lines: [_forged(lines[0], n_rows=3), *lines[1:]], "Receipt 2"),
        (lambda lines: [_forged(lines[0], n_rows="3"), *lines[1:]], "n_rows"),
        (lambda lines: [lines[0], lines[2]], "Receipt 2"),
        (lambda lines: lines[1:], "Receipt 1"),
        (lambda lines: [lines[0], *lines], "Receipt 2"),
        (lambda lines: [lines[0][:-5], *lines[1:]], "Receipt 1"),
        (lambda lines: ["{}", *lines], "Receipt 1"),
    ],
)
def test_forgeries_are_named(exported, forge, message):
    _, path = exported
    path.write_text("\n".join(forge(path.read_text().splitlines())) + "\n")
    with pytest.raises(ReceiptError, match=message):
        verify_receipts(path)


def test_a_verdict_that_its_numbers_contradict(exported):
    _, path = exported
    lines = path.read_text().splitlines()
    for changes in ({"drift": 1e-9}, {"residual": 1e-3}, {"anchor": "finetuned"}):
        path.write_text(_forged(lines[0], **changes) + "\n")
        with pytest.raises(ReceiptError, match="its own numbers"):
            verify_receipts(path)


def test_chains_end_where_the_published_adapter_says(exported, blobs, tmp_path):
    clf, path = exported
    clf.save_pretrained(tmp_path / "adapter")
    pulled = FastNTKClassifier.from_pretrained(tmp_path / "adapter")
    for adapter in (tmp_path / "adapter", str(tmp_path / "adapter"), pulled, clf):
        assert len(verify_receipts(path, adapter=adapter)) == 3
    whole = path.read_text()
    path.write_text("\n".join(whole.splitlines()[:2]) + "\n")
    assert len(verify_receipts(path)) == 2
    with pytest.raises(ReceiptError, match="were published"):
        verify_receipts(path, adapter=pulled)
    clf.unlearn(blobs[0][10:11]).export_receipts(path)
    with pytest.raises(ReceiptError, match="1 deletions that the adapter does not know"):
        verify_receipts(path, adapter=pulled)


def test_signatures(exported):
    clf, path = exported
    clf.export_receipts(path, signing_key=bytes(32))
    lines = path.read_text().splitlines()
    key = json.loads(lines[-1])["public_key"]
    assert len(verify_receipts(path, public_key=key)) == 3
    for public_key, forged, message in (
        ("0" * 64, lines, "not signed with"),
        (key, lines[:-1], "not signed with"),
        (None, [*lines[:2], lines[-1]], "other receipts"),
        (None, [*lines[:-1], _changed(lines[-1], time="2020-01-01T00:00:00+00:00")], "signature"),
        (None, [*lines[:-1], _changed(lines[-1], signature="x")], "signature"),
        (None, [*lines[:-1], _changed(lines[-1], heads=7)], "signature"),
    ):
        path.write_text("\n".join(forged) + "\n")
        with pytest.raises(ReceiptError, match=message):
            verify_receipts(path, public_key=public_key)
    with pytest.raises(ValueError, match="32 bytes"):
        clf.export_receipts(path, signing_key="secret")


def test_a_restored_state_is_told_what_it_lacks(blobs, tmp_path):
    X, state = blobs[0], tmp_path / "state"
    clf = make().fit(*blobs).unlearn(X[:1])
    clf.save(state)
    clf.unlearn(X[1:3], request_id="case 7").export_receipts(tmp_path / "receipts.jsonl")
    clf.save_pretrained(tmp_path / "adapter")
    for against, message in (
        (tmp_path / "receipts.jsonl", "2 rows at .* for case 7"),
        (str(tmp_path / "adapter"), "the last of its chain"),
        (clf, "redoes"),
    ):
        with pytest.raises(StaleStateError, match=message):
            FastNTKClassifier.load(state, against=against)
    clf.save(tmp_path / "new")
    assert FastNTKClassifier.load(tmp_path / "new", against=tmp_path / "receipts.jsonl").receipts_
    with pytest.raises(StateMismatchError, match="another fit"):
        FastNTKClassifier.load(state, against=make().fit(*blobs).unlearn(X[:5]))
    # done again, it is complete
    restored = FastNTKClassifier.load(state)
    restored.unlearn(X[1:3], redoes=tmp_path / "adapter").save(state)
    assert restored.receipts_[-1]["redoes"] == [clf.receipts_[-1]["checksum"]]
    assert FastNTKClassifier.load(state, against=clf).n_samples_forgotten_ == 3


def test_numbers_do_not_tell_which_row_it_was(blobs):
    """Energies with all their digits would confirm a row that somebody suspects was forgotten."""
    X, y = blobs
    fitted = make(trainable="ladder").fit(X, y)
    said = set()
    for row in range(12):
        clf = copy.deepcopy(fitted).unlearn(X[row : row + 1])
        told = clf.receipts_[0]
        said.add((told["rounding"], told["drift"], told["position_gap"], clf._private.state.removed))
    assert len(said) <= 3
    assert all(np.log2(one[0]) % 1 == 0 for one in said)


def test_copies_that_stay_are_told(blobs):
    X, y = blobs
    clf = make().fit(np.r_[X, X[:2]], np.r_[y, y[:2]])
    with pytest.warns(PrivacyWarning, match="ids: 2"):
        clf.unlearn(X[:3])
    assert clf.receipts_[0]["n_copies_left"] == 2
    report = clf.can_unlearn(np.r_[X[:1], X[5:6]], copies="all")
    assert [row["copies_left"] for row in report["rows"]] == [0, 0]
    twice = make().fit(np.r_[X, X[:1], X[:1]], np.r_[y, y[:1], y[:1]])
    with pytest.warns(PrivacyWarning, match=r"ids: 1\."):
        twice.unlearn(X[[0, 0]])


def test_copies_at_another_site_are_told(blobs):
    X, y = blobs
    with pytest.warns(PrivacyWarning, match="inverted"):
        both = make().fit(X[:40], y[:40]).merge(make().fit(X[39:], y[39:]))
    with pytest.warns(PrivacyWarning, match=r"ids: 1\."):
        both.unlearn(X[39:40])
    assert both.receipts_[-1]["n_copies_left"] == 1


def test_a_row_under_another_label_is_not_skipped(blobs):
    X, y = blobs
    clf = make().fit(X, y)
    with pytest.raises(UnknownSampleError, match="another label"):
        clf.unlearn(X[:2], [y[0], (y[1] + 1) % 3], on_unknown="skip")


def test_one_unknown_row_does_not_block_the_others(blobs):
    X, y = blobs
    clf = make().fit(X, y).unlearn(X[:1])
    asked = X[[0, 1, 2]]
    report = clf.can_unlearn(asked)
    assert [row["result"] for row in report["rows"]] == ["unknown", "found", "found"]
    assert (report["possible"], report["indices"]) == (False, [0])
    assert clf.can_unlearn(asked, on_unknown="skip")["n_rows"] == 2
    clf.unlearn(asked, on_unknown="skip", request_id=["a", "b"])
    assert clf.receipts_[-1]["request_ids"] == ["a", "b"]
    assert clf.n_samples_forgotten_ == 3
    with pytest.raises(UnknownSampleError):
        clf.unlearn(asked, on_unknown="skip")
    for wrong in ({"on_unknown": "ignore"}, {"request_id": 7}, {"request_id": [7]}):
        with pytest.raises((ValueError, TypeError)):
            clf.unlearn(X[4:5], **wrong)


def test_merged_sites_keep_their_chains(blobs, tmp_path):
    X, y = blobs
    sites = [make().fit(X[rows], y[rows]) for rows in (slice(0, 30), slice(30, 60))]
    sites[0].unlearn(X[:1])
    sites[1].unlearn(X[30:31])
    with pytest.warns(PrivacyWarning):
        merged = sites[0].merge(sites[1])
    merged.unlearn(X[1:2])
    merged.export_receipts(tmp_path / "receipts.jsonl")
    receipts = verify_receipts(tmp_path / "receipts.jsonl", adapter=merged)
    heads = published(merged, tmp_path / "adapter")["receipts"]
    assert {receipt["chain"] for receipt in receipts} == heads.keys()
    assert len(heads) == 2
    assert receipts[2]["previous"] == receipts[0]["checksum"]


def test_no_file_and_no_receipts(blobs, tmp_path):
    with pytest.raises(StateFormatError, match="missing"):
        verify_receipts(tmp_path / "receipts.jsonl")
    clf = make().fit(*blobs)
    clf.export_receipts(tmp_path / "receipts.jsonl")
    assert verify_receipts(tmp_path / "receipts.jsonl") == clf.receipts_ == []
