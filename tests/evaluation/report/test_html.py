"""The page: complete in itself, names are only names, faces only where they are asked for."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from evaluation.report.html import page, write_html
from evaluation.result import Curve, Evaluation, Figure, Group, HardPair
from tests.evaluation.report import made_up

HOSTILE = '"><script>alert(1)</script>&lt;b&gt;\u202e\x00'


class Reader(HTMLParser):
    """Elements in order, with what they are within."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def jpeg(place: str, name: str) -> bytes:
    out = io.BytesIO()
    shade = sum(name.encode()) % 256
    Image.new("RGB", (640, 480), (shade, 255 - shade, 99)).save(out, "JPEG")
    return out.getvalue()


def test_nothing_is_fetched_and_only_its_own_style_and_script_may_run():
    """By the page's own policy, which has the digests of both; no style stands in an attribute."""
    text = page(made_up.evaluation(), pictures=jpeg)
    read = Reader(text)
    assert not read.all("link")
    assert all(image["src"].startswith("data:image/jpeg;base64,") for image in read.all("img"))
    assert all(link["href"].startswith("#") for link in read.all("a"))
    assert not any("style" in attributes for _, attributes in read.tags)
    assert not any(name.startswith("on") for _, attributes in read.tags for name in attributes)
    policy = read.all("meta")[1]["content"]
    assert "default-src 'none'" in policy
    for tag in ("style", "script"):
        (own,) = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(own.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy


def test_every_set_has_its_charts_figures_groups_and_pairs():
    read = Reader(page(made_up.evaluation(), pictures=jpeg))
    kinds = [svg["class"].split()[1] for svg in read.all("svg") if "plot" in svg["class"]]
    of_pairs = ["roc", "det", "discard", "scores", "scores"]
    assert kinds == [*of_pairs, *of_pairs, "cmc", "fnir"]
    for words in ("EER, %", "African", "False accepts", "not shown to be better", "rank-5, %"):
        assert words in read.text
    assert "per fold, from the other nine folds" in read.text
    assert all(svg["aria-label"] for svg in read.all("svg") if svg.get("role") == "img")
    assert len({tag["id"] for _, tag in read.tags if "id" in tag}) == len(
        [tag for _, tag in read.tags if "id" in tag]
    )


def test_links_lead_to_what_is_there():
    read = Reader(page(made_up.evaluation()))
    there = {tag["id"] for _, tag in read.tags if "id" in tag}
    assert {link["href"][1:] for link in read.all("a")} <= there


def test_without_pictures_it_holds_none_and_says_so():
    read = Reader(page(made_up.evaluation()))
    assert not read.all("img")
    assert "holds no pictures of people: they were left out" in read.text
    assert "image 100" in read.text  # names stay


def test_with_pictures_it_says_how_many_and_they_are_small():
    read = Reader(page(made_up.evaluation(), pictures=jpeg))
    images = read.all("img")
    assert "holds 72 pictures of people" in read.text
    assert len(images) == 144  # both models have the same hardest pairs
    first = base64.b64decode(images[0]["src"].split(",")[1])
    with Image.open(io.BytesIO(first)) as image:
        assert max(image.size) <= 112
    assert images[0]["alt"].startswith("image ")


@pytest.mark.parametrize("content", [None, b"", b"no picture", jpeg("", "a")[:300]])
def test_a_picture_that_is_not_there_or_damaged_is_a_box(content):
    read = Reader(page(made_up.evaluation(), pictures=lambda place, name: content))
    assert not read.all("img")
    assert "no picture" in read.text
    assert "This report holds no pictures of people." in read.text


@pytest.mark.slow
def test_what_cameras_write_into_pictures_is_left_out():
    """A place where the photo was taken is in the file that is given, and not on the page."""

    def located(place: str, name: str) -> bytes:
        out = io.BytesIO()
        exif = Image.Exif()
        exif[0x010E] = "taken at home"
        Image.new("RGB", (200, 200)).save(out, "JPEG", exif=exif)
        return out.getvalue()

    assert b"taken at home" in located("", "")
    image = Reader(page(made_up.evaluation(1), pictures=located)).all("img")[0]
    assert b"taken at home" not in base64.b64decode(image["src"].split(",")[1])


def test_names_are_only_names():
    """In every place where one can stand."""
    evaluation = made_up.evaluation(2, places=(HOSTILE,), searches=False)
    renamed = [
        replace(
            result,
            model=HOSTILE + result.model,
            protocol=HOSTILE,
            settings={HOSTILE: HOSTILE},
            counts={HOSTILE: 1},
            figures={**result.figures, HOSTILE: Figure(1.0, note=HOSTILE)},
            groups={HOSTILE: Group({HOSTILE: 1}, {HOSTILE: Figure(0.5)})},
            hardest={HOSTILE: [HardPair(0.1, HOSTILE, HOSTILE)]},
            interval={HOSTILE: HOSTILE},
            made=HOSTILE,
            code=HOSTILE,
        )
        for result in evaluation.results
    ]
    evaluation = replace(
        evaluation,
        models=[replace(model, name=HOSTILE + model.name) for model in evaluation.models],
        results=renamed,
        overlap={HOSTILE: [{HOSTILE: HOSTILE}]},
    )
    text = page(evaluation, pictures=jpeg)
    read = Reader(text)
    assert len(read.all("script")) == 1
    assert not read.all("b") or all(not attributes for attributes in read.all("b"))
    assert "\u202e" not in text
    assert "\x00" not in text
    assert '"><script>alert(1)</script>&lt;b&gt;' in read.text


def test_one_model_one_set_one_number_that_cannot_be_shown():
    read = Reader(page(Evaluation(models=[made_up.model("m")], results=[made_up.empty()])))
    assert "m on s" in read.text
    assert "no genuine pair" in read.text
    assert not [svg for svg in read.all("svg") if "plot" in svg["class"]]


def test_nothing_at_all():
    assert "0 models on 0 sets" in page(Evaluation(models=[], results=[]))


@pytest.mark.parametrize(
    "curve",
    [
        Curve([], []),
        Curve([0.0], [1.0]),
        Curve([0.0, 0.0], [0.0, 0.0]),
        Curve([0.5], [0.5]),
        Curve([1e-9, 1.0], [0.0, float("nan")]),
        Curve([None, 1.0], [0.5, None]),
        Curve([1e-300, 1.0], [1.0, 1.0], [0.9], [1.0]),
        Curve([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]),
    ],
)
def test_odd_curves_are_drawn_or_left_out(curve):
    evaluation = made_up.evaluation(1, places=("a",), searches=False)
    kinds = ("roc", "det", "cmc", "fnir", "discard", "genuine", "impostor")
    odd = replace(evaluation.results[0], curves=dict.fromkeys(kinds, curve))
    read = Reader(page(replace(evaluation, results=[odd])))
    assert all(re.fullmatch(r"[MLHVZ\d. -]*", path["d"]) for path in read.all("path"))


def test_it_is_written_whole_and_nothing_beside_it(tmp_path):
    path = tmp_path / "report.html"
    write_html(made_up.evaluation(1), path)
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert os.listdir(tmp_path) == ["report.html"]


def test_of_the_hardest_pairs_those_are_marked_that_the_threshold_gets_wrong():
    """At the threshold itself a pair counts as one person."""
    evaluation = made_up.evaluation(1, places=("a",), searches=False)
    pairs = {
        "false accepts": ((0.31, "a", "b"), (0.3, "c", "d"), (0.2, "e", "f")),
        "false rejects": ((0.29, "g", "h"), (0.3, "i", "j")),
    }
    hardest = {kind: [HardPair(*pair) for pair in listed] for kind, listed in pairs.items()}
    result = evaluation.results[0]
    figures = {**result.figures, "threshold": Figure(0.3)}
    result = replace(result, hardest=hardest, figures=figures)
    text = Reader(page(replace(evaluation, results=[result]))).text
    assert re.findall(r"wrong (\w) \w", text) == ["a", "c", "g"]
    without = replace(result, figures={"accuracy": Figure(0.9)})
    read = Reader(page(replace(evaluation, results=[without])))
    assert not [tag for tag in read.all("span") if tag.get("class") == "wrong"]


def test_scores_of_one_model_stand_once_among_its_curves():
    read = Reader(page(made_up.evaluation(1, places=("a",), searches=False)))
    kinds = [svg["class"].split()[1] for svg in read.all("svg") if "plot" in svg["class"]]
    assert kinds == ["roc", "det", "discard", "scores"]


def test_the_leak_check_is_shown_where_there_was_one():
    evaluation = made_up.evaluation(1)
    found = {
        "training set": "train.rec, 5,822,653 images",
        "lfw": "of 7,701 images: same person 31",
    }
    text = Reader(page(replace(evaluation, overlap=found))).text
    assert "Leak check training set train.rec, 5,822,653 images lfw of 7,701 images" in text
    assert "Leak check" not in Reader(page(evaluation)).text
