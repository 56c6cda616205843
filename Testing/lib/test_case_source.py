"""Labelled cases from three kinds of folders, and the boxes that the challenge draws."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from numpy.typing import NDArray

from GSMedSegLib.case_source import (
    Reading,
    box_of,
    choose_labels,
    find_sources,
    with_boxes,
)
from GSMedSegLib.npz import Case, write_case, write_truth
from GSMedSegLib.prompts import Box, Click

LABELS = np.zeros((8, 12, 10), np.uint8)
LABELS[1:3, 2:6, 3:7] = 1
LABELS[4:7, 6:11, 1:9] = 5
IMAGE = (LABELS * 40 + np.arange(10)).astype(np.int16)


def write(path: Path, array: NDArray[np.generic], origin_x: float = 0.0) -> None:
    """Spacing 0.5, 1, 2 mm along i, j, k."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array)
    image.SetSpacing((0.5, 1.0, 2.0))
    image.SetOrigin((origin_x, 0, 0))
    sitk.WriteImage(image, str(path))


def write_pair(folder: Path, about: object = None) -> None:
    write(folder / "image.nii.gz", IMAGE)
    write(folder / "label.nii.gz", LABELS)
    if about is not None:
        (folder / "labels.json").write_text(json.dumps(about), encoding="utf-8")


def test_case_folders(tmp_path: Path) -> None:
    write_pair(tmp_path / "liver" / "p1", {"modality": "CT", "labels": {"1": "cyst", "5": "liver"}})
    write_pair(tmp_path / "liver" / "p2")
    first, second = find_sources(tmp_path)
    assert (first.name, first.modality, second.name, second.modality) == (
        "liver_p1",
        "CT",
        "liver_p2",
        "unknown",
    )
    labelled = first.load()
    assert labelled.classes == ("cyst", "liver")
    assert second.load().classes == ("1", "5")
    assert labelled.case.spacing_mm == (2.0, 1.0, 0.5)
    np.testing.assert_array_equal(labelled.case.truth, LABELS)
    assert first.nbytes == sum(f.stat().st_size for f in (tmp_path / "liver" / "p1").glob("*.nii.gz"))


def test_two_folders_side_by_side(tmp_path: Path) -> None:
    write(tmp_path / "imagesTr" / "a_0000.nii.gz", IMAGE)
    write(tmp_path / "imagesTr" / "b.nrrd", IMAGE)
    write(tmp_path / "labelsTr" / "a.nii.gz", LABELS)
    write(tmp_path / "labelsTr" / "b.mha", LABELS)
    (tmp_path / "imagesTr" / "notes.txt").write_text("no image", encoding="utf-8")
    sources = find_sources(tmp_path, modality="MRI")
    assert [(s.name, s.modality) for s in sources] == [("a", "MRI"), ("b", "MRI")]
    np.testing.assert_array_equal(sources[1].load().case.truth, LABELS)


def test_challenge_files(tmp_path: Path) -> None:
    case = Case("x", np.arange(960, dtype=np.uint32).astype(np.uint8).reshape(8, 12, 10), (2, 1, 1), LABELS)
    boxes = (Box((1, 2, 3), (2, 5, 6), 1), None)
    write_case(tmp_path / "MR_a.npz", replace(case, boxes=boxes))
    write_case(tmp_path / "US_b.npz", case)
    write_case(tmp_path / ".hidden.npz", case)
    (tmp_path / "classes.json").write_text('{"MR_a": ["cyst", "liver"]}', encoding="utf-8")
    first, second = find_sources(tmp_path)
    assert (first.name, first.modality) == ("MR_a", "MRI")
    assert (second.name, second.modality) == ("US_b", "Ultrasound")
    assert first.load().classes == ("cyst", "liver")
    assert first.load().case.boxes == boxes
    assert second.load().classes == ()
    one = find_sources(tmp_path, reading=Reading(objects=1))[0].load()
    assert one.classes == ("liver",)  # the cyst has 32 voxels, too few to be chosen
    assert one.case.boxes == (None,)
    assert one.case.truth is not None
    assert set(np.unique(one.case.truth)) == {0, 5}


