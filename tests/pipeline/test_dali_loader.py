"""The stream of batches: right pixels, right labels, the same wherever it is taken up."""

import gc
import io
import os
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from facestream import UserError
from pipeline import dali, dali_loader
from pipeline.augment import RECIPES, Augmentation, Draw, Recipe
from pipeline.dali_decode import choose_decode_device, decoded, find_faults
from pipeline.dali_loader import Loader
from pipeline.order import permute
from pipeline.records.index import open_index
from pipeline.records.recordio import MAGIC, RecordError, RecordWriter, pack_image
from pipeline.side_columns import SideColumns
from tests.clock import LIMIT

CPU = torch.device("cpu")
SIZE = 32
LFW = Path(__file__).parents[3] / "shared/data/faces_lfw_dev"


def encode(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, quality=95)
    return file.getvalue()


def picture(k: int) -> np.ndarray:
    """An image that tells its number, lossless as PNG."""
    return np.random.default_rng(k).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    with RecordWriter(folder / "train.rec") as writer:
        for k in range(50):
            writer.write(pack_image(encode(picture(k)), float(k), k))
    return open_index(folder)


WAYS = pytest.mark.parametrize(
    "augment",
    [
        pytest.param(("flip",), id="threads"),
        pytest.param(("light",), id="dali", marks=pytest.mark.dali),
    ],
)


def loader(index, **changes) -> Loader:
    settings = {"global_batch": 12, "device": CPU, "image_size": SIZE, "seed": 5}
    return Loader(index, **{**settings, **changes})


