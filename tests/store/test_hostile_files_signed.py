"""Forgeries whose every digest fits: what they say is checked, before anything is built from it."""

import warnings

import hostile
import numpy as np
import pytest
import timm
import torch
from hostile import EACH, MIB, NAMED, STATES, Parts, outcome, peak, pooling, put, y

from fastntk_sk import FastNTKClassifier
from fastntk_sk.backbones.loading import outline
from fastntk_sk.exceptions import (
    FastNTKError,
    InsufficientMemoryError,
    ReceiptError,
    StateFormatError,
    StateMismatchError,
    UnknownKeyWarning,
)
from fastntk_sk.publishing import files
from fastntk_sk.sums import memory


@pytest.mark.parametrize("case", EACH)
def test_untouched_parts_load(saved, forge, case):
    np.testing.assert_array_equal(forge(case, lambda parts: None), saved[case][1])


CHANGES = {
    "a row more": lambda t: torch.cat([t, t[:1]]) if t.ndim else t[None],
    "a row less": lambda t: t[:-1] if t.ndim else t[None],
    "a dimension more": lambda t: t[None],
    "no dimension": lambda t: torch.zeros((), dtype=t.dtype) if t.ndim else t[None],
    "no rows": lambda t: torch.zeros(0, *t.shape[1:], dtype=t.dtype),
    "no columns": lambda t: torch.zeros(10**6, 0, dtype=t.dtype),
    "60 dimensions": lambda t: t.reshape(*[1] * 60, *t.shape),
    "another precision": lambda t: t.float() if t.dtype != torch.float32 else t.double(),
    "integers": lambda t: torch.zeros(t.shape, dtype=torch.int32),
    "complex": lambda t: torch.zeros(t.shape, dtype=torch.complex64),
    "8 bits": lambda t: torch.zeros(t.shape, dtype=torch.float8_e4m3fn),
    "nan": lambda t: torch.full(t.shape, torch.nan, dtype=torch.float64),
    "infinite": lambda t: torch.full(t.shape, -torch.inf, dtype=torch.float32),
    "missing": lambda t: None,
}


STRANGERS = (
    "x network network. network.x network.0.prompt anchor.x anchor.network.x anchor.readout A probe"
)
STRANGERS += " 0.label 1.label a/../b __class__"


@pytest.mark.parametrize("what", CHANGES)
@pytest.mark.parametrize("case", EACH[4:])
def test_tensors_that_do_not_fit(saved, forge, case, what):
    for part in ("tensors", "statistics", "ledger"):
        for name, tensor in (getattr(saved[case][0], part) or {}).items():
            if part == "tensors" and case[1:] == ("finetuned", "state") and "network." in name:
                continue  # what is published says nothing that the private anchor does not

            def change(parts, part=part, name=name, tensor=tensor):
                tensors = getattr(parts, part)
                tensors[name] = CHANGES[what](tensor)
                if tensors[name] is None:
                    del tensors[name]
                parts.with_tensors()

            assert isinstance(forge(case, change), NAMED), name


@pytest.mark.parametrize("case", EACH[4:])
@pytest.mark.parametrize("name", [*STRANGERS.split(), ""])
def test_tensors_that_nobody_expects(saved, forge, case, name):
    for part in ("tensors", "statistics", "ledger"):
        if name in (getattr(saved[case][0], part) or [name]):
            continue

        def change(parts, part=part):
            getattr(parts, part)[name] = torch.ones(2, 3)
            parts.with_tensors()

        inert = part == "tensors" and case[1:] == ("finetuned", "state") and name.startswith("network.")
        assert isinstance(forge(case, change), np.ndarray if inert else NAMED)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("label", lambda t: t + 1),
        ("label", lambda t: t - 1),
        ("label", lambda t: t.new_zeros(len(t))),
        ("label", lambda t: t + 2**62),
        ("count", lambda t: t + 1),
        ("count", lambda t: t * 0),
        ("count", lambda t: -t),
        ("count", lambda t: t + 2**62),
        ("count", lambda t: t * (2**63 - 1)),
        ("weight", lambda t: -t),
        ("weight", lambda t: t * 0),
        ("key", lambda t: t[:, :16].contiguous()),
    ],
)
def test_ledgers_that_contradict_the_counts(forge, column, values):
    def change(parts):
        parts.ledger[f"0.{column}"] = values(parts.ledger[f"0.{column}"])

    assert isinstance(forge(("module", "pretrained", "state"), change), StateFormatError)