def test_some_objects_come_without_the_clicks_on_all(tmp_path: Path) -> None:
    image = (LABELS * 20).astype(np.uint8)
    clicks = ((Click((1, 2, 3), True),), (Click((5, 7, 2), True),))
    boxes = (Box((1, 2, 3), (2, 5, 6), 1), Box((4, 6, 1), (6, 10, 8), 5))
    write_case(tmp_path / "CT_a.npz", Case("x", image, (1, 1, 1), LABELS, boxes, clicks, LABELS))
    whole = find_sources(tmp_path)[0].load().case
    assert (whole.clicks, whole.boxes) == (clicks, boxes)
    one = find_sources(tmp_path, reading=Reading(objects=1))[0].load().case
    assert (one.clicks, one.prev_pred, one.boxes) == (None, None, boxes[1:])


def test_the_truth_kept_apart(tmp_path: Path) -> None:
    case = Case("x", (LABELS * 20).astype(np.uint8), (1, 1, 1))
    for part in ("imgs", "gts"):
        (tmp_path / part).mkdir()
    write_case(tmp_path / "imgs" / "CT_a.npz", case)
    with pytest.raises(ValueError, match=r"gts.*does not exist"):
        find_sources(tmp_path / "imgs", truth=tmp_path / "gts")
    (lonely,) = find_sources(tmp_path / "imgs")
    with pytest.raises(ValueError, match=r"no truth .* --truth"):
        lonely.load()
    write_truth(tmp_path / "gts" / "CT_a.npz", LABELS)
    (source,) = find_sources(tmp_path / "imgs", truth=tmp_path / "gts")
    np.testing.assert_array_equal(source.load().case.truth, LABELS)


def test_grey_values(tmp_path: Path) -> None:
    """−100 to 100 on 201 values: percentiles 0.5 and 99.5 are −99 and 99; a window is taken as given."""
    image = np.repeat(np.arange(-100, 101, dtype=np.int16), 4).reshape(67, 12, 1)
    write(tmp_path / "c" / "image.mha", image)
    write(tmp_path / "c" / "label.mha", (image > 0).astype(np.uint8))
    usual = find_sources(tmp_path)[0].load().case.image.ravel()[::4]
    assert usual[:3].tolist() == [0, 0, 1]
    assert usual[-3:].tolist() == [254, 255, 255]
    assert usual[100] in (127, 128)
    window = find_sources(tmp_path, reading=Reading(window=(0, 50)))[0].load().case.image.ravel()[::4]
    assert window[:101].max() == 0
    assert window[110] == 51
    assert window[150:].min() == 255


def test_a_window_that_shows_nothing(tmp_path: Path) -> None:
    """As one in another unit: cases without anything to see would be written."""
    write_pair(tmp_path / "c")
    with pytest.raises(ValueError, match=r"image.nii.gz: the window 1000 to 2000 shows .* from 0 to 208"):
        find_sources(tmp_path, reading=Reading(window=(1000, 2000)))[0].load()


def test_a_rare_value_is_seen(tmp_path: Path) -> None:
    """Both percentiles fall on the background; the extremes are taken then."""
    image = np.zeros((10, 10, 10), np.int16)
    image[5, 5, 5] = 70
    write(tmp_path / "c" / "image.mha", image)
    write(tmp_path / "c" / "label.mha", (image > 0).astype(np.uint8))
    assert find_sources(tmp_path)[0].load().case.image[5, 5, 5] == 255


def test_labels_by_rank_of_size() -> None:
    labels = np.repeat(np.arange(1, 8, dtype=np.uint8), [99, 100, 300, 500, 200, 400, 1]).reshape(-1, 1, 1)
    assert choose_labels(labels, 9) == [2, 5, 3, 6, 4]
    assert choose_labels(labels, 3) == [2, 3, 4]
    assert choose_labels(labels, 1) == [2]


def test_the_box_is_that_of_the_middle_slice() -> None:
    """Slices 1, 2, 5 have the object: of the sorted list, number 3 // 2 is slice 2."""
    mask = np.zeros((8, 12, 10), bool)
    mask[1, 0:9, 0:9] = mask[2, 4:6, 3:8] = mask[5, 11, 9] = True
    assert box_of(mask, np.random.default_rng(0)) == Box((1, 4, 3), (5, 5, 7), 2)


def test_a_box_grows_with_the_image() -> None:
    """512 × 256 voxels: up to 10 and 5 voxels on each side, by one draw, within the image."""
    mask = np.zeros((1, 512, 256), bool)
    mask[0, 100:200, 3:50] = True
    seen = set()
    for seed in range(60):
        box = box_of(mask, np.random.default_rng(seed))
        shift = box.max_kji[2] - 49
        seen.add(shift)
        assert box == Box((0, 100 - 2 * shift, max(0, 3 - shift)), (0, 199 + 2 * shift, 49 + shift), 0)
    assert seen == {0, 1, 2, 3, 4, 5}