def take(stream, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    batches = [next(stream) for _ in range(count)]
    return torch.cat([b.images for b in batches]), torch.cat([b.labels for b in batches])


def test_batches_hold_the_decoded_pixels_in_the_order_of_the_permutation(index):
    images, labels = take(loader(index).stream(0), 4)
    order = permute(np.arange(48), num_records=50, seed=5, epoch=0)
    assert labels.tolist() == order.tolist()
    expected = np.stack([picture(k) for k in order]).transpose(0, 3, 1, 2)
    assert torch.equal(images, torch.from_numpy(expected))


def test_batches_are_uint8_channels_last_and_int64(index):
    batch = next(loader(index).stream(0))
    assert (batch.images.dtype, batch.labels.dtype) == (torch.uint8, torch.int64)
    assert batch.images.shape == (12, 3, SIZE, SIZE)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.dali
@pytest.mark.parametrize(
    ("apply", "found"),
    [
        (lambda images: images / 255.0, "32×32×3, float32"),
        (lambda images: dali.fn.resize(images, size=[16, 24]), "16×24×3, uint8"),
    ],
)
def test_a_recipe_that_leaves_other_images_than_it_took_is_refused(
    index, apply, found, monkeypatch
):
    monkeypatch.setitem(RECIPES, "mine", Recipe(lambda draw: {}, apply))
    message = rf"make images of {found}, expected 32×32×3, uint8"
    with (
        closing(loader(index, augment=("mine",)).stream(0)) as stream,
        pytest.raises(UserError, match=message),
    ):
        next(stream)


@WAYS
def test_a_batch_stays_what_it_was_while_the_stream_runs_on(index, augment):
    stream = loader(index, augment=augment).stream(0)
    batch = next(stream)
    images, labels = batch.images.clone(), batch.labels.clone()
    take(stream, 6)
    assert torch.equal(batch.images, images)
    assert torch.equal(batch.labels, labels)


def test_the_stream_runs_through_epochs_each_in_its_own_order(index):
    small = loader(index)
    assert (small.steps_per_epoch, small.dropped) == (4, 2)
    _, labels = take(small.stream(0), 8)
    for epoch in range(2):
        order = permute(np.arange(48), num_records=50, seed=5, epoch=epoch)
        assert labels[epoch * 48 :][:48].tolist() == order.tolist()


@pytest.mark.slow
@pytest.mark.dali
@pytest.mark.parametrize("resumed_world", [1, 2, 3])
def test_a_run_of_two_ranks_resumes_mid_epoch_in_any_world_with_the_same_pixels(
    index, resumed_world
):
    face = np.array([[0.34, 0.46], [0.66, 0.46], [0.5, 0.64], [0.37, 0.82], [0.63, 0.82]]) * SIZE
    points = np.repeat(face[None].astype(np.float32), len(index), axis=0)
    columns = SideColumns({"landmarks": points}, ())
    everything = {"augment": tuple(RECIPES), "columns": columns}
    whole = [
        take(loader(index, **everything, rank=rank, world_size=2).stream(0), 3) for rank in range(2)
    ]
    resumed = [
        take(loader(index, **everything, rank=rank, world_size=resumed_world).stream(0, 2), 1)
        for rank in range(resumed_world)
    ]
    for part in range(2):  # images, labels
        third_step = torch.cat([share[part][12:] for share in whole])
        assert torch.equal(torch.cat([share[part] for share in resumed]), third_step)


@pytest.mark.dali
def test_augmentation_changes_pixels_but_not_labels_and_differs_between_epochs(index):
    plain, labels = take(loader(index).stream(0), 4)
    augmented = loader(index, augment=("light",))
    images, augmented_labels = take(augmented.stream(0), 4)
    assert torch.equal(labels, augmented_labels)
    assert not torch.equal(plain, images)
    later, later_labels = take(augmented.stream(1), 4)
    first = {int(label): image for label, image in zip(labels, images)}
    again = [(first[int(n)], image) for n, image in zip(later_labels, later) if int(n) in first]
    assert not any(torch.equal(a, b) for a, b in again)


@pytest.mark.dali
def test_geometry_turns_about_the_middle_of_the_image(monkeypatch):
    """Half a turn through DALI itself is both mirrors, to the pixel."""
    chosen = {"geometry.angle": 180.0, "geometry.scale": 1.0}
    monkeypatch.setattr(Draw, "__call__", lambda _, name, *range: np.full(1, chosen.get(name, 0.0)))
    draw = Draw(np.zeros(1, np.int64), seed=0, epoch=0, size=SIZE)
    matrix = RECIPES["geometry"].draw(draw)["matrix"]
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        inputs = dali.fn.external_source(source=lambda: [picture(0)], batch=True)
        nodes = dali.fn.external_source(source=lambda: matrix, batch=True)
        pipeline.set_outputs(RECIPES["geometry"].apply(inputs, matrix=nodes))
    pipeline.build()
    turned = np.asarray(pipeline.run()[0][0])
    assert np.abs(turned.astype(int) - picture(0)[::-1, ::-1]).max() <= 1


def test_flip_mirrors_half_of_the_images_exactly(index):
    plain, _ = take(loader(index).stream(0), 16)
    flipped, _ = take(loader(index, augment=("flip",)).stream(0), 16)
    mirrored = torch.tensor(
        [torch.equal(a.flip(2), b) for a, b in zip(plain, flipped)], dtype=torch.float64
    )
    same = torch.tensor([torch.equal(a, b) for a, b in zip(plain, flipped)])
    assert bool((same | mirrored.bool()).all())
    assert abs(mirrored.mean() - 0.5) < 4 * (0.25 / len(plain)) ** 0.5


def test_draws_stay_in_their_ranges_with_their_frequencies():
    positions = np.arange(20_000)
    draw = Draw(positions, seed=1, epoch=0, size=112)
    light = RECIPES["light"].draw(draw)
    assert 0.7 <= light["brightness"].min() <= light["brightness"].max() <= 1.3
    grey = (light["saturation"] == 0).mean()
    assert abs(grey - 0.1) < 4 * (0.09 / len(positions)) ** 0.5
    matrix = RECIPES["geometry"].draw(draw)["matrix"]
    scale = np.sqrt(np.linalg.det(matrix[:, :, :2]))
    assert 0.92 - 1e-6 <= scale.min() <= scale.max() <= 1.08 + 1e-6
    center = matrix @ np.array([56.0, 56.0, 1.0])
    assert np.abs(center - 56).max() <= 0.04 * 112 + 1e-3


def test_unknown_or_repeated_recipes_are_refused():
    with pytest.raises(ValueError, match=r"augment=\['flap'\].*'flip'"):
        Augmentation(["flap"])
    with pytest.raises(ValueError, match="each recipe once"):
        Augmentation(["flip", "flip"])


def test_a_batch_larger_than_the_data_is_refused(index):
    with pytest.raises(ValueError, match="global batch of 60 does not fit 50 records"):
        loader(index, global_batch=60)


def damaged_set(folder: Path, bad: dict[int, bytes], count: int = 50):
    with RecordWriter(folder / "train.rec") as writer:
        for k in range(count):
            writer.write(pack_image(bad.get(k) or encode(picture(k)), float(k), k))
    return open_index(folder)


@pytest.fixture(
    params=[
        "threads",
        pytest.param("dali", marks=pytest.mark.dali),
        pytest.param("dali decodes", marks=pytest.mark.dali),
    ]
)
def way(request, monkeypatch) -> Callable[..., Loader]:
    """Loaders that leave pixels as they are, on every way there is; the last acts a GPU out."""

    def build(index, **changes) -> Loader:
        augment = () if request.param == "threads" else ("light:1e-12",)
        made = loader(index, augment=augment, **changes)
        if request.param == "dali decodes":
            made.decode = "gpu"
            monkeypatch.setattr(dali_loader, "decoded", lambda encoded, _: decoded(encoded, "cpu"))
        assert made.uses_dali == (request.param != "threads")
        return made

    return build


def test_records_that_are_no_images_cost_one_sample_each_and_are_reported(tmp_path, caplog, way):
    """Two of them are neighbors."""
    index = damaged_set(tmp_path, {7: b"not an image at all", 6: b"nor this"})
    small = way(index, max_bad_fraction=0.05)
    images, labels = take(small.stream(0), 4)
    order = permute(np.arange(48), num_records=50, seed=5, epoch=0)
    order[(order == 7) | (order == 6)] = 8
    assert labels.tolist() == order.tolist()
    assert torch.equal(images[0], torch.from_numpy(picture(order[0]).transpose(2, 0, 1)))
    offset = index.records["offset"][7]
    assert f"offset {offset} cannot be decoded" in caplog.text
    assert small._bad.faults.keys() == {6, 7}


def test_too_many_bad_records_end_the_run_with_the_place_and_the_remedy(tmp_path, way):
    index = damaged_set(tmp_path, {7: b"not an image", 8: encode(np.zeros((40, 40, 3), np.uint8))})
    with pytest.raises(RecordError, match=r"offset \d+ (cannot|is 40×40).*raise max_bad_fraction"):
        take(way(index).stream(0), 4)


@pytest.mark.parametrize("odd", [{7}, set(range(50))])
def test_images_of_another_size_are_refused_be_it_one_or_all(tmp_path, odd, way):
    small = encode(np.zeros((40, 40, 3), np.uint8))
    index = damaged_set(tmp_path, dict.fromkeys(odd, small))
    with pytest.raises(RecordError, match=r"is 40×40, not 32×32 pixels.*bad images of 50"):
        take(way(index).stream(0), 4)


def test_a_set_with_no_good_image_ends_in_an_error_whatever_is_accepted(tmp_path, way):
    index = damaged_set(tmp_path, dict.fromkeys(range(12), b"nothing"), count=12)
    with pytest.raises(RecordError, match="12 bad images of 12"):
        take(way(index, max_bad_fraction=1.0).stream(0), 1)


@pytest.mark.dali
def test_another_size_is_found_before_a_recipe_changes_it(tmp_path, monkeypatch):
    index = damaged_set(tmp_path, {7: encode(np.zeros((40, 40, 3), np.uint8))})
    made = loader(index, augment=("adaface",))
    made.decode = "gpu"
    monkeypatch.setattr(dali_loader, "decoded", lambda encoded, _: decoded(encoded, "cpu"))
    with pytest.raises(RecordError, match="is 40×40, not 32×32 pixels"):
        take(made.stream(0), 4)


def test_a_bad_sector_costs_the_records_on_it(tmp_path, monkeypatch, way):
    index = damaged_set(tmp_path, {})
    (bad,), _ = index.spans(np.array([7]))
    read = os.pread

    def failing(descriptor, length, offset):
        if offset == bad:
            raise OSError(5, "Input/output error")
        return read(descriptor, length, offset)

    monkeypatch.setattr(os, "pread", failing)
    made = way(index, max_bad_fraction=0.05)
    _, labels = take(made.stream(0), 4)
    assert 7 not in labels.tolist()
    assert "Input/output error" in made._bad.faults[7]


def test_damage_inside_a_split_record_costs_that_record(tmp_path, way):
    """Its second part's frame is hit after the index was made."""
    magic = MAGIC.to_bytes(4, "little")
    split = encode(picture(7))
    split = split.ljust(len(split) + 3 & ~3, b"\0") + magic + b"more"
    index = damaged_set(tmp_path, {7: split})
    assert index.records["header"][7] == 0
    content = bytearray(index.path.read_bytes())
    at = content.index(magic, int(index.records["offset"][7]) + 4)
    content[at] ^= 1
    seen = index.path.stat()
    index.path.write_bytes(content)
    os.utime(index.path, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    made = way(index, max_bad_fraction=0.05)
    _, labels = take(made.stream(0), 4)
    assert 7 not in labels.tolist()
    assert "the rest is missing" in made._bad.faults[7]


@pytest.mark.dali
def test_what_fails_elsewhere_is_not_blamed_on_images(index, monkeypatch):
    def failing(*_):
        raise RuntimeError("an illegal memory access was encountered")

    made = loader(index, augment=("light",))
    monkeypatch.setattr(made, "_hand_over", failing)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        next(made.stream(0))
    stream = loader(index, augment=("light",)).stream(0)
    next(stream)
    with pytest.raises(RuntimeError, match="the consumer's"):
        stream.throw(RuntimeError("the consumer's"))
    assert not made._bad.faults


class Device:
    """Stands in for a GPU's module: events that are reached when the test says so."""

    reached = 0

    class Event:
        count = 0

        def record(self) -> None:
            Device.Event.count += 1
            self.number = Device.Event.count

        def query(self) -> bool:
            return self.number <= Device.reached


def test_batches_are_held_until_the_device_has_read_them(monkeypatch):
    monkeypatch.setattr(torch, "get_device_module", lambda device: Device)
    in_use = dali_loader._InUse(torch.device("meta"))
    batches = [np.zeros(1) for _ in range(5)]
    alive = [weakref.ref(batch) for batch in batches]
    for number in range(5):
        Device.reached = max(0, number - 2)  # the device is three steps behind
        in_use.keep(batches[number])
    batches.clear()
    gc.collect()
    assert [ref() is not None for ref in alive] == [False, False, True, True, True]


def test_decoding_on_a_gpu_that_is_not_there_is_refused(index):
    with pytest.raises(ValueError, match=r"decode=hybrid: device=cpu is no GPU"):
        loader(index, decode="hybrid")


@pytest.mark.dali
def test_images_of_another_size_are_named():
    encoded = [encode(picture(0)), encode(np.zeros((20, 30, 3), np.uint8))]
    assert find_faults(encoded, SIZE) == {1: f"is 30×20, not {SIZE}×{SIZE} pixels"}


def test_the_cpu_decodes_on_the_cpu():
    assert choose_decode_device(CPU)[0] == "cpu"


@pytest.mark.skipif(not LFW.exists(), reason="faces_lfw_dev is not on this machine")
def test_real_jpegs_decode_as_pillow_decodes_them():
    index = open_index(LFW)
    images, labels = take(Loader(index, global_batch=64, device=CPU).stream(0), 1)
    order = permute(np.arange(64), num_records=len(index), seed=0, epoch=0)
    assert labels.tolist() == index.labels(order).tolist()
    for i in range(0, 64, 9):
        pillow = np.asarray(Image.open(io.BytesIO(bytes(index.image(order[i])))))
        difference = np.abs(images[i].permute(1, 2, 0).numpy().astype(int) - pillow)
        assert difference.mean() < 1.0


@pytest.mark.gpu
@pytest.mark.parametrize(
    "decode",
    [pytest.param(decode, marks=pytest.mark.dali) for decode in ("gpu", "hybrid", "cpu")]
    + ["without DALI"],
)
def test_a_gpu_gets_the_batches_the_cpu_gets(index, decode, monkeypatch):
    if decode == "without DALI":
        monkeypatch.setitem(sys.modules, "nvidia.dali", None)
        decode = "hybrid"
    device = torch.device("cuda", 0)
    images, labels = take(loader(index, device=device, decode=decode).stream(0), 4)
    expected, expected_labels = take(loader(index).stream(0), 4)
    assert torch.equal(labels.cpu(), expected_labels)
    assert (images.cpu().int() - expected.int()).abs().float().mean() < 1.0


@WAYS
@pytest.mark.parametrize(
    ("change", "told"), [("cut", "(has shrunk|ends before)"), ("removed", "is gone")]
)
def test_a_file_that_is_cut_or_removed_while_it_is_read_is_named(tmp_path, augment, change, told):
    with RecordWriter(tmp_path / "train.rec") as writer:
        for key in range(64):
            writer.write(pack_image(encode(picture(key)), float(key), key))
    index = open_index(tmp_path)
    with closing(loader(index, global_batch=8, augment=augment).stream(0)) as stream:
        next(stream)
        if change == "cut":
            os.truncate(index.path, index.path.stat().st_size // 2)
        else:
            index.path.unlink()
        with pytest.raises(RecordError, match=f"{index.path} {told}"):
            take(stream, 20)


@WAYS
def test_batches_say_which_records_they_hold_replacements_included(tmp_path, augment):
    index = damaged_set(tmp_path, {7: b"not an image at all"})
    with closing(loader(index, augment=augment, max_bad_fraction=0.05).stream(0)) as stream:
        for _ in range(6):
            batch = next(stream)
            assert batch.records.tolist() == batch.labels.tolist()  # each record is an identity


@pytest.mark.dali
def test_threads_mirror_the_images_that_dali_would(index):
    plain = loader(index, augment=("flip:0.7",))
    through_dali = loader(index, augment=("flip:0.7",))
    through_dali._augmentation = Augmentation(("flip:0.7",))
    assert (plain.uses_dali, through_dali.uses_dali) == (False, True)
    images, labels = take(plain.stream(0), 4)
    expected, expected_labels = take(through_dali.stream(0), 4)
    assert torch.equal(images, expected)
    assert torch.equal(labels, expected_labels)


@WAYS
def test_threads_end_with_the_stream(index, augment):
    before = threading.active_count()
    for _ in range(5):
        stream = loader(index, augment=augment, threads=3).stream(0)
        next(stream)
        stream.close()
    assert threading.active_count() <= before


def resident_mb() -> float:
    """Memory of this process that is in use, as Linux counts it."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="Linux counts for this test")
@WAYS
def test_two_hundred_epochs_cost_no_memory_threads_or_descriptors(index, augment):
    small = loader(index, augment=augment, threads=2)
    with closing(small.stream(0)) as stream:

        def after(epochs: int) -> tuple[float, int, int]:
            for _ in range(epochs * small.steps_per_epoch):
                next(stream)
            gc.collect()
            return resident_mb(), threading.active_count(), len(os.listdir("/proc/self/fd"))

        memory, threads, descriptors = after(50)  # what allocators keep for themselves is there
        later = after(200)
    # The process may open one more of its own; one an epoch would be 200.
    assert later[1] < threads + 20
    assert later[2] < descriptors + 20
    assert later[0] - memory < 4  # one batch of every epoch kept would be 7 MB


ENDLESS = """
import logging, sys, torch
sys.path.insert(0, {root!r})
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
loader = Loader(open_index({rec!r}), global_batch=12, device=torch.device("cpu"), image_size={size},
                augment={augment!r}, threads=2)
for number, batch in enumerate(loader.stream(0)):
    if number == 3:
        print("running", flush=True)
        if {fails}:
            raise KeyError("something else in the loop")
"""


@pytest.mark.slow
@pytest.mark.parametrize("fails", [False, True], ids=["ctrl-c", "exception"])
@WAYS
def test_a_process_ends_after_ctrl_c_or_an_exception(index, augment, fails):
    root = str(Path(__file__).parents[2])
    code = ENDLESS.format(root=root, rec=str(index.path), size=SIZE, augment=augment, fails=fails)
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout.readline() == "running\n"
            if not fails:
                process.send_signal(signal.SIGINT)
            _, told = process.communicate(timeout=LIMIT)
        finally:
            process.kill()
    assert process.returncode != 0
    assert ("something else" if fails else "KeyboardInterrupt") in told