def test_ledgers_of_no_rows_and_of_too_many(forge):
    def nobody(parts):
        parts.ledger = {name: t if name == "0.key" else t[:0] for name, t in parts.ledger.items()}
        parts.records["class_rows"] = [0, 0, 0]

    def another(parts):
        parts.ledger |= {name.replace("0.", "1."): t.clone() for name, t in parts.ledger.items()}

    def gap(parts):
        parts.ledger = {name.replace("0.", "1."): t for name, t in parts.ledger.items()}

    def crowds(parts):
        parts.ledger["0.count"] = torch.full_like(parts.ledger["0.count"], 2**53)
        rows = [int((parts.ledger["0.label"] == c).sum()) for c in range(3)]
        parts.records["class_rows"] = [n * 2**53 for n in rows]

    for change in (nobody, another, gap, crowds):
        assert isinstance(forge(("module", "pretrained", "state"), change), StateFormatError), change


HUGE = [
    0,
    -1,
    2**31,
    2**53 + 1,
    2**63,
    10**400,
    1e308,
    float("nan"),
    float("inf"),
    "5",
    None,
    True,
    [5],
    {},
]
NUMBERS = ["setup n_prompts", "setup n_components", "setup batch_size", "preprocessing n_features"]
NUMBERS += ["setup scale_h", "setup scale_J", "setup position_gap", "frozen seed", "frozen alpha"]


@pytest.mark.parametrize("where", [*NUMBERS, "frozen target_scale", "n_samples_learned", "format"])
@pytest.mark.parametrize("case", [EACH[0], EACH[5]])
def test_numbers_out_of_bounds(forge, case, where):
    for value in HUGE:
        found = forge(case, put(["config", *where.split()], value))
        assert isinstance(found, (np.ndarray, FastNTKError))
        if value not in (0, 2**31, 1e308, None, True):
            assert isinstance(found, NAMED)


@pytest.mark.parametrize("name", ["mlp", "module"])
@pytest.mark.parametrize("kind", ["adapter", "state"])
def test_declared_sizes_allocate_nothing(forge, name, kind):
    case = (name, "pretrained", kind)

    def wide(n_features):
        def change(parts):
            parts.config["preprocessing"]["n_features"] = n_features
            if name == "mlp":
                for rows in (0, 1):
                    weight = torch.zeros(rows, n_features, dtype=torch.float64)
                    parts.with_tensors(**{"network.1.weight": weight})

        return change

    def classes(values, label):
        def change(parts):
            parts.config["classes"] = {"values": values, "kind": label}
            parts.with_tensors(readout=torch.zeros(len(values), 0))

        return change

    def tall(parts):
        parts.with_tensors(readout=torch.zeros(3, 0), displacement=torch.zeros(0, 2**40))
        parts.config["setup"]["n_components"] = 0

    long, many = "x" * 10**6, [str(i) for i in range(10**5)]
    for change in (
        wide(10**6),
        put(["config", "preprocessing", "n_features"], 10**9),
        put(["config", "setup", "n_components"], 10**9),
        put(["config", "setup", "n_prompts"], 10**9),
        put(["config", "setup", "batch_size"], 10**9),
        put(["config", "preprocessing", "size"], [4096, 4096]),
        put(["config", "preprocessing", "size"], [10**9, 10**9]),
        put(["config", "without_rows"], [10**6] * 10**5),
        classes([long, *many], "U"),
        classes([10**4000, *range(10**5)], "U"),
        classes([10**4000, *range(10**5)], "<i8"),
        classes(many, "<f8"),
        tall,
    ):
        n_bytes, n_read, error = forge.spent(case, change)
        assert n_bytes < 32 * MIB + 8 * n_read
        assert isinstance(error, FastNTKError)


