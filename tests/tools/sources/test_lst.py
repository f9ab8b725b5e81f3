"""Lists as im2rec reads them: the first label is the identity, the path begins at the root."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.named_path import PathError
from pipeline.passed_over import PassedOver
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordError
from tests import damage
from tools.pack_rec import Options, pack
from tools.sources.lst import read_lst


def write_faces(folder: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        stored = io.BytesIO()
        Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(stored, "PNG")
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(stored.getvalue())


def test_a_list_becomes_a_set(tmp_path, capsys):
    """Out of order, with several labels, a name beyond ASCII, a file that is gone."""
    root = tmp_path / "images"
    names = ["b/1.png", "a/ü 2.png", "a/1.png"]
    write_faces(root, names)
    path = tmp_path / "train.lst"
    lines = ["7\t10.000000\tb/1.png", "3\t2\t0.5\t0.25\ta/ü 2.png", "", "1\t2.0\ta/1.png"]
    path.write_text("\r\n".join([*lines, "9\t4\tgone.png"]), encoding="utf-8-sig")
    pack([path], tmp_path / "out", Options(root=root))
    index = open_index(tmp_path / "out")
    assert index.records["label"].tolist() == [0, 0, 1]
    found = [bytes(index.image(i)) for i in range(3)]
    assert found == [(root / name).read_bytes() for name in (names[1], names[2], names[0])]
    about = json.loads((tmp_path / "out" / "train.json").read_text())
    assert about["names"] == ["2", "10"], "whose they were"
    assert f"passed over   missing file: 1, first {root}/gone.png" in capsys.readouterr().out


def test_paths_begin_beside_the_list_unless_a_root_is_named(tmp_path):
    write_faces(tmp_path, ["x/1.png"])
    path = tmp_path / "a.lst"
    path.write_text("0\t0\tx/1.png\n")
    (sample,) = read_lst([path], PassedOver())
    assert (sample.identity, sample.place) == (0, os.fspath(tmp_path / "x/1.png"))
    with pytest.raises(RecordError, match=r"--root .*nowhere is no folder"):
        list(read_lst([path], PassedOver(), root=tmp_path / "nowhere"))
    with pytest.raises(RecordError, match=r"--root goes with lst, but .* is read as folders"):
        pack([tmp_path], tmp_path / "out", Options(root=tmp_path))


@pytest.mark.parametrize(
    "line", ["1\ta.jpg", "1\ta.jpg\t0", "1\t-1\ta.jpg", "1\t0.5\ta.jpg", "1\tnan\ta.jpg", "1\t0\t"]
)
def test_a_line_that_is_none_is_named(tmp_path, line):
    path = tmp_path / "a.lst"
    path.write_text(f"\n{line}\n")
    with pytest.raises(RecordError, match=r"a\.lst, line 2: found .*expected index<TAB>label"):
        list(read_lst([path], PassedOver()))


def test_a_damaged_list_is_refused_by_name(tmp_path):
    write_faces(tmp_path, ["x/1.png", "x/2.png"])
    path = tmp_path / "a.lst"
    text = "0\t0\tx/1.png\n1\t7.000000\tx/2.png\n"
    damage.assert_refused_by_name(
        path,
        damage.of_bytes(text.encode(), count=200),
        lambda: list(read_lst([path], PassedOver())),
        (RecordError, PathError),
    )
