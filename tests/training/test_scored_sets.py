"""The sets of a run: opened at its start, each due at its own interval."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from evaluation.features import Features
from evaluation.pair_set import PairSetError, read_bin, write_bin
from evaluation.protocols import sets as sets_by_name
from evaluation.protocols.pairs import Pairs
from evaluation.protocols.protocol import Asked
from evaluation.result import Result
from facestream import UserError
from tests.training import tiny
from training.config import Config, ConfigError, override
from training.distributed import World
from training.saving.files import main_figure
from training.scored_sets import ScoredSet, compared, open_sets
from training.step.precision import choose_precision


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return tiny.write_pairs(tmp_path_factory.mktemp("sets") / "blocks.bin")


def opened(world: World, pairs: Path, *settings: str) -> tuple[ScoredSet, ...]:
    config = override(tiny.config(pairs.parent, pairs.parent / "run"), settings)
    return open_sets(config, world, choose_precision(world.device, "fp32"))


class Projection(nn.Module):
    """A linear map of the pixels with a batch norm and dropout, to see the modes at work."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        size = 3 * tiny.SIZE**2
        self.weight = nn.Parameter(torch.randn(8, size, generator=generator) / 100)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.5)

    def forward(self, images: Tensor) -> Tensor:
        assert images.is_contiguous(memory_format=torch.channels_last)
        return self.dropout(self.norm(images.flatten(1) @ self.weight.T))


def test_a_network_is_judged_in_eval_mode_and_comes_back_as_it_was(world, pairs):
    [one] = opened(world, pairs, f"eval.sets={pairs}")
    network = Projection().train()
    statistics = network.norm.running_mean.clone()
    found = [one.score(network, False).scores for _ in range(2)]
    assert found[0] == found[1], "no dropout"
    assert found[0]["auc"] == pytest.approx(1.0)
    assert (network.training, network.norm.training, network.dropout.training) == (True,) * 3
    assert torch.equal(network.norm.running_mean, statistics)


def test_the_last_state_is_judged_with_all_that_a_report_shows(world, pairs, monkeypatch):
    [one] = opened(world, pairs, f"eval.sets={pairs}")
    judge, draws = Pairs.judge, []

    def judged(self: Pairs, features: Features, *, model: str, asked: Asked) -> Result:
        draws.append(asked.draws)
        return judge(self, features, model=model, asked=asked)

    monkeypatch.setattr(Pairs, "judge", judged)
    assert one.score(Projection(), False).sample is None
    found = one.score(Projection(), True)
    assert draws == [0, 1000]
    assert (found.result.model, found.result.set) == ("run", "blocks")
    assert len(found.sample.names) == 40
    assert len(found.pictures) == 40
    [blind] = opened(world, pairs, f"eval.sets={pairs}", "log.pictures=false")
    found = blind.score(Projection(), True)
    assert (len(found.sample.names), found.pictures) == (40, {})


def test_sets_are_named_by_protocol_and_degradation(world, pairs, monkeypatch):
    read, once = [], sets_by_name.open_bin
    monkeypatch.setattr(
        sets_by_name, "open_bin", lambda path, **more: read.append(path) or once(path, **more)
    )
    sets = opened(world, pairs, f"eval.sets=[{pairs},{pairs}+blur,{pairs}+jpeg=30]")
    assert len(read) == 1, "its images are in memory once"
    assert [one.name for one in sets] == ["blocks", "blocks+blur", "blocks+jpeg=30"]
    assert str(sets[0]) == "blocks: 40 images, every epoch"
    plain, blurred, _ = (one.score(Projection(), False).scores["threshold"] for one in sets)
    assert plain != blurred


def test_a_search_is_scored_beside_pairs_by_its_own_main_figure(world, pairs, tmp_path):
    """Of everybody's first image among the second ones."""
    encoded = read_bin(pairs).images
    for person in range(0, 20, 2):  # whose pair is genuine
        for place, image in (("probe", 2 * person), ("gallery", 2 * person + 1)):
            folder = tmp_path / "door" / place / f"{person}"
            folder.mkdir(parents=True)
            (folder / "0.png").write_bytes(encoded[image])
    sets = opened(world, pairs, f"eval.sets=[{pairs},1n:{tmp_path / 'door'}]")
    assert [(one.name, one.images) for one in sets] == [("blocks", 40), ("door", 20)]
    found = sets[1].score(Projection(), True)
    assert main_figure(found.scores) == ("rank-1", 1.0)
    assert found.result.headline == "rank-1"
    assert found.result.figures["rank-1"].value == 1.0
    assert len(found.pictures) == 20


# --- when they are due --------------------------------------------------------------------------


def due(one: ScoredSet, *, epochs: int = 7, steps_per_epoch: int = 10) -> list[int]:
    steps = range(epochs * steps_per_epoch + 1)
    return [s for s in steps if one.due(s, steps_per_epoch=steps_per_epoch, epochs=epochs)]


