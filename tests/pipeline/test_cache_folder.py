"""Users without a home, or without a name, find a place for caches."""

from __future__ import annotations

import getpass
import os
import sys
import tempfile
from pathlib import Path

import pytest

from pipeline.cache_folder import _LIBRARIES, cache_folders, provide_caches
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.records.sidecar import output_folder, sidecar_folders
from tools import rec2idx

NOBODY = 54321  # a number that no account has


@pytest.fixture
def homeless(monkeypatch, tmp_path) -> Path:
    """No $HOME, and an account that the system does not know; returns the temporary folder."""

    def unknown(*_: object) -> None:
        raise KeyError("getpwuid(): uid not found")

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME", *_LIBRARIES):
        monkeypatch.setenv(name, "")  # so that what is set in a test is undone
        monkeypatch.delenv(name)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def write_rec(folder: Path) -> Path:
    folder.mkdir(parents=True)
    with RecordWriter(folder / "train.rec") as writer:
        writer.write(pack_image(b"\xff\xd8 image", 0.0, 1))
    return folder / "train.rec"


def test_without_a_home_the_cache_is_in_the_temporary_folder(homeless):
    (own,) = cache_folders()
    assert own.is_relative_to(homeless)


def test_without_a_home_a_read_only_set_gets_its_sidecar_all_the_same(homeless, tmp_path):
    rec = write_rec(tmp_path / "set")
    rec.parent.chmod(0o555)
    try:
        open_index(rec)
        beside, cache = sidecar_folders(rec)
        assert not (beside / "train.fsidx").exists()
        assert (cache / "train.fsidx").exists()
        assert len(open_index(rec)) == 1
    finally:
        rec.parent.chmod(0o755)


def test_a_cache_that_cannot_be_written_is_passed_over(homeless, tmp_path, monkeypatch):
    rec = write_rec(tmp_path / "set")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    rec.parent.chmod(0o555)
    try:
        assert output_folder(rec) == sidecar_folders(rec)[-1]
    finally:
        rec.parent.chmod(0o755)


def test_libraries_find_places_and_a_name_where_there_are_none(homeless):
    with pytest.raises((KeyError, OSError)):
        getpass.getuser()
    provide_caches()
    assert getpass.getuser()
    assert Path.home().is_relative_to(homeless)
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_HOME"):
        assert Path(os.environ[name]).is_relative_to(homeless)


def test_a_home_that_can_be_written_is_left_alone(homeless, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USER", "someone")
    before = dict(os.environ)
    provide_caches()
    assert dict(os.environ) == before


def test_a_place_that_another_took_is_not_trusted(homeless, monkeypatch):
    (own,) = cache_folders()
    own.parent.mkdir()
    monkeypatch.setattr(os, "getuid", lambda: NOBODY)
    (own.parent.parent / f"facestream-{NOBODY}").mkdir()  # not this user's, who is now NOBODY
    (other,) = cache_folders()
    assert other.parent.name != f"facestream-{NOBODY}"


def test_a_tool_runs_as_a_user_whom_the_system_does_not_know(homeless, monkeypatch, capsys):
    rec = write_rec(homeless / "set")
    rec.parent.chmod(0o555)
    monkeypatch.setattr(sys, "argv", ["rec2idx", str(rec)])
    try:
        with pytest.raises(SystemExit) as ended:
            rec2idx.main()
    finally:
        rec.parent.chmod(0o755)
    assert ended.value.code == 0
    assert f"{homeless}/facestream-" in capsys.readouterr().out
