"""What recipes do to pixels, through DALI itself."""

from itertools import repeat

import numpy as np
import pytest
import torch

from pipeline import dali
from pipeline.augment import RECIPES, Augmentation, Draw
from pipeline.augment.color import photometric
from pipeline.dali_loader import Loader
from pipeline.records.index import open_index
from pipeline.records.recordio import RecordWriter, pack_image
from pipeline.side_columns import SideColumns
from synthetic import encode_jpeg, render

pytestmark = pytest.mark.dali

SIZE = 112
# The draw that says whether an image is touched, for recipes that touch only some.
BRANCHES = {
    "flip": ["mirror"],
    "arcface": ["resized", "blurred", "colored", "grey"],
    "adaface": ["cropped", "resized", "relit"],
    "quality": ["blurred", "noisy", "compressed"],
    "erase": ["erased"],
}


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    """(8, SIZE, SIZE, 3) uint8."""
    return np.stack([render(k, 0) for k in range(8)])


def graph_of(entries, images, arguments, *, device: str = "cpu"):
    """A pipeline that applies recipes to images, not yet built."""
    augmentation = Augmentation(entries)
    kinds = augmentation.argument_types

    @dali.pipeline_def(enable_conditionals=True)
    def graph():
        inputs, *nodes = dali.fn.external_source(
            source=lambda: (list(images), *arguments),
            num_outputs=1 + len(kinds),
            batch=True,
            dtype=[dali.types.UINT8, *(dtype for dtype, _ in kinds)],
            ndim=[3, *(ndim for _, ndim in kinds)],
            layout=["HWC", *("" for _ in kinds)],
        )
        return augmentation(inputs.gpu() if device == "gpu" else inputs, nodes)

    return graph(batch_size=len(images), num_threads=1, device_id=0 if device == "gpu" else None)


def apply(entries, images, arguments) -> np.ndarray:
    pipeline = graph_of(entries, images, arguments)
    pipeline.build()
    return np.array(pipeline.run()[0].as_array())


def drawn(recipe: str, count: int, start: int = 0) -> dict:
    return RECIPES[recipe].draw(Draw(np.arange(start, start + count), seed=2, epoch=0, size=SIZE))


def chosen(recipe: str, count: int, **values) -> list:
    """A recipe's arguments with no branch taken, but for what is given."""
    arguments = drawn(recipe, count)
    arguments |= {name: np.zeros(count, bool) for name in BRANCHES.get(recipe, ())}
    for name, value in values.items():
        like = np.asarray(arguments[name])
        arguments[name] = np.broadcast_to(np.asarray(value, like.dtype), like.shape).copy()
    return list(arguments.values())


