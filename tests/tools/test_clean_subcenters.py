"""Sub-centers of a head: each label's own, however the run numbered its people."""

import numpy as np

from pipeline.records.index import open_index
from tests.training import tiny
from tests.training.people import save_run, write_people
from tools.clean import read_subcenters
from training.config import override


def test_sub_centers_are_those_of_the_labels(tmp_path, world):
    """As the run numbered its people, who are in another order than the file's labels."""
    rec = write_people(tmp_path / "set", ("cyd", "ann", "bob"))
    (tmp_path / "map.csv").write_text(
        "file,label,identity\ntrain.rec,0,cyd\ntrain.rec,1,ann\ntrain.rec,2,bob\n"
    )
    settings = [f"data.identity_map={tmp_path / 'map.csv'}", "head.subcenters=2"]
    config = override(tiny.config(rec.parent, tmp_path / "run"), settings)
    saved, step = save_run(config, world)
    found = read_subcenters(str(saved), open_index(rec))
    centers = step.head.centers.numpy().reshape(3, 2, -1)
    np.testing.assert_array_equal(found, centers[[2, 0, 1]])
    other = write_people(tmp_path / "other", ("eve", "fay"))
    assert read_subcenters(str(saved), open_index(other)) is None


def test_a_head_without_sub_centers_gives_none(tmp_path, world):
    rec = write_people(tmp_path / "set", ("ann", "bob"))
    saved, _ = save_run(tiny.config(rec.parent, tmp_path / "run"), world)
    assert read_subcenters(str(saved), open_index(rec)) is None
