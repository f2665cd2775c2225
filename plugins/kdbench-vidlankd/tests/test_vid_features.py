"""Folders of video features: their values, and every way in which a clip may be at fault."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vid_folder import VOCABULARY, WIDTH, howto100m, one, ramp, said, save, write, write_captions

from kdbench.errors import KdbenchError
from kdbench_vidlankd import features
from kdbench_vidlankd.features import TASKS, Clips, find_features
from kdbench_vidlankd.texts import glue_task


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


# features


@pytest.mark.parametrize("seconds", [1, 2, 7, 8, 391])
def test_a_ramp_stays_a_ramp(seconds: int, folder: Path) -> None:
    found = one(folder, seconds, moving=-(-3 * seconds // 2)).read("aa")
    assert found.shape == (seconds, 2 * WIDTH)
    assert found.dtype == np.float32
    times = np.arange(seconds) + 0.5
    for column in (0, WIDTH - 1, WIDTH, 2 * WIDTH - 1):
        np.testing.assert_allclose(found[:, column], times, rtol=1e-6)


def test_rows_between_two_are_taken_in_proportion(folder: Path) -> None:
    clips = one(folder, 2)
    rows = np.stack([np.full(WIDTH, value, np.float32) for value in (1, 2, 4)])
    save(folder, "3d", "aa", rows)
    # The middles of the seconds, .5 and 1.5, are at 1/4 and 7/4 of the rows.
    assert clips.read("aa")[:, WIDTH].tolist() == [1.25, 3.5]


def test_streams_stand_side_by_side_and_keep_their_columns(folder: Path) -> None:
    clips = one(folder, 2)
    numbers = np.arange(2 * WIDTH, dtype=np.float32).reshape(2, WIDTH) + 1
    save(folder, "2d", "aa", numbers)
    save(folder, "3d", "aa", -np.repeat(numbers[:1], 3, axis=0))
    assert np.array_equal(clips.read("aa"), np.concatenate([numbers, -np.repeat(numbers[:1], 2, axis=0)], axis=1))


@pytest.mark.parametrize("moving", [10, 11, 12, 13, 14])
def test_lengths_may_miss_by_two_rows(moving: int, folder: Path) -> None:
    clips = one(folder, 8, moving)
    clips.check()
    # A second beyond the last row has the last row.
    assert clips.read("aa")[-1, WIDTH] == pytest.approx(min(7.5, (moving - 0.5) / 1.5))


@pytest.mark.parametrize(("start", "stop"), [(0, 8), (0, 1), (3, 6), (7, 8), (5, None)])
def test_a_part_is_the_same_as_the_part_of_the_whole(start: int, stop: int | None, folder: Path) -> None:
    clips = one(folder)
    assert np.array_equal(clips.read("aa", start, stop), clips.read("aa")[start:stop])


def test_a_part_is_read_without_the_rest(folder: Path) -> None:
    clips = one(folder)
    for stream, rows in (("2d", ramp(8, 1)), ("3d", ramp(12, 1.5))):
        rows[-1] = np.nan
        save(folder, stream, "aa", rows)
    assert np.isfinite(clips.read("aa", 0, 6)).all()
    with pytest.raises(KdbenchError, match="row 11 of the 3D"):
        clips.read("aa", 6)


def test_half_precision_is_read_as_single(folder: Path) -> None:
    clips = one(folder)
    for stream, rows in (("2d", ramp(8, 1)), ("3d", ramp(12, 1.5))):
        save(folder, stream, "aa", rows.astype(np.float16))
    found = clips.read("aa")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:, WIDTH], np.arange(8) + 0.5, rtol=1e-3)


@pytest.mark.parametrize(
    ("stream", "value", "fault"),
    [
        ("2d", np.nan, "row 3 of the 2D features of 'aa' is not finite"),
        ("2d", np.inf, "row 3 of the 2D features of 'aa' is not finite"),
        ("3d", -np.inf, "row 3 of the 3D features of 'aa' is not finite"),
        ("2d", 0, "row 3 of the 2D features of 'aa' is all zeros, which stands for missing features"),
        ("3d", 0, "row 3 of the 3D features of 'aa' is all zeros"),
    ],
)
def test_missing_numbers_are_never_taken_for_zeros(stream: str, value: float, fault: str, folder: Path) -> None:
    clips = one(folder)
    rows = ramp(8, 1) if stream == "2d" else ramp(12, 1.5)
    rows[3, :] = value
    path = save(folder, stream, "aa", rows)
    with pytest.raises(KdbenchError, match=fault) as caught:
        clips.read("aa")
    assert caught.value.where == str(path)
    assert caught.value.cure is not None
    assert "take the clip out" in caught.value.cure
    # One number that is not finite is as bad, one zero is fine.
    rows[3, 1:] = 1
    save(folder, stream, "aa", rows)
    if value == 0:
        assert clips.read("aa").shape == (8, 2 * WIDTH)
    else:
        with pytest.raises(KdbenchError, match=fault):
            clips.read("aa")


@pytest.mark.parametrize(
    ("stream", "rows", "fault"),
    [
        (
            "2d",
            np.ones((8, 512), np.float32),
            r"the 2D features of 'aa' have the shape \[8, 512\], and not \[rows, 2048",
        ),
        ("3d", np.ones(12 * WIDTH, np.float32), r"the 3D features of 'aa' have the shape \[24576\]"),
        ("2d", np.ones((0, WIDTH), np.float32), r"the 2D features of 'aa' have the shape \[0, 2048\]"),
        ("2d", np.ones((8, WIDTH), np.int64), "the 2D features of 'aa' are no floating-point numbers but int64"),
        ("3d", np.ones((9, WIDTH), np.float32), "'aa' has 8 rows of 2D and 9 of 3D features, which are not 1 to 1.5"),
        ("3d", np.ones((15, WIDTH), np.float32), "'aa' has 8 rows of 2D and 15 of 3D features"),
        ("2d", np.array([{"a": 1}]), "the 2D features of 'aa' are no array file"),
    ],
)
def test_files_that_do_not_fit_are_found_without_reading_numbers(
    stream: str, rows: np.ndarray[Any, Any], fault: str, folder: Path
) -> None:
    clips = one(folder)
    path = save(folder, stream, "aa", rows)
    for use in (clips.check, lambda: clips.read("aa")):
        with pytest.raises(KdbenchError, match=fault) as caught:
            use()
        assert caught.value.where == str(folder / "features" / ("3d" if "rows of 2D" in fault else stream) / path.name)


@pytest.mark.parametrize("content", [b"", b"no array", None])
def test_a_file_that_is_none_is_named(content: bytes | None, folder: Path) -> None:
    clips = one(folder)
    path = folder / "features/3d/aa.npy"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(KdbenchError, match="the 3D features of 'aa'"):
        clips.read("aa")


def test_a_truncated_file_is_named(folder: Path) -> None:
    clips = one(folder)
    path = folder / "features/2d/aa.npy"
    path.write_bytes(path.read_bytes()[:-WIDTH])
    with pytest.raises(KdbenchError, match="the 2D features of 'aa' are no array file"):
        clips.check()


@pytest.mark.parametrize(("start", "stop"), [(-1, 3), (3, 3), (4, 2), (0, 9), (8, None)])
def test_seconds_that_are_not_there_are_refused(start: int, stop: int | None, folder: Path) -> None:
    with pytest.raises(KdbenchError, match=f"'aa' has no seconds {start} to {stop or 8}: it has 8"):
        one(folder).read("aa", start, stop)


def test_a_clip_that_is_not_there_is_named(folder: Path) -> None:
    clips = one(folder)
    for use in (clips.read, clips.captions, clips.span, clips.seconds):
        with pytest.raises(KdbenchError, match="there is no clip 'bb'"):
            use("bb")


# clips with and without


def test_clips_are_listed_in_order(folder: Path) -> None:
    howto100m(folder)
    (folder / "features/2d/._aa.npy").write_bytes(b"a file manager's own")
    clips = Clips(folder)
    assert clips.videos == ("aa", "bb")
    assert [clips.seconds(video) for video in clips.videos] == [8, 5]


@pytest.mark.parametrize(("stream", "name"), [("2d", "2D"), ("3d", "3D")])
def test_captions_without_features_and_features_without_captions(stream: str, name: str, folder: Path) -> None:
    howto100m(folder)
    path = folder / f"features/{stream}/bb.npy"
    shutil.copy(path, path.with_name("cc.npy"))
    with pytest.raises(KdbenchError, match=f"the clip 'cc' has {name} features and no captions"):
        Clips(folder)
    path.with_name("cc.npy").unlink()
    path.unlink()
    with pytest.raises(KdbenchError, match=f"the clip 'bb' has captions and no {name} features") as caught:
        Clips(folder)
    assert caught.value.where == str(path)


def test_a_folder_without_streams_or_clips_is_named(folder: Path) -> None:
    howto100m(folder)
    shutil.rmtree(folder / "features/3d")
    with pytest.raises(KdbenchError, match="lacks features/3d"):
        Clips(folder)
    (folder / "features/3d").mkdir()
    shutil.rmtree(folder / "features/2d")
    (folder / "features/2d").mkdir()
    write_captions(folder, {})
    with pytest.raises(KdbenchError, match="no clip has captions"):
        Clips(folder)


# where it lies


def test_a_whole_folder_is_found_and_checked(tmp_path: Path, folder: Path) -> None:
    howto100m(folder)
    seen: list[tuple[str, int, int]] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append((what, done, total))

    found = find_features(folder, tmp_path / "cache", progress)
    assert found.folder == folder
    assert "2 clips" in found.note
    assert seen == [("checking clips", 1, 2), ("checking clips", 2, 2)]
    assert {name: len(glue_task(found.folder / "glue", name).dev) for name in TASKS} == dict.fromkeys(TASKS, 1)
    inside = shutil.copytree(folder, tmp_path / "parent" / "howto100m")
    assert find_features(inside.parent, tmp_path / "cache", None) == found._replace(folder=inside)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"vocab.txt": "\n".join(reversed(VOCABULARY))}, id="vocabulary of the same size"),
        pytest.param({"glue/SST-2/dev.tsv": "sentence\tlabel\nthe mat\t1\n"}, id="another label"),
        pytest.param({"text/train.txt": "the cat sat on .\n"}, id="longer text"),
    ],
)
def test_another_file_has_another_fingerprint(change: dict[str, str], tmp_path: Path, folder: Path) -> None:
    before = find_features(howto100m(folder), tmp_path / "cache", None).fingerprint
    assert find_features(write(folder, change), tmp_path / "cache", None).fingerprint != before


def test_captions_count_by_content_and_features_by_name_and_size(tmp_path: Path, folder: Path) -> None:
    def fingerprint() -> str:
        return find_features(folder, tmp_path / "cache", None).fingerprint

    howto100m(folder)
    first = fingerprint()
    rows = ramp(8, 1)
    rows[7] = np.nan  # nobody reads the numbers of all clips to begin with
    save(folder, "2d", "aa", rows)
    assert fingerprint() == first
    save(folder, "2d", "aa", ramp(9, 1))
    assert fingerprint() != first
    save(folder, "2d", "aa", ramp(8, 1))
    captions = {"aa": said((0, 3.5, "the cat sat"), (3, 7, "on a mat")), "bb": said((1.5, 4, "a cat on the bat"))}
    write_captions(folder, captions)
    assert fingerprint() != first


@pytest.mark.parametrize("name", features._files())
def test_a_missing_file_is_named(name: str, tmp_path: Path, folder: Path) -> None:
    (howto100m(folder) / name).unlink()
    with pytest.raises(KdbenchError) as caught:
        find_features(folder, tmp_path / "cache", None)
    assert name in str(caught.value)
    assert caught.value.cure is not None


def test_a_faulty_clip_is_found_before_any_stage(tmp_path: Path, folder: Path) -> None:
    howto100m(folder)
    save(folder, "3d", "bb", ramp(12, 1.5))
    with pytest.raises(KdbenchError, match="'bb' has 5 rows of 2D and 12 of 3D"):
        find_features(folder, tmp_path / "cache", None)


def test_nothing_given_and_nowhere_are_answered(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="never downloaded; give the folder with --data-dir"):
        find_features(None, tmp_path, None)
    with pytest.raises(KdbenchError, match="does not exist"):
        find_features(tmp_path / "nowhere", tmp_path, None)
    with pytest.raises(KdbenchError, match=r"not in the data folder.*howto100m/"):
        find_features(tmp_path, tmp_path, None)
