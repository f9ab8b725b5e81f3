"""Random command lines: a command does its work or ends in one line, with no trace of ours."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import multiprocessing.pool
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

import train_dist
from evaluation.pair_set import write_bin
from models import create_model
from pipeline.align import TEMPLATE
from tests.training import tiny
from tests.training.arcface_torch.test_rank_files import Run
from tests.training.weights.onnx_graphs import write
from tools.import_arcface_torch import import_arcface_torch
from training.config import Config, DataConfig
from training.distributed import join_world, leave_world
from training.loop import Trainer

LINES = 30  # of each command
# What a command does its work for; {out} is new each time.
COMMANDS = {
    "tools.align": "{photos} -o {out} --landmarks {marks} --size 32 --no-face skip",
    "tools.cache_teacher": "{config} distill.teacher={pth} distill.model=iresnet10 --batch 8",
    "tools.export_weights": "{checkpoint} -o {out} --format arcface_torch --ranks 2 --epoch 1",
    "tools.grow_head": "{checkpoint} --rec {rec} -o {out} --init random",
    "tools.import_arcface_torch": "{ranks} -o {out} --num-classes 11",
    "tools.make_bin": "--pairs-from {photos} -o {out} --most 4 --per-person 5 --seed 1",
    "tools.make_synthetic": "{out} --identities 2 --images 1 --pairs 20 --size 32 --seed 0",
    "tools.pack_rec": "{rec} {out} --by identity --drop {list}",
    "tools.preview": "{config} data.augment=[flip] -o {out}.png --images 2 --epochs 1",
    "tools.rec2idx": "{rec} -o {out} --verify --size 32",
    "tools.unpack_rec": "{rec} {out}",
    "train_dist": "{config} run.output={out} data.global_batch=12 optim.lr=0.1",
    "tools.evaluate": "{pth} --pairs-from {photos} --landmarks {marks} -o {out} --folds 2 "
    "--draws 2 --batch 8 --threads 1 --device cpu",
    "tools.predict": "{pth} {photos} -o {out} --landmarks {marks} --batch 8 --device cpu",
    "tools.compare": "{pth} {photos} {photos} --landmarks {marks} --top 2 -o {out} --device cpu",
    "tools.forget": "label:1 --data {rec} --runs {imported} -o {out} --top 2 --device cpu",
    "tools.compat": "{pth} {other} --sets {bin} -o {out} --fit {bin} --images 90 --draws 2 "
    "--seed 1 --batch 8 --device cpu --skip-damaged",
    "tools.import_onnx": "{onnx} -o {out}.safetensors --onnx-input rgb,-1..1 --license mit "
    "--statistics {rec} --images 3",
}
NUMBERS = ("0", "1", "2", "-1", "7", "20", "1.5", "nan", "inf", "9" * 20, "9" * 5000, "012", "²")
VALUES = (
    *(*NUMBERS, "null", "true", "[]", "[1, 2]", "{}", "{0: 0.5}", "12:30:45", "${x}", "[", "@"),
    *("auto", "torch", "apex", "fp16", "block", "balanced", "dense", "adamw", "cosine", "adaface"),
    *("[flip, geometry]", "l2", "1e-3", "0.5", "32", "16384", "1000000000", "", "é\udcff"),
)
SETTINGS = [
    f"{section}.{name}"
    for section, keys in Config(data=DataConfig(train="x")).as_dict().items()
    for name in keys
]
CONFIG = """
from pathlib import Path
from evaluation.pair_set import write_bin
from models import create_model
from tests.training import tiny
config = tiny.config(Path({data!r}), Path({run!r}))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """What COMMANDS name, and more that is no good for any."""
    folder = tmp_path_factory.mktemp("given")
    data = tiny.write_set(folder / "data")
    config = folder / "config.py"
    config.write_text(CONFIG.format(data=str(data), run=str(folder / "run")))
    (folder / "ranks").mkdir()
    Run(folder / "ranks", world_size=1).save()
    join_world("cpu")
    checkpoint = import_arcface_torch([folder / "ranks"], folder / "imported")
    leave_world()
    (folder / "raises.py").write_text("config = 1 / 0\n")
    (folder / "drop.txt").write_text("1\n")
    (folder / "bytes.pt").write_bytes(bytes(range(256)))
    (folder / "empty").mkdir()
    marks = [_photo(folder / "photos" / person / f"{i}.png") for person in "ab" for i in range(2)]
    (folder / "marks.csv").write_text("\n".join(marks))
    network = create_model("iresnet10", embedding_dim=16, image_size=tiny.SIZE)
    torch.save(network.state_dict(), folder / "backbone.pth")
    write(folder / "backbone.onnx", network.eval().to(memory_format=torch.contiguous_format))
    other = create_model("iresnet10", embedding_dim=16, image_size=tiny.SIZE)
    torch.save(other.state_dict(), folder / "other.pth")
    write_bin(folder / "pairs.bin", [_image(i) for i in range(24)], [i % 2 > 0 for i in range(12)])
    torch.save({"weight": torch.zeros(3, 16)}, folder / "head.pth")
    names = ("raises.py", "bytes.pt", "head.pth", "empty", "none", "data", "imported")
    return {
        "config": str(config),
        "rec": str(data / "train.rec"),
        "pth": str(folder / "backbone.pth"),
        "other": str(folder / "other.pth"),
        "onnx": str(folder / "backbone.onnx"),
        "bin": str(folder / "pairs.bin"),
        "ranks": str(folder / "ranks"),
        "checkpoint": str(checkpoint),
        "list": str(folder / "drop.txt"),
        "photos": str(folder / "photos"),
        "marks": str(folder / "marks.csv"),
        **{name: str(folder / name) for name in names},
    }