def test_pictures_that_do_not_fit_in_memory(monkeypatch, tmp_path):
    pictures = (np.random.default_rng(0).random((12, 8, 8, 3)) * 255).astype(np.uint8)
    clf = FastNTKClassifier(pooling, n_components=4, batch_size=4, random_state=0).fit(pictures, y)
    clf.save_pretrained(tmp_path / "adapter")
    parts = Parts.of(tmp_path / "adapter")
    parts.config["preprocessing"]["size"] = [4096, 4096]
    folder, found = parts.write(tmp_path / "forged"), []
    little = type("Memory", (), {"available": 2**32})
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: little)
    assert peak(lambda: found.append(outcome(lambda: hostile.load(folder, pooling)))) < 16 * MIB
    assert isinstance(found[0], InsufficientMemoryError)
    assert "8,589,934,592 bytes" in str(found[0])


@pytest.fixture(scope="module")
def resnet(tmp_path_factory):
    """A published adapter of a network that timm builds by its name."""
    pictures = (np.random.default_rng(0).random((12, 8, 8)) * 255).astype(np.uint8)
    params = {"image_size": 32, "batch_size": 4, "n_components": 8, "random_state": 0}
    params |= {"trainable": "norm", "pretrained": False}
    clf = FastNTKClassifier("timm:resnet18", **params).fit(pictures, y)
    folder = tmp_path_factory.mktemp("resnet") / "adapter"
    clf.save_pretrained(folder)
    return Parts.of(folder)


def test_a_named_network_is_measured_before_it_is_built(resnet, monkeypatch, tmp_path):
    hostile.load(resnet.write(tmp_path / "same"))  # which also warms what timm keeps
    for name, message in (
        ("timm:vit_base_patch32_224", "Expected a backbone with 512 features, got 768"),
        ("timm:vit_giant_patch14_dinov2", "Expected a backbone with 512 features, got 1536"),
    ):
        parts, found = resnet.copy(), []
        parts.config["backbone"]["source"] = name
        folder = parts.write(tmp_path / name[5:])
        read = lambda folder=folder: outcome(lambda: hostile.load(folder))  # noqa: E731
        assert peak(lambda found=found, read=read: found.append(read())) < 32 * MIB
        assert isinstance(found[0], StateMismatchError)
        assert message in str(found[0])
    parts, found = resnet.copy(), []
    parts.config["preprocessing"]["size"] = [2500, 2500]
    folder = parts.write(tmp_path / "large")
    little = type("Memory", (), {"available": 8 * 2**30})  # loading it takes 10.7 GiB
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: little)
    assert peak(lambda: found.append(outcome(lambda: hostile.load(folder)))) < 32 * MIB
    assert isinstance(found[0], InsufficientMemoryError)


def test_the_estimate_of_a_named_network_holds(resnet, tmp_path):
    parts = resnet.copy()
    parts.config["preprocessing"]["size"] = [640, 640]
    folder = parts.write(tmp_path / "adapter")
    estimate = outline("timm:resnet18", (640, 640)).n_bytes
    assert estimate / 4 < peak(lambda: hostile.load(folder)) < estimate + 64 * MIB


