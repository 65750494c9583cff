"""A picture is the same wherever it comes from, and one that cannot be read is named."""

import contextlib
import io
import os
import pickle
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from torch import nn

from fastntk_sk import FastNTKClassifier, FastNTKClassifierCV
from fastntk_sk.backbones.decoding import FORMATS, decode
from fastntk_sk.backbones.folders import SUFFIXES
from fastntk_sk.exceptions import PictureError

ORIENTATION = 0x0112
# what a viewer does with stored pixels, by the EXIF standard: where the 0th row and column are
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
LOSSLESS = {  # channels: formats that keep them, and how
    1: [("PNG", {}), ("TIFF", {}), ("BMP", {}), ("TGA", {}), ("PPM", {})],
    2: [("PNG", {}), ("TIFF", {}), ("TGA", {})],
    3: [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True}), ("BMP", {}), ("TGA", {}), ("PPM", {})],
    4: [("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True, "exact": True}), ("TGA", {})],
}
TURNED = ("PNG", "TIFF", "WEBP")


def pixels(item):
    return decode(item)[0]


def saved(array, folder, format, orientation=1, **options):
    """Return the path of a file with this content."""
    if format in TURNED:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        options["exif"] = exif
    path = folder / f"picture.{format.lower()}"
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(path, format=format, **options)
    return path


def on_white(array):
    """The rule, in fractions."""
    mixed = np.empty((*array.shape[:2], array.shape[2] - 1), dtype=np.uint8)
    for place in np.ndindex(mixed.shape):
        value, alpha = int(array[place]), Fraction(int(array[place[0], place[1], -1]), 255)
        mixed[place] = round(value * alpha + 255 * (1 - alpha))
    return mixed[..., 0] if mixed.shape[-1] == 1 else mixed


@st.composite
def pictures(draw):
    """Pixels, and a file format that keeps them."""
    channels = draw(st.integers(1, 4))
    height, width = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    shape = (height, width) if channels == 1 else (height, width, channels)
    return draw(arrays(np.uint8, shape)), *draw(st.sampled_from(LOSSLESS[channels]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("pictures")


@settings(max_examples=150, deadline=None)
@given(picture=pictures(), orientation=st.integers(1, 8))
def test_a_file_decodes_to_its_array(folder, picture, orientation):
    array, format, options = picture
    if format not in TURNED:
        orientation = 1
    found = pixels(saved(array, folder, format, orientation, **options))
    expected = array if array.ndim == 2 or array.shape[2] == 3 else on_white(array)
    np.testing.assert_array_equal(found, UPRIGHT[orientation](expected))
    if array.ndim == 3 and array.shape[2] == 4:
        np.testing.assert_array_equal(pixels(array), expected)
        floats = pixels(array / 255)
        assert floats.dtype == np.float32
        np.testing.assert_allclose(255 * floats, expected, atol=0.501)
        assert 0 <= floats.min() <= floats.max() <= 1


@settings(max_examples=40, deadline=None)
@given(picture=pictures(), hidden=st.integers(0, 255))
def test_hidden_colours_and_opaque_alpha_change_nothing(folder, picture, hidden):
    array, format, options = picture
    if array.ndim == 2 or array.shape[2] not in (2, 4):
        return
    covered = array.copy()
    covered[array[..., -1] == 0, :-1] = hidden
    paths = [saved(array, folder, format, **options)]
    found = pixels(paths[0])
    np.testing.assert_array_equal(pixels(saved(covered, folder, format, **options)), found)
    array[..., -1] = 255
    colours = array[..., 0] if array.shape[2] == 2 else array[..., :-1]
    np.testing.assert_array_equal(pixels(saved(array, folder, format, **options)), pixels(colours))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_jpegs_are_turned(folder, orientation):
    array = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(array).save(folder / "stored.jpg")
    Image.fromarray(array).save(folder / "turned.jpg", exif=exif)
    expected = UPRIGHT[orientation](pixels(folder / "stored.jpg"))
    np.testing.assert_array_equal(pixels(folder / "turned.jpg"), expected)
    with Image.open(folder / "turned.jpg") as picture:  # as a dataset gives it
        np.testing.assert_array_equal(pixels(picture), expected)


def test_exif_that_cannot_be_read_says_nothing(folder):
    array = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0MM\0*\0\0\0\x08\0\x05"):
        Image.fromarray(array).save(folder / "exif.png", exif=exif)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            np.testing.assert_array_equal(pixels(folder / "exif.png"), array)


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, 255),
        ("L", 7, 7),
        ("LA", (7, 0), 255),
        ("La", (0, 0), 255),
        ("La", (51, 51), 255),
        ("PA", (0, 0), [255, 255, 255]),
        ("RGBa", (0, 0, 51, 51), [204, 204, 255]),
        ("RGBX", (1, 2, 3, 0), [1, 2, 3]),
        ("CMYK", (255, 0, 0, 0), [0, 255, 255]),
        ("YCbCr", (128, 128, 128), [128, 128, 128]),
        ("HSV", (0, 255, 255), [255, 0, 0]),
        ("LAB", (255, 128, 128), [255, 255, 255]),
        ("I", 65535, 1.0),
        ("I", 13107, 0.2),
        ("I;16", 13107, 0.2),
        ("I;16L", 13107, 0.2),
        ("I;16B", 13107, 0.2),
        ("F", 0.2, 0.2),
    ],
)
def test_modes(mode, value, expected):
    found = pixels(Image.new(mode, (2, 3), value))
    assert found.dtype == (np.float32 if isinstance(expected, float) else np.uint8)
    tolerance = 2 if mode == "LAB" else 1e-7
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=tolerance)
    assert found.shape[:2] == (3, 2)


