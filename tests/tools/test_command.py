"""Every tool ends in one line that names the file, whatever is wrong with what it is given."""

from __future__ import annotations

import errno
import importlib
import os
import pkgutil
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from rich.console import Console

from facestream import UserError
from models import create_model
from tests.pipeline.test_named_path import REASONS, forbid, spoil
from tests.training import tiny
from training.command import command, ending

ROOT = Path(__file__).parents[2]
ROOMS = ("pipeline", "models", "heads", "evaluation", "training", "tools")
CONFIG = """
from pathlib import Path
from tests.training import tiny
config = tiny.config(Path({data!r}), Path({run!r}))
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """What the tools take where nothing is wrong."""
    folder = tmp_path_factory.mktemp("given")
    data = tiny.write_set(folder / "data")
    (folder / "config.py").write_text(CONFIG.format(data=str(data), run=str(folder / "run")))
    weights = folder / "backbone.pth"
    torch.save(create_model("iresnet18", embedding_dim=16).state_dict(), weights)
    return {
        "config": str(folder / "config.py"),
        "rec": str(data / "train.rec"),
        "weights": str(weights),
        "data": str(data),
    }


# What is read: the argument at fault is {bad}, a file unless it is said to be a folder.
INPUTS = {
    "rec2idx": "{bad} -o {out}",
    "unpack_rec": "{bad} {out}",
    "pack_rec": "{bad} {out}",
    "pack_rec --keep": "{rec} {out} --keep {bad}",
    "preview": "{bad} -o {out}.png",
    "preview data.train": "{config} data.train={bad} -o {out}.png",
    "cache_teacher": "{bad}",
    "cache_teacher distill.teacher": "{config} distill.teacher={bad}",
    "export_weights": "{bad} -o {out}",
    "grow_head": "{bad} --rec {rec} -o {out}",
    "import_arcface_torch": "{bad} -o {out}",
}
# What is written: {bad} cannot be made.
OUTPUTS = {
    "rec2idx": "{rec} -o {bad}",
    "rec2idx --repair": "{rec} --repair {bad}",
    "unpack_rec": "{rec} {bad}",
    "pack_rec": "{rec} {bad}",
    "preview": "{config} --images 2 --epochs 1 -o {bad}.png",
    "make_synthetic": "{bad} --identities 2 --images 1 --pairs 20",
    "import_arcface_torch": "{weights} -o {bad}",
}


def end_of(line: str, arguments: str, given: dict[str, str], monkeypatch, capsys) -> str:
    """What a tool says at its end."""
    tool = line.split()[0]
    words = [word.format(**given) for word in arguments.split()]
    monkeypatch.setattr(sys, "argv", [tool, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(f"tools.{tool}").main()
    assert ended.value.code == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith(f"{tool}: ")
    return message


@pytest.mark.parametrize("line", INPUTS)
@pytest.mark.parametrize("how", [how for how in REASONS if how != "NUL"])
def test_what_a_tool_cannot_read_is_named(given, tmp_path, monkeypatch, capsys, line, how):
    bad = spoil(tmp_path, how)
    if how == "forbidden":
        forbid(monkeypatch, bad)
    words = given | {"bad": bad, "out": str(tmp_path / "out")}
    message = end_of(line, INPUTS[line], words, monkeypatch, capsys)
    assert bad in message
    assert len(message) > len(bad) + len(f"{line}: ") + 20, "a reason and a remedy"


@pytest.mark.parametrize("line", OUTPUTS)
@pytest.mark.parametrize("how", ["below a file", "too long", "a loop of links"])
def test_what_a_tool_cannot_write_is_named(given, tmp_path, monkeypatch, capsys, line, how):
    bad = spoil(tmp_path, how)
    if line == "preview" and how == "a loop of links":
        pytest.skip("a picture has a suffix, and is another file")
    message = end_of(line, OUTPUTS[line], given | {"bad": bad}, monkeypatch, capsys)
    assert bad in message


def test_a_full_disk_ends_a_tool_in_a_line(capsys):
    with pytest.raises(SystemExit, match="2"), command("pack_rec"):
        raise OSError(errno.ENOSPC, "No space left on device")
    message = r"pack_rec: this process finds no room .*Make room.*\n"
    assert re.fullmatch(message, capsys.readouterr().err)


def test_a_full_disk_behind_the_output_is_found_before_the_end(monkeypatch, capsys):
    """Python's own flush at its end would say "Exception ignored in", and exit with 120."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(SystemExit, match="2"), command("pack_rec"):
            print("a result")
        monkeypatch.undo()
        os.dup2(2, full.fileno())  # for what it still holds
    assert "finds no room" in capsys.readouterr().err