def _image(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (tiny.SIZE, tiny.SIZE), (10 * shade, 99, 255 - shade)).save(file, "PNG")
    return file.getvalue()


def _photo(path: Path) -> str:
    """Writes one of grey, and gives its line in a list of landmarks."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (112, 112), "gray").save(path)
    return ",".join([f"{path.parent.name}/{path.name}", *map(str, TEMPLATE.ravel())])


@pytest.fixture
def quick(monkeypatch):
    """Runs end before their first step, and faces are drawn by threads."""
    monkeypatch.setattr(Trainer, "run", lambda self: None)
    monkeypatch.setattr(train_dist, "keep_early_warnings", lambda: None)
    threads = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: threads)


def changed(line: list[str], given: dict[str, str], rng: np.random.Generator) -> list[str]:
    """A command line of which one to three words are lost, replaced or new."""

    def one_of(words: list[str]) -> str:
        return words[int(rng.integers(0, len(words)))]

    line = list(line)
    files = [*given.values(), "/dev/null", "", "é\udcff", "x" * 300]
    options = [word for word in line if word.startswith("-")]
    for _ in range(int(rng.integers(1, 4))):
        word = one_of([one_of(files), one_of([*NUMBERS, *VALUES]), one_of([*options, "-x"])])
        if any("=" in word for word in line) and rng.random() < 0.7:
            word = f"{one_of(SETTINGS)}={one_of([one_of(files), one_of([*VALUES])])}"
        at = int(rng.integers(0, len(line) + 1))
        kind = rng.random()
        if "=" in word:
            line.insert(max(at, 1), word)
        elif kind < 0.2:
            del line[at : at + 1]
        else:
            line[at : at + (kind < 0.8)] = [word]
    return line


@pytest.mark.slow
@pytest.mark.parametrize("module", COMMANDS)
def test_a_random_command_line_ends_in_words(module, given, quick, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(list(COMMANDS).index(module))
    main = importlib.import_module(module).main
    worked = 0
    for number in range(LINES):
        words = given | {"out": str(tmp_path / f"out{number}")}
        line = [word.format(**words) for word in COMMANDS[module].split()]
        if number:
            line = changed(line, given, rng)
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *line])
        for stream, errors in (("stdout", "strict"), ("stderr", "backslashreplace")):  # Python's
            console = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors)
            monkeypatch.setattr(sys, stream, console)
        try:
            main()
            code = 0
        except SystemExit as ended:
            code = ended.code
        except Exception as error:
            raise AssertionError(f"{line} ends in {error!r}") from error
        finally:
            if dist.is_initialized():
                leave_world()
        # --verify ends with 1 where an image is bad.
        assert code in (None, 0, 1, 2), f"{line} ends with {code!r}"
        console.flush()
        assert code != 2 or console.buffer.getvalue().strip(), f"{line} ends without a word"
        assert number or code in (None, 0), "the line that nothing is wrong with"
        worked += code in (None, 0)
    assert 0 < worked < LINES
