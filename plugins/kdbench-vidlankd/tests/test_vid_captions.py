"""What is said in a clip, and the spans of words and video that are taken of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vid_folder import WIDTH, one, said

from kdbench.errors import KdbenchError
from kdbench_vidlankd.features import MOST_STEPS, WORDS, Caption, Clips


def words(count: int, start: int = 0) -> str:
    return " ".join(f"w{number}" for number in range(start, start + count))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data"


# captions


def test_captions_are_read_in_order(folder: Path) -> None:
    clips = one(folder, captions=said((0, 3.5, "the cat sat"), (3, 8.9, "on a mat")))
    assert clips.captions("aa") == [Caption(0, 3.5, "the cat sat"), Caption(3, 8.9, "on a mat")]


@pytest.mark.parametrize(
    ("captions", "fault"),
    [
        ({"start": [0], "end": [1]}, "malformed: .*missing required field `text`"),
        ({"start": ["0"], "end": [1], "text": ["the cat"]}, "malformed: Expected `float`"),
        ({"start": [0, 1], "end": [1], "text": ["the cat"]}, "have 2 starts, 1 ends and 1 texts"),
        ({"start": [0], "end": [1], "text": []}, "have 1 starts, 1 ends and 0 texts"),
        ({"start": [], "end": [], "text": []}, "have no word"),
        (said((0, 1, " "), (1, 2, "")), "have no word"),
        (said((0, 1, "the"), (3, 2, "cat")), r"caption 1 of 'aa' \(from 3 s\) ends before it starts"),
        (said((2, 3, "the"), (1, 4, "cat")), r"caption 1 of 'aa' \(from 1 s\) starts before 2 s"),
        (said((-1, 3, "the")), r"caption 0 of 'aa' \(from -1 s\) starts before 0 s"),
        (said((0, 1, "the"), (7, 9.5, "cat")), r"caption 1 of 'aa' .* lasts to 9.5 s, and its features to 8 s"),
        (said((0, 1, "the"), (8, 8.5, "cat")), r"caption 1 of 'aa' .* lasts to 8.5 s, and its features to 8 s"),
    ],
)
def test_captions_that_do_not_fit_are_found_at_once(captions: dict[str, Any], fault: str, folder: Path) -> None:
    clips = one(folder, captions=captions)
    for use in (clips.check, lambda: clips.span("aa")):
        with pytest.raises(KdbenchError, match=fault) as caught:
            use()
        assert "'aa'" in caught.value.what
        assert caught.value.where == str(folder / "captions.json")


@pytest.mark.parametrize("content", [b'{"aa": {', b"[1, 2]", b"\xff"])
def test_captions_that_are_no_json_of_clips_are_refused(content: bytes, folder: Path) -> None:
    one(folder)
    (folder / "captions.json").write_bytes(content)
    with pytest.raises(KdbenchError, match=r"no JSON of clips.*it holds {ID: "):
        Clips(folder).captions("aa")


# spans


def test_a_span_is_captions_and_the_video_they_run_over(folder: Path) -> None:
    clips = one(folder, captions=said((1.5, 3.5, "the cat sat"), (4, 5.2, "on a  mat")))
    span = clips.span("aa")
    assert span.text == "the cat sat . on a mat"
    assert span.start == 1
    assert np.array_equal(span.frames, clips.read("aa", 1, 6))


@pytest.mark.parametrize(
    ("captions", "text"),
    [
        # What both say while they overlap is said once.
        (((0, 4, "mix the eggs"), (2, 6, "the eggs with flour")), "mix the eggs . with flour"),
        (((0, 4, "mix the eggs"), (2, 6, "mix the eggs with flour")), "mix the eggs . with flour"),
        # The longest repetition counts.
        (((0, 4, "a b a b"), (2, 6, "a b a b c")), "a b a b . c"),
        # One that says nothing new is left out, and the next is compared with it.
        (((0, 4, "mix the eggs"), (2, 5, "the eggs"), (4, 7, "the eggs and salt")), "mix the eggs . and salt"),
        # One after the other, words are repeated for a reason.
        (((0, 2, "mix the eggs"), (2, 6, "the eggs with flour")), "mix the eggs . the eggs with flour"),
        # Neither inside nor in another order.
        (((0, 4, "mix the eggs now"), (2, 6, "the eggs with flour")), "mix the eggs now . the eggs with flour"),
        # Silence is no caption.
        (((0, 1, "mix"), (2, 3, " "), (3, 4, "stir")), "mix . stir"),
        (((0, 1, ""), (2, 3, "stir")), "stir"),
    ],
)
def test_overlaps_are_said_once(captions: tuple[tuple[float, float, str], ...], text: str, folder: Path) -> None:
    assert one(folder, captions=said(*captions)).span("aa").text == text


def test_captions_are_added_until_there_are_words_enough(folder: Path) -> None:
    parts = [(4 * n, 4 * n + 3, words(50, 50 * n)) for n in range(5)]
    span = one(folder, 20, captions=said(*parts)).span("aa")
    assert span.text == " . ".join(words(50, 50 * n) for n in range(3))  # 100 are too few, 150 are enough
    assert (span.start, len(span.frames)) == (0, 11)
    exact = said((0, 1, words(WORDS)), (1, 2, "more"))
    assert one(folder, 20, captions=exact).span("aa").text == words(WORDS)
    less = said((0, 1, words(WORDS - 1)), (1, 2, "more"))
    assert one(folder, 20, captions=less).span("aa").text == f"{words(WORDS - 1)} . more"


def test_repeated_words_do_not_count(folder: Path) -> None:
    parts = [(2 * n, 2 * n + 3, f"{words(50, 50 * n - 50)} {words(50, 50 * n)}") for n in range(1, 5)]
    # 100, 150 with the second: of its 100 words 50 are new.
    assert one(folder, 20, captions=said(*parts)).span("aa").text == f"{words(100)} . {words(50, 100)}"


def test_video_is_cut_at_the_most_steps_and_at_its_end(folder: Path) -> None:
    clips = one(folder, MOST_STEPS + 20, captions=said((3, 5, "the cat"), (MOST_STEPS + 10, MOST_STEPS + 15, "sat")))
    span = clips.span("aa")
    assert (span.start, span.frames.shape) == (3, (MOST_STEPS, 2 * WIDTH))
    assert span.frames[-1, 0] == pytest.approx(MOST_STEPS + 2.5)
    # Up to a second beyond the features is allowed, and cut.
    late = one(folder, 8, captions=said((7.5, 9, "the cat"))).span("aa")
    assert (late.start, len(late.frames)) == (7, 1)
    instant = one(folder, 8, captions=said((4, 4, "the cat"))).span("aa")
    assert (instant.start, len(instant.frames)) == (4, 1)


def test_random_spans_start_wherever_words_enough_follow(folder: Path) -> None:
    # 8 captions of 42 words: 126 follow from the first six on.
    parts = [(2 * n, 2 * n + 2, words(42, 42 * n)) for n in range(8)]
    clips = one(folder, 16, captions=said(*parts))
    random = np.random.default_rng(0)
    spans = [clips.span("aa", random) for _ in range(60)]
    assert {span.start for span in spans} == {0, 2, 4, 6, 8, 10}
    for span in spans:
        first = span.start // 2
        assert span.text == " . ".join(words(42, 42 * n) for n in range(first, first + 3))
        assert np.array_equal(span.frames, clips.read("aa", span.start, span.start + 6))
    again = np.random.default_rng(0)
    assert [clips.span("aa", again).start for _ in range(60)] == [span.start for span in spans]


def test_random_spans_never_start_in_silence_and_say_the_first_caption_whole(folder: Path) -> None:
    parts = [(0, 3, "a b"), (2, 4, "b " + words(WORDS)), (5, 6, " "), (6, 7, words(WORDS, 500))]
    clips = one(folder, captions=said(*parts))
    random = np.random.default_rng(0)
    spans = {span.start: span for span in (clips.span("aa", random) for _ in range(60))}
    assert sorted(spans) == [0, 2, 6]
    assert spans[2].text == f"b {words(WORDS)}"
    assert spans[0].text == f"a b . {words(WORDS)}"


def test_a_clip_of_few_words_has_one_span(folder: Path) -> None:
    clips = one(folder, captions=said((1, 2, "the cat"), (3, 4, "sat")))
    random = np.random.default_rng(0)
    assert {clips.span("aa", random).text for _ in range(10)} == {"the cat . sat"}
