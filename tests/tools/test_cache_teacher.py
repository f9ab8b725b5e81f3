"""cache_teacher: what it writes is what the teacher makes of the loader's own images."""

import numpy as np
import pytest
import torch

from models import create_model
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from synthetic import encode_jpeg, render
from tests.commands import call_apart
from tools.cache_teacher import cache_teacher, main
from training.config import Config, DataConfig, DistillConfig, ModelConfig, RunConfig, StepConfig
from training.distill.embedding_cache import open_embeddings
from training.distill.teacher import load_teacher
from training.step.precision import choose_precision

CPU = torch.device("cpu")
IMAGES, BAD, D = 11, 4, 8


pytestmark = pytest.mark.usefixtures("world")


@pytest.fixture
def config(tmp_path):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for k in range(IMAGES):
            image = b"no image" if k == BAD else encode_jpeg(render(k, 0))
            writer.write(pack_image(image, float(k), k))
    torch.manual_seed(0)
    network = create_model("iresnet10", embedding_dim=D)
    torch.save(network.state_dict(), tmp_path / "teacher.pth")
    return Config(
        run=RunConfig(device="cpu"),
        data=DataConfig(train=str(tmp_path)),
        model=ModelConfig(embedding_dim=D),
        step=StepConfig(precision="fp32"),
        distill=DistillConfig(teacher=str(tmp_path / "teacher.pth"), model="iresnet10"),
    )


@pytest.mark.slow
def test_rows_are_the_teachers_embeddings_of_the_loaders_images(config, world, capsys):
    (path,) = cache_teacher(config, world, batch=4)
    message = capsys.readouterr().out
    assert f"wrote         {path}: {IMAGES} embeddings of {D}" in message
    assert f"record {BAD} cannot be decoded" in message
    assert "1 of these images are bad: their embeddings are zeros" in message
    teacher = load_teacher(config, device=CPU, precision=choose_precision(CPU, "fp32"))
    index = open_index(config.data.train)
    rows = open_embeddings(index, teacher=teacher.fingerprint)
    assert not rows[BAD].any()
    loader = Loader(index, global_batch=IMAGES, device=CPU, max_bad_fraction=1)
    images, _, records, _ = next(loader.stream(0))
    expected = teacher.embed(images).numpy()
    np.testing.assert_allclose(rows[records], expected, rtol=2e-3, atol=2e-3)
    assert cache_teacher(config, world, batch=4) == []
    assert "kept" in capsys.readouterr().out


@pytest.mark.slow
def test_the_command_goes_on_where_it_was_interrupted(config, world, tmp_path):
    (cache,) = cache_teacher(config, world, batch=4)
    whole = cache.read_bytes()
    kept = b"\0" * (2 * D)  # instead of the first row: what is there is not computed again
    unfinished = cache.with_name(f"{cache.name}.unfinished")
    cache.rename(unfinished)
    unfinished.write_bytes(whole[:4096] + kept + whole[4096 + 2 * D :][: 2 * D * 4 + 1])
    path = tmp_path / "config.py"
    path.write_text(
        "from training.config import *\n"
        f"config = Config(run=RunConfig(device='cpu'), data={config.data!r}, "
        f"model=ModelConfig(embedding_dim={D}), step=StepConfig(precision='fp32'), "
        f"distill={config.distill!r})\n"
    )
    done = call_apart(main, path, "--batch", 4, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    found, first = (np.frombuffer(c[4096:], np.float16) for c in (cache.read_bytes(), whole))
    assert not found[:D].any()
    np.testing.assert_allclose(found[D:], first[D:], rtol=2e-3, atol=2e-3)


@pytest.mark.slow
def test_a_configuration_without_a_teacher_is_one_line_of_error(tmp_path):
    path = tmp_path / "config.py"
    path.write_text(
        "from training.config import *\n"
        "config = Config(run=RunConfig(device='cpu'), data=DataConfig(train='x.rec'))\n"
    )
    done = call_apart(main, path, folder=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("cache_teacher: distill.teacher='': expected a teacher")
    assert "Traceback" not in done.stderr
