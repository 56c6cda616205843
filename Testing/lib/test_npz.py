"""Challenge cases: read as the challenge writes them, and nothing in them is run."""

from __future__ import annotations

import errno
import io
import itertools
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from GSMedSegLib import npz
from GSMedSegLib.npz import Case, read_case, read_labels, seems_reversed, write_case, write_segs
from GSMedSegLib.plain_pickle import load_plain
from GSMedSegLib.prompts import Box, Click

IMAGE = np.arange(4 * 5 * 6, dtype=np.uint8).reshape(4, 5, 6)
TRUTH = (IMAGE // 50).astype(np.uint8)
BOX = {
    "z_min": 0,
    "z_max": 3,
    "z_mid": 1,
    "z_mid_x_min": 2,
    "z_mid_y_min": 1,
    "z_mid_x_max": 5,
    "z_mid_y_max": 4,
}
CLICKS = {"fg": [[1, 2, 3], [0, 0, 0]], "bg": [[3, 4, 5]]}
WRITTEN = (Click((1, 2, 3), True), Click((0, 0, 0), True), Click((3, 4, 5), False))


def official(path: Path, **arrays: Any) -> Path:
    """A case written by NumPy itself; None leaves a key out."""
    content = {"imgs": IMAGE, "spacing": np.array([3.0, 0.5, 0.25]), **arrays}
    np.savez_compressed(path, **{key: value for key, value in content.items() if value is not None})
    return path


def objects(*elements: Any) -> NDArray[Any]:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "CT_Liver_001.npz"


def test_a_case_with_everything(path: Path) -> None:
    """In the box, z is axis 0, y axis 1, x axis 2; in the clicks, the axes are in order."""
    official(
        path,
        gts=TRUTH.astype(np.int64),
        boxes=[BOX, BOX],
        clicks=[CLICKS, {"fg": [], "bg": []}],
        prev_pred=TRUTH,
    )
    case = read_case(path)
    assert case.name == "CT_Liver_001"
    np.testing.assert_array_equal(case.image, IMAGE)
    assert case.spacing_mm == (3, 0.5, 0.25)
    assert case.truth is not None
    np.testing.assert_array_equal(case.truth, TRUTH)
    assert case.truth.dtype == np.uint8
    assert case.boxes == (Box((0, 1, 2), (3, 4, 5), mid_k=1),) * 2
    assert case.clicks == (WRITTEN, ())
    assert case.prev_pred is not None
    np.testing.assert_array_equal(case.prev_pred, TRUTH)


def test_a_case_with_the_least(path: Path) -> None:
    case = read_case(official(path))
    assert (case.truth, case.boxes, case.clicks, case.prev_pred) == (None, None, None, None)


def test_numbers_of_every_kind(path: Path) -> None:
    """NumPy's scalars and arrays, floats that are whole, and a result saved as float32 (as the seed does)."""
    clicks = {"fg": np.array([[1, 2, 3], [0, 0, 0]], np.int32), "bg": [[np.int64(3), np.uint8(4), 5.0]]}
    box = {key: np.int64(value) for key, value in BOX.items()}
    case = read_case(official(path, clicks=[clicks], boxes=[box], prev_pred=TRUTH.astype(np.float32)))
    assert case.clicks == (WRITTEN,)
    assert case.boxes == (Box((0, 1, 2), (3, 4, 5), 1),)
    assert case.prev_pred is not None
    assert case.prev_pred.dtype == np.uint8


@pytest.mark.parametrize("dtype", ["i8", ">i2", "f4", "f2", "u4"])
def test_grey_values_of_other_types_that_are_bytes(path: Path, dtype: str) -> None:
    image = IMAGE.copy()
    image[0, 0, :2] = 0, 255
    case = read_case(official(path, imgs=image.astype(dtype)))
    assert case.image.dtype == np.uint8
    np.testing.assert_array_equal(case.image, image)


def test_fortran_order_and_big_endian(path: Path) -> None:
    official(path, imgs=np.asfortranarray(IMAGE), gts=TRUTH.astype(">u2"), spacing=np.array([1, 2, 3], ">f4"))
    case = read_case(path)
    np.testing.assert_array_equal(case.image, IMAGE)
    np.testing.assert_array_equal(case.truth, TRUTH)
    assert case.spacing_mm == (1, 2, 3)


def test_a_class_may_have_no_box(path: Path) -> None:
    assert read_case(official(path, boxes=objects(BOX, None, {}))).boxes == (
        Box((0, 1, 2), (3, 4, 5), 1),
        None,
        None,
    )


AXIAL, CORONAL, SAGITTAL = (20, 256, 256), (256, 20, 256), (256, 256, 20)


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "expected"),
    [
        (AXIAL, (1, 1, 5), True),
        (AXIAL, (5, 1, 1), False),
        (CORONAL, (1, 5, 1), False),
        (SAGITTAL, (1, 1, 5), False),
        ((400, 512, 512), (0.8, 0.8, 0.5), True),
        ((400, 512, 512), (0.5, 0.8, 0.8), False),
        ((30, 200, 180), (0.8, 0.8, 5), True),
        ((30, 200, 180), (0.8, 0.801, 5), True),
        ((30, 200, 180), (5, 0.8, 0.8), False),
        ((150, 200, 180), (1, 1, 1.5), False),  # either way about as long
        ((256, 256, 256), (1, 1, 5), False),
        ((20, 256, 256), (1, 1, 1), False),
        ((20, 256, 256), (1, 2, 5), False),
        ((1, 256, 256), (1, 1, 5), True),
    ],
)
def test_the_order_of_a_spacing(
    shape: tuple[int, int, int], spacing_mm: tuple[float, float, float], expected: bool
) -> None:
    assert seems_reversed(spacing_mm, shape) is expected