@pytest.mark.parametrize("trainable", ["prompt", "prompt-deep"])
def test_prompts_that_are_not_there(monkeypatch, tmp_path, trainable):
    def vit():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return timm.create_model("test_vit", img_size=32)

    pictures = (np.random.default_rng(0).random((6, 8, 8)) * 255).astype(np.uint8)
    params = {"image_size": 32, "n_prompts": 2, "n_components": 4, "batch_size": 2, "random_state": 0}
    clf = FastNTKClassifier(vit, trainable=trainable, **params).fit(pictures, y[:6])
    clf.save_pretrained(tmp_path / "adapter")
    whole = Parts.of(tmp_path / "adapter")
    names = [name for name in whole.tensors if name.endswith(".prompt")]
    for shape, n_prompts in (((10**9, 0), 10**9), ((10**4, 0), 10**4), ((10**4, 1), 10**4), ((), 1)):
        parts = whole.copy().with_tensors(**{name: torch.zeros(shape) for name in names})
        parts.config["setup"]["n_prompts"] = n_prompts
        folder, found = parts.write(tmp_path / "forged"), []
        read = lambda folder=folder: outcome(lambda: hostile.load(folder, vit))  # noqa: E731
        assert peak(lambda found=found, read=read: found.append(read())) < 64 * MIB
        assert isinstance(found[0], NAMED)


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([0, 1, 1], "<i8"),
        ([0, 1, True], "<i8"),
        ([0.5, 1, 2], "<i8"),
        ([0, 1, 300], "<u1"),
        ([0, 1, -1], "<u1"),
        ([0, 1, 2**63], "<i8"),
        (["0", "1", "2"], "<i8"),
        ([0, 1, 2], "U"),
        (["a", "b", 3], "U"),
        (["a", "b", "b\0"], "U"),
        (["a", "b", None], "U"),
        ([0, 1, 2], "|b1"),
        ([0, 1, 1e300], "<f2"),
        ([0, 1, float("nan")], "<f8"),
        ([0, 1, [2]], "O"),
        ([0, 1, {}], "O"),
        ([0, 1], "<i8"),
        ([0], "<i8"),
        ([], "O"),
        ("abc", "U"),
        ([0, 1, 2], "<M8"),
        ([0, 1, 2], "V8"),
        ([0, 1, 2], "<i3"),
        ([0, 1, 2], "i8,i8"),
        ([0, 1, 2], ["<i8"]),
        ([0, 1, 2], "os.system"),
    ],
)
def test_class_labels(forge, values, kind):
    for case in (EACH[4], STATES[2]):
        found = forge(case, put(["config", "classes"], {"values": values, "kind": kind}))
        assert isinstance(found, StateFormatError)


@pytest.mark.parametrize(
    "change",
    [
        put(["config", "without_rows"], [0, 1, 2]),
        put(["config", "without_rows"], [3]),
        put(["config", "feature_names"], ["a", "b"]),
        put(["config", "feature_names"], ["a", "b", 3]),
        put(["config", "setup", "trainable"], ["no such parameter"]),
        put(["config", "setup", "precision"], "float16"),
        put(["config", "setup", "kernel"], "pseudo"),
        put(["config", "setup", "kernel"], "ntk"),
        put(["config", "setup", "projection"], "0" * 31),
        put(["config", "frozen", "device"], "cuda:7"),
        put(["config", "frozen", "device"], "mps"),
        put(["config", "frozen", "device"], "xpu:0"),
        put(["config", "frozen", "device"], "os.system"),
        put(["config", "setup", "n_components"], 0),
        put(["config", "preprocessing", "n_features"], 4),
        put(["config", "preprocessing", "mean"], [0, 0, 10**400]),
        put(["config", "preprocessing", "interpolation"], "os.system"),
    ],
)
@pytest.mark.parametrize("case", [EACH[4], STATES[2]])
def test_what_does_not_belong_together(forge, case, change):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownKeyWarning)
        assert isinstance(forge(case, change), NAMED)


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("class_rows", [None, 3, [3, 3], [3, 3, 4, 0], [3.0, 4, 3], [True, 4, 3], [-1, 5, 6], [2**70]]),
        ("environment", [None, [], "x86_64"]),
        ("n_forgotten", [None, -1, 1.5, True, 2**54, "2"]),
        ("chain", [None, 7, "x" * 65, ["x"]]),
        ("residual", [None, "0", 10**400, [], True]),
        ("seconds_per_row", [None, "0", -(10**400)]),
        ("history", [None, {}, [1], "x"]),
        ("linearity", [None, "0", {}]),
    ],
)
def test_records_of_wrong_types(forge, key, values):
    for value in values:
        assert isinstance(forge(STATES[2], put(["records", key], value)), NAMED)


@pytest.mark.parametrize("key", ["n_rows", "drift", "seen_by", "anchor", "chain", "previous", "digest"])
def test_receipts_of_wrong_types(forge, key):
    for value in (None, 10**400, -1, "x", {}, [[]], [7]):

        def change(parts, value=value):
            receipt = parts.records["receipts"][0] | {key: value}
            if key != "digest":
                del receipt["digest"]
                receipt = files.signed(receipt)
            parts.records["receipts"] = [receipt]

        found = forge(STATES[2], change)
        assert isinstance(found, np.ndarray if (key, value) == ("chain", "x") else ReceiptError)
