"""The command line, on folders of digits."""

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from fastntk_sk import FastNTKClassifier, load_recipe
from fastntk_sk.cli import main, read_pictures

FIT = ["--backbone", "test_resnet", "--random-weights", "--image-size", "32", "--n-components", "8"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, digits):
    """Training and test pictures as files, a CSV of the first, and a fitted state."""
    root = tmp_path_factory.mktemp("pictures")
    X, y = digits
    rows = np.flatnonzero(y < 3)[:36]
    for part, chosen in (("train", rows[:24]), ("test", rows[24:])):
        for i in chosen:
            path = root / part / f"digit-{y[i]}" / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(X[i]).save(path)
    files = sorted((root / "train").rglob("*.png"))
    lines = [
        f"{path.relative_to(root)},{path.parent.name},person {i % 5}" for i, path in enumerate(files)
    ]
    (root / "train.csv").write_text("\n".join(["path,label,id", *lines]))
    assert main(["fit", str(root / "train"), "--out", str(root / "state"), "--quiet", *FIT]) == 0
    return root


@pytest.fixture
def state(folders, tmp_path):
    return shutil.copytree(folders / "state", tmp_path / "state")


def answer(capsys, *arguments):
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main([*map(str, arguments), "--json", "--quiet"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == f"fastntk: {found['message']}\n"
    return found


def test_a_deletion_request(folders, state, tmp_path, capsys):
    paths = sorted((folders / "train").rglob("*.png"))
    (tmp_path / "request.txt").write_text(f"{paths[0]}\n\n{paths[5]}\n")
    request = ("unlearn", state, "--forget", tmp_path / "request.txt")
    assert answer(capsys, *request, "--dry-run")["n_rows"] == 2
    assert FastNTKClassifier.load(state).n_samples_learned_ == 24
    found = answer(capsys, *request)
    assert found["n_learned"] == 22
    assert found["receipt"]["exactness"] == {"exact": True, "reasons": []}
    again = refused(capsys, *request)
    assert again["error"] == "UnknownSampleError"
    assert main([*map(str, request), "--dry-run"]) == 1
    assert "cannot: " in capsys.readouterr().out
    assert FastNTKClassifier.load(state).verbose == 0
    # what is left is what a fit without the two pictures gives
    kept = [path for path in paths if path not in (paths[0], paths[5])]
    refit = FastNTKClassifier(
        "test_resnet", pretrained=False, image_size=32, n_components=8, random_state=0
    ).fit(list(map(str, kept)), [path.parent.name for path in kept])
    test = read_pictures(folders / "test").paths
    np.testing.assert_allclose(
        FastNTKClassifier.load(state).decision_function(test), refit.decision_function(test), atol=1e-5
    )


def test_predict_and_report(folders, state, tmp_path, capsys):
    test = folders / "test"
    found = answer(capsys, "predict", state, test)["predictions"]
    assert [row["path"] for row in found] == read_pictures(test).paths
    clf = FastNTKClassifier.load(state)
    assert [row["class"] for row in found] == clf.predict(read_pictures(test).paths).tolist()
    first = sorted((folders / "train").rglob("*.png"))[0]
    answer(capsys, "unlearn", state, "--forget", first)
    page = tmp_path / "pages" / "report.html"
    found = answer(
        capsys, "report", state, "--data", test, "--before", folders / "state", "--html", page
    )
    assert found["n_learned"] == 23
    assert 0 <= found["accuracy"] <= 1
    text = page.read_text()
    assert text.count("<img") == 2
    assert "http" not in text
    assert "<script" not in text
    assert page.stat().st_mode & 0o077 == 0
    main(["report", str(state)])
    assert capsys.readouterr().out.startswith("23 rows learned, 1 forgotten.\n")
    inside = refused(capsys, "report", state, "--html", state / "report.html")
    assert "outside of a model's folder" in inside["message"]
    clf.save_pretrained(tmp_path / "adapter")


def test_csv_with_ids_and_a_key(folders, tmp_path, capsys):
    from cryptography.fernet import Fernet

    key = tmp_path / "key"
    key.write_bytes(Fernet.generate_key() + b"\n")
    out = tmp_path / "state"
    found = answer(capsys, "fit", folders / "train.csv", "--out", out, "--key-file", key, *FIT)
    assert found["classes"] == ["digit-0", "digit-1", "digit-2"]
    assert all(file.suffix in (".fernet", ".json") for file in out.iterdir())
    lines = (folders / "train.csv").read_text().splitlines()
    of_one = [line for line in lines if line.endswith("person 2")]
    request = folders / "request.csv"
    request.write_text("\n".join([lines[0], *of_one]))
    found = answer(capsys, "unlearn", out, "--forget", request, "--key-file", key)
    assert found["receipt"]["n_rows"] == len(of_one)
    assert refused(capsys, "predict", out, folders / "test")["error"] == "DecryptionError"


def test_a_request_of_several_sources(folders, tmp_path, capsys):
    """An id holds for the file that names it, whatever else the request lists."""
    out = tmp_path / "state"
    answer(capsys, "fit", folders / "train.csv", "--out", out, *FIT)
    paths = sorted((folders / "train").rglob("*.png"))
    (tmp_path / "wrong.csv").write_text(f"path,id\n{paths[0]},somebody else\n")
    found = refused(capsys, "unlearn", out, "--forget", tmp_path / "wrong.csv", paths[1])
    assert found["error"] == "UnknownSampleError"
    (tmp_path / "right.csv").write_text(f"path,id\n{paths[0]},person 0\n", encoding="utf-8-sig")
    found = answer(capsys, "unlearn", out, "--forget", tmp_path / "right.csv", paths[1])
    assert found["n_learned"] == 22
    # a folder of a request is not a class
    (tmp_path / "request" / "2026-11").mkdir(parents=True)
    shutil.copy(paths[2], tmp_path / "request" / "2026-11" / "a.png")
    assert answer(capsys, "unlearn", out, "--forget", tmp_path / "request")["n_learned"] == 21


def test_copies_are_told(folders, tmp_path, capsys):
    pictures = shutil.copytree(folders / "train", tmp_path / "pictures")
    first = sorted(pictures.rglob("*.png"))[0]
    shutil.copy(first, first.with_name("copy.png"))
    answer(capsys, "fit", pictures, "--out", tmp_path / "state", *FIT)
    assert answer(capsys, "unlearn", tmp_path / "state", "--forget", first)["copies_left"] == [
        str(first)
    ]
    assert main(["unlearn", str(tmp_path / "state"), "--forget", str(first), "--quiet"]) == 0
    assert "--all-copies" not in capsys.readouterr().out


def test_classes_that_are_numbers(folders, tmp_path, capsys, digits):
    paths = sorted((folders / "train").rglob("*.png"))
    clf = FastNTKClassifier(
        "test_resnet", pretrained=False, image_size=32, n_components=8, random_state=0
    ).fit([str(path) for path in paths], [int(path.parent.name[-1]) for path in paths])
    clf.save(tmp_path / "state")
    lines = [f"{path},{path.parent.name[-1]}" for path in paths]
    (tmp_path / "test.csv").write_text("\n".join(["path,label", *lines]))
    found = answer(capsys, "report", tmp_path / "state", "--data", tmp_path / "test.csv")
    assert found["accuracy"] > 0.5
    (tmp_path / "request.csv").write_text("\n".join(["path,label", lines[0]]))
    assert answer(capsys, "unlearn", tmp_path / "state", "--forget", tmp_path / "request.csv")


def test_folders_are_read_as_image_folders(tmp_path):
    for name in ("b/1.png", "a/2.JPG", ".hidden/3.png", "a/.4.png", "a/notes.txt", "elsewhere/5.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    root = tmp_path / "root"
    root.mkdir()
    for name in ("a", "b", ".hidden"):
        (tmp_path / name).rename(root / name)
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "a" / "loop").symlink_to(root)
    found = read_pictures(root)
    assert found.labels == ["a", "b", "linked"]


def test_a_ladder(folders, tmp_path, capsys):
    params = ["--trainable", "ladder,bias", "--alpha", "auto", *FIT]
    assert answer(capsys, "fit", folders / "train", "--out", tmp_path, *params)["n_learned"] == 24
    clf = FastNTKClassifier.load(tmp_path)
    assert (clf.trainable, clf.alpha) == (("ladder", "bias"), "auto")
    answer(
        capsys, "fit", folders / "train", "--out", tmp_path, "--overwrite", "--trainable", "ladder", *FIT
    )
    path = min((folders / "train").rglob("*.png"))
    assert answer(capsys, "unlearn", tmp_path, "--forget", path)["n_learned"] == 23
    assert len(answer(capsys, "predict", tmp_path, folders / "test")["predictions"]) == 12
    report = answer(capsys, "report", tmp_path, "--data", folders / "test", "--html", folders / "r.html")
    assert report["accuracy"] > 0.3
    assert "8 features of 8 rungs" in (folders / "r.html").read_text()
    with pytest.raises(SystemExit):
        main(["fit", str(folders), "--out", str(tmp_path), "--alpha", "much"])


@pytest.mark.skip(reason="a folder has no lock: its owner runs one process at a time")
def test_two_deletions_at_once(folders, state):
    """Neither is lost, whoever comes first."""
    paths = sorted((folders / "train").rglob("*.png"))[:2]
    command = [sys.executable, "-W", "ignore", "-m", "fastntk_sk", "unlearn", str(state), "--forget"]
    running = [subprocess.Popen([*command, str(path)], stdout=subprocess.DEVNULL) for path in paths]
    assert [process.wait() for process in running] == [0, 0]
    assert FastNTKClassifier.load(state).n_samples_learned_ == 22


def test_zoo(capsys):
    assert len(answer(capsys, "zoo", "vit*")["recipes"]) >= 6
    assert main(["zoo"]) == 0
    table = capsys.readouterr().out
    assert "convnext_base" in table
    for line in table.splitlines()[1:]:
        name = line.split()[0]
        assert ("not measured" in line) == (not load_recipe(name).results), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere", "x.png"], "nowhere"),
        (["fit", "empty", "--out", "state"], "Expected pictures in empty, got none"),
        (["fit", "flat", "--out", "state"], "Expected a class for each picture of flat"),
        (["fit", "bad.csv", "--out", "state"], "Expected columns path, label"),
        (["fit", "short.csv", "--out", "state"], "Expected 2 cells, path and label filled, in line 3"),
        (["fit", "long.csv", "--out", "state"], "Quote cells that hold commas"),
        (["fit", "latin.txt", "--out", "state"], "list in UTF-8"),
        (["fit", "STATE", "--out", "STATE"], "which holds a state"),
        (["fit", "flat", "--out", "flat"], "it holds something else"),
        (["fit", "flat", "--out", "state", "--key-file", "bad.csv"], "url-safe base64"),
        (["unlearn", "STATE", "--forget", "gone.png"], "files that are still there"),
        (["unlearn", "nowhere", "--forget", "flat"], "nowhere"),
    ],
)
def test_what_is_wrong_is_said(folders, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat" / "a.png")
    (tmp_path / "bad.csv").write_text("file,class\na.png,b\n")
    (tmp_path / "short.csv").write_text("path,label\na.png,b\nc.png\n")
    (tmp_path / "long.csv").write_text("path,label\na,b.png,1\n")
    (tmp_path / "latin.txt").write_bytes("Zoë.txt".encode("latin-1"))
    arguments = [str(folders / "state") if a == "STATE" else a for a in arguments]
    assert message in refused(capsys, *arguments)["message"]
    assert not (tmp_path / "state").exists()


def test_usage_errors_exit_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["unlearn"])
    assert ended.value.code == 2


def test_as_a_process(folders, state, tmp_path):
    """Progress goes to the standard error, results to the standard output."""
    first = sorted((folders / "train").rglob("*.png"))[0]
    command = [sys.executable, "-W", "ignore", "-m", "fastntk_sk", "unlearn", str(state)]
    done = subprocess.run(
        [*command, "--forget", str(first)], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Forgot 1 rows in ")
    assert "forgetting" in done.stderr


def test_push(state, monkeypatch, capsys):
    pushed = {}

    def push_to_hub(self, repo_id, **arguments):
        pushed.update(arguments, repo_id=repo_id, rows=self.n_samples_learned_)
        return f"https://hub/{repo_id}"

    monkeypatch.setattr(FastNTKClassifier, "push_to_hub", push_to_hub)
    assert answer(capsys, "push", state, "me/adapter", "--purge-history")["url"].endswith("me/adapter")
    assert pushed["rows"] == 24
    assert pushed["purge_history"] is True
    assert pushed["private"] is None
