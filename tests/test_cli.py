"""The command line, on folders of digits."""

import inspect
import json
import re
import shlex
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import click
import numpy as np
import pytest
import torch
from click.shell_completion import ShellComplete
from PIL import Image

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.folders import read_pictures
from fastntk_sk.cli import fastntk, main
from fastntk_sk.cli.command import Command

ROOT = Path(__file__).parents[1]
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
    return shutil.copy(folders / "state", tmp_path / "state")


def answer(capsys, *arguments):
    assert main([*map(str, arguments), "--json", "--quiet"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys, *arguments):
    assert main([*map(str, arguments), "--json", "--quiet"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == f"fastntk: {found['message']}\n"
    return found


def test_a_page_replaces_nothing_but_pages(folders, state, tmp_path, capsys):
    before = state.read_bytes()
    found = refused(capsys, "report", state, "--html", state)
    assert "Choose another file" in found["message"]
    assert state.read_bytes() == before
    page = tmp_path / "report.html"
    for _ in range(2):
        assert answer(capsys, "report", state, "--html", page)["html"] == str(page)
    assert "--html" in refused(capsys, "report", state, "--before", folders / "state")["message"]


def test_a_name_that_reads_like_a_message(folders, state, tmp_path, capsys):
    for name in ("Rows [99].png", "ids at [7].png"):
        file = tmp_path / name
        file.write_text("no picture")
        assert name in refused(capsys, "unlearn", state, file)["message"]


def test_a_raw_key_is_a_key_here_too(folders, tmp_path, capsys):
    key = bytes(range(224, 256))
    (tmp_path / "raw.key").write_bytes(key)
    (tmp_path / "short.key").write_bytes(key[:31])
    FastNTKClassifier.load(folders / "state").save(tmp_path / "encrypted", key=key)
    found = answer(capsys, "report", tmp_path / "encrypted", "--key-file", tmp_path / "raw.key")
    assert found["n_learned"] == 24
    short = refused(capsys, "report", tmp_path / "encrypted", "--key-file", tmp_path / "short.key")
    assert "31 other bytes" in short["message"]


def test_a_file_of_requests_says_all_of_them(state, tmp_path, capsys):
    (tmp_path / "requests.csv").write_text("id\nperson 3\n")
    add = "requests", "add", state, "--csv", tmp_path / "requests.csv"
    for others in (["--subject", "Me"], ["--days", 30], ["--id", "person 4"], ["some.png"]):
        assert "--csv alone" in refused(capsys, *add, *others)["message"]
    assert len(answer(capsys, *add)["request_ids"]) == 1


def test_a_deletion_request(folders, state, tmp_path, capsys):
    paths = sorted((folders / "train").rglob("*.png"))
    (tmp_path / "request.txt").write_text(f"{paths[0]}\n\n{paths[5]}\n")
    request = ("unlearn", state, tmp_path / "request.txt")
    assert answer(capsys, *request, "--dry-run")["n_rows"] == 2
    assert FastNTKClassifier.load(state).n_samples_learned_ == 24
    found = answer(capsys, *request)
    assert found["n_learned"] == 22
    assert found["receipt"]["exactness"] == {"exact": True, "reasons": []}
    again = refused(capsys, *request)
    assert again["error"] == "UnknownSampleError"
    assert f"Files [{paths[0]}, {paths[5]}]" in again["message"]
    assert main([*map(str, request), "--dry-run", "--json"]) == 1
    refusal = json.loads(capsys.readouterr().out)
    assert refusal["files"] == [str(paths[0]), str(paths[5])]
    assert str(paths[0]) in refusal["reason"]
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
    answer(capsys, "unlearn", state, first)
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


@pytest.mark.filterwarnings("always::fastntk_sk.exceptions.NumericalDriftWarning")
def test_drift_and_a_rebuild(folders, state, capsys):
    """The warning advises a command, which takes exactly the rows that are left."""
    path = min((folders / "train").rglob("*.png"))
    with torch.backends.mkldnn.flags(enabled=False, allow_tf32=None):
        assert main(["unlearn", str(state), str(path), "--quiet"]) == 0
    warned = capsys.readouterr().err
    assert "`fastntk rebuild` restores exactness" in warned
    assert "rebuild(" not in warned
    assert str(path) in refused(capsys, "rebuild", state, folders / "train")["message"]
    left = state.parent / "left.txt"
    left.write_text("\n".join(str(p) for p in (folders / "train").rglob("*.png") if p != path))
    assert answer(capsys, "rebuild", state, left)["n_learned"] == 23
    assert FastNTKClassifier.load(state).n_samples_forgotten_ == 1


def test_csv_with_ids_and_a_key(folders, tmp_path, capsys):
    key = tmp_path / "key"
    key.write_text("it's a secret\n")
    out = tmp_path / "state"
    found = answer(capsys, "fit", folders / "train.csv", "--out", out, "--key-file", key, *FIT)
    assert found["classes"] == ["digit-0", "digit-1", "digit-2"]
    assert not out.read_bytes().startswith(b"SQLite")
    lines = (folders / "train.csv").read_text().splitlines()
    of_one = [line for line in lines if line.endswith("person 2")]
    request = folders / "request.csv"
    request.write_text("\n".join([lines[0], *of_one]))
    found = answer(capsys, "unlearn", out, request, "--key-file", key)
    assert found["receipt"]["n_rows"] == len(of_one)
    assert refused(capsys, "predict", out, folders / "test")["error"] == "DecryptionError"


def test_a_request_of_several_sources(folders, tmp_path, capsys):
    """An id holds for the file that names it, whatever else the request lists."""
    out = tmp_path / "state"
    answer(capsys, "fit", folders / "train.csv", "--out", out, *FIT)
    paths = sorted((folders / "train").rglob("*.png"))
    (tmp_path / "wrong.csv").write_text(f"path,id\n{paths[0]},somebody else\n")
    found = refused(capsys, "unlearn", out, tmp_path / "wrong.csv", paths[1])
    assert found["error"] == "UnknownSampleError"
    (tmp_path / "right.csv").write_text(f"path,id\n{paths[0]},person 0\n", encoding="utf-8-sig")
    found = answer(capsys, "unlearn", out, tmp_path / "right.csv", paths[1])
    assert found["n_learned"] == 22
    # a folder of a request is not a class
    (tmp_path / "request" / "2026-11").mkdir(parents=True)
    shutil.copy(paths[2], tmp_path / "request" / "2026-11" / "a.png")
    assert answer(capsys, "unlearn", out, tmp_path / "request")["n_learned"] == 21


@pytest.mark.filterwarnings("always::fastntk_sk.exceptions.PrivacyWarning")
def test_copies_and_classes_that_are_numbers(folders, tmp_path, capsys):
    paths = sorted((folders / "train").rglob("*.png"))
    learned = [*paths, paths[0]]
    clf = FastNTKClassifier(
        "test_resnet", pretrained=False, image_size=32, n_components=8, random_state=0
    ).fit([str(path) for path in learned], [int(path.parent.name[-1]) for path in learned])
    clf.save(tmp_path / "state")
    lines = [f"{path},{path.parent.name[-1]}" for path in paths]
    (tmp_path / "test.csv").write_text("\n".join(["path,label", *lines]))
    found = answer(capsys, "report", tmp_path / "state", "--data", tmp_path / "test.csv")
    assert found["accuracy"] > 0.5
    (tmp_path / "request.csv").write_text("\n".join(["path,label", lines[0]]))
    request = ("unlearn", tmp_path / "state", tmp_path / "request.csv")
    assert answer(capsys, *request)["copies_left"] == [str(paths[0])]
    assert main([*map(str, request), "--quiet"]) == 0
    assert "--all-copies" not in capsys.readouterr().out


def test_forget_by_name(folders, tmp_path, capsys):
    out, key, new = tmp_path / "state", tmp_path / "key", tmp_path / "new"
    key.write_text("old\n")
    new.write_text("new\n")
    given = ("--keep", "features", "--augment", "flip", "--key-file", key)
    answer(capsys, "fit", folders / "train.csv", "--out", out, *given, *FIT)
    rekeyed = ("rekey", out, "--key-file", key, "--new-key-file", new)
    assert answer(capsys, *rekeyed) == {"state": str(out)}
    state = (out, "--key-file", new)
    paths = sorted((folders / "train").rglob("*.png"))
    found = answer(capsys, "find", *state, paths[3])["found"]
    assert (found[0]["sample_id"], found[0]["same"]) == ("person 3", True)
    request = ("unlearn", *state, "--id", "person 2", "--id", "nobody", "--request-id", "case 1")
    assert refused(capsys, *request)["error"] == "UnknownSampleError"
    found = answer(capsys, *request, "--skip-unknown")
    assert (found["receipt"]["n_rows"], found["receipt"]["request_ids"]) == (5, ["case 1"])
    dry = answer(capsys, "unlearn", *state, "--id", "person 3", "--dry-run")
    assert dry["rows"] == [{"item": "person 3", "result": "found", "n_rows": 5, "copies_left": 0}]
    assert answer(capsys, "rebuild", *state)["n_learned"] == 19
    assert FastNTKClassifier.load(out, key="new").augment == "flip"
    for wrong in ((paths[0], "--id", "a"), ()):
        assert "either" in refused(capsys, "unlearn", *state, *wrong)["message"]


def test_requests(folders, tmp_path, capsys):
    out = tmp_path / "state"
    answer(capsys, "fit", folders / "train.csv", "--out", out, "--keep", "features", *FIT)
    path = min((folders / "train").rglob("*.png"))
    added = ("requests", "add", out, "--subject", "Anna", "--received", "2020-01-01")
    (case,) = answer(capsys, *added, "--id", "person 2", path)["request_ids"]
    answer(capsys, *added, "--id", "nobody", "--request-id", "case 2")
    (listed, _) = answer(capsys, "requests", "list", out)["requests"]
    assert (listed["subject"], listed["overdue"]) == ("Anna", True)
    main(["requests", "list", str(out)])
    assert "OVERDUE" in capsys.readouterr().out
    rows = answer(capsys, "requests", "show", out)["rows"]
    assert [row["result"] for row in rows] == ["found", "found", "unknown"]
    main(["requests", "run", str(out), case])
    assert "person 2\tforgotten\t5 rows" in capsys.readouterr().out
    assert FastNTKClassifier.load(out).n_samples_learned_ == 18
    assert case in answer(capsys, "requests", "letter", out, case, "--reader", "auditor")["text"]
    answer(capsys, "requests", "close", out, "case 2", "--as", "nothing held")
    assert "Nothing" in answer(capsys, "requests", "letter", out, "case 2")["text"]
    assert refused(capsys, "requests", "letter", out, "case 3")["error"] == "RequestError"
    answer(capsys, *added, "--id", "person 1", "--request-id", "case 3")
    answer(capsys, "requests", "close", out, "case 3", "--reason", "A contract holds.")
    for reader in ("person", "auditor"):
        letter = answer(capsys, "requests", "letter", out, "case 3", "--reader", reader)["text"]
        assert "A contract holds." in letter


def test_a_number_that_is_two_ids(folders, tmp_path, capsys):
    paths = sorted(map(str, (folders / "train").rglob("*.png")))
    clf = FastNTKClassifier(
        "test_resnet", pretrained=False, image_size=32, n_components=8, keep="features"
    ).fit(paths, [path[-8] for path in paths], sample_ids=[7, "7", 8, *map(str, range(21))])
    clf.save(tmp_path / "state")
    found = refused(capsys, "unlearn", tmp_path / "state", "--id", "7")
    assert found["error"] == "AmbiguousSampleError"
    (tmp_path / "request.csv").write_text(f"path,id\n{paths[2]},8\n")
    found = refused(capsys, "unlearn", tmp_path / "state", tmp_path / "request.csv")
    assert found["error"] == "AmbiguousSampleError"
    assert answer(capsys, "unlearn", tmp_path / "state", "--id", "9")["n_learned"] == 23


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
    with pytest.warns(UserWarning, match=r"endings: 1 \.txt\."):
        found = read_pictures(root)
    assert found.labels == ["a", "b", "linked"]


def test_parameters_are_those_of_python(folders, state, tmp_path, capsys):
    params = ["--trainable", "ladder,bias", "--alpha", "auto", *FIT]
    fit = ("fit", folders / "train", "--out", state)
    assert answer(capsys, *fit, "--overwrite", *params)["n_learned"] == 24
    given = {"trainable": ("ladder", "bias"), "alpha": "auto", "pretrained": False, "image_size": 32}
    given |= {"n_components": 8, "random_state": 0}
    loaded = FastNTKClassifier.load(state).get_params()
    assert loaded == FastNTKClassifier("test_resnet", **given).get_params()
    main(["report", str(state), "--html", str(tmp_path / "r.html")])
    assert "8 features of 8 rungs" in (tmp_path / "r.html").read_text()


def test_two_processes_at_once(folders, state, capsys):
    """Neither deletion is lost; progress goes to the standard error, results to the standard output."""
    first, second = sorted((folders / "train").rglob("*.png"))[:2]
    command = [sys.executable, "-m", "fastntk_sk", "unlearn", str(state), str(first)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:
        progress = ""
        while "forgetting" not in progress and (letter := process.stderr.read(1)):
            progress += letter
        assert answer(capsys, "unlearn", state, second)["n_learned"] == 22
        printed, rest = process.communicate()
    assert process.returncode == 0, progress + rest
    assert printed.startswith("Forgot 1 row in ")
    assert "torch.jit" not in progress + rest
    assert FastNTKClassifier.load(state).n_samples_learned_ == 22


def test_zoo(capsys):
    assert len(answer(capsys, "zoo", "vit*")["recipes"]) >= 6
    assert main(["zoo"]) == 0
    assert "convnext_base" in capsys.readouterr().out


def every_command(group=fastntk, path=()):
    yield pytest.param(group, path, id=" ".join(path) or "fastntk")
    for name, command in group.commands.items() if isinstance(group, click.Group) else ():
        yield from every_command(command, (*path, name))


@pytest.fixture
def parsed(monkeypatch):
    """A function that checks a line of a shell without running its command."""
    monkeypatch.setattr(Command, "invoke", lambda self, ctx: 0)
    return lambda line: main(shlex.split(line, comments=True)[1:]) == 0


@pytest.mark.parametrize(("command", "path"), [*every_command()])
def test_help_tells_defaults_and_ends_with_examples(parsed, capsys, command, path):
    assert main([*path, "--help"]) == 0
    examples = re.split("\n +Examples?:\n", capsys.readouterr().out)[1].strip().splitlines()
    assert all(line.strip().startswith(" ".join(["fastntk", *path])) for line in examples if path)
    assert all(parsed(line.strip()) for line in examples)
    context = click.Context(fastntk, show_default=True)
    for option in command.params:
        if isinstance(option, click.Option) and option.name != "version":
            assert option.help.endswith("."), option.name
            assert option.required or option.get_help_extra(context).get("default"), option.name


@pytest.mark.parametrize(
    "page", sorted([ROOT / "README.md", *ROOT.glob("docs/user_guide/*.md")]), ids=lambda page: page.stem
)
def test_commands_of_the_pages_exist(parsed, page):
    lines = re.findall(r"^(?:    |\$ )?(fastntk (?!.*COMMAND).+)$", page.read_text(), re.M)
    assert [line for line in lines if not parsed(line)] == []


def test_defaults_of_fit_are_those_of_python():
    given = fastntk.commands["fit"].make_context("fit", ["data", "--out", "state"]).params
    defaults = {name: p.default for name, p in inspect.signature(FastNTKClassifier).parameters.items()}
    differ = {name for name in given.keys() & defaults.keys() if given[name] != defaults[name]}
    assert differ == {"backbone", "random_state"}


def test_options_of_output_hold_on_both_sides(folders, state, capsys):
    command = ["predict", str(state), str(folders / "test")]
    printed = []
    for line in (["--json", "--quiet", *command], ["--json", *command, "--quiet"]):
        assert main(line) == 0
        printed.append(capsys.readouterr())
    assert printed[0] == printed[1]
    assert printed[0].err == ""
    assert len(json.loads(printed[0].out)["predictions"]) == 12
    assert main(command) == 0
    assert "predicting" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "nothing",
        "fit",
        "fit data",
        "fit data --out state --alpha much",
        "fit data --out state --n-components 0",
        "fit data --out state --image-size big",
        "fit data --out state --keep all",
        "predict state",
        "find state a.png --threshold 2",
        "unlearn state a.png --nothing",
        "rekey state",
        "requests",
        "requests close state case --as lost",
        "requests add state --days -1",
        "requests add state --id a --received tomorrow",
        "unlearn state ''",
        "push state",
        "demo --port 0",
        "demo --port web",
    ],
)
def test_wrong_arguments(capsys, arguments):
    assert main(shlex.split(arguments)) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("Usage: fastntk")


def test_an_interruption_leaves_no_traceback_and_no_state(folders, tmp_path, monkeypatch, capsys):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(FastNTKClassifier, "fit", interrupted)
    assert main(["fit", str(folders / "train"), "--out", str(tmp_path / "state"), *FIT]) == 130
    assert capsys.readouterr().err == "\nfastntk: Interrupted.\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.skipif(sys.platform != "linux", reason="there is no such device")
def test_nobody_reads_the_answer():
    command = [sys.executable, "-m", "fastntk_sk", "zoo"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
    with open("/dev/full", "w") as full:
        done = subprocess.run([*command, "--help"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, "No space left" in done.stderr, "Traceback" in done.stderr) == (
        1,
        True,
        False,
    )


def test_demo(monkeypatch, capsys):
    monkeypatch.delitem(sys.modules, "fastntk_sk.demo.app", raising=False)
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "gradio", None)
        assert "fastntk_sk[demo]" in refused(capsys, "demo")["message"]
    served = []
    app = SimpleNamespace(serve=lambda port, **options: served.append(port))
    monkeypatch.setitem(sys.modules, "fastntk_sk.demo.app", app)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"{port}" in refused(capsys, "demo", "--port", port)["message"]
    answer(capsys, "demo", "--port", port)
    assert served == [port]


def test_completion():
    def completed(*words):
        *before, incomplete = words
        shell = ShellComplete(fastntk, {}, "fastntk", "_FASTNTK_COMPLETE")
        return {item.value for item in shell.get_completions(before, incomplete)}

    assert {"predict", "push"} == completed("p")
    assert "run" in completed("requests", "")
    assert "resnet18" in completed("fit", "--backbone", "resnet")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predict", "nowhere", "x.png"], "does not exist"),
        (["predict", "me/nothing", "x.png"], "me/nothing"),
        (["fit", "empty", "--out", "state"], "pictures in empty"),
        (["fit", "flat", "--out", "state"], "class"),
        (["fit", "bad.csv", "--out", "state"], "path, label"),
        (["fit", "short.csv", "--out", "state"], "line 3"),
        (["fit", "long.csv", "--out", "state"], "commas"),
        (["fit", "latin.txt", "--out", "state"], "UTF-8"),
        (["fit", "STATE", "--out", "STATE"], "--overwrite"),
        (["fit", "flat", "--out", "bad.csv", "--overwrite"], "bad.csv"),
        (["fit", "flat", "--out", "state", "--key-file", "empty.txt"], "passphrase"),
        (["fit", "named", "--out", "state", "--backbone", "resnet19"], "Did you mean 'resnet18'"),
        (["unlearn", "STATE", "gone.png"], "gone.png"),
        (["unlearn", "nowhere", "flat"], "nowhere"),
        (["fit", "named", "--out", "state", "--key-file", "nowhere"], "No such file"),
        (["fit", "named", "--out", "state", "--key-file", "flat"], "flat"),
        (["fit", "named", "--out", "state", "--key-file", "latin.txt"], "UTF-8"),
        (["fit", "open.csv", "--out", "state"], "CSV"),
        (["predict", "bad.csv", "flat"], "--key-file"),
        (["predict", "STATE", "nowhere"], "nowhere"),
        (["rebuild", "flat"], "flat"),
        (["find", "STATE", "flat"], "--keep features"),
        (["requests", "add", "STATE", "--id", "a", "--received", "9999-12-31"], "out of range"),
        (["requests", "add", "STATE", "--csv", "latin.txt"], "UTF-8"),
        (["requests", "add", "STATE", "--csv", "bad.csv", "--id", "a"], "--csv alone"),
        (["zoo", "nothing*"], "nothing*"),
    ],
)
def test_what_is_wrong_is_said(folders, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "flat").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "flat" / "a.png")
    for label in "ab":
        (tmp_path / "named" / label).mkdir(parents=True)
        Image.new("L", (8, 8), ord(label)).save(tmp_path / "named" / label / "a.png")
    (tmp_path / "empty.txt").touch()
    (tmp_path / "bad.csv").write_text("file,class\na.png,b\n")
    (tmp_path / "short.csv").write_text("path,label\na.png,b\nc.png\n")
    (tmp_path / "long.csv").write_text("path,label\na,b.png,1\n")
    (tmp_path / "latin.txt").write_bytes("Zoë.txt".encode("latin-1"))
    (tmp_path / "open.csv").write_text('path,label\na.png,"b\n' + "a.png,b\n" * 20_000)
    arguments = [str(folders / "state") if a == "STATE" else a for a in arguments]
    assert message in refused(capsys, *arguments)["message"]
    assert not (tmp_path / "state").exists()