@pytest.mark.parametrize(("mode", "value"), [("I", -1), ("I", 65536), ("F", 1.5), ("F", np.nan)])
def test_values_beyond_the_range_are_refused(mode, value):
    with pytest.raises(PictureError, match="from 0 to"):
        decode(Image.new(mode, (2, 3), value))


def test_sixteen_bits(folder):
    array = np.random.default_rng(0).integers(0, 65536, (5, 4), dtype=np.uint16)
    expected = array.astype(np.float32) / np.float32(65535)
    for format in ("PNG", "TIFF", "PPM", "JPEG2000"):
        np.testing.assert_array_equal(pixels(saved(array, folder, format)), expected)


def test_palettes_and_keys(folder):
    """Index 1 is transparent, and so is a colour that a file names."""
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    assert pixels(palette).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    for format in ("PNG", "GIF"):
        found = pixels(saved(palette, folder, format, transparency=1))
        assert found.tolist() == [[[10, 20, 30], [255, 255, 255]]]
    half = pixels(saved(palette, folder, "PNG", transparency=bytes([255, 51])))
    assert half.tolist() == [[[10, 20, 30], [212, 214, 216]]]
    for picture, key in (
        (palette.convert("RGB"), (40, 50, 60)),
        (Image.fromarray(np.array([[3, 7]], dtype=np.uint8)), 7),
        (Image.fromarray(np.array([[3, 7]], dtype=np.uint16)), 7),
    ):
        plain, keyed = (pixels(saved(picture, folder, "PNG", **k)) for k in ({}, {"transparency": key}))
        np.testing.assert_array_equal(keyed[:, 0], plain[:, 0])
        assert (keyed[:, 1] == (1 if plain.dtype == np.float32 else 255)).all()


def test_endings_belong_to_formats():
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in SUFFIXES} == {*FORMATS, "MPO"}


# what cannot be read


def classifier(**changes):
    given = {"trainable": "head", "image_size": 8, "random_state": 0, "batch_size": 4}
    return FastNTKClassifier(nn.Flatten(), **(given | changes))


@pytest.fixture
def files(tmp_path, digits):
    """Paths of twelve pictures, and their labels."""
    paths = []
    for i, picture in enumerate(digits[0][:12]):
        paths.append(str(tmp_path / f"{i}.png"))
        Image.fromarray(picture).save(paths[-1])
    return paths, digits[1][:12] % 2


