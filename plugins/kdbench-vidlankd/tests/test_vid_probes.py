"""What is measured of a tower, on towers of which it is known what they know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor, nn
from vid_bench import Bench, untrained
from vid_folder import howto100m
from vid_planted import Planted, knowing

from kdbench.errors import StageError
from kdbench.stage import Finished, execute
from kdbench_vidlankd import pretrain, probes
from kdbench_vidlankd.corpus import Corpus, corpus
from kdbench_vidlankd.datasets import UNSPOKEN, locate_features
from kdbench_vidlankd.masking import mask
from kdbench_vidlankd.pretrain import language_of
from kdbench_vidlankd.probes import PROBES, MaskedLoss, Probe, collapse, noun_states
from kdbench_vidlankd.world import Noun

for extra in ("transformers", "tokenizers", "sklearn"):
    pytest.importorskip(extra, reason="needs kdbench-vidlankd[bert]")

BLOCK = 16
PARTS = {"spoken": 32, "development": 16, "test": 32}


@pytest.fixture(scope="module")
def bench(small_world: None, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("bench"), UNSPOKEN.expected())


@pytest.fixture(scope="module")
def found(bench: Bench) -> Corpus:
    return corpus(bench.data, 0)


@pytest.fixture(scope="module")
def network(bench: Bench) -> Finished:
    return bench.run(untrained())


def probed(bench: Bench, network: Finished, tower: nn.Module, root: Path) -> dict[str, float]:
    """What the stage measures of a tower that stands in for the network's."""
    store = Bench(root, bench.data)
    (store.store.stages / network.folder.name).symlink_to(network.folder, target_is_directory=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrain, "language_of", lambda finished, work: tower)
        return store.run(Probe(world=0, length=BLOCK), network=network).record.metrics


def test_a_tower_that_knows_all_has_100_everywhere(
    bench: Bench, found: Corpus, network: Finished, tmp_path: Path
) -> None:
    metrics = probed(bench, network, knowing(found), tmp_path)
    assert metrics.keys() == {*(f"{part}.{name}" for part in PARTS for name in PROBES), "collapse"}
    assert {name: value for name, value in metrics.items() if name != "collapse"} == {
        f"{part}.{name}": 100.0 for part in PARTS for name in PROBES
    }


def test_a_tower_of_one_state_has_exactly_chance(
    bench: Bench, found: Corpus, network: Finished, tmp_path: Path
) -> None:
    metrics = probed(bench, network, Planted(found, torch.ones(80, 6)), tmp_path)
    for part in PARTS:
        assert {name: metrics[f"{part}.{name}"] for name in PROBES} == PROBES


def test_a_tower_that_takes_before_for_after_says_the_wrong_word_and_is_probed_right(
    bench: Bench, found: Corpus, network: Finished, tmp_path: Path
) -> None:
    tower = knowing(found, lambda noun: noun._replace(order=1 - noun.order))
    metrics = probed(bench, network, tower, tmp_path)
    scores = {name: metrics[f"test.{name}"] for name in PROBES}
    # The probe is fitted on spoken nouns, which it has the wrong way round as well.
    assert scores == {**dict.fromkeys(PROBES, 100.0), "before-after": 0.0}


def test_what_is_known_of_spoken_nouns_alone_is_not_known_of_test_nouns(
    bench: Bench, found: Corpus, network: Finished, tmp_path: Path
) -> None:
    def forgotten(noun: Noun) -> Noun:
        return noun if noun.spoken else noun._replace(colour=0, size=0, order=0, pace=0)

    metrics = probed(bench, network, knowing(found, forgotten), tmp_path)
    for name, chance in PROBES.items():
        assert metrics[f"spoken.{name}"] == 100.0
        assert metrics[f"test.{name}"] == metrics[f"development.{name}"] == chance


def test_random_states_are_at_chance(found: Corpus) -> None:
    """Means over 12 towers: 32 guesses have a deviation of 7.7 points of four choices, and 8.8 of two."""
    world = found.world
    assert world is not None
    parts = {name: world.part(name) for name in ("spoken", "test")}  # type: ignore[arg-type]
    scores: dict[str, list[float]] = {"colour": [], "size": [], "order": [], "pace": [], "cloze": []}
    for number in range(12):
        generator = torch.Generator().manual_seed(number)
        vectors, words = (torch.randn(*shape, generator=generator) for shape in ((80, 8), (8, found.vocabulary)))
        tower: Any = Planted(found, vectors, words)
        states = {name: noun_states(tower, found, nouns) for name, nouns in parts.items()}
        for name in ("colour", "size", "order", "pace"):
            scores[name].append(probes._linear_probe(states, parts, name)["test"])
        scores["cloze"].append(probes._right(tower, found, [world.cloze(noun) for noun in parts["test"]]))
    means = {name: sum(values) / len(values) for name, values in scores.items()}
    # Four deviations of a mean over 12.
    assert means["colour"] == pytest.approx(25.0, abs=9.0)
    assert means["cloze"] == pytest.approx(25.0, abs=9.0)
    for name in ("size", "order", "pace"):
        assert means[name] == pytest.approx(50.0, abs=10.5)
    assert all(len(set(values)) > 3 for values in scores.values())


