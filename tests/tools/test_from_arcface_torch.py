"""from_arcface_torch: the file that it writes is the configuration of its overrides."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tools.from_arcface_torch import from_arcface_torch, main
from training.arcface_torch.settings import ArcFaceConfigError
from training.config import Config, ConfigError, DataConfig, load_config, override

THEIRS = """
from easydict import EasyDict as edict
config = edict()
config.margin_list = (1.0, 0.0, 0.4)
config.network = "r100"
config.sample_rate = 0.1
config.rec = "/data/it's \\"people\\""
config.num_epoch = 20
config.val_targets = ["lfw"]
config.output = os.path.join('''a\\b''', "c")
"""


@pytest.fixture
def theirs(tmp_path) -> Path:
    path = tmp_path / "theirs.py"
    path.write_text(THEIRS)
    return path


def test_the_file_is_the_configuration_of_the_overrides(theirs, tmp_path):
    output = tmp_path / "configs" / "ours.py"
    done = from_arcface_torch(theirs, output, gpus=4)
    assert load_config(output) == override(
        Config(data=DataConfig(train="unknown")), done.overrides()
    )
    written = output.read_text()
    assert written.startswith('"""theirs.py of arcface_torch, as it trains on 4 GPUs.\n')
    assert "- output = os.path.join(" in written, "what was not taken stands in the file"
    assert load_config(output, ["data.train=/x"]).data.train == "/x"


def test_what_is_there_is_not_written_over_and_what_is_none_is_refused(theirs, tmp_path):
    with pytest.raises(ArcFaceConfigError, match="is there already: name another file"):
        from_arcface_torch(theirs, theirs, gpus=8)
    with pytest.raises(ArcFaceConfigError, match="--gpus 0: expected at least 1"):
        from_arcface_torch(theirs, tmp_path / "ours.py", gpus=0)
    (tmp_path / "none.py").write_text("config = 1\n")
    with pytest.raises(ArcFaceConfigError, match=r"none\.py is no configuration of arcface_torch"):
        from_arcface_torch(tmp_path / "none.py", tmp_path / "ours.py", gpus=8)
    theirs.write_text(f"{THEIRS}config.momentum = 2\n")
    with pytest.raises(ConfigError, match=r"optim\.momentum=2"):
        from_arcface_torch(theirs, tmp_path / "ours.py", gpus=8)
    assert not (tmp_path / "ours.py").exists()


def test_the_command_says_what_is_not_the_same(theirs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["x", str(theirs), "-o", str(tmp_path / "ours.py")])
    main()
    message = capsys.readouterr().out
    assert "for 8 GPUs (--gpus)" in message
    assert (
        "batch 1024, and optim.lr=0.05, which is for 512 images: at 1024 that makes 0.1" in message
    )
    assert "note  output = os.path.join(" in message