def test_views_go_by_the_likely_spacing_and_scores_by_the_given_one(path: Path) -> None:
    image = np.resize(IMAGE, (4, 20, 20))
    case = read_case(official(path, imgs=image, spacing=np.array([0.5, 0.5, 3.0])))
    assert (case.spacing_mm, case.spacing_kji_mm) == ((0.5, 0.5, 3), (3, 0.5, 0.5))
    case = read_case(official(path, imgs=image))
    assert case.spacing_mm == case.spacing_kji_mm == (3, 0.5, 0.25)


def test_a_spacing_of_our_own_is_not_guessed_about(path: Path) -> None:
    """A file has a key more than the challenge's only where a guess would go wrong."""
    said = []
    for shape, spacing_mm, is_reversed in itertools.product(
        itertools.permutations((4, 20, 20)), itertools.permutations((0.5, 0.5, 3)), (False, True)
    ):
        case = Case("x", np.resize(IMAGE, shape), spacing_mm, spacing_reversed=is_reversed)
        write_case(path, case)
        again = read_case(path)
        assert (again.spacing_mm, again.spacing_kji_mm) == (case.spacing_mm, case.spacing_kji_mm)
        with np.load(path) as theirs:
            said.append("spacing_reversed" in theirs)
        assert said[-1] == (is_reversed != seems_reversed(spacing_mm, shape))
    assert 0 < sum(said) < len(said)


@pytest.mark.parametrize("said", [np.zeros(0), np.array(""), np.array(0)])
def test_an_odd_word_about_the_order(said: NDArray[Any], path: Path) -> None:
    image = np.resize(IMAGE, (4, 20, 20))
    official(path, imgs=image, spacing=np.array([0.5, 0.5, 3.0]), spacing_reversed=said)
    assert not read_case(path).spacing_reversed


def test_what_of_a_box_is_in_the_image(path: Path) -> None:
    """The challenge enlarges boxes at random; `noted` tells which were cut."""
    beyond = {**BOX, "z_min": -1, "z_mid": -1, "z_mid_x_max": 6, "z_mid_y_max": 7}
    notes: list[str] = []
    case = read_case(official(path, boxes=objects(BOX, beyond, None)), noted=notes.append)
    assert case.boxes == (Box((0, 1, 2), (3, 4, 5), 1), Box((0, 1, 2), (3, 4, 5), 0), None)
    assert notes == ["the box of class 2 reaches beyond the image; what is inside is used"]


