"""What the stages read: blocks of text, words with ids, and captioned clips with their negatives."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from vid_folder import TEXTS, clip, howto100m, real_archive, said, write, write_captions

from kdbench.errors import KdbenchError, StageError

pytest.importorskip("tokenizers", reason="needs kdbench-vidlankd[bert]")

from kdbench_vidlankd import datasets, grammar, texts
from kdbench_vidlankd.corpus import NEGATIVES, Corpus, FolderFootage, WorldFootage, corpus
from kdbench_vidlankd.wordpiece import SPECIALS, encode
from kdbench_vidlankd.world import ATTRIBUTES, FRAMES, NOUNS, TRAIN_CLIPS, WIDTH, World

LENGTH = 16


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """World 1 of ``unspoken``."""
    return Corpus(datasets.locate_world(None, tmp_path_factory.mktemp("none"), None), 1)


def unbroken(blocks: torch.Tensor) -> list[int]:
    """The running text that blocks were cut from."""
    return [int(token) for token in blocks[:, 1:-1].flatten()]


def starts_with(found: Corpus, blocks: torch.Tensor, lines: list[str]) -> bool:
    whole = encode(found.tokenizer, lines).tolist()
    cut = unbroken(blocks)
    return cut == whole[: len(cut)] and len(whole) - len(cut) < blocks.shape[1] - 2


# unspoken: text


def test_text_is_the_worlds_in_blocks(made: Corpus) -> None:
    world = World(1)
    text, held = made.text(LENGTH), made.held_text(LENGTH)
    assert text.dtype == held.dtype == torch.int64
    assert text.shape[1] == held.shape[1] == LENGTH
    for blocks in (text, held):
        assert set(blocks[:, 0].tolist()) == {made.specials.cls}
        assert set(blocks[:, -1].tolist()) == {made.specials.sep}
    assert starts_with(made, text, world.text)
    assert starts_with(made, held, world.held_text)


def test_no_word_of_the_world_is_unknown(made: Corpus) -> None:
    known = [*SPECIALS, *grammar.words(World(1).nouns)]
    assert made.vocabulary == len(known)
    assert [made.id(word) for word in known] == list(range(len(known)))
    inner = torch.cat([made.text(LENGTH), made.held_text(LENGTH)])[:, 1:-1]
    assert not torch.isin(inner, torch.tensor(made.specials)).any()


def test_captions_are_added_behind_the_text(made: Corpus) -> None:
    plain, more = made.text(LENGTH), made.text(LENGTH, captions=True)
    assert torch.equal(more[: len(plain)], plain)
    assert starts_with(made, more[len(plain) :], World(1).captions)
    few = made.text(LENGTH, captions=True, most=3)
    assert torch.equal(few, torch.cat([plain[:3], more[len(plain) :]])), "a limit on the text is none on the captions"


def test_sentences_are_padded(made: Corpus) -> None:
    noun = World(1).nouns[0].word
    tokens, attended = made.sentences([grammar.colour(noun, "[MASK]"), "look ."], LENGTH)
    first = [made.specials.cls, *map(made.id, ("the", noun, "is", "[MASK]", ".")), made.specials.sep]
    assert tokens[0].tolist() == first + [made.specials.pad] * (LENGTH - len(first))
    assert attended.sum(1).tolist() == [7, 4]
    assert torch.equal(attended, tokens != made.specials.pad)


def test_questions_are_whole_and_have_words_to_choose_from(made: Corpus) -> None:
    world = World(1)
    for ask in (world.cloze, world.physical, world.before_after, world.faster_slower):
        choices = [ask(noun) for noun in world.nouns]
        tokens, attended = made.sentences([choice.sentence for choice in choices], LENGTH)
        assert ((tokens == made.specials.mask).sum(1) == 1).all()
        assert (tokens[:, -1] == made.specials.pad).all()
        assert attended.any()
        ids = [[made.id(word) for word in choice.words] for choice in choices]
        assert all(len(set(row)) == len(row) for row in ids)


def test_what_there_is_not_is_an_error(made: Corpus) -> None:
    with pytest.raises(StageError, match="'purple' is no entry of the vocabulary"):
        made.id("purple")
    with pytest.raises(StageError, match="'unspoken' has no task 'RTE'"):
        made.task("RTE")
    other = msgspec.structs.replace(datasets.UNSPOKEN.expected(), dataset="mnist1d")
    with pytest.raises(StageError, match="'mnist1d' has neither text nor clips"):
        Corpus(other, 0)


def test_the_worlds_task_is_acceptability(made: Corpus) -> None:
    assert made.task("acceptability") == World(1).acceptability()


def test_a_corpus_is_kept_for_the_next_stage(tmp_path: Path) -> None:
    ref = datasets.locate_world(None, tmp_path, None)
    assert corpus(ref, 5) is corpus(datasets.locate_world(None, tmp_path, None), 5)
    assert corpus(ref, 5) is not corpus(ref, 6)
    assert corpus(ref, 5).vocabulary == corpus(ref, 6).vocabulary


# unspoken: clips


@pytest.fixture(scope="module")
def footage(made: Corpus) -> WorldFootage:
    found = made.footage(LENGTH)
    assert isinstance(found, WorldFootage)
    return found


def noun_of(clips: list[int]) -> list[int]:
    return [clip // TRAIN_CLIPS for clip in clips]


@pytest.mark.parametrize("batch", [2, 32, 64])
def test_every_clip_is_once_in_the_first_half(footage: WorldFootage, batch: int) -> None:
    pairs = footage.pairs(batch, 0.5, np.random.default_rng(0))
    assert footage.count == NOUNS * TRAIN_CLIPS
    assert len(pairs) == footage.steps(batch) == footage.count // (batch // 2)
    assert all(len(first) == len(second) == batch // 2 for first, second in pairs)
    assert sorted(clip for first, _ in pairs for clip in first) == list(range(footage.count))


def test_what_does_not_fill_a_batch_is_left_to_another_epoch(footage: WorldFootage) -> None:
    batch = 2 * 700
    seen = [
        {clip for first, _ in footage.pairs(batch, 0.5, np.random.default_rng(seed)) for clip in first}
        for seed in range(2)
    ]
    assert [len(each) for each in seen] == [1_400, 1_400]
    assert seen[0] != seen[1]


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_near_negatives_differ_in_one_attribute(footage: WorldFootage, share: float) -> None:
    nouns = World(1).nouns
    differing: Counter[tuple[str, ...]] = Counter()
    for first, second in footage.pairs(64, share, np.random.default_rng(0)):
        for one, other in zip(noun_of(first), noun_of(second), strict=True):
            differing[
                tuple(name for name in ATTRIBUTES if getattr(nouns[one], name) != getattr(nouns[other], name))
            ] += 1
    near = sum(count for names, count in differing.items() if len(names) == 1)
    # Of all other clips few are near by chance: so many in a world.
    by_chance = np.mean(
        [
            sum(getattr(one, name) != getattr(other, name) for name in ATTRIBUTES) == 1
            for one in nouns
            for other in nouns
        ]
    )
    expected = share + (1 - share) * by_chance
    deviation = (expected * (1 - expected) / footage.count) ** 0.5
    assert abs(near / footage.count - expected) <= 4 * deviation
    if share == 1.0:
        for name in ATTRIBUTES:
            wanted = NEGATIVES.count(name) / len(NEGATIVES)
            deviation = (wanted * (1 - wanted) / footage.count) ** 0.5
            assert wanted > 0
            assert abs(differing[name,] / footage.count - wanted) < 4 * deviation


def test_motion_is_in_most_near_negatives() -> None:
    """Else a teacher could do without it: what is seen in a frame tells most clips apart."""
    assert set(NEGATIVES) == set(ATTRIBUTES)
    assert sum(name in ("order", "pace") for name in NEGATIVES) >= len(NEGATIVES) / 2


def test_pairs_are_those_of_their_generator(footage: WorldFootage) -> None:
    one, again, other = (footage.pairs(32, 0.5, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_captions_and_clips_are_read_by_number(footage: WorldFootage, made: Corpus) -> None:
    world = World(1)
    captions, clips = [0, 30, 7], [5, 100, 7]
    found = footage.read(captions, clips, None)
    assert found.frames.shape == (3, FRAMES, WIDTH)
    assert np.array_equal(found.frames.numpy(), world.train_clips[clips])
    assert found.shown.all()
    assert found.shown.shape == (3, FRAMES)
    expected, attended = made.sentences([world.captions[number] for number in captions], LENGTH)
    assert torch.equal(found.tokens, expected)
    assert torch.equal(found.attended, attended)
    # A block of this length has room for a whole caption now and then; of one noun there is no other.
    own = {made.id(noun.word): noun.number for noun in world.nouns}
    told = [{own[int(token)] for token in row if int(token) in own} for row in found.tokens]
    assert told == [{number} for number in noun_of(captions)]


# unspoken-text


@pytest.fixture
def text_folder(tmp_path: Path) -> Path:
    return write(tmp_path / "data", TEXTS)


def test_real_text_and_the_worlds_share_no_block(text_folder: Path, tmp_path: Path) -> None:
    found = Corpus(datasets.locate_texts(text_folder, tmp_path / "cache", None), 1)
    assert found.world is not None
    real = texts.wikitext(text_folder, "train")
    blocks = found.text(5)
    own = len(encode(found.tokenizer, found.world.text)) // 3
    assert starts_with(found, blocks[:own], found.world.text)
    assert starts_with(found, blocks[own:], real)
    # Held out is real text alone: that of the world is easy.
    assert starts_with(found, found.held_text(5), texts.wikitext(text_folder, "test"))
    more = found.text(5, captions=True)
    assert torch.equal(more[: len(blocks)], blocks)
    assert starts_with(found, more[len(blocks) :], found.world.captions)


def test_tasks_are_those_of_the_folder_and_the_world(text_folder: Path, tmp_path: Path) -> None:
    found = Corpus(datasets.locate_texts(text_folder, tmp_path / "cache", None), 0)
    assert found.world is not None
    assert found.task("acceptability") == found.world.acceptability()
    for name in ("CoLA", "SST-2", "RTE"):
        assert found.task(name) == texts.text_task(text_folder, name)
    with pytest.raises(KdbenchError, match="MNLI"):
        found.task("MNLI")


@pytest.mark.parametrize("form", ["{}", "{},", "({}", "A-{}!", "{}\u2019s"])
@pytest.mark.parametrize("file", ["wikitext2/test.txt", "cola/train.tsv", "rte/test.tsv"])
def test_a_word_of_real_text_names_no_thing(form: str, file: str, text_folder: Path, tmp_path: Path) -> None:
    word = World(0).nouns[0].word
    accented = word.replace("a", "\u00e1").replace("o", "\u00f3").capitalize()
    there = form.format(accented)
    line = {"wikitext2/test.txt": f" The {there} sat . \n", "cola/train.tsv": f"the {there} sat\t1\n"}
    line["rte/test.tsv"] = f"7\tA mat.\tThe {there} sat.\tentailment\n"
    write(text_folder, {file: TEXTS[file] + line[file]})
    found = Corpus(datasets.locate_texts(text_folder, tmp_path / "cache", None), 0)
    assert found.world is not None
    assert word not in {noun.word for noun in found.world.nouns}
    assert len(found.world.nouns) == NOUNS


def test_in_the_real_text_nouns_are_single_words_that_it_does_not_have(tmp_path: Path) -> None:
    found = Corpus(datasets.locate_texts(real_archive(), tmp_path, None), 0)
    assert found.world is not None
    assert found.vocabulary == 30_522 + NOUNS
    assert [found.id(noun.word) for noun in found.world.nouns] == list(range(30_522, found.vocabulary))
    assert found.specials == (0, 100, 101, 102, 103)
    for noun in found.world.nouns[::7]:
        assert encode(found.tokenizer, [f"The {noun.word}, {noun.word}s"]).tolist()[1] == found.id(noun.word)
    lines = [line for split in texts.WIKITEXT for line in texts.wikitext(found.folder, split)]
    for name in texts.TEXT_TASKS:
        task = found.task(name)
        lines += [part for example in (*task.train, *task.dev) for part in example[:2] if part]
    ids = encode(found.tokenizer, lines)
    assert len(ids) > 500_000
    assert ids.max() < 30_522
    # The world's sentences are read too, and words that are to be chosen from are whole.
    assert not (encode(found.tokenizer, found.world.text) == found.specials.unknown).any()
    choices = (*grammar.COLOURS, *grammar.ORDERS, *grammar.PACES, *grammar.CARRIERS)
    assert [len(encode(found.tokenizer, [word])) for word in choices] == [1] * len(choices)
    assert max(found.id(word) for word in choices) < 30_522


# howto100m


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return howto100m(tmp_path / "data")


def located(folder: Path, tmp_path: Path) -> Corpus:
    return Corpus(datasets.locate_features(folder, tmp_path / "cache", None), 0)


def test_text_of_a_folder(folder: Path, tmp_path: Path) -> None:
    found = located(folder, tmp_path)
    assert found.world is None
    assert starts_with(found, found.text(6), ["the cat sat ."])
    assert starts_with(found, found.held_text(5), ["a mat ."])
    spoken = ["the cat sat", "on a mat", "a cat on the mat"]
    assert starts_with(found, found.text(6, captions=True)[1:], spoken)
    assert found.task("QNLI") == texts.glue_task(folder / "glue", "QNLI")
    with pytest.raises(KdbenchError, match="acceptability"):
        found.task("acceptability")


def test_shorter_clips_are_padded(folder: Path, tmp_path: Path) -> None:
    found = located(folder, tmp_path)
    footage = found.footage(10)
    assert isinstance(footage, FolderFootage)
    assert footage.count == 2
    both = footage.read([0, 1], [0, 1], None)
    # Captions run over the seconds 0 to 7 of the first clip, and 1 to 4 of the second; rows are times.
    assert both.frames.shape == (2, 7, 4_096)
    assert both.shown.sum(1).tolist() == [7, 3]
    assert both.frames[0, :, 0].tolist() == [0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 6.5]
    assert both.frames[1, :, 0].tolist() == [1.5, 2.5, 3.5, 0, 0, 0, 0]
    torch.testing.assert_close(both.frames[..., 4_095], both.frames[..., 0])
    assert not both.frames[~both.shown].any()
    tokens, attended = found.sentences(["the cat sat . on a mat", "a cat on the mat"], 10)
    assert torch.equal(both.tokens, tokens)
    assert torch.equal(both.attended, attended)


def test_captions_may_be_shown_with_other_clips(folder: Path, tmp_path: Path) -> None:
    footage = located(folder, tmp_path).footage(10)
    own, other = footage.read([0, 1], [0, 1], None), footage.read([0, 1], [1, 1], None)
    assert torch.equal(own.tokens, other.tokens)
    assert other.frames[:, :, 0].tolist() == [[1.5, 2.5, 3.5]] * 2


def many_words(folder: Path) -> Path:
    """A third clip, of 40 captions of 9 words and 5 seconds each."""
    clip(folder, "cc", 200)
    spoken = said(*((5.0 * number, 5.0 * number + 4, "the cat sat on a mat . a mat") for number in range(40)))
    captions = {"aa": said((0, 3.5, "the cat sat")), "bb": said((1.5, 4, "a cat")), "cc": spoken}
    write_captions(folder, captions)
    return folder


def test_spans_are_the_first_or_drawn(folder: Path, tmp_path: Path) -> None:
    footage = located(many_words(folder), tmp_path).footage(128)
    firsts = [footage.read([2], [2], None) for _ in range(2)]
    assert torch.equal(firsts[0].frames, firsts[1].frames)
    assert firsts[0].frames[0, 0, 0] == 0.5
    starts = set()
    for seed in range(12):
        drawn = footage.read([2], [2], np.random.default_rng(seed))
        again = footage.read([2], [2], np.random.default_rng(seed))
        assert torch.equal(drawn.frames, again.frames)
        starts.add(float(drawn.frames[0, 0, 0]))
        # 14 captions have 126 words, and the last of them lasts 4 seconds.
        assert drawn.frames.shape[1] == 13 * 5 + 4
    assert len(starts) > 5
    assert all((start - 0.5) % 5 == 0 for start in starts)


@pytest.mark.parametrize("near", [0.0, 1.0])
def test_every_video_is_once_in_a_batch(near: float, folder: Path, tmp_path: Path) -> None:
    footage = located(many_words(folder), tmp_path).footage(10)
    assert footage.steps(2) == 1
    seen = set()
    for seed in range(8):
        ((first, second),) = footage.pairs(2, near, np.random.default_rng(seed))
        assert len({*first, *second}) == 2
        seen |= {*first, *second}
    assert seen == {0, 1, 2}
    assert footage.pairs(2, near, np.random.default_rng(1)) == footage.pairs(2, near, np.random.default_rng(1))
    assert footage.steps(4) == 0
    assert footage.pairs(4, near, np.random.default_rng(0)) == []