def test_a_set_may_have_an_interval_of_its_own(world, pairs):
    """By its name or as it stands in eval.sets; the steps in between are the others'."""
    given = [f"eval.sets=[{pairs},{pairs}+blur]", "eval.every_steps=25"]
    for key in ("blocks+blur", f"{pairs}+blur"):
        often, seldom = opened(world, pairs, *given, f"eval.every={{{key}: 3}}")
        assert due(often) == [0, 10, 20, 25, 30, 40, 50, 60, 70]
        assert due(seldom) == [0, 30, 60, 70], "and the last"
        assert str(often) == "blocks: 40 images, every epoch and every 25 steps"
        assert str(seldom) == "blocks+blur: 40 images, every 3 epochs"
    both = opened(world, pairs, *given, "eval.every=3")
    assert [due(one) for one in both] == [[0, 25, 30, 50, 60, 70]] * 2


def test_checkpoints_are_compared_by_the_sets_that_are_scored_most_often(world, pairs):
    given = f"eval.sets=[{pairs},{pairs}+blur,{pairs}+jpeg]"
    assert compared(opened(world, pairs, given, "eval.every={blocks+blur: 5}")) == (
        "blocks",
        "blocks+jpeg",
    )
    assert len(compared(opened(world, pairs, given, "eval.every=5"))) == 3
    assert compared(()) == ()


def test_an_interval_is_a_number_or_one_for_each_set(pairs):
    plain = tiny.config(pairs.parent, pairs.parent / "run")
    assert override(plain, ["eval.every=4"]).eval.every == 4
    mapping = override(plain, ["eval.every={ijbc: 5, lfw.bin+blur: 2}"])
    assert mapping.eval.every == {"ijbc": 5, "lfw.bin+blur": 2}
    assert override(mapping, ["eval.every.ijbc=7"]).eval.every == {"ijbc": 7, "lfw.bin+blur": 2}
    assert override(plain, ["eval.every.ijbc=7"]).eval.every == {"ijbc": 7}
    assert override(mapping, ["eval.every=3"]).eval.every == 3
    assert override(plain, [line for line in mapping.lines() if "eval" in line]) == mapping
    assert Config.from_dict(mapping.as_dict())[0] == mapping


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("eval.every=0", r"^eval\.every=0: expected at least 1"),
        ("eval.every={lfw: 0}", r"^eval\.every\['lfw'\]=0: expected at least 1"),
        ("eval.every=often", r"^eval\.every='often': "),
        ("eval.every={lfw: often}", r"^eval\.every='\{lfw: often\}': "),
    ],
)
def test_what_is_no_interval_is_refused_before_anything_is_opened(pairs, given, message):
    with pytest.raises(ConfigError, match=message):
        override(tiny.config(pairs.parent, pairs.parent / "run"), [given])


# --- what is refused at the start ---------------------------------------------------------------


def test_an_interval_of_no_set_names_those_that_there_are(world, pairs):
    with pytest.raises(ConfigError, match=r"eval\.every=.*: ijbc is none of the sets, expected bl"):
        opened(world, pairs, f"eval.sets={pairs}", "eval.every={ijbc: 5}")
    with pytest.raises(ConfigError, match=r"expected none, as eval\.sets is empty"):
        opened(world, pairs, "eval.every={ijbc: 5}")


def test_two_sets_of_one_name_are_refused(world, pairs):
    with pytest.raises(ConfigError, match=r"^eval\.sets=.*: a second set named 'blocks'; rename"):
        opened(world, pairs, f"eval.sets=[{pairs},{pairs}]")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("missing.bin", r"^eval\.sets=missing\.bin does not exist"),
        ("missing.bin+blur", r"^eval\.sets=missing\.bin\+blur does not exist"),
        ("BLOCKS+blurr", r"^eval\.sets=.*: \+blurr is no degradation.* Did you mean \+blur\?"),
        ("xqlfw:missing", r"^eval\.sets=xqlfw:missing: missing does not exist"),
    ],
)
def test_what_cannot_be_opened_is_named_with_its_setting(world, pairs, given, message):
    with pytest.raises(UserError, match=message):
        opened(world, pairs, f"eval.sets={given.replace('BLOCKS', str(pairs))}")


def test_images_that_will_not_do_are_named_at_the_start(world, pairs):
    """By their headers: nothing is decoded yet."""
    with pytest.raises(UserError, match=r"blocks\.bin: image image 0 has 32×32 pixels, not 64×64"):
        opened(world, pairs, f"eval.sets={pairs}", "data.image_size=64")
    bad = pairs.with_name("bad.bin")
    write_bin(bad, [b"x"] * 4, [True, False])
    with pytest.raises(PairSetError, match=r"^eval\.sets=.*bad\.bin: found 2 pairs for 10 folds"):
        opened(world, pairs, f"eval.sets={bad}")


def test_a_home_is_found_behind_a_colon_too(monkeypatch, pairs):
    monkeypatch.setenv("HOME", "/home/anna")
    config = override(
        tiny.config(pairs.parent, pairs.parent / "run"),
        ["eval.sets=[~/lfw.bin,ijbc:~/ijb,pairs:~/a.csv:~/faces,a~/b:c~]"],
    )
    assert config.eval.sets == (
        "/home/anna/lfw.bin",
        "ijbc:/home/anna/ijb",
        "pairs:/home/anna/a.csv:/home/anna/faces",
        "a~/b:c~",
    )
