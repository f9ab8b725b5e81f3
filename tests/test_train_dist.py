"""The command itself: under torch.distributed.launch on drawn faces, and with mistakes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

import train_dist
from facestream import VERSION
from tests.commands import call

ROOT = Path(__file__).parents[1]


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command leaves the output of whoever calls it as it is."""
    monkeypatch.chdir(ROOT)
    for name in ("protect_console", "keep_early_warnings"):
        monkeypatch.setattr(train_dist, name, lambda: None)


@pytest.mark.slow(seconds=6)
def test_two_ranks_train_verify_save_and_draw_curves(faces, tmp_path):
    """Under the older launcher, which gives them options; test_train_dist_stops uses torchrun."""
    output = tmp_path / "run"
    done = run(
        *("-m", "torch.distributed.launch", "--standalone", "--nproc_per_node=2"),
        *("train_dist.py", "configs/demo.py", f"data.train={faces}", f"run.output={output}"),
        *(f"eval.sets=[{faces / 'val.bin'}]", "run.epochs=2", "run.device=cpu"),
        *("data.global_batch=16", "log.every=2"),
    )
    assert done.returncode == 0, done.stderr
    assert "ranks      2 on cpu" in done.stdout
    assert "Speed" in done.stdout
    assert "samples/sec" in done.stdout
    for line in ("TensorBoard", "checkpoint", "curves", "verification"):
        assert f"  {line} " in done.stdout
    assert (output / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (output / "checkpoints" / "step_000000008" / ".metadata").exists()
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "verification" in line] == [0, 8]


@pytest.mark.slow(seconds=6)
def test_a_dry_run_takes_the_memory_it_predicts_and_leaves_no_output(faces, tmp_path):
    """Of a head of 512 MB, in a process of its own: its libraries count, pages of files do not."""
    output = tmp_path / "run"
    done = run(
        *("train_dist.py", "configs/demo.py", f"data.train={faces}", "--dry-run", "eval.sets=[]"),
        *(f"run.output={output}", "run.device=cpu", "run.epochs=2", "data.global_batch=8"),
        *("head.num_classes=250000", "model.embedding_dim=256", "head.sample_rate=0.1"),
    )
    assert done.returncode == 0, done.stderr
    message = re.search(
        r"at its peak ([\d,]+) of [\d,]+ MB a rank; ([\d,]+) predicted", done.stdout
    )
    peak, predicted = (int(number.replace(",", "")) for number in message.groups())
    assert predicted > 512 + 200
    assert 0.95 * peak <= predicted <= 1.1 * peak
    assert "the loader " in done.stdout
    assert not output.exists()


@pytest.mark.slow(seconds=6)
def test_what_cannot_fit_is_refused_in_one_line_that_says_what_takes_the_memory(
    faces, tmp_path, in_this_process
):
    done = call(
        *(train_dist.main, "configs/demo.py", f"data.train={faces}", "eval.sets=[]"),
        *(f"run.output={tmp_path / 'run'}", "run.device=cpu", "head.num_classes=1000000000"),
    )
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert re.search(r"does not fit: [\d,]+ MB a rank: libraries .* centers 512,000,", line)
    assert "available" in line
    assert "Try more ranks" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--local-rank=1", "--local_rank=1"])
@pytest.mark.parametrize("message", [None, "0"], ids=["alone", "environment"])
def test_the_option_of_torch_distributed_launch_gives_way_to_the_environment(
    monkeypatch, option, message
):
    monkeypatch.setenv("LOCAL_RANK", "")  # so that it is put back
    monkeypatch.delenv("LOCAL_RANK")
    if message:
        monkeypatch.setenv("LOCAL_RANK", message)
    monkeypatch.setattr(sys, "argv", ["train_dist.py", option, "c.py", "optim.lr=1"])
    for name in ("protect_console", "keep_early_warnings"):
        monkeypatch.setattr(train_dist, name, lambda: None)
    monkeypatch.setattr(train_dist, "Stops", nullcontext)  # which takes the signals for itself
    seen = []
    monkeypatch.setattr(train_dist, "run", lambda arguments, stops: seen.append(arguments))
    with pytest.raises(SystemExit):
        train_dist.main()
    assert os.environ["LOCAL_RANK"] == (message or "1")
    assert (seen[0].config, seen[0].overrides) == ("c.py", ["optim.lr=1"])


def test_help_tells_of_overrides_and_the_dry_run(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_dist.py", "--help"])
    with pytest.raises(SystemExit, match="0"):
        train_dist.main()
    usage = " ".join(capsys.readouterr().out.split())
    assert "[--dry-run] config [section.key=value ...]" in usage


def test_only_the_configuration_is_called_required(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_dist.py"])
    with pytest.raises(SystemExit):
        train_dist.main()
    assert capsys.readouterr().err.endswith("the following arguments are required: config\n")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_gpu_trains_in_every_precision(faces, tmp_path, precision):
    output = tmp_path / "run"
    done = run(
        *("train_dist.py", "configs/demo.py", f"data.train={faces}", f"run.output={output}"),
        *(f"eval.sets=[{faces / 'val.bin'}]", "run.epochs=2", "run.device=cuda"),
        *("data.global_batch=16", "log.every=2", f"step.precision={precision}"),
    )
    assert done.returncode == 0, done.stderr
    assert "without a CUDA graph" not in done.stderr
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ("configs/none.py",),
            "configs/none.py does not exist: expected a Python file that defines `config`",
        ),
        (("configs/demo.py", "optim.rate=1"), "optim.rate"),
        (("configs/demo.py", "data.train=/nowhere/train.rec"), "/nowhere/train.rec does not exist"),
        (("configs/demo.py", "--dry-run", "data.train=/nowhere/a.rec"), "a.rec does not exist"),
        (
            ("configs/demo.py", "--dry-run", "eval.sets=[/nowhere/lfw.bin]"),
            "eval.sets=/nowhere/lfw.bin does not exist",
        ),
    ],
)
def test_mistakes_end_in_one_line_that_says_how_to_mend_them(
    tmp_path, in_this_process, arguments, complaint
):
    config, *others = arguments
    output = f"run.output={tmp_path / 'run'}"
    done = call(train_dist.main, config, "eval.sets=[]", *others, output)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("train_dist: ")
    assert complaint in line


@pytest.mark.slow(seconds=6)
def test_a_mistake_ends_the_process_without_a_trace():
    done = run("train_dist.py", "configs/demo.py", "optim.rate=1")
    assert done.returncode == 2
    assert done.stderr.startswith("train_dist: optim.rate='1': no such key")
    assert "Traceback" not in done.stderr


def test_the_version_is_that_of_the_package(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["train_dist.py", "--version"])
    with pytest.raises(SystemExit, match="0"):
        train_dist.main()
    assert capsys.readouterr().out == f"facestream {VERSION}\n"