def images_of(faces: np.ndarray, count: int) -> np.ndarray:
    return faces[np.arange(count) % len(faces)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_images_keep_their_type_and_size_whatever_is_done_to_them(recipe, faces):
    out = apply([recipe], images_of(faces, 40), list(drawn(recipe, 40).values()))
    assert (out.dtype, out.shape) == (np.uint8, (40, SIZE, SIZE, 3))


@pytest.mark.parametrize("recipe", BRANCHES)
def test_an_image_is_changed_if_and_only_if_it_takes_a_branch(recipe, faces):
    images, arguments = images_of(faces, 200), drawn(recipe, 200)
    out = apply([recipe], images, list(arguments.values()))
    changed = (out != images).any((1, 2, 3))
    taken = np.any([arguments[name].astype(bool) for name in BRANCHES[recipe]], axis=0)
    assert not changed[~taken].any()
    # A window may be the whole image, and a resolution the full one.
    assert changed[taken].mean() > 0.95


def test_what_an_image_gets_does_not_depend_on_its_batch(faces):
    everything = tuple(RECIPES)

    def at(start: int, count: int) -> np.ndarray:
        draw = Draw(np.arange(start, start + count), seed=2, epoch=0, size=SIZE)
        images = faces[np.arange(start, start + count) % len(faces)]
        return apply(everything, images, Augmentation(everything).arrays(draw))

    assert np.array_equal(at(0, 60)[21:28], at(21, 7))


def test_a_recipe_with_a_probability_leaves_the_other_images_alone(faces):
    entries = ["light:0.3"]
    draw = Draw(np.arange(100), seed=2, epoch=0, size=SIZE)
    images, arguments = images_of(faces, 100), Augmentation(entries).arrays(draw)
    changed = (apply(entries, images, arguments) != images).any((1, 2, 3))
    assert np.array_equal(changed, arguments[0])
    assert 10 < changed.sum() < 50


def test_light_is_contrast_brightness_and_saturation_to_a_grey_level(faces):
    out = apply(["light"], faces, list(drawn("light", 8).values()))
    factor = {name: v[:, None, None, None] for name, v in drawn("light", 8).items()}
    lit = ((faces - 128.0) * factor["contrast"] + 128) * factor["brightness"]
    lit = np.clip(np.rint(lit), 0, 255)
    luma = (lit @ np.array([0.299, 0.587, 0.114]))[..., None]
    expected = np.clip(luma + (lit - luma) * factor["saturation"], 0, 255)
    assert np.abs(out - expected).max() <= 2


def test_light_is_what_color_twist_makes_where_nothing_is_clipped(faces):
    soft = (faces // 2 + 64).astype(np.uint8)
    factors = drawn("light", 8)

    @dali.pipeline_def(batch_size=8, num_threads=1, device_id=None)
    def both():
        images = dali.fn.external_source(source=lambda: list(soft), batch=True, layout="HWC")
        nodes = {
            n: dali.fn.external_source(source=repeat(v), batch=True) for n, v in factors.items()
        }
        return photometric(images, **nodes), dali.fn.color_twist(images, **nodes)

    pipeline = both()
    pipeline.build()
    ours, theirs = (np.array(out.as_array()).astype(int) for out in pipeline.run())
    inside = (theirs > 5) & (theirs < 250)
    assert inside.mean() > 0.8
    assert np.abs(ours - theirs)[inside].max() <= 3


def test_arcface_takes_all_color(faces):
    out = apply(["arcface"], faces, chosen("arcface", 8, grey=True))
    assert (out == out[..., :1]).all()
    luma = faces @ np.array([0.299, 0.587, 0.114])
    assert np.abs(out[..., 0] - luma).max() <= 1


def test_blur_and_low_resolution_take_detail_and_keep_brightness(faces):
    def detail(images: np.ndarray) -> float:
        return np.abs(np.diff(images.astype(int), axis=1)).mean()

    for recipe, branch in [
        ("arcface", "blurred"),
        ("arcface", "resized"),
        ("quality", "blurred"),
    ]:
        out = apply([recipe], faces, chosen(recipe, 8, **{branch: True}))
        assert detail(out) < 0.97 * detail(faces), (recipe, branch)
        assert abs(out.mean() - faces.mean()) < 2, (recipe, branch)


def test_noise_has_its_deviation_and_is_drawn_for_the_place():
    grey = np.full((2, SIZE, SIZE, 3), 128, np.uint8)
    for sigma in (2.0, 12.0):
        arguments = drawn("quality", 400)
        pick = np.flatnonzero(arguments["noisy"])[:2]
        arguments = {
            name: value[pick] if isinstance(value, np.ndarray) else [value[i] for i in pick]
            for name, value in arguments.items()
        }
        arguments |= {"blurred": np.zeros(2, bool), "compressed": np.zeros(2, bool)}
        arguments["sigma"] = np.full(2, sigma / 31, np.float32)
        out = apply(["quality"], grey, list(arguments.values())).astype(int) - 128
        assert np.allclose(out.std((1, 2, 3)), np.sqrt(sigma**2 + 1 / 12), rtol=0.03)
        assert np.abs(out.mean((1, 2, 3))).max() < 0.2
        assert (out[0] != out[1]).mean() > 0.5


def test_jpeg_harms_more_the_lower_its_quality(faces):
    def harm(quality: int) -> float:
        out = apply(["quality"], faces, chosen("quality", 8, compressed=True, jpeg=quality))
        return np.abs(out.astype(int) - faces).mean()

    assert 0 < harm(100) < harm(60) < harm(30) < 8


def test_erase_fills_its_rectangle_with_its_color_and_touches_nothing_else(faces):
    arguments = drawn("erase", 200)
    images = images_of(faces, 200)
    out = apply(["erase"], images, list(arguments.values()))
    for i in np.flatnonzero(arguments["erased"]):
        (top, left), (height, width) = arguments["anchor"][i], arguments["shape"][i]
        expected = images[i].copy()
        rows, columns = slice(int(top), int(top + height)), slice(int(left), int(left + width))
        expected[rows, columns] = arguments["color"][i]
        assert np.array_equal(out[i], expected)


def test_geometry_is_warp_affine_in_less_time(faces):
    matrix = drawn("geometry", 8)["matrix"]

    @dali.pipeline_def(batch_size=8, num_threads=1, device_id=None)
    def affine():
        images = dali.fn.external_source(source=lambda: list(faces), batch=True, layout="HWC")
        nodes = dali.fn.external_source(source=lambda: matrix, batch=True)
        return dali.fn.warp_affine(images, matrix=nodes, fill_value=0)

    pipeline = affine()
    pipeline.build()
    theirs = np.array(pipeline.run()[0].as_array()).astype(int)
    ours = apply(["geometry"], faces, [matrix]).astype(int)
    inside = (slice(None), slice(12, -12), slice(12, -12))  # away from what is filled
    assert np.abs(ours - theirs)[inside].mean() < 0.5
    assert np.abs(ours - theirs)[inside].max() <= 8


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_operator_of_a_recipe_exists_on_gpus(recipe, faces):
    """The graph for a GPU can be laid out without one; each of its operators is then looked up."""
    pipeline = graph_of([recipe], faces, list(drawn(recipe, 8).values()), device="gpu")
    pipeline._build_graph()
    known = {
        "gpu": dali.require().backend.RegisteredGPUOps(),
        "cpu": dali.require().backend.RegisteredCPUOps(),
    }
    operators = [node._op for node in pipeline._ops]
    found = {
        (operator.schema_name, operator.device)
        for operator in operators
        if hasattr(operator, "schema_name")  # external sources have none
    }
    assert {(name, device) for name, device in found if name not in known[device]} == set()
    assert any(device == "gpu" for _, device in found)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    folder = tmp_path_factory.mktemp("set")
    with RecordWriter(folder / "train.rec") as writer:
        for k in range(40):
            writer.write(pack_image(encode_jpeg(render(k, 1)), float(k), k))
    return open_index(folder)


@pytest.mark.slow
def test_a_run_of_two_ranks_resumes_as_three_mid_epoch_with_every_image_equal(index):
    entries = ("flip", "geometry:0.5", "light", "arcface", "adaface", "quality:0.8", "erase:0.9")

    def take(rank: int, world: int, step: int, count: int):
        loader = Loader(
            index,
            global_batch=12,
            rank=rank,
            world_size=world,
            seed=5,
            device=torch.device("cpu"),
            augment=entries,
        )
        stream = loader.stream(1, step)
        return [next(stream) for _ in range(count)]

    whole = [take(rank, 2, 0, 5) for rank in range(2)]
    resumed = [take(rank, 3, 1, 4) for rank in range(3)]  # step 1 of 3, and on into epoch 2
    for step in range(4):
        for part in range(2):  # images, labels
            before = torch.cat([batches[1 + step][part] for batches in whole])
            after = torch.cat([batches[step][part] for batches in resumed])
            assert torch.equal(before, after)


def test_labels_are_untouched_by_every_recipe(index):
    columns = SideColumns({"landmarks": np.full((len(index), 5, 2), 50, np.float32)})

    def labels(augment) -> list[int]:
        settings = {"global_batch": 20, "device": torch.device("cpu"), "seed": 1}
        loader = Loader(index, augment=augment, columns=columns, **settings)
        stream = loader.stream(0)
        return [label for _ in range(4) for label in next(stream).labels.tolist()]

    assert labels(tuple(RECIPES)) == labels(())


@pytest.mark.gpu
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_gpu_makes_of_images_what_the_cpu_makes(recipe, faces):
    arguments = list(drawn(recipe, 40).values())
    images = images_of(faces, 40)
    pipeline = graph_of([recipe], images, arguments, device="gpu")
    pipeline.build()
    out = np.array(pipeline.run()[0].as_cpu().as_array()).astype(int)
    assert np.abs(out - apply([recipe], images, arguments)).mean() < 1.5