def test_a_box_need_not_name_its_middle(path: Path) -> None:
    bare = {key: value for key, value in BOX.items() if key != "z_mid"}
    boxes = read_case(official(path, boxes=objects(bare, {**BOX, "z_mid": None}))).boxes
    assert boxes == (Box((0, 1, 2), (3, 4, 5)),) * 2


def test_what_we_write_numpy_and_we_read(path: Path) -> None:
    boxes = (Box((0, 1, 2), (3, 4, 5)), None)
    clicks = (WRITTEN, (Click((1, 1, 1), False),))
    case = Case("other", IMAGE, (3, 0.5, 0.25), TRUTH, boxes, clicks, TRUTH)
    write_case(path, case)
    again = read_case(path)
    assert (again.name, again.spacing_mm, again.clicks) == ("CT_Liver_001", case.spacing_mm, clicks)
    assert again.boxes == (Box((0, 1, 2), (3, 4, 5), mid_k=1), None)
    np.testing.assert_array_equal(again.image, IMAGE)
    with np.load(path, allow_pickle=True) as theirs:
        assert sorted(theirs) == [
            "boxes",
            "clicks",
            "clicks_order",
            "gts",
            "imgs",
            "prev_pred",
            "spacing",
        ]
        assert theirs["clicks_order"].tolist() == [["fg", "fg", "bg"], ["bg"]]
        assert theirs["boxes"][0] == BOX
        assert theirs["clicks"][0] == CLICKS
        np.testing.assert_array_equal(theirs["gts"], TRUTH)


def test_one_class_keeps_its_dict(path: Path) -> None:
    """NumPy must not take a list of one dict, or dicts of equal length, for something else."""
    write_case(path, Case("one", IMAGE, (1, 1, 1), clicks=(WRITTEN,), boxes=(Box((0, 0, 0), (1, 1, 1)),)))
    with np.load(path, allow_pickle=True) as theirs:
        assert theirs["clicks"].shape == theirs["boxes"].shape == (1,)


A, B, C = Click((0, 0, 0), True), Click((1, 1, 1), False), Click((2, 2, 2), True)


@pytest.mark.parametrize(
    "rows",
    [
        [(A, B, C), (B, None, C)],
        [(B, A, C), (A, C, B)],
        [(None, None), (A, B)],
        [(A,)],
        [(None,)],
        [(), ()],
        [(A, B), (C,)],
    ],
    ids=["a round without a click", "strings only", "a perfect class", "one", "none", "no rounds", "uneven"],
)
def test_the_order_of_clicks_survives(rows: list[tuple[Click | None, ...]], path: Path) -> None:
    write_case(path, Case("order", IMAGE, (1, 1, 1), clicks=tuple(rows)))
    assert read_case(path).clicks == tuple(rows)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ([["bg", "fg", "fg"]], (B, A, C)),
        ([["fg", None, "bg", "fg"]], (A, None, B, C)),
    ],
)
def test_the_order_as_the_challenge_writes_it(order: list[Any], expected: Any, path: Path) -> None:
    """NumPy makes a 2D array of it: of strings where every round had a click, else of objects."""
    official(path, clicks=[{"fg": [[0, 0, 0], [2, 2, 2]], "bg": [[1, 1, 1]]}], clicks_order=order)
    assert read_case(path).clicks == (expected,)


def test_an_order_in_columns(path: Path) -> None:
    """An array stored column by column says the same."""
    clicks = objects({"fg": [[0, 0, 0]], "bg": [[1, 1, 1]]}, {"fg": [[2, 2, 2]], "bg": []})
    order = np.asfortranarray(np.array([["bg", "fg"], [None, "fg"]], dtype=object))
    official(path, clicks=clicks, clicks_order=order)
    assert read_case(path).clicks == ((B, A), (None, C))


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ([["fg", "fg"], ["fg", "fg"]], "a row for each of 1 classes, got 2"),
        ([["fg", "bg"]], "list the 2 fg and 0 bg clicks"),
        ([["fg", "fg", "x"]], "list the 2 fg and 0 bg clicks"),
        ([1, 2], "a row for each of 1 classes, got 2"),
        ([3], "list the 2 fg and 0 bg clicks"),
    ],
)
def test_an_order_that_does_not_fit_is_explained(order: list[Any], message: str, path: Path) -> None:
    official(path, clicks=[{"fg": [[0, 0, 0], [2, 2, 2]], "bg": []}], clicks_order=order)
    with pytest.raises(ValueError, match=message):
        read_case(path)


