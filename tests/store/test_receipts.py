"""Receipts form a chain that notices what was changed, left out or moved."""

import json
import stat

import numpy as np
import pytest
from hostile import checked

from fastntk_sk import FastNTKClassifier, verify_receipts
from fastntk_sk.exceptions import PrivacyWarning, ReceiptError, StateFormatError


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
    # what is published joins up, and nothing tells what was published before
    assert receipts[2]["adapter"] == published(clf, tmp_path / "adapter")["tensors_checksum"]
    assert "adapter_before" not in first
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_chain_goes_on_after_a_load(blobs, exported, tmp_path):
    clf, path = exported
    clf.save(tmp_path / "state")
    again = FastNTKClassifier.load(tmp_path / "state").unlearn(blobs[0][10:12])
    again.export_receipts(path)
    receipts = verify_receipts(path, published(again, tmp_path / "adapter")["receipts"])
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


def test_a_cut_end_is_noticed_through_what_was_published(exported, tmp_path):
    clf, path = exported
    heads = published(clf, tmp_path / "adapter")["receipts"]
    assert len(verify_receipts(path, heads=heads)) == 3
    path.write_text("\n".join(path.read_text().splitlines()[:2]) + "\n")
    assert len(verify_receipts(path)) == 2
    with pytest.raises(ReceiptError, match="were published"):
        verify_receipts(path, heads=heads)


def test_merged_sites_keep_their_chains(blobs, tmp_path):
    X, y = blobs
    sites = [make().fit(X[rows], y[rows]) for rows in (slice(0, 30), slice(30, 60))]
    sites[0].unlearn(X[:1])
    sites[1].unlearn(X[30:31])
    with pytest.warns(PrivacyWarning):
        merged = sites[0].merge(sites[1])
    merged.unlearn(X[1:2])
    merged.export_receipts(tmp_path / "receipts.jsonl")
    heads = published(merged, tmp_path / "adapter")["receipts"]
    receipts = verify_receipts(tmp_path / "receipts.jsonl", heads=heads)
    assert len({receipt["chain"] for receipt in receipts}) == len(heads) == 2
    assert receipts[2]["previous"] == receipts[0]["checksum"]


def test_no_file_and_no_receipts(blobs, tmp_path):
    with pytest.raises(StateFormatError, match="missing"):
        verify_receipts(tmp_path / "receipts.jsonl")
    clf = make().fit(*blobs)
    clf.export_receipts(tmp_path / "receipts.jsonl")
    assert verify_receipts(tmp_path / "receipts.jsonl") == clf.receipts_ == []
