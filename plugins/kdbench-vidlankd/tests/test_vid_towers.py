"""The towers: sizes by formula against the modules, transformers' own values, and what is trained, padded and saved."""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from kdbench.component import pack, unpack
from kdbench.errors import KdbenchError
from kdbench_vidlankd.losses import halves, hinge, unit
from kdbench_vidlankd.masking import mask, masked_loss
from kdbench_vidlankd.towers import BASE, SMALL, Bert, Video, bert_config
from kdbench_vidlankd.wordpiece import Specials

pytest.importorskip("transformers", reason="needs kdbench-vidlankd[bert]")

from transformers import BertModel

from kdbench_vidlankd._modules import LanguageModule, VideoModule

Vector = Literal["mean", "pooler"]

TINY = Bert(layers=2, hidden=24, heads=3, feedforward=40, dropout=0.0, positions=32, spread=0.1)
NARROW = Bert(layers=1, hidden=8, heads=1, feedforward=12, positions=16)
DEEP = Bert(layers=5, hidden=16, heads=2, feedforward=16, positions=64)
CLIP = Video(encoder=TINY, features=10, projection=14)


def language(tower: Bert = TINY, vocabulary: int = 50, seed: int = 0) -> LanguageModule:
    torch.manual_seed(seed)
    return tower.build(vocabulary).eval()


def video(tower: Video = CLIP, seed: int = 0) -> VideoModule:
    torch.manual_seed(seed)
    return tower.build().eval()