@pytest.mark.parametrize(
    ("dtype", "highest", "stored"),
    [("int64", 3, "uint8"), ("float32", 3, "uint8"), ("bool", 1, "uint8"), ("i4", 300, "uint16")],
)
def test_segs(dtype: str, highest: int, stored: str, path: Path) -> None:
    segs = np.zeros((4, 5, 6), dtype)
    segs[1, 2, 3] = highest
    write_segs(path, segs)
    with np.load(path) as theirs:
        assert list(theirs) == ["segs"]
        assert theirs["segs"].dtype == stored
        np.testing.assert_array_equal(theirs["segs"], segs)
    np.testing.assert_array_equal(read_labels(path, "segs"), segs)


def test_the_truth_kept_apart(path: Path) -> None:
    np.savez_compressed(path, gts=TRUTH.astype(np.int16), spacing=np.ones(3))
    np.testing.assert_array_equal(read_labels(path), TRUTH)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"imgs": None}, "the key 'imgs' is missing; the file has: spacing"),
        ({"spacing": None}, "the key 'spacing' is missing; the file has: imgs"),
        ({"imgs": IMAGE + 0.5}, r"imgs must be 3D \(K, J, I\) uint8, got .* float64; clip, scale and round"),
        ({"imgs": IMAGE.astype(np.int16) - 1}, "uint8, got .* int16"),
        ({"imgs": IMAGE.astype(np.int64) + 256}, "uint8, got .* int64"),
        ({"imgs": np.full(IMAGE.shape, np.nan)}, "uint8, got .* float64"),
        ({"imgs": IMAGE.astype(complex)}, "uint8, got .* complex128"),
        ({"imgs": IMAGE[0]}, r"imgs must be 3D .* \(5, 6\)"),
        ({"imgs": IMAGE[None]}, "imgs must be 3D"),
        ({"imgs": IMAGE[:0]}, "imgs must be 3D"),
        ({"imgs": objects(1, 2)}, "imgs must hold numbers"),
        ({"spacing": np.ones(2)}, "spacing must be three numbers"),
        ({"spacing": np.array(["1", "2", "3"])}, "spacing must be three numbers"),
        ({"spacing": np.array([1, 0, 1])}, "three positive numbers"),
        ({"spacing": np.array([1, np.nan, 1])}, "three positive numbers"),
        ({"gts": TRUTH[:2]}, "gts must have the shape of imgs"),
        ({"gts": TRUTH - 1.5}, "gts must hold"),
        ({"gts": TRUTH + 0.5}, "gts must hold whole numbers"),
        ({"gts": np.full((4, 5, 6), np.nan)}, "gts must hold labels"),
        ({"prev_pred": TRUTH[:, :2]}, "prev_pred must have the shape"),
        ({"clicks": np.zeros(3)}, "clicks must be an object array"),
        ({"clicks": objects([1, 2, 3])}, "clicks must be dicts with lists fg and bg"),
        ({"clicks": [{"fg": []}]}, "clicks must be dicts with lists fg and bg"),
        ({"clicks": [{"fg": [[1, 2]], "bg": []}]}, "three array indices"),
        ({"clicks": [{"fg": [[1, 2, 3.5]], "bg": []}]}, "whole numbers, got 3.5"),
        ({"clicks": [{"fg": [[1, 2, "3"]], "bg": []}]}, "whole numbers, got '3'"),
        ({"clicks": [{"fg": [[1, 2, float("nan")]], "bg": []}]}, "whole numbers, got nan"),
        ({"clicks": [{"fg": [[4, 0, 0]], "bg": []}]}, r"clicks: voxel .* is outside the image"),
        ({"clicks": [{"fg": [[10**30, 0, 0]], "bg": []}]}, "outside the image"),
        ({"boxes": [{"z_min": 1}]}, "boxes must be dicts with z_min"),
        ({"boxes": [{**BOX, "z_mid_x_min": 6, "z_mid_x_max": 9}]}, "boxes: voxel .* is outside the image"),
        ({"boxes": [{**BOX, "z_min": -3, "z_max": -1, "z_mid": -2}]}, "boxes: voxel .* is outside the image"),
        ({"boxes": [{**BOX, "z_mid_y_max": 0}]}, "lowest to its highest"),
        ({"boxes": [BOX], "clicks": [CLICKS, CLICKS]}, "same classes, got 1 and 2"),
    ],
)
def test_wrong_content_is_explained(arrays: dict[str, Any], message: str, path: Path) -> None:
    official(path, **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        read_case(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_truncated_files_are_noticed(keep: float, path: Path) -> None:
    content = official(path, gts=TRUTH, clicks=[CLICKS]).read_bytes()
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ValueError, match="empty, truncated or damaged"):
        read_case(path)


def test_files_that_are_no_archive(path: Path, tmp_path: Path) -> None:
    path.write_text("not an archive")
    with pytest.raises(ValueError, match=r"not a readable \.npz"):
        read_case(path)
    with pytest.raises(FileNotFoundError):
        read_case(tmp_path / "none.npz")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("imgs.npy", "not an array")
    with pytest.raises(ValueError, match=r"CT_Liver_001\.npz: "):
        read_case(path)


def test_damaged_bytes_never_escape_as_other_errors(path: Path, rng: np.random.Generator) -> None:
    """A thousand flipped bytes: the case is read (a flip nobody uses) or a ValueError names the file."""
    write_case(path, Case("x", IMAGE, (1, 1, 1), TRUTH, (Box((0, 0, 0), (1, 1, 1)),), (WRITTEN,)))
    content = np.frombuffer(path.read_bytes(), np.uint8)
    messages = []
    for position in rng.integers(0, content.size, 1000):
        damaged = content.copy()
        damaged[position] ^= rng.integers(1, 256)
        path.write_bytes(damaged.tobytes())
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # NumPy's, about headers written by Python 2
                read_case(path)
        except ValueError as error:
            messages.append(str(error))
    assert len(messages) > 500
    assert all(message.startswith(f"{path}: ") for message in messages)


def put_raw(path: Path, key: str, header: dict[str, Any], data: bytes) -> None:
    """Replaces an array by bytes of our own behind a header of our own."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile's, about a name that is there already
        archive.writestr(f"{key}.npy", stream.getvalue() + data)


OBJECT_HEADER = {"descr": "|O", "fortran_order": False, "shape": (1,)}


class Malicious:
    """Unpickled the usual way, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("protocol", [2, 3, 4])
@pytest.mark.parametrize("key", ["clicks", "boxes"])
def test_a_hostile_pickle_is_not_run(key: str, protocol: int, path: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    payload = pickle.dumps(objects({"fg": [Malicious(witness)], "bg": []}), protocol=protocol)
    pickle.loads(payload)
    assert witness.exists(), "the payload must work, or this test shows nothing"
    witness.unlink()

    official(path)
    put_raw(path, key, OBJECT_HEADER, payload)
    with pytest.raises(ValueError, match=r"is not plain data; nothing of it was run|damaged"):
        read_case(path)
    assert not witness.exists()


@pytest.mark.parametrize(
    "payload",
    [
        b"cos\nsystem\n(S'exit 1'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'/etc/passwd'\ntR.",
        b"cnumpy\nndarray.__reduce__\n.",
        b"cGSMedSegLib.plain_pickle\npickle\n.",
        b"\x80\x04\x95" + b"\xff" * 8 + b".",
        b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f.",
        b"]r\xff\xff\xff\x7f.",  # a memo slot of 16 GB
        b"]p99999999999\n.",
        b"N.",
        b"]K\x01a.",
        b"",
    ],
)
def test_forged_pickles_are_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"plain data|damaged|not an object array"):
        load_plain(payload)


def forged_array(dtype_code: str, dtype_state: Any, shape: tuple[int, ...], data: Any) -> bytes:
    """What NumPy writes for an array, with parts of our choice."""

    class Dtype:
        def __reduce__(self) -> tuple[Any, ...]:
            return (np.dtype, (dtype_code, False, True), dtype_state)

    class Array:
        def __reduce__(self) -> tuple[Any, ...]:
            make, arguments, _ = np.zeros(1).__reduce__()
            return (make, arguments, (1, shape, Dtype(), False, data))

    return pickle.dumps(Array(), protocol=4)


ORDER = (3, "<", None, None, None, -1, -1, 0)


def test_forged_arrays_are_refused() -> None:
    """Real NumPy would take the bytes of some of these for pointers."""
    assert load_plain(forged_array("i4", ORDER, (2,), b"\1\0\0\0\2\0\0\0")) == [1, 2]
    for code, state, shape, data in [
        ("O8", ORDER, (1,), b"\1" * 8),
        ("O8", ORDER, (2,), [1]),
        ("V8", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27), (1,), b"\1" * 8),
        ("i4", (3, "|", None, ("a",), {"a": (np.dtype("O"), 0)}, 8, 1, 27), (1,), b"\1" * 8),
        ("i4", (3, "!", None, None, None, -1, -1, 0), (1,), b"\1" * 4),
        ("i4", ORDER, (10**12,), b"\1" * 4),
        ("i4", ORDER, (1,), b"\1" * 3),
        ("i4", ORDER, (1,), [1]),
        ("i4", 7, (1,), b"\1" * 4),
    ]:
        with pytest.raises(ValueError, match=r"damaged|plain data"):
            load_plain(forged_array(code, state, shape, data))


