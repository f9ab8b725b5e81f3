"""An evaluation's thresholds and groups come into the card, the page, and nowhere else."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from evaluation.result import Figure, Group, Model, Result
from training.frozen.card import CardError, OperatingPoint, read_card, write_card
from training.shipping.operating_points import add_results, require_files
from training.shipping.page import with_results

PAGE = "---\nlicense: mit\ntags:\n- face-recognition\n---\n# It\n\n## Loading\n\nso\n"


@pytest.fixture
def path(tmp_path):
    save_file({"w": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    return tmp_path / "x.safetensors"


def model(path, digest="d1"):
    return Model(
        "x", str(path), digest, "iresnet18", 8, 112, "RGB", "float32", given="112,rgb,-1..1,nchw"
    )


def result(name="lfw", threshold=0.3):
    figures = {
        "accuracy": Figure(0.9),
        "tar@far=0.01": Figure(0.8),
        "threshold@fmr=0.001": Figure(threshold + 0.1, 0.3, 0.5),
        "threshold@fmr=0.01": Figure(threshold),
        "threshold@fmr=1e-06": Figure(None, note="this set cannot show it"),
    }
    rates = {f"{rate} at the common threshold": Figure(0.01) for rate in ("fmr", "fnmr")}
    return Result(
        "x",
        name,
        "verification/1",
        {"flip": True, "common threshold": "0.4, of FMR 0.001 on the whole set"},
        {"genuine": 30, "impostor": 4000},
        "accuracy",
        figures,
        groups={"a|b": Group({}, rates)},
    )


def test_thresholds_that_the_set_can_show_are_in_the_card(path):
    assert add_results(model(path), [result()]) == [path]
    card = read_card(path)
    assert card.points == [
        OperatingPoint("lfw", 0.01, 0.3, None, None, 30, 4000, True),
        OperatingPoint("lfw", 0.001, 0.4, 0.3, 0.5, 30, 4000, True),
    ]
    assert (card.network, card.input, card.digest) == ("iresnet18", "112,rgb,-1..1,nchw", "d1")
    assert [group.group for group in card.groups] == ["a|b"]
    assert card.scores == {"lfw": {"accuracy": 0.9, "tar@far=0.01": 0.8}}


def test_other_sets_stay_and_other_weights_start_over(path):
    add_results(model(path), [result("lfw"), result("cfp")])
    add_results(model(path), [result("lfw", 0.5)])
    points = read_card(path).points
    assert {(one.set, one.threshold) for one in points if one.fmr == 0.01} == {
        ("cfp", 0.3),
        ("lfw", 0.5),
    }
    add_results(model(path, "d2"), [result("agedb")])
    assert {point.set for point in read_card(path).points} == {"agedb"}


def test_the_page_gets_a_section_and_metrics_once(path):
    page = path.with_name("README.md")
    page.write_text(PAGE)
    for threshold in (0.25, 0.3):
        assert add_results(model(path), [result(threshold=threshold)]) == [path, page]
    text = page.read_text()
    assert text.count("## Operating points") == text.count("model-index:") == 1
    assert "| lfw | 0.001 | 0.4000 | 0.3000 to 0.5000 | 4,000 | yes |" in text
    assert "a\\|b" in text
    assert "0.25" not in text
    assert "## Loading\n\nso" in text
    header = text.split("---\n")[1]
    assert header.startswith("license: mit\n")
    assert '- type: "accuracy"\n      value: 0.9\n' in header


def test_the_header_is_yaml_of_the_hub_s_form(path):
    yaml = pytest.importorskip("yaml")
    add_results(model(path), [result('a "set": of #1')])
    header = yaml.safe_load(with_results(PAGE, read_card(path)).split("---\n")[1])
    (entry,) = header["model-index"]
    (found,) = entry["results"]
    assert found["dataset"]["name"] == 'a "set": of #1'
    assert {"type": "threshold@fmr=0.001", "value": 0.4} in found["metrics"]


@pytest.mark.parametrize("text", ["# Notes\n", "---\ntitle: x\n---\n# Mine\n", "", "---\n"])
def test_a_page_of_somebody_else_stays(text, path):
    page = path.with_name("README.md")
    page.write_text(text)
    add_results(model(path), [result()])
    assert page.read_text() == text


def test_a_run_has_no_card_and_a_damaged_one_is_found_before_any_work(path):
    with pytest.raises(CardError, match="export it first"):
        require_files(["runs/a@best"])
    add_results(model(path), [result()])
    write_card(path, replace(read_card(path), code="x" * 10))
    require_files([str(path)])
    path.write_bytes(path.read_bytes().replace(b"points", b"pounds"))
    with pytest.raises(CardError, match="card is damaged"):
        require_files([str(path)])
