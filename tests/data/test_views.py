"""Multi-crop: what a view is, what it depends on, and what it must not depend on."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.data import views as module
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.errors import ConfigError, DataError
from morphem.normalizers import DatasetNormalize, Normalizer, SelfNormalize, plane_seeds
from morphem.rng import mix_tensor, uniform
from morphem.spec import from_spec, to_spec
from morphem.types import ChannelBatch
from tests.references import photometry, random_resized, resampling

NAMES = ["nucleus", "actin", "protein", "protein", "mitochondria"]
RAW = DatasetNormalize(mean=0.0, std=1.0, divide_by=1.0)  # leaves pixels as they are
FIXED: dict[str, Any] = {"flip_x": 0.0, "flip_y": 0.0}


def image(n_channels: int, height: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (n_channels, height, width), dtype=torch.uint8, generator=generator)


def as_batch(images: list[Tensor], seeds: list[int], names: list[list[str]] | None = None) -> ChannelBatch:
    names = names or [NAMES[: len(planes)] for planes in images]
    return ChannelBatch.from_planes([list(planes) for planes in images], names, seeds=seeds)


@pytest.fixture
def batch() -> ChannelBatch:
    """Images of one to five channels and different sizes."""
    sizes = [(1, 50, 61), (3, 40, 40), (5, 71, 44)]
    return as_batch([image(*size, seed=i) for i, size in enumerate(sizes)], seeds=[11, 12, 13])


EVERYTHING = ViewRecipe(
    count=2,
    size_px=24,
    area=(0.2, 0.9),
    quarter_turns=True,
    shift=(-0.3, 0.3),
    gamma=(0.5, 1.5),
    blur_sigma=(0.1, 2.0),
    noise_std=0.05,
    normalize="view",
)
ALL_WAYS = [
    ViewRecipe(count=2, size_px=32),
    ViewRecipe(count=3, size_px=16, area=(0.05, 0.4), interpolation="bilinear"),
    ViewRecipe(count=1, size_px=20, mode="plain", shift=(-0.3, 0.3), gamma=(0.5, 1.5)),
    ViewRecipe(count=1, size_px=28, mode="resize", blur_sigma=(0.1, 2.0)),
    EVERYTHING,
]


def test_views_are_dense_batches_in_the_order_of_the_recipes(batch: ChannelBatch) -> None:
    multi_crop = MultiCrop(ALL_WAYS)
    views = multi_crop(batch, SelfNormalize())
    assert len(views) == multi_crop.n_views == 9
    assert [view.planes.shape[-1] for view in views] == [32, 32, 16, 16, 16, 20, 28, 24, 24]
    for view in views:
        assert view.planes.shape[:2] == (9, 1)
        assert view.planes.dtype == torch.float32
        assert view.planes.is_contiguous()
        assert view.sizes.tolist() == [list(view.planes.shape[2:])] * 9
        assert view.channel_types == batch.channel_types
        assert view.keys == batch.keys
        assert torch.equal(view.offsets, batch.offsets)
        assert torch.equal(view.rows, batch.rows)


@pytest.mark.parametrize("normalizer", [SelfNormalize(), SelfNormalize(saturation_noise=True, divide_by=1.0), RAW])
def test_a_dino_view_is_crop_normalise_cut_and_flip(batch: ChannelBatch, normalizer: Normalizer) -> None:
    recipe = ViewRecipe(count=2, size_px=24)
    views = MultiCrop([recipe])(batch, normalizer)
    crops = torch.split(normalizer(batch).planes, batch.sizes.prod(1).tolist())
    image_of_plane = batch.image_of_plane().tolist()
    for number, view in enumerate(views):
        draws = uniform(batch.seeds, f"view/{number}/box", 22).double().tolist()
        turns = uniform(batch.seeds, f"view/{number}/turn", 3).tolist()
        for plane, crop in enumerate(crops):
            owner = image_of_plane[plane]
            height, width = batch.sizes[plane].tolist()
            box = random_resized.box(height, width, recipe.area, recipe.aspect, draws[owner])
            expected = resampling.resampled(
                crop.view(height, width).numpy(),
                box,
                (24, 24),
                flip_x=turns[owner][0] < 0.5,
                flip_y=turns[owner][1] < 0.5,
            )
            scale = max(1.0, float(np.abs(expected).max()))
            np.testing.assert_allclose(view.planes[plane, 0].numpy(), expected, rtol=0, atol=2e-5 * scale)


def test_color_is_drawn_for_each_plane_and_applied_before_normalising(batch: ChannelBatch) -> None:
    recipe = ViewRecipe(count=1, size_px=24, **FIXED)
    plain = MultiCrop([recipe])(batch, RAW)[0].planes[:, 0] / 255
    view = MultiCrop([replace(recipe, shift=(-0.3, 0.3), gamma=(0.5, 1.5))])(batch, SelfNormalize())[0].planes[:, 0]
    prepared = SelfNormalize().prepare(batch)
    mean, scale = SelfNormalize().affine(prepared)
    seeds = mix_tensor(plane_seeds(batch), "view/0")
    shift = -0.3 + 0.6 * uniform(seeds, "shift")[:, 0]
    gamma = 0.5 + uniform(seeds, "gamma")[:, 0]
    assert len(set(shift.tolist())) == batch.n_planes
    for i in range(batch.n_planes):
        colored = photometry.color(plain[i].double().numpy(), float(shift[i]), float(gamma[i]))
        expected = (255 * colored - float(mean[i])) * float(scale[i])
        np.testing.assert_allclose(view[i].numpy(), expected, atol=2e-4)


def test_a_view_does_not_depend_on_the_recipes_after_it(batch: ChannelBatch) -> None:
    alone = MultiCrop([EVERYTHING])(batch, SelfNormalize())
    first = MultiCrop([EVERYTHING, ViewRecipe(count=1, size_px=16)])(batch, SelfNormalize())[:2]
    for a, b in zip(alone, first, strict=True):
        assert torch.equal(a.planes, b.planes)


def test_a_view_normalised_by_itself_has_mean_0_and_variance_1(batch: ChannelBatch) -> None:
    for recipe in (ViewRecipe(count=1, size_px=32, normalize="view"), EVERYTHING):
        for view in MultiCrop([recipe])(batch, SelfNormalize()):
            flat = view.planes.flatten(1)
            torch.testing.assert_close(flat.mean(1), torch.zeros(9), atol=1e-5, rtol=0)
            torch.testing.assert_close(flat.var(1, correction=0), torch.ones(9), atol=1e-3, rtol=0)


def test_some_planes_are_blurred(batch: ChannelBatch) -> None:
    recipe = ViewRecipe(count=1, size_px=24, **FIXED)
    plain = MultiCrop([recipe])(batch, SelfNormalize())[0].planes
    blurred = MultiCrop([replace(recipe, blur_sigma=(1.0, 2.0))])(batch, SelfNormalize())[0].planes
    changed = [not torch.equal(a, b) for a, b in zip(plain, blurred, strict=True)]
    assert 0 < sum(changed) < 9
    never = MultiCrop([replace(recipe, blur_sigma=(1.0, 2.0), blur_probability=0.0)])(batch, SelfNormalize())[0].planes
    assert torch.equal(never, plain)


@pytest.mark.parametrize(("key", "axis"), [("flip_x", -1), ("flip_y", -2)])
def test_flips_have_their_probability(key: str, axis: int) -> None:
    crops = as_batch([image(1, 8, 8, seed=0)] * 300, seeds=list(range(300)))

    def flipped(probability: float) -> float:
        recipe = ViewRecipe(count=1, size_px=8, mode="resize", **(FIXED | {key: probability}))
        planes = MultiCrop([recipe])(crops, RAW)[0].planes
        mirrored = crops.planes.view(300, 1, 8, 8).float().flip(axis)
        return float((planes == mirrored).flatten(1).all(1).float().mean())

    assert flipped(0.0) == 0.0
    assert flipped(1.0) == 1.0
    assert flipped(0.5) == pytest.approx(0.5, abs=0.1)


def test_quarter_turns_are_equally_frequent() -> None:
    crops = as_batch([image(1, 8, 8, seed=0)] * 400, seeds=list(range(400)))
    recipe = ViewRecipe(count=1, size_px=8, mode="resize", quarter_turns=True, **FIXED)
    planes = MultiCrop([recipe])(crops, RAW)[0].planes
    source = crops.planes.view(400, 1, 8, 8).float()
    shares = [float((planes == source.rot90(k, (2, 3))).flatten(1).all(1).float().mean()) for k in range(4)]
    assert sum(shares) == pytest.approx(1)
    assert all(share == pytest.approx(0.25, abs=0.08) for share in shares)


def test_a_plain_crop_is_a_window_of_the_pixels(batch: ChannelBatch) -> None:
    view = MultiCrop([ViewRecipe(count=1, size_px=24, mode="plain", **FIXED)])(batch, RAW)[0]
    crops = torch.split(batch.planes, batch.sizes.prod(1).tolist())
    for plane, owner in enumerate(batch.image_of_plane().tolist()):
        y, x, h, w = view.boxes[owner].tolist()
        window = crops[plane].view(*batch.sizes[plane].tolist())[y : y + h, x : x + w]
        assert torch.equal(view.planes[plane, 0], window.float())


def test_boxes_say_where_a_view_lies_in_its_image(batch: ChannelBatch) -> None:
    moved = batch._replace(boxes=batch.boxes + torch.tensor([100, 200, 0, 0]))
    recipe = ViewRecipe(count=1, size_px=24)
    near, far = (MultiCrop([recipe])(b, RAW)[0].boxes for b in (batch, moved))
    assert torch.equal(far - near, torch.tensor([[100, 200, 0, 0]] * 3))
    assert (near[:, :2] + near[:, 2:] <= batch.boxes[:, 2:]).all()


def test_planes_of_an_image_share_the_geometry() -> None:
    planes = image(1, 60, 50, seed=0).expand(4, -1, -1)
    view = MultiCrop([ViewRecipe(count=1, size_px=20, area=(0.05, 0.4), quarter_turns=True)])(
        as_batch([planes], seeds=[5]), SelfNormalize()
    )[0]
    assert all(torch.equal(plane, view.planes[0]) for plane in view.planes)


def test_views_differ_from_each_other_and_between_seeds() -> None:
    crop = image(1, 60, 50, seed=0)
    multi_crop = MultiCrop([ViewRecipe(count=3, size_px=20)])
    first = multi_crop(as_batch([crop], seeds=[1]), RAW)
    other = multi_crop(as_batch([crop], seeds=[2]), RAW)
    assert len({tuple(view.boxes[0].tolist()) for view in first + other}) == 6
    assert len({int(view.seeds) for view in first + other}) == 6


def test_the_same_seed_gives_the_same_views(batch: ChannelBatch) -> None:
    multi_crop = MultiCrop(ALL_WAYS)
    normalizer = SelfNormalize(saturation_noise=True)
    state = torch.get_rng_state()
    first = multi_crop(batch, normalizer)
    torch.manual_seed(99)
    again = multi_crop(batch, normalizer)
    torch.set_rng_state(state)
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.planes, b.planes)


def test_no_global_generator_is_touched(batch: ChannelBatch) -> None:
    state = torch.get_rng_state()
    MultiCrop(ALL_WAYS)(batch, SelfNormalize(saturation_noise=True))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_view_does_not_depend_on_its_batch_mates(monkeypatch: pytest.MonkeyPatch, batch: ChannelBatch) -> None:
    multi_crop = MultiCrop(ALL_WAYS)
    normalizer = SelfNormalize(saturation_noise=True)
    together = multi_crop(batch, normalizer)
    monkeypatch.setattr(module, "_CPU_PIXELS", 1)  # one image at a time
    for i in range(batch.n_images):
        alone = multi_crop(module._images(batch, i, i + 1), normalizer)
        planes = slice(int(batch.offsets[i]), int(batch.offsets[i + 1]))
        for one, all_ in zip(alone, together, strict=True):
            assert torch.equal(one.planes, all_.planes[planes])
            assert torch.equal(one.boxes[0], all_.boxes[i])
            assert torch.equal(one.seeds[0], all_.seeds[i])


@pytest.mark.parametrize("channel_drop", [0.0, 1.0])
def test_reordering_channels_with_their_names_reorders_the_views(channel_drop: float) -> None:
    planes, order = image(4, 50, 61, seed=3), [2, 0, 3, 1]
    names = ["nucleus", "actin", "protein", "endoplasmic reticulum"]
    recipes = [replace(recipe, channel_drop=channel_drop) for recipe in ALL_WAYS]
    normalizer = SelfNormalize(saturation_noise=True)
    plain = MultiCrop(recipes)(as_batch([planes], [7], [names]), normalizer)
    moved = MultiCrop(recipes)(as_batch([planes[order]], [7], [[names[i] for i in order]]), normalizer)
    for a, b in zip(plain, moved, strict=True):
        assert sorted(a.channel_types) == sorted(b.channel_types)
        for i, name in enumerate(a.channel_types):
            assert torch.equal(a.planes[i], b.planes[b.channel_types.index(name)])


def test_channel_drop_leaves_one_channel_out_but_never_the_last() -> None:
    crops = as_batch([image(1 + i % 3, 20, 20, seed=i) for i in range(60)], seeds=list(range(60)))
    view = MultiCrop([ViewRecipe(count=1, size_px=16, channel_drop=1.0)])(crops, RAW)[0]
    assert view.offsets.diff().tolist() == [1, 1, 2] * 20
    assert view.planes.shape[0] == len(view.channel_types) == view.n_planes == 80
    dropped = [
        set(crops.channel_types[int(crops.offsets[i]) : int(crops.offsets[i + 1])])
        - set(view.channel_types[int(view.offsets[i]) : int(view.offsets[i + 1])])
        for i in range(2, 60, 3)
    ]
    assert {next(iter(names)) for names in dropped} == {"nucleus", "actin", "protein"}


def test_channel_drop_keeps_the_planes_that_stay() -> None:
    crops = as_batch([image(3, 20, 20, seed=0)], seeds=[4])
    recipe = ViewRecipe(count=1, size_px=16)
    whole = MultiCrop([recipe])(crops, SelfNormalize())[0]
    view = MultiCrop([replace(recipe, channel_drop=1.0)])(crops, SelfNormalize())[0]
    for i, name in enumerate(view.channel_types):
        assert torch.equal(view.planes[i], whole.planes[whole.channel_types.index(name)])


def test_channel_drop_has_its_probability() -> None:
    crops = as_batch([image(2, 9, 9, seed=0)] * 200, seeds=list(range(200)))
    view = MultiCrop([ViewRecipe(count=1, size_px=8, blur_sigma=None, channel_drop=0.5)])(crops, RAW)[0]
    assert view.n_planes == pytest.approx(300, abs=30)


def test_a_nearly_empty_plane_stays_small() -> None:
    plane = torch.full((50, 50), 200, dtype=torch.uint8)
    for view in MultiCrop([ViewRecipe(count=4, size_px=33)])(as_batch([plane[None]], [1]), SelfNormalize()):
        assert not view.planes.any()


def test_autocast_and_gradients_change_nothing(batch: ChannelBatch) -> None:
    multi_crop = MultiCrop(ALL_WAYS)
    expected = multi_crop(batch, SelfNormalize())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.enable_grad():
        result = multi_crop(batch, SelfNormalize())
    for a, b in zip(result, expected, strict=True):
        assert torch.equal(a.planes, b.planes)
        assert not a.planes.requires_grad


def test_pixels_other_than_bytes_are_refused(batch: ChannelBatch) -> None:
    with pytest.raises(DataError, match="uint8"):
        MultiCrop.tiny()(batch._replace(planes=batch.planes.float()), SelfNormalize())


def test_a_crop_smaller_than_a_plain_view_is_refused_by_name() -> None:
    crops = ChannelBatch.from_planes([[image(1, 30, 20, seed=0)[0]]], [["actin"]], keys=["a01"])
    with pytest.raises(DataError, match=r"image 'a01' has \[30, 20\] pixels, smaller than a plain view of size_px=24"):
        MultiCrop([ViewRecipe(count=1, size_px=24, mode="plain")])(crops, RAW)


def test_planes_of_different_size_in_an_image_are_refused_by_name() -> None:
    planes = [image(1, 20, 20, seed=0)[0], image(1, 20, 21, seed=0)[0]]
    crops = ChannelBatch.from_planes([planes], [["actin", "nucleus"]], keys=["b07"])
    with pytest.raises(DataError, match=r"image 'b07' differ in size \(\[\[20, 20\], \[20, 21\]\]"):
        MultiCrop.tiny()(crops, RAW)


def test_tiny_crops_give_views() -> None:
    crops = as_batch([image(1, 1, 1, seed=0), image(1, 2, 3, seed=1)], seeds=[0, 1])
    for view in MultiCrop.tiny()(crops, SelfNormalize()):
        assert torch.isfinite(view.planes).all()


def test_no_recipe_and_wrong_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"MultiCrop\.recipes is empty"):
        MultiCrop([])
    with pytest.raises(ConfigError, match="did you mean 'size_px'"):
        MultiCrop([{"count": 1, "size": 32}])  # type: ignore[list-item]


def test_saved_recipes_make_the_same_views(batch: ChannelBatch) -> None:
    multi_crop = MultiCrop(ALL_WAYS)
    again = from_spec(json.loads(json.dumps(to_spec(multi_crop))))
    assert again.recipes == multi_crop.recipes
    for a, b in zip(again(batch, RAW), multi_crop(batch, RAW), strict=True):
        assert torch.equal(a.planes, b.planes)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_makes_the_views_of_a_cpu(batch: ChannelBatch) -> None:
    normalizer = SelfNormalize(saturation_noise=True)
    expected = MultiCrop(ALL_WAYS)(batch, normalizer)
    for a, b in zip(MultiCrop(ALL_WAYS)(batch.to("cuda"), normalizer), expected, strict=True):
        assert a.planes.is_cuda
        assert a.seeds.is_cuda
        torch.testing.assert_close(a.planes.cpu(), b.planes, rtol=1e-4, atol=1e-4)
