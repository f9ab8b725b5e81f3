"""A network for other programs:  python tools/export_onnx.py MODEL -o model.onnx

MODEL is a run, RUN@best, RUN@STEP, a checkpoint, a file of weights (.pth, .pt, .safetensors), or an
.onnx of an IResNet or MobileFaceNet, which is exported again in another form or type. The file is
compared with torch before it gets its name: at batches of 1, 2, 7 and 64 images, and on the test
sets that --check-set names. A name that ends in .pt2 writes torch.export's form instead.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training.command import command, whole_number
from training.config import load_config
from training.frozen.onnx_input import as_words
from training.saving.reading import SavedCheckpoint, SavedFile, open_weights
from training.saving.weight_file import WeightsError
from training.shipping.export import BOUNDS, export, faces_of
from training.shipping.onnx_export import OPSET, ExportError
from training.shipping.shipped import INPUTS, Form
from training.weights.learned_quality import learned_quality

SUFFIXES = (".onnx", ".pt2")


def export_model(arguments: argparse.Namespace) -> None:
    """All that the command does."""
    output, dtype = arguments.output, arguments.dtype
    _check(arguments)
    saved = _open(arguments.model)
    size, form = saved.architecture.image_size, _form(arguments)
    print(f"model         {saved.architecture}, {saved.architecture.embedding_dim} values")
    for note in saved.notes:
        print(f"note          {note}")
    faces = None
    if arguments.calibrate:
        faces = faces_of(arguments.calibrate, size=size, count=arguments.images)
        print(f"faces         {len(faces)} of {arguments.calibrate}")
    quality = None
    if arguments.learned_quality:
        quality = learned_quality(saved, called=arguments.model)
    found = export(
        saved,
        output,
        form=form,
        dtype=dtype,
        quality=quality,
        faces=faces,
        sets=arguments.check_set,
    )
    print(f"input         {as_words(form.described(size))}, {_type(form)}, any batch size")
    print(
        f"checked       an embedding differs from torch's by {found.differs:.2g} of its length at "
        f"most (allowed: {BOUNDS[dtype]:g})"
    )
    if found.quality_differs is not None:
        print(
            f"checked       a quality differs from torch's by {found.quality_differs:.2g} of what "
            f"it can be at most (allowed: {BOUNDS[dtype]:g})"
        )
    for name, (figure, ours, theirs) in found.scores.items():
        print(f"checked       {name}: {figure} {theirs:.4f}, torch's {ours:.4f}")
    if dtype != "fp32" and not found.scores:
        print("note          no accuracy was compared: give --check-set, such as lfw.bin")
    kind = f"ONNX, opset {OPSET}" if output.suffix == ".onnx" else "torch.export"
    print(f"wrote         {output}: {kind}, {dtype}, {output.stat().st_size / 1e6:.1f} MB")


def _open(model: str) -> SavedCheckpoint | SavedFile:
    """Raises ExportError for an .onnx file from which there is no way back to a network."""
    saved = open_weights(model)
    if not model.endswith(".onnx"):
        return saved
    try:
        saved.backbone()
    except WeightsError as error:
        raise ExportError(
            f"{error}. To export in another form, name the run, checkpoint or .safetensors file "
            "that it was made from"
        ) from error
    return saved


def _check(arguments: argparse.Namespace) -> None:
    output, dtype = arguments.output, arguments.dtype
    if output.suffix not in SUFFIXES:
        raise ExportError(f"-o {output}: expected a name that ends in {' or '.join(SUFFIXES)}")
    if output.suffix == ".pt2" and dtype != "fp32":
        raise ExportError(f"a .pt2 file is written in fp32, not in {dtype}: leave out --dtype")
    if dtype == "int8" and not arguments.calibrate:
        raise ExportError(
            "--dtype int8 takes its ranges from faces: give --calibrate FILE.rec, some of those "
            "that the network was trained on or will see"
        )
    output.parent.mkdir(parents=True, exist_ok=True)


def _form(arguments: argparse.Namespace) -> Form:
    return Form(arguments.input, flip_sum=arguments.flip_sum, normalized=arguments.normalize)


def _type(form: Form) -> str:
    return "uint8" if form.takes_pixels else "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("model", metavar="MODEL", help="a run, RUN@best, a checkpoint, weights, or .onnx")
    add("-o", "--output", type=Path, required=True, metavar="FILE", help="model.onnx or model.pt2")
    add("--config", type=Path, help="a configuration file that registers a run's own network")
    add(
        "--input",
        choices=tuple(INPUTS),
        default="float",
        help="float: RGB in [-1, 1], NCHW (default); uint8: pixels, which the graph normalizes",
    )
    add("--flip-sum", action="store_true", help="add the mirror image's embedding")
    add("--normalize", action="store_true", help="embeddings of length 1")
    add(
        "--learned-quality",
        action="store_true",
        help="a second output: what head.extra_terms={classifiability: {}} has learned",
    )
    add("--dtype", choices=tuple(BOUNDS), default="fp32", help="of weights (default fp32)")
    add("--calibrate", type=Path, metavar="REC", help="faces for int8's ranges, and to check on")
    add(
        "--images",
        type=whole_number(1, 100_000),
        default=256,
        metavar="N",
        help="that --calibrate takes from all over the file (default 256)",
    )
    add(
        "--check-set",
        nargs="+",
        default=[],
        metavar="SET",
        help="test sets to compare with torch on, as tools/evaluate.py takes them",
    )
    arguments = parser.parse_args()
    with command("export_onnx"):
        if arguments.config:
            load_config(arguments.config)
        export_model(arguments)


if __name__ == "__main__":
    main()