@pytest.mark.parametrize("key", ["imgs", "gts"])
def test_a_header_cannot_promise_more_than_there_is(key: str, path: Path) -> None:
    """Nothing is allocated for the terabyte that the header speaks of."""
    official(path)
    put_raw(path, key, {"descr": "|u1", "fortran_order": False, "shape": (10**4, 10**4, 10**4)}, b"12")
    with pytest.raises(ValueError, match=f"{key} is damaged: its header promises"):
        read_case(path)


def test_a_zip_bomb_is_refused_before_it_is_unpacked(path: Path) -> None:
    """64 MB of zeros are 64 kB in the file."""
    official(path, gts=np.zeros((64, 1024, 1024), np.uint8))
    assert path.stat().st_size < 200_000
    with pytest.raises(ValueError, match=r"unpacks to more than 0\.05 GB"):
        read_case(path, max_gb=0.05)
    with pytest.raises(ValueError, match="unpacks to more than"):
        read_labels(path, max_gb=0.05)
    with pytest.raises(ValueError, match="gts must have the shape of imgs"):
        read_case(path)


def test_prompts_are_small(path: Path) -> None:
    official(path)
    put_raw(path, "clicks", OBJECT_HEADER, bytes(1 << 25))
    with pytest.raises(ValueError, match="more than prompts need"):
        read_case(path)