def test_boxes_of_a_case_are_always_the_same() -> None:
    case = Case("CT_a", np.zeros((8, 12, 10), np.uint8), (1, 1, 1), LABELS)
    again = with_boxes(case).boxes
    assert again is not None
    assert len(again) == 2
    assert with_boxes(case).boxes == again
    with pytest.raises(ValueError, match="no labels"):
        with_boxes(replace(case, truth=None))


def test_nothing_found(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no labelled case; expected \.npz"):
        find_sources(tmp_path)
    with pytest.raises(FileNotFoundError):
        find_sources(tmp_path / "missing")


def test_what_does_not_belong_together(tmp_path: Path) -> None:
    write(tmp_path / "a" / "case" / "image.nii.gz", IMAGE)
    with pytest.raises(ValueError, match="has an image but no label"):
        find_sources(tmp_path / "a")
    write(tmp_path / "b" / "images" / "x.mha", IMAGE)
    with pytest.raises(ValueError, match="no folder labels beside it"):
        find_sources(tmp_path / "b")
    write(tmp_path / "b" / "labels" / "y.mha", IMAGE)
    with pytest.raises(ValueError, match="without partner: x, y"):
        find_sources(tmp_path / "b")


def test_test_images_have_no_labels(tmp_path: Path) -> None:
    """As in the folders of nnU-Net: imagesTr with labelsTr, and imagesTs alone."""
    write(tmp_path / "imagesTr" / "a_0000.mha", IMAGE)
    write(tmp_path / "labelsTr" / "a.mha", LABELS)
    write(tmp_path / "imagesTs" / "b_0000.mha", IMAGE)
    assert [source.name for source in find_sources(tmp_path)] == ["a"]


@pytest.mark.parametrize("text", ["[]", '{"CT_a": "liver"}', '{"CT_a": [1]}', "{"])
def test_class_names_that_are_none(text: str, tmp_path: Path) -> None:
    write_case(tmp_path / "CT_a.npz", Case("x", (LABELS * 20).astype(np.uint8), (1, 1, 1), LABELS))
    (tmp_path / "classes.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"classes\.json: (not valid JSON|expected)"):
        find_sources(tmp_path)


@pytest.mark.parametrize("text", ["[]", '{"x_a": 1}', "{"])
def test_modalities_that_are_none(text: str, tmp_path: Path) -> None:
    write_case(tmp_path / "x_a.npz", Case("x", (LABELS * 20).astype(np.uint8), (1, 1, 1), LABELS))
    (tmp_path / "modalities.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"modalities\.json: (not valid JSON|expected)"):
        find_sources(tmp_path)


def test_links_lead_to_cases(tmp_path: Path) -> None:
    """To folders elsewhere, but not round and round; a case whose file is away fails when it is read."""
    write_pair(tmp_path / "archive" / "p1")
    (tmp_path / "data").mkdir()
    try:
        (tmp_path / "data" / "a").symlink_to(tmp_path / "archive" / "p1", target_is_directory=True)
        (tmp_path / "data" / "b").symlink_to(tmp_path / "data", target_is_directory=True)
        (tmp_path / "data" / "CT_c.npz").symlink_to(tmp_path / "away.npz")
    except OSError:
        pytest.skip("this user of Windows may not make links")
    assert [source.nbytes for source in find_sources(tmp_path / "data")] == [0]
    with pytest.raises(FileNotFoundError):
        find_sources(tmp_path / "data")[0].load()
    (tmp_path / "data" / "CT_c.npz").unlink()
    (source,) = find_sources(tmp_path / "data")
    assert source.name == "a"
    np.testing.assert_array_equal(source.load().case.truth, LABELS)


def test_two_files_for_one_volume(tmp_path: Path) -> None:
    """The corrected one beside the old one: nobody knows which is meant."""
    write_pair(tmp_path / "a" / "case")
    for name in ("other.mha", "other.nrrd"):  # nobody asks for these
        write(tmp_path / "a" / "case" / name, LABELS)
    assert len(find_sources(tmp_path / "a")) == 1
    write(tmp_path / "a" / "case" / "label.nrrd", LABELS)
    with pytest.raises(ValueError, match=r"label\.nii\.gz and label\.nrrd are the same volume"):
        find_sources(tmp_path / "a")
    for name in ("images/x.mha", "images/x_0000.nii.gz", "labels/x.mha"):
        write(tmp_path / "b" / name, LABELS)
    with pytest.raises(ValueError, match=r"x\.mha and x_0000\.nii\.gz are the same volume"):
        find_sources(tmp_path / "b")


def test_names_in_capitals(tmp_path: Path) -> None:
    write(tmp_path / "images" / "x.nii.gz", IMAGE)
    write(tmp_path / "labels" / "x.nii.gz", LABELS)
    (tmp_path / "images" / "x.nii.gz").rename(tmp_path / "images" / "x.NII.GZ")
    assert [source.name for source in find_sources(tmp_path)] == ["x"]


def test_the_folder_one_is_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pair(tmp_path / "p1")
    monkeypatch.chdir(tmp_path / "p1")
    assert [source.name for source in find_sources(Path())] == ["p1"]


def test_boxes_of_other_classes(tmp_path: Path) -> None:
    """Which box is whose cannot be told."""
    case = with_boxes(Case("CT_a", (LABELS * 20).astype(np.uint8), (1, 1, 1), LABELS))
    assert case.boxes is not None
    write_case(tmp_path / "CT_a.npz", replace(case, boxes=case.boxes[:1]))
    with pytest.raises(ValueError, match=r"CT_a\.npz: 1 boxes for 2 classes"):
        find_sources(tmp_path)[0].load()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_lists_that_other_programs_wrote(tmp_path: Path, encoding: str) -> None:
    write_pair(tmp_path / "Lunge_größer")
    (tmp_path / "list.txt").write_text("Lunge_größer\n", encoding=encoding)
    if encoding == "utf-16":
        with pytest.raises(ValueError, match=r"list\.txt is not text in UTF-8; save it with this encoding"):
            find_sources(tmp_path / "list.txt")
    else:
        assert [source.name for source in find_sources(tmp_path / "list.txt")] == ["Lunge_größer"]


def test_names_are_unlike(tmp_path: Path) -> None:
    write_pair(tmp_path / "a" / "b_c")
    write_pair(tmp_path / "a_b" / "c")
    with pytest.raises(ValueError, match="several cases are called a_b_c"):
        find_sources(tmp_path)


@pytest.mark.parametrize(
    ("label", "origin_x", "message"),
    [(LABELS[:7], 0.0, "has shape"), (LABELS, 0.1, "lies up to 0.1 mm off its image")],
)
def test_two_grids(label: NDArray[np.uint8], origin_x: float, message: str, tmp_path: Path) -> None:
    write(tmp_path / "c" / "image.nii.gz", IMAGE)
    write(tmp_path / "c" / "label.nii.gz", label, origin_x)
    with pytest.raises(ValueError, match=message):
        find_sources(tmp_path)[0].load()


def test_bad_content(tmp_path: Path) -> None:
    write_pair(tmp_path / "json", "not a dict")
    with pytest.raises(ValueError, match=r"labels\.json: expected"):
        find_sources(tmp_path / "json")
    (tmp_path / "json" / "labels.json").write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match="not valid JSON"):
        find_sources(tmp_path / "json")
    write(tmp_path / "flat" / "image.mha", np.full((4, 4, 4), 7, np.int16))
    write(tmp_path / "flat" / "label.mha", np.ones((4, 4, 4), np.uint8))
    with pytest.raises(ValueError, match="constant"):
        find_sources(tmp_path / "flat")[0].load()


@pytest.mark.parametrize(
    ("objects", "window"), [(0, None), (None, (3.0, 3.0)), (None, (0.0, math.inf)), (None, (-math.inf, 0.0))]
)
def test_bad_readings(objects: int | None, window: tuple[float, float] | None) -> None:
    with pytest.raises(ValueError, match=r"at least one object|from a lower to a higher"):
        Reading(objects, window)


def test_the_development_data(data_dir: Path) -> None:
    listed = json.loads((data_dir / "index.json").read_text(encoding="utf-8"))
    expected = {(e["dataset"], e["case"]): e["modality"] for e in listed if e["split"] == "dev"}
    sources = find_sources(data_dir / "dev", reading=Reading(objects=4))
    assert {s.name: s.modality for s in sources} == {"_".join(key): m for key, m in expected.items()}
    hippocampus = next(s for s in sources if s.name == "msd_hippocampus_hippocampus_001")
    assert hippocampus.load().classes == ("hippocampus_anterior", "hippocampus_posterior")
