"""Requests to be forgotten: a table beside the state, run as one deletion."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastntk_sk import FastNTKClassifier, Requests
from fastntk_sk.exceptions import DecryptionError, RequestError, StateFormatError
from fastntk_sk.store.database import Database


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, digits):
    """Files, labels and ids: two pictures a person, the first of them twice."""
    folder = tmp_path_factory.mktemp("pictures")
    X, y = digits[0][:24], digits[1][:24] % 3
    paths = [folder / f"{i}.png" for i in range(24)]
    for path, image in zip(paths, X, strict=True):
        Image.fromarray(image).save(path)
    names = [f"person {i // 2}" if i < 20 else i for i in range(24)]
    return [*map(str, paths), str(paths[0])], [*y, y[0]], [*names, "somebody else"]


def fit(pictures, path, **changes):
    clf = FastNTKClassifier(
        **{"backbone": "test_resnet", "pretrained": False, "image_size": 32, "n_components": 8}
        | {"random_state": 0, "keep": "features"}
        | changes
    )
    clf.fit(pictures[0], pictures[1], sample_ids=pictures[2]).save(path)
    return clf


def test_one_deletion_for_all_that_are_open(pictures, tmp_path):
    paths, path = pictures[0], tmp_path / "clinic.fastntk"
    fit(pictures, path)
    requests = Requests(path)
    anna = requests.add("Anna B.", sample_ids=["person 3"], note="by letter", received="2026-11-01")
    ben = requests.add("Ben", files=[paths[0], paths[9], "gone.png"], request_id="case 2")
    eve = requests.add("Eve", sample_ids=["nobody", "21"], days=-1)
    fay = requests.add("Fay", sample_ids=["person 8"], files=[paths[16]], request_id="case 4")
    assert requests.all()[0].request_id == eve
    assert [request.due for request in requests.all() if request.request_id == anna] == ["2026-12-01"]
    assert [request.is_overdue for request in requests.all() if request.request_id == eve] == [True]
    shown = {(row["request_id"], row["item"]): row for row in requests.show()}
    assert shown[anna, "person 3"] == {
        "request_id": anna, "item": "person 3", "result": "found", "n_rows": 2, "copies_left": 0,
        "seconds": 0.0,
    }  # fmt: skip
    assert shown[ben, paths[0]]["n_rows"] == 2  # with the copy under another name
    assert shown[eve, "nobody"]["result"] == "unknown"
    assert shown[eve, "21"]["result"] == "found"  # which was learned as an integer
    assert {request.state for request in requests.all()} == {"found"}
    before = path.read_bytes()
    assert b"Anna B." in before
    rows = {(row["request_id"], row["item"]): row["result"] for row in requests.run()}
    assert rows[anna, "person 3"] == rows[eve, "21"] == rows[ben, paths[9]] == "forgotten"
    left = {request.request_id: request for request in requests.all()}
    assert {name: request.state for name, request in left.items()} == {
        anna: "done", ben: "found", eve: "done", "case 4": "done"
    }  # fmt: skip
    done = left[anna]
    assert (done.subject, done.note, done.names, done.files) == ("", "", (), ())
    assert (done.received, done.due) == ("2026-11-01", "2026-12-01")
    clf = FastNTKClassifier.load(path)
    (receipt,) = clf.receipts_
    assert receipt["checksum"] == done.receipt
    assert sorted(receipt["request_ids"]) == sorted([anna, ben, eve, fay])
    assert (left[eve].n_rows, left[eve].n_unknown) == (1, 1)
    assert left[ben].files == (str(Path("gone.png").absolute()),)  # what was forgotten is erased
    assert receipt["n_rows"] == 2 + 3 + 1 + 2  # of Fay's, one picture is named twice
    keep = [i for i in range(24) if i not in (0, 6, 7, 9, 16, 17, 21)]
    refit = FastNTKClassifier(
        "test_resnet", pretrained=False, image_size=32, n_components=8, random_state=0
    ).fit([paths[i] for i in keep], [pictures[1][i] for i in keep])
    np.testing.assert_allclose(
        clf.decision_function(paths), refit.decision_function(paths), rtol=1e-4, atol=1e-5
    )
    after = path.read_bytes()
    for erased in (b"Anna B.", b"by letter", b"person 3"):
        assert erased not in after
    assert requests.run() == requests.show()  # Ben's third picture is still missing
    requests.close(ben)
    assert requests.run() == []
    for reader, words in (("person", "2 learned rows"), ("auditor", receipt["checksum"])):
        assert words in requests.letter("case 4", reader)
        assert "Fay" not in requests.letter("case 4", reader)
    assert "Of what you named, 1 item was not held" in requests.letter(eve)
    assert "refused" in requests.letter(ben)
    # who asks for what others have had forgotten
    requests.add(sample_ids=["person 3"], request_id="case 5")
    assert [row["result"] for row in requests.run()] == ["unknown"]
    requests.close("case 5", "nothing held")
    assert "Nothing that you named" in requests.letter("case 5")
    assert receipt["checksum"] not in requests.letter("case 5", "auditor")


def test_names_alone_or_pictures_alone(pictures, tmp_path):
    paths, path = pictures[0], tmp_path / "clinic.fastntk"
    fit(pictures, path)
    requests = Requests(path)
    (row,) = [requests.add(sample_ids=["person 3"]) and requests.run()][0]
    assert (row["result"], row["n_rows"]) == ("forgotten", 2)
    requests.add(files=paths[2:3])
    assert [row["result"] for row in requests.run()] == ["forgotten"]
    assert FastNTKClassifier.load(path).n_samples_learned_ == 22


def test_without_kept_features_pictures_are_needed(pictures, tmp_path):
    paths, path = pictures[0], tmp_path / "clinic.fastntk"
    fit(pictures, path, keep=None)
    requests = Requests(path)
    requests.add(sample_ids=["person 3"], files=[paths[8]], request_id="case 1")
    assert [row["result"] for row in requests.run()] == ["forgotten", "no picture"]
    assert FastNTKClassifier.load(path).receipts_[0]["request_ids"] == ["case 1"]
    (request,) = requests.all()
    assert (request.state, request.names, request.files) == ("open", ("person 3",), ())


def test_a_file_that_cannot_be_read_stops_nobody(pictures, tmp_path):
    path = tmp_path / "clinic.fastntk"
    fit(pictures, path)
    (tmp_path / "broken.png").write_bytes(b"PNG")
    requests = Requests(path)
    requests.add(files=[tmp_path / "broken.png"], sample_ids=["rene\u0301"], request_id="case 1")
    requests.add(sample_ids=["person 3"])
    results = {row["item"]: row["result"] for row in requests.run()}
    assert results[str(tmp_path / "broken.png")] == "no picture"
    assert results["person 3"] == "forgotten"
    assert "ren\xe9" in results  # in Unicode's form C, as ids are learned


def test_a_request_that_runs_while_others_look(pictures, tmp_path, monkeypatch):
    """What is shown changes no request that another has closed meanwhile."""
    path = tmp_path / "clinic.fastntk"
    fit(pictures, path)
    requests, load = Requests(path), FastNTKClassifier.load
    requests.add("Anna", sample_ids=["person 3"])

    def slow(*args, **kwargs):
        monkeypatch.setattr(FastNTKClassifier, "load", load)
        found = load(*args, **kwargs)
        requests.run()
        return found

    monkeypatch.setattr(FastNTKClassifier, "load", slow)
    requests.show()
    (request,) = requests.all()
    assert (request.state, request.subject) == ("done", "")


def test_a_deletion_that_fails_leaves_the_requests(pictures, tmp_path, monkeypatch):
    path = tmp_path / "clinic.fastntk"
    fit(pictures, path)
    requests, append = Requests(path), Database.append
    requests.add("Anna", sample_ids=["person 3"])
    before = requests.all()

    def fails(self, table, rows):
        if table == "requests":
            raise MemoryError
        append(self, table, rows)

    monkeypatch.setattr(Database, "append", fails)
    with pytest.raises(MemoryError):
        requests.run()
    assert requests.all() == before
    assert FastNTKClassifier.load(path).receipts_ == []


def test_an_id_that_may_mean_two(pictures, tmp_path):
    path = tmp_path / "clinic.fastntk"
    paths, labels, names = pictures
    fit((paths, labels, [7, "7", *names[2:]]), path)
    requests = Requests(path, key=None)
    requests.add(sample_ids=["7"])
    assert [row["result"] for row in requests.show()] == ["ambiguous"]
    assert [row["result"] for row in requests.run()] == ["ambiguous"]
    assert FastNTKClassifier.load(path).receipts_ == []


def test_a_csv_of_requests(pictures, tmp_path):
    path = tmp_path / "clinic.fastntk"
    fit(pictures, path).save(tmp_path / "encrypted", key="secret")
    (tmp_path / "requests.csv").write_text(
        "subject,id,path,request_id\nAnna,person 3,,\nAnna,person 4,,\n,,gone.png,case 9\n"
    )
    for requests in (Requests(path), Requests(tmp_path / "encrypted", key="secret")):
        first, second = requests.add_csv(tmp_path / "requests.csv")
        found = {request.request_id: request for request in requests.all()}
        assert found[first].names == ("person 3", "person 4")
        assert (second, found[second].files) == ("case 9", (str(tmp_path / "gone.png"),))
        assert sum(row["n_rows"] for row in requests.run(first, first)) == 4
        assert len(requests.all()) == 2
    with pytest.raises(DecryptionError):
        Requests(tmp_path / "encrypted").all()


def test_what_is_wrong_is_said(pictures, tmp_path):
    path = tmp_path / "clinic.fastntk"
    fit(pictures, path)
    requests = Requests(path)
    requests.add(sample_ids=["person 3"], request_id="case 1")
    (tmp_path / "bad.csv").write_text("name,city\na,b\n")
    (tmp_path / "two_subjects.csv").write_text("id,subject,request_id\nx,Anna,R1\ny,Ben,R1\n")
    for call in (
        lambda: requests.add("Anna"),
        lambda: requests.add(sample_ids=["x"], request_id=""),
        lambda: requests.add_csv(tmp_path / "two_subjects.csv"),
        lambda: requests.add(sample_ids=["x"], request_id="case 1"),
        lambda: requests.add(sample_ids=["x"], received="yesterday"),
        lambda: requests.add_csv(tmp_path / "bad.csv"),
        lambda: requests.run("case 7"),
        lambda: requests.close("case 7"),
        lambda: requests.add(sample_ids="person 3"),
        lambda: requests.add(sample_ids=[None]),
        lambda: requests.add(sample_ids=[1.5]),
        lambda: requests.add("\udcff", sample_ids=["x"]),
        lambda: requests.letter("case 1"),
        lambda: requests.close("case 1", reason="\udcff"),
    ):
        with pytest.raises(RequestError, match=r"Expected|There|kept"):
            call()
    with pytest.raises(StateFormatError, match="no file"):
        Requests(tmp_path / "typo.fastntk").add("Anna", sample_ids=["x"])
    assert not (tmp_path / "typo.fastntk").exists()
    (tmp_path / "half.csv").write_text("id,received,request_id\nx,,R1\ny,yesterday,R2\n")
    with pytest.raises(RequestError):
        requests.add_csv(tmp_path / "half.csv")
    assert [request.request_id for request in requests.all()] == ["case 1"]
    requests.run()
    with pytest.raises(ValueError, match="state"):
        requests.close("case 1", "lost")
    with pytest.raises(ValueError, match="reader"):
        requests.letter("case 1", "lawyer")
