"""How an .onnx file wants its images: in words or by its metadata; refused where unsaid."""

from pathlib import Path

import pytest
import torch

from models.input import Input, InputError
from training.frozen.onnx_file import OnnxError
from training.frozen.onnx_input import as_words, onnx_input, read_metadata, read_words
from training.frozen.onnx_network import Described, OnnxFile

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def file(*, shape=("batch", 3, 112, 112), **metadata):
    images = Described("images", "tensor(float)", list(shape))
    return OnnxFile(Path("x.onnx"), torch.device("cpu"), None, images, metadata)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("112,rgb,-1..1", Input()),
        ("BGR, -1..1", Input(color="bgr")),
        ("112,rgb,0..1,imagenet", Input(range=(0.0, 1.0), mean=MEAN, std=STD)),
        ("imagenet,rgb", Input(range=(0.0, 1.0), mean=MEAN, std=STD)),
        ("rgb,0..255", Input(range=(0.0, 255.0))),
        ("rgb,0..255,mean=127.5,std=128", Input(range=(0.0, 255.0), mean=127.5, std=128.0)),
        ("rgb,0..1,mean=.5/.5/.5,std=.5", Input(range=(0.0, 1.0), mean=(0.5,) * 3, std=0.5)),
    ],
)
def test_words_say_what_to_give(words, expected):
    assert onnx_input(file(), words) == (expected, "", "--onnx-input")


def test_layout_and_size_are_the_graphs_own():
    found, output, _ = onnx_input(file(shape=(1, 96, 96, 3)), "rgb,-1..1,output=features")
    assert (found, output) == (Input(size=96, layout="nhwc"), "features")
    with pytest.raises(OnnxError, match="does not say its size in pixels: give --onnx-input"):
        onnx_input(file(shape=("b", 3, "h", "w")), "rgb,-1..1")
    found, _, _ = onnx_input(file(shape=("b", 3, "h", "w")), "64,rgb,-1..1")
    assert found.size == 64


@pytest.mark.parametrize(
    "metadata",
    [
        {"facestream.input": "112,bgr,0..1,mean=0.1/0.2/0.3,std=0.5"},
        {
            "Image.BitmapPixelFormat": "Bgr8",
            "Image.NominalPixelRange": "Normalized_0_1",
            "mean": "[0.1, 0.2, 0.3]",
            "std": "0.5",
        },
        {
            "input_color_order": "BGR",
            "value_range": "(0, 1)",
            "pixel_mean": "0.1,0.2,0.3",
            "pixel_std": "0.5",
            "input_size": "(1, 3, 112, 112)",
            "author": "someone of mean standards",
        },
    ],
)
def test_metadata_says_it_too(metadata):
    wanted = Input(color="bgr", range=(0.0, 1.0), mean=(0.1, 0.2, 0.3), std=0.5)
    assert onnx_input(file(**metadata), "") == (wanted, "", "its metadata")


def test_words_go_before_metadata_and_complete_it():
    message = {"color_order": "bgr", "range": "0..1"}
    assert onnx_input(file(**message), "rgb")[0] == Input(range=(0.0, 1.0))


@pytest.mark.parametrize(
    ("metadata", "missing"),
    [
        ({}, "the order of its channels or the range of its values"),
        ({"range": "0..1"}, "the order of its channels: give"),
        ({"color": "rgb"}, "the range of its values: give"),
        ({"color": "purple", "range": "wide", "mean": "mild"}, "the order of its channels or the"),
    ],
)
def test_nothing_is_guessed(metadata, missing):
    with pytest.raises(OnnxError, match=f"x.onnx does not say {missing}.*InsightFace"):
        onnx_input(file(**metadata), "")


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("112,rgb,purple", "'purple' in '112,rgb,purple': expected 112"),
        ("", "does not say"),
        ("rgb,-1..1,mean=a", "'mean=a' in"),
        ("rgb,-1..1,std=0.5/0.5", "'std=0.5/0.5' in"),
        ("rgb,1..1", "--onnx-input: range="),
        ("rgb,-1..1,std=0", "--onnx-input: std="),
        ("0,rgb,-1..1", "--onnx-input: size="),
        ("rgb,0..255,imagenet", "ImageNet's mean is of values in 0..1"),
        ("rgb,imagenet,-1..1", "ImageNet's mean is of values in 0..1"),
        ("output=,rgb", "'output=' in"),
    ],
)
def test_words_that_make_no_sense_are_refused(words, complaint):
    with pytest.raises((InputError, OnnxError), match=complaint):
        onnx_input(file(), words)


def test_metadata_in_other_words_says_nothing():
    assert read_metadata({"size": "large", "opset": "17", "mean": "1,2", "": "x"}) == {}
    assert read_words("nhwc") == {"layout": "nhwc"}


@pytest.mark.parametrize(
    "wanted",
    [
        Input(),
        Input(160, "bgr", (0.0, 255.0), layout="nhwc"),
        Input(mean=(0.485, 0.456, 0.406), std=0.1, range=(0.0, 1.0)),
    ],
)
def test_an_input_s_words_are_read_as_that_input(wanted):
    assert Input(**read_words(as_words(wanted))) == wanted