def clips(count: int = 3, frames: int = 7, features: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(count, frames, features, generator=torch.Generator().manual_seed(seed))


def tokens(count: int = 3, length: int = 12, vocabulary: int = 50) -> Tensor:
    return torch.randint(5, vocabulary, (count, length), generator=torch.Generator().manual_seed(2))


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def macs(module: torch.nn.Module, *inputs: Tensor) -> int:
    """Of the products that really run, attention's too."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        given = module(*inputs)
        if isinstance(module, LanguageModule):
            module.vocabulary(given)
    return counter.get_total_flops() // 2


# sizes


@pytest.mark.parametrize("vocabulary", [7, 111])
@pytest.mark.parametrize("tower", [TINY, NARROW, DEEP], ids=lambda tower: tower.name)
def test_cost_by_formula_is_that_of_the_module(tower: Bert, vocabulary: int) -> None:
    module = language(tower, vocabulary)
    for length in (1, 16):
        cost = tower.cost(vocabulary, length)
        assert cost.parameters == parameters(module)
        assert cost.macs == macs(module, tokens(1, length, vocabulary))


@pytest.mark.parametrize("vector", ["mean", "pooler"])
@pytest.mark.parametrize("frames", [1, 9])
def test_macs_of_a_clip_are_those_of_the_module(frames: int, vector: Vector) -> None:
    tower = Video(encoder=TINY, features=10, projection=14, vector=vector)
    assert tower.macs(frames) == macs(video(tower), clips(1, frames))


def test_the_papers_sizes() -> None:
    assert (SMALL.name, SMALL.heads, SMALL.feedforward, SMALL.dropout) == ("6L/512H", 8, 2048, 0.1)
    assert (BASE.name, BASE.heads, BASE.feedforward, BASE.dropout) == ("12L/768H", 12, 3072, 0.1)


@pytest.mark.parametrize("tower", [TINY, SMALL], ids=lambda tower: tower.name)
def test_towers_travel_and_are_built_alike(tower: Bert) -> None:
    assert unpack(pack(tower)) == tower
    clip = Video(encoder=tower, features=4_096, vector="pooler", trained=False)
    assert unpack(pack(clip)) == clip
    if tower is TINY:
        for one, other in ((language(), language()), (video(), video())):
            assert all(torch.equal(one.state_dict()[name], value) for name, value in other.state_dict().items())


SPECIALS = Specials(pad=0, unknown=100, cls=101, sep=102, mask=103)


@pytest.mark.parametrize("tower", [SMALL, pytest.param(BASE, marks=pytest.mark.slow)], ids=lambda tower: tower.name)
def test_full_size_towers_take_a_training_step(tower: Bert) -> None:
    """Both towers on two captions of 126 tokens and 2 special ones, with 384 frames each; then one step."""
    torch.manual_seed(0)
    texts = tower.build(30_522).train()
    films = Video(encoder=tower, features=4_096).build().train()
    assert parameters(texts) == tower.cost(30_522, 128).parameters
    words = tokens(2, 128, 30_522)
    words[:, 0], words[:, -1] = SPECIALS.cls, SPECIALS.sep
    masked = mask(words, SPECIALS, 30_522, seed=0)
    trained = [*texts.parameters(), *films.parameters()]
    before = [parameter.detach().sum().item() for parameter in trained]
    states = texts(masked.tokens, torch.ones_like(words, dtype=torch.bool))
    assert states.shape == (2, 128, tower.hidden)
    vectors = films(clips(2, 384, 4_096), torch.ones(2, 384).bool())
    assert vectors.shape == (2, tower.hidden)
    loss = masked_loss(texts, states, words, masked.chosen) + hinge(unit(states), vectors, vectors[halves(2)])
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in trained)
    torch.optim.SGD(trained, lr=0.1).step()
    moved = [one != other.detach().sum().item() for one, other in zip(before, trained, strict=True)]
    assert sum(moved) > 0.8 * len(moved)
    with torch.no_grad():
        assert texts.vocabulary(states[:, :3]).shape == (2, 3, 30_522)


# values


def test_hidden_states_are_those_of_transformers_own_model() -> None:
    tower = language()
    own = BertModel(bert_config(TINY, 50), add_pooling_layer=False).eval()
    own.load_state_dict(tower.net.bert.state_dict())
    words, attended = tokens(), torch.ones(3, 12).bool()
    attended[1, 7:] = False
    segments = torch.zeros(3, 12).long()
    segments[:, 6:] = 1
    with torch.no_grad():
        for attention, kinds in ((None, None), (attended, None), (attended, segments)):
            mine = tower(words, attention, kinds)
            theirs = own(input_ids=words, attention_mask=attention, token_type_ids=kinds).last_hidden_state
            assert torch.equal(mine, theirs)
        assert not torch.equal(tower(words), tower(words, attended))
        assert not torch.equal(tower(words), tower(words, None, segments))
        logits = tower.net(input_ids=words).logits
        assert torch.equal(tower.vocabulary(tower(words)), logits)


def test_a_layer_by_hand() -> None:
    """The configuration says what BERT is: heads of equal width, GELU, norms behind the sums."""
    tower = language(Bert(layers=1, hidden=24, heads=3, feedforward=40, dropout=0.1, positions=32, spread=0.3))
    words = tokens(2, 5)
    net = tower.net.bert
    embeddings, layer = net.embeddings, net.encoder.layer[0]
    with torch.no_grad():
        summed = embeddings.word_embeddings(words) + embeddings.position_embeddings.weight[:5]
        states = embeddings.LayerNorm(summed + embeddings.token_type_embeddings.weight[0])
        attention = layer.attention.self
        parts = [
            each(states).view(2, 5, 3, 8).transpose(1, 2) for each in (attention.query, attention.key, attention.value)
        ]
        mixed = (parts[0] @ parts[1].transpose(2, 3) / 8**0.5).softmax(3) @ parts[2]
        output = layer.attention.output
        states = output.LayerNorm(states + output.dense(mixed.transpose(1, 2).reshape(2, 5, 24)))
        inner = torch.nn.functional.gelu(layer.intermediate.dense(states))
        states = layer.output.LayerNorm(states + layer.output.dense(inner))
        torch.testing.assert_close(tower(words), states, rtol=1e-5, atol=1e-5)


def test_weights_start_as_spread_as_they_are_told() -> None:
    wide = language(Bert(layers=1, hidden=64, heads=2, feedforward=128, spread=0.05))
    for name, weight in wide.named_parameters():
        if name.endswith("weight") and "LayerNorm" not in name:
            assert weight.std().item() == pytest.approx(0.05, rel=0.1)


# what is trained


def gradients(module: torch.nn.Module, value: Tensor) -> dict[str, Tensor | None]:
    torch.manual_seed(3)
    (value * torch.randn(value.shape)).sum().backward()
    return {name: parameter.grad for name, parameter in module.named_parameters()}


@pytest.mark.parametrize("vector", ["mean", "pooler"])
def test_every_parameter_of_a_trained_video_tower_learns(vector: Vector) -> None:
    module = video(Video(encoder=TINY, features=10, projection=14, vector=vector))
    found = gradients(module, module(clips()))
    for name, gradient in found.items():
        assert gradient is not None, name
        # To a softmax the bias of its keys is a constant, which it does not see.
        assert (gradient.abs().max() > 1e-6) != name.endswith("key.bias"), name


def test_every_parameter_of_a_language_tower_learns() -> None:
    module = language()
    for name, gradient in gradients(module, module.vocabulary(module(tokens()))).items():
        assert gradient is not None, name
        assert (gradient.abs().max() > 1e-6) != name.endswith("key.bias"), name


@pytest.mark.parametrize("vector", ["mean", "pooler"])
def test_a_frozen_video_tower_has_no_gradient(vector: Vector) -> None:
    module = video(Video(encoder=TINY, features=10, projection=14, vector=vector, trained=False))
    vectors = module(clips())
    assert not vectors.requires_grad
    scale = torch.ones((), requires_grad=True)
    (scale * vectors).sum().backward()
    assert all(parameter.grad is None for parameter in module.parameters())
    # It starts where a trained one starts.
    trained = video(Video(encoder=TINY, features=10, projection=14, vector=vector))
    assert all(torch.equal(trained.state_dict()[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize("vector", ["mean", "pooler"])
def test_a_frozen_tower_keeps_its_dropout_while_others_train(vector: Vector) -> None:
    encoder = Bert(layers=2, hidden=24, heads=3, feedforward=40, dropout=0.2, positions=32, spread=0.1)
    module = video(Video(encoder=encoder, features=10, projection=14, vector=vector, trained=False))
    assert torch.equal(module(clips()), module(clips()))
    module.train()
    one, other = module(clips()), module(clips())
    assert not torch.equal(one, other)
    rates = {name: part.p for name, part in module.named_modules() if isinstance(part, torch.nn.Dropout)}
    assert rates.pop("exit.2") == 0.3
    assert set(rates.values()) == {0.2}
    config = module.net.config
    assert config.hidden_dropout_prob == config.attention_probs_dropout_prob == 0.2


def test_a_frozen_tower_does_tell_clips_apart() -> None:
    module = video(Video(encoder=TINY, features=10, projection=14, trained=False))
    vectors = module(clips(5))
    cosines = vectors @ vectors.T
    assert cosines[~torch.eye(5).bool()].max() < 0.999


# clips


@pytest.mark.parametrize("vector", ["mean", "pooler"])
def test_vectors_have_length_1(vector: Vector) -> None:
    module = video(Video(encoder=TINY, features=10, projection=14, vector=vector))
    with torch.no_grad():
        for found in (module(clips()), module.each_frame(clips())):
            torch.testing.assert_close(found.norm(dim=-1), torch.ones(found.shape[:-1]))
        assert module(clips()).shape == (3, 24)
        assert module.each_frame(clips()).shape == (3, 7, 24)


@pytest.mark.parametrize("vector", ["mean", "pooler"])
def test_padded_frames_are_not_seen(vector: Vector) -> None:
    module = video(Video(encoder=TINY, features=10, projection=14, vector=vector))
    frames, shown = clips(3, 7), torch.ones(3, 7).bool()
    shown[0, 4:] = False
    shown[2, 1:] = False
    other = torch.where(shown[:, :, None], frames, torch.tensor(1e3))
    with torch.no_grad():
        found = module(frames, shown)
        torch.testing.assert_close(module(other, shown), found)
        # As if the clip were as long as it is.
        torch.testing.assert_close(module(frames[:1, :4]), found[:1])
        torch.testing.assert_close(module(frames[2:, :1]), found[2:])
        torch.testing.assert_close(module(frames[1:2]), found[1:2])
        assert not torch.allclose(module(other), module(frames))


def test_the_mean_is_over_time_and_the_pooler_reads_the_first_step() -> None:
    frames = clips()
    for vector in ("mean", "pooler"):
        module = video(Video(encoder=TINY, features=10, projection=14, vector=vector))
        with torch.no_grad():
            states = module.net(inputs_embeds=module.entry(frames)).last_hidden_state
            if vector == "mean":
                clip = sum(states[:, time] for time in range(7)) / 7
            else:
                clip = module.net.pooler.dense(states[:, 0]).tanh()
            expected = module.exit(clip)
            torch.testing.assert_close(module(frames), expected / expected.norm(dim=1, keepdim=True))
            # One frame has no other vector than its clip.
            torch.testing.assert_close(module.each_frame(frames[:, :1])[:, 0], module(frames[:, :1]))


def test_time_is_seen() -> None:
    module = video()
    with torch.no_grad():
        assert not torch.allclose(module(clips()), module(clips().flip(1)), atol=1e-3)


def test_entry_is_two_linear_maps() -> None:
    module = video()
    assert [type(part).__name__ for part in module.entry] == ["Linear", "Linear"]
    assert [tuple(part.weight.shape) for part in module.entry] == [(14, 10), (24, 14)]
    assert [type(part).__name__ for part in module.exit] == ["Linear", "ReLU", "Dropout", "Linear"]


# weights


def test_weights_keep_the_tying() -> None:
    one, other = language(seed=0), language(seed=1)
    words = tokens()
    assert not torch.equal(one(words), other(words))
    weights = one.weights()
    assert len({value.data_ptr() for value in weights.values()}) == len(weights)
    assert sum(value.numel() for value in weights.values()) == TINY.cost(50, 1).parameters
    other.load_weights({name: value.clone() for name, value in weights.items()})
    with torch.no_grad():
        assert torch.equal(one.vocabulary(one(words)), other.vocabulary(other(words)))
    predictions = other.net.cls.predictions
    assert predictions.decoder.weight is other.net.bert.embeddings.word_embeddings.weight
    assert predictions.decoder.bias is predictions.bias
    assert parameters(other) == TINY.cost(50, 1).parameters


@pytest.mark.parametrize("tower", [NARROW, DEEP, Bert(layers=3, hidden=24, heads=3, feedforward=40, positions=32)])
def test_foreign_weights_are_an_error(tower: Bert) -> None:
    with pytest.raises(KdbenchError, match="do not fit the language tower"):
        language().load_weights(language(tower).weights())


def test_weights_of_another_vocabulary_are_an_error() -> None:
    with pytest.raises(KdbenchError, match="do not fit the language tower"):
        language().load_weights(language(vocabulary=51).weights())


@pytest.mark.parametrize("lost", ["net.cls.predictions.bias", "net.bert.embeddings.word_embeddings.weight"])
def test_weights_in_part_are_an_error_that_names_what_is_missing(lost: str) -> None:
    weights = language().weights()
    del weights[lost]
    with pytest.raises(KdbenchError, match=lost):
        language().load_weights(weights)


# without transformers

WITHOUT = """
import sys

class Lacking:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "transformers":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Lacking())
from kdbench.errors import KdbenchError
from kdbench_vidlankd.towers import SMALL, Video
for tower in (SMALL, Video(encoder=SMALL, features=8)):
    try:
        tower.build(*([10] if tower is SMALL else []))
    except KdbenchError as error:
        print(f"{error.what} | {error.cure}")
"""


def test_without_transformers_the_error_names_what_to_install() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True)
    assert (
        done.stdout.splitlines()
        == ["the towers need the module 'transformers', which is not installed | install kdbench-vidlankd[bert]"] * 2
    )


LIGHT = """
import sys
import kdbench_vidlankd.towers as towers
towers.Video(encoder=towers.BASE, features=4096).macs(384), towers.SMALL.cost(30522, 128)
print(sorted({"torch", "transformers", "tokenizers", "numpy"} & set(sys.modules)))
"""


def test_describing_towers_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