@pytest.mark.parametrize("show", [print, lambda text: Console().print(text)], ids=["print", "rich"])
@pytest.mark.parametrize("begin", [ending, command], ids=["ending", "command"])
def test_a_reader_that_has_gone_ends_a_tool_without_a_word(monkeypatch, capfd, show, begin):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with pytest.raises(SystemExit) as ended, begin("rec2idx"):
            show("a result")
        monkeypatch.undo()
    assert ended.value.code == 128 + signal.SIGPIPE
    assert capfd.readouterr().err == ""


def test_a_pipe_inside_that_breaks_is_a_mistake_of_ours(monkeypatch):
    with open(os.devnull, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(sys, "stderr", stream)
        with pytest.raises(BrokenPipeError), command("rec2idx"):
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_lets_a_tool_remove_what_it_has_half_made(number, tmp_path, capsys):
    before = signal.getsignal(number)
    ended = pytest.raises(SystemExit, match=str(128 + number))
    with ended, command("pack_rec"), tempfile.TemporaryDirectory(dir=tmp_path):
        signal.raise_signal(number)
    assert not any(tmp_path.iterdir())
    assert "Traceback" not in capsys.readouterr().err
    assert signal.getsignal(number) is before


def test_a_signal_that_is_ignored_or_handled_is_left_so():
    for handler in (signal.SIG_IGN, lambda number, frame: None):
        before = signal.signal(signal.SIGHUP, handler)
        try:
            with command("pack_rec"):
                assert signal.getsignal(signal.SIGHUP) is handler
                signal.raise_signal(signal.SIGHUP)
        finally:
            signal.signal(signal.SIGHUP, before)


def test_a_mistake_of_ours_shows_its_trace():
    with pytest.raises(OSError, match="Bad file descriptor"), command("pack_rec"):
        raise OSError(errno.EBADF, "Bad file descriptor")
    with pytest.raises(ValueError, match="of ours"), command("pack_rec"):
        raise ValueError("a mistake of ours")


def descendants(error: type[Exception]) -> set[type[Exception]]:
    below = set(error.__subclasses__())
    return below.union(*map(descendants, below))


def test_every_error_of_the_rooms_that_is_a_value_error_is_one_that_a_user_can_mend():
    """Else a command would show its trace."""
    for room in ROOMS:
        for module in pkgutil.walk_packages([str(ROOT / room)], f"{room}."):
            importlib.import_module(module.name)
    ours = [error for error in descendants(ValueError) if error.__module__.startswith(ROOMS)]
    assert len(ours) > 15
    assert [error for error in ours if not issubclass(error, UserError)] == []


@pytest.mark.parametrize(
    ("line", "work", "arguments", "remedy"),
    [
        ("cache_teacher", "cache_teacher", "{config} distill.teacher={weights}", "Try "),
        ("grow_head", "grow_head", "{data} --rec {rec} -o {out}", "try --init random"),
    ],
)
def test_memory_that_runs_out_is_reported_with_what_was_asked_for(
    given, tmp_path, monkeypatch, capsys, line, work, arguments, remedy
):
    def exhaust(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: you tried to allocate 5000000 bytes: bad_alloc")

    monkeypatch.setattr(f"tools.{line}.{work}", exhaust)
    words = given | {"out": str(tmp_path / "out")}
    if line == "cache_teacher":
        arguments += " distill.model=iresnet18"
    message = end_of(line, arguments, words, monkeypatch, capsys)
    assert "asked for 5.0 MB" in message
    assert remedy in message