@pytest.mark.filterwarnings("always")
def test_damaged_pictures_are_left_out_and_named(folders, tmp_path, capsys):
    shutil.copytree(folders / "train", tmp_path / "train")
    damaged = sorted((tmp_path / "train").rglob("*.png"))[5]
    damaged.write_bytes(damaged.read_bytes()[:60])
    out = tmp_path / "state"
    learn = ("fit", tmp_path / "train", "--out", out, *FIT)
    refusal = refused(capsys, *learn)
    assert refusal["error"] == "PictureError"
    assert f"Row 5 cannot be read: {damaged}" in refusal["message"]
    assert main([*map(str, learn), "--skip-damaged", "--json", "--quiet"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert (found["n_learned"], [each["path"] for each in found["skipped"]]) == (23, [str(damaged)])
    assert "Left out 1 of 24 rows" in printed.err
    assert f"left out: {damaged}: " in printed.err
    test = ("predict", out, damaged.parent)
    assert str(damaged) in refused(capsys, *test)["message"]
    assert main([*map(str, test), "--skip-damaged", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert str(damaged) not in [row["path"] for row in found["predictions"]]
    assert [each["path"] for each in found["skipped"]] == [str(damaged)]
    assert f"left out: {damaged}: " in printed.err
    assert main(["predict", str(out), str(damaged), "--skip-damaged"]) == 1
    assert "none among 1" in capsys.readouterr().err
    assert str(damaged) in refused(capsys, "unlearn", out, damaged)["message"]
    assert main(["unlearn", str(out), str(damaged), "--dry-run", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["files"] == [str(damaged)]


@pytest.mark.filterwarnings("always")
def test_what_a_folder_holds_besides_pictures_is_said(tmp_path, capsys):
    """A class of .gif and a .jfif are learned; texts, films and a folder without pictures are named."""
    draws = np.random.default_rng(0)
    names = (
        "anna/0.jpg",
        "anna/1.JPG",
        "anna/2.jfif",
        "ben/0.jpg",
        "ben/1.bmp",
        "cleo/0.gif",
        "cleo/1.gif",
    )
    others = ("ben/notes.txt", "cleo/film.mp4", "cleo/README", "dora/list.txt", "anna/.DS_Store")
    for name in (*names, *others):
        path = tmp_path / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in others:
            path.touch()
        else:
            kinds = {".gif": "GIF", ".bmp": "BMP"}
            picture = Image.fromarray(draws.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            picture.save(path, format=kinds.get(path.suffix, "JPEG"))
    assert main(["fit", str(tmp_path / "data"), "--out", str(tmp_path / "state"), "--quiet", *FIT]) == 0
    printed = capsys.readouterr()
    assert "Learned 7 pictures of 3 classes" in printed.out
    assert "endings: 1 .mp4, 2 .txt, 1 without one." in printed.err
    assert "['dora']" in printed.err


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