def damage(path):
    content = Path(path).read_bytes()
    Path(path).write_bytes(content[: len(content) // 2])


def bad_files(folder):
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("a text")
    (folder / "picture.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")
    (folder / "page.pdf").write_text("%PDF-1.4")
    (folder / "program.png").write_text(
        "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    )
    (folder / "folder.png").mkdir()
    os.mkfifo(folder / "pipe.png")
    header = b"P6 20000 20000 255\n"
    (folder / "claims.ppm").write_bytes(header)
    return sorted(map(str, folder.iterdir()))


def test_whatever_is_no_picture_is_named(tmp_path):
    for path in bad_files(tmp_path):
        with pytest.raises(PictureError) as caught:
            decode(path)
        assert path in str(caught.value)
    with pytest.raises(PictureError, match="gone"):
        decode(tmp_path / "gone.png")
    for mode in ("L", "F"):
        with pytest.raises(PictureError, match="no pixels"):
            decode(Image.new(mode, (0, 3)))


def damaged(rng, content):
    """A few bytes changed, cut off, put in or moved."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 4)):
        at, n = rng.integers(0, len(content)), int(rng.integers(1, 40))
        kind = rng.integers(4)
        if kind == 0:
            content[at] ^= 1 << rng.integers(8)
        elif kind == 1:
            del content[at : at + n]
        elif kind == 2:
            content[at:at] = rng.bytes(n)
        else:
            content[at:at] = content[:n]
        content = content or bytearray(b"\0")
    return bytes(content)


@pytest.mark.filterwarnings("ignore")  # of Pillow
@pytest.mark.parametrize("format", [*FORMATS, "MPO"])
def test_damaged_files_raise_one_error(tmp_path, format):
    rng, written = np.random.default_rng(0), io.BytesIO()
    array = rng.integers(0, 256, (20, 16, 3), dtype=np.uint8)
    more = {"save_all": True} if format == "MPO" else {}
    Image.fromarray(array).save(written, format=format, **more)
    content, path = written.getvalue(), tmp_path / "picture"
    for _ in range(40):
        path.write_bytes(damaged(rng, content))
        with contextlib.suppress(PictureError):
            assert pixels(path).dtype in (np.uint8, np.float32)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(PictureError, match="picture: "):
        decode(path)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_damaged_row_is_named_by_its_number_in_X(files, n_workers):
    paths, y = files
    damage(paths[7])
    weights = np.r_[0, 0, np.ones(10)]
    clf = classifier(num_workers=n_workers)
    with pytest.raises(PictureError, match=r"^Row 7 cannot be read: .*7\.png: ") as caught:
        clf.fit(paths, y, sample_weight=weights)
    assert caught.value.indices == [7]
    assert not hasattr(clf, "classes_")
    clf.fit(paths[:6], y[:6])
    for call in (clf.predict, clf.predict_proba, clf.unlearn):
        with pytest.raises(PictureError, match=r"^Row 2 cannot be read: .*7\.png: "):
            call([*paths[:2], paths[7]])
    report = clf.can_unlearn([*paths[:2], paths[7]])
    assert (report["possible"], report["indices"]) == (False, [2])
    assert clf.n_samples_learned_ == 6


@pytest.mark.parametrize("n_workers", [0, 2])
def test_damaged_rows_are_left_out(files, n_workers):
    """The first, so that nothing rests on it, and a class whose only row is damaged."""
    paths, y = files
    y = np.where(np.arange(12) == 9, 5, y)
    for row in (0, 4, 9):
        damage(paths[row])
    left = [1, 3, 5, 6, 7, 8, 10, 11]
    weights, ids = np.linspace(1, 2, 12), [f"person {i}" for i in range(12)]
    weights[2] = 0
    clf = classifier(on_error="skip", num_workers=n_workers, keep="features")
    with pytest.warns(UserWarning, match="Left out 3 of 12 rows") as said:
        clf.fit(paths, y, sample_weight=weights, sample_ids=ids)
    assert len(said) == 1
    assert [each["row"] for each in clf.skipped_] == [0, 4, 9]
    assert all(paths[each["row"]] in each["reason"] for each in clf.skipped_)
    other = classifier().fit([paths[i] for i in left], y[left], sample_weight=weights[left])
    np.testing.assert_array_equal(clf.readout_, other.readout_)
    np.testing.assert_array_equal(clf.classes_, other.classes_)
    assert clf.unlearn(sample_ids=["person 3"]).n_samples_learned_ == 7
    for call in (clf.predict, clf.unlearn):
        with pytest.raises(PictureError, match="Row 0"):
            call(paths[:2])
    clf.partial_fit(paths[2:3], [0])
    assert clf.skipped_ == []
    assert pickle.loads(pickle.dumps(clf)).skipped_ == []


def test_skipped_rows_are_neither_saved_nor_published(files, tmp_path):
    paths, y = files
    damage(paths[3])
    with pytest.warns(UserWarning, match="Left out 1 of 12"):
        clf = classifier(on_error="skip").fit(paths, y)
    clf.save(tmp_path / "state")
    clf.save_pretrained(tmp_path / "adapter")
    for place in (tmp_path / "state", *(tmp_path / "adapter").iterdir()):
        assert b"3.png" not in place.read_bytes()


def test_a_search_leaves_them_out_too(files):
    paths, y = files
    damage(paths[5])
    given = {"trainable": "head", "image_size": 8, "random_state": 0, "alphas": 1.0, "cv": 2}
    search = FastNTKClassifierCV(nn.Flatten(), on_error="skip", **given)
    with pytest.warns(UserWarning, match="Left out 1 of 12"):
        search.fit(paths, y)
    assert [each["row"] for each in search.skipped_] == [5]
    assert search.n_samples_learned_ == 11


class Decoding:
    """A dataset that decodes by itself."""

    def __init__(self, paths):
        self.paths = paths

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        with Image.open(self.paths[i]) as picture:
            return picture.convert("L"), 0


def test_a_dataset_that_decodes(files):
    paths, y = files
    damage(paths[0])
    with pytest.raises(PictureError, match="Row 0 cannot be read: OSError") as caught:
        classifier().fit(Decoding(paths), y)
    assert isinstance(caught.value.__cause__, OSError)  # where it failed is in the traceback
    with pytest.warns(UserWarning, match="Left out 1 of 12"):
        clf = classifier(on_error="skip").fit(Decoding(paths), y)
    np.testing.assert_array_equal(clf.readout_, classifier().fit(paths[1:], y[1:]).readout_)


def test_what_is_not_a_matter_of_decoding_is_never_left_out(files):
    paths, y = files
    clf = classifier(on_error="skip")
    with pytest.raises(ValueError, match="NaN"):
        clf.fit([*paths[:2], np.full((8, 8), np.nan)], y[:3])
    with pytest.raises(ValueError, match="got int in row 1"):
        clf.fit([paths[0], 7], y[:2])
    with pytest.warns(UserWarning, match="Left out 1 of 3"):
        clf.fit([*paths[:2], "gone.png"], [0, 1, 0])
    with pytest.raises(PictureError, match=r"None of the 2 rows can be read; row 0: gone\.png"):
        clf.fit(["gone.png", "gone.jpg"], y[:2])
    with pytest.raises(ValueError, match="on_error"):
        clf.set_params(on_error="ignore").fit(paths, y)


@pytest.mark.parametrize("n_workers", [0, 2])
def test_the_first_frame_is_taken_and_said_once(files, tmp_path, digits, n_workers):
    paths, y = files
    frames = [Image.fromarray(picture) for picture in digits[0][20:26]]
    for name in ("a.gif", "b.tif", "c.png"):
        paths.append(str(tmp_path / name))
        frames[0].save(paths[-1], save_all=True, append_images=frames[1:])
    y = np.r_[y, 0, 0, 1]
    with pytest.warns(UserWarning, match="several frames") as said:
        clf = classifier(num_workers=n_workers).fit(paths, y)
    assert len(said) == 1
    assert clf.unlearn([frames[0]], copies="all").n_samples_learned_ == 12
    with Image.open(paths[-3]) as moving:
        moving.seek(2)
        np.testing.assert_array_equal(pixels(moving), pixels(frames[2].convert("RGB")))