def test_the_cloze_takes_the_likeliest_of_the_choices(found: Corpus) -> None:
    world = found.world
    assert world is not None
    nouns = world.part("test")
    tower: Any = Planted(found, torch.ones(80, 1), torch.zeros(1, found.vocabulary))
    for place, colour in enumerate(("red", "green", "blue", "yellow")):
        tower.words[:] = 0.0
        tower.words[0, found.id(colour)] = 1.0
        tower.words[0, found.id("large")] = 9.0  # no colour
        share = 100.0 * sum(noun.colour == place for noun in nouns) / len(nouns)
        assert probes._right(tower, found, [world.cloze(noun) for noun in nouns]) == share == 25.0


def test_a_nouns_state_is_its_own_tokens_in_every_neutral_sentence(found: Corpus) -> None:
    class Places(nn.Module):
        """The state of a token: its id, and its place."""

        def __init__(self) -> None:
            super().__init__()
            self.here = nn.Parameter(torch.zeros(()))

        def forward(self, tokens: Tensor, attention: Tensor) -> Tensor:
            assert torch.equal(attention, tokens != found.specials.pad)
            return torch.stack([tokens.float(), torch.arange(tokens.shape[1]).float().expand(tokens.shape)], 2)

    world = found.world
    assert world is not None
    nouns = world.part("development")
    tower: Any = Places()
    states = noun_states(tower, found, nouns)
    assert states.shape == (16, 6, 2)
    for noun, each in zip(nouns, states, strict=True):
        assert each[:, 0].tolist() == [found.id(noun.word)] * 6
        # [CLS] comes first.
        assert each[:, 1].tolist() == [sentence.split().index(noun.word) + 1 for sentence in world.contexts(noun)]


# ----------------------------------------------------------------------------------------------------------- collapse


class Given(nn.Module):
    """The same states for every block."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.here = nn.Parameter(torch.zeros(()))
        self.states = states

    def forward(self, tokens: Tensor, attention: Tensor | None) -> Tensor:
        return self.states.expand(len(tokens), -1, -1)


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (torch.ones(6, 4), 1.0),
        (torch.eye(6), 0.0),
        (torch.eye(6) * torch.arange(1.0, 7.0), 0.0),
        (torch.cat([torch.ones(3, 4), -torch.ones(3, 4)]), -0.2),
    ],
    ids=["one", "orthogonal", "of any length", "two opposite ones"],
)
def test_collapse(states: Tensor, expected: float) -> None:
    tower: Any = Given(states)
    assert collapse(tower, torch.zeros(300, 6, dtype=torch.int64)) == pytest.approx(expected, abs=1e-6)


# -------------------------------------------------------------------------------------------------------- masked loss


@pytest.mark.parametrize("blocks", [None, 7])
def test_masked_loss_is_the_mean_over_the_masked_tokens(
    bench: Bench, found: Corpus, network: Finished, blocks: int | None
) -> None:
    record = bench.run(MaskedLoss(world=0, length=BLOCK, blocks=blocks), network=network).record
    text = found.held_text(BLOCK)
    assert len(text) > probes.BATCH, "several batches, of which the last is smaller"
    text = text[:blocks]
    masked = mask(text, found.specials, found.vocabulary, probes.HELD_SEED)
    tower = language_of(network, bench.work(network))
    with torch.no_grad():
        odds = tower.vocabulary(tower(masked.tokens)).double().log_softmax(2)
    losses = [-odds[row, place, text[row, place]].item() for row, place in masked.chosen.nonzero().tolist()]
    assert record.notes["guessed"] == len(losses) > 5
    assert record.metrics == {"test.mlm": pytest.approx(sum(losses) / len(losses), rel=1e-5)}


def test_masked_loss_of_nothing_is_an_error_in_words(bench: Bench, network: Finished) -> None:
    with pytest.raises(StageError, match="no token of the held-out text is masked"):
        bench.run(MaskedLoss(world=0, length=BLOCK, blocks=0), network=network)


def test_every_network_is_asked_for_the_same_words(bench: Bench, network: Finished) -> None:
    other = bench.run(msgspec.structs.replace(untrained(), world=0), seed=1)
    found = [bench.run(MaskedLoss(world=0, length=BLOCK), network=each).record for each in (network, other)]
    assert found[0].notes == found[1].notes
    assert found[0].metrics != found[1].metrics


# --------------------------------------------------------------------------------------------------- no world, no nouns


def test_data_without_nouns_are_an_error_in_words(small_world: None, tmp_path: Path) -> None:
    folder = howto100m(tmp_path / "data")
    bench = Bench(tmp_path / "store", locate_features(folder, tmp_path / "cache", None))
    with pytest.raises(StageError, match="'howto100m' has no nouns to probe"):
        execute(bench.prepare(Probe(world=0, length=8)))