@pytest.mark.parametrize(
    "write",
    [lambda path: write_segs(path, TRUTH), lambda path: write_case(path, Case("x", IMAGE, (1, 1, 1)))],
)
def test_a_full_disk_leaves_the_old_file(write: Any, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(b"old")

    def write_half(stream: Any, array: NDArray[Any], allow_pickle: bool) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(npz.npy_format, "write_array", write_half)
    with pytest.raises(OSError, match="No space left"):
        write(path)
    assert path.read_bytes() == b"old"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("segs", [np.zeros((3, 4)), np.full((2, 2, 2), -1), np.full((2, 2, 2), 0.5)])
def test_what_is_no_label_map_is_not_written(segs: NDArray[Any], path: Path) -> None:
    with pytest.raises(ValueError, match="segs must"):
        write_segs(path, segs)
    assert not path.exists()


def test_real_cases_survive(data_dir: Path, path: Path) -> None:
    """A real truth, written as a case and read again."""
    from GSMedSegLib.volume_io import read_labelmap

    truth = read_labelmap(data_dir / "dev/sct_spinalcord/t2/label.nii.gz")
    image = (truth.array * 40).astype(np.uint8)
    write_case(path, Case("t2", image, truth.spacing_kji_mm, truth.array))
    again = read_case(path)
    np.testing.assert_array_equal(again.truth, truth.array)
    assert again.spacing_mm == truth.spacing_kji_mm
