from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.backbones.residual_cnn import ResidualCNN, ResidualDecoder
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.testing import check_encoder
from morphem.zoo.base import Checkpoint
from morphem.zoo.microsnoop import Microsnoop
from tests.zoo.golden_replay import assert_round_trip, differences, meta_checkpoint, read_checkpoint

TILE = 16


def _block(prefix: str, n_in: int, n_out: int, side: int, places: tuple[int, int]) -> dict[str, Tensor]:
    """Normalisation and convolution as the authors name them, random."""
    norm, conv = (f"{prefix}.{place}" for place in places)
    return {
        f"{norm}.weight": torch.rand(n_in) + 0.5,
        f"{norm}.bias": torch.rand(n_in),
        f"{norm}.running_mean": torch.randn(n_in),
        f"{norm}.running_var": torch.rand(n_in) + 0.5,
        f"{norm}.num_batches_tracked": torch.tensor(7),
        f"{conv}.weight": torch.randn(n_out, n_in, side, side),
        f"{conv}.bias": torch.randn(n_out),
    }


def encoder_tensors(widths: tuple[int, ...] = (3, 4)) -> dict[str, Tensor]:
    """A small encoder in the authors' layout."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for i, (n_in, n_out) in enumerate(zip((1, *widths), widths, strict=False)):
        stage = f"encoder.downsample.down.res_down_{i}"
        for j in range(4):
            tensors |= _block(f"{stage}.conv.conv_{j}", n_out if j else n_in, n_out, 3, (0, 2))
        tensors |= _block(f"{stage}.proj", n_in, n_out, 1, (0, 1))
    return tensors


def checkpoint(wrapped: bool = True) -> Checkpoint:
    prefix = "module." if wrapped else ""
    model = {prefix + name: tensor for name, tensor in encoder_tensors().items()}
    model[f"{prefix}decoder.base_conv.bias"] = torch.zeros(1)
    return Checkpoint({"model": model, "optimizer": {}, "checkpoint_epoch": 999}, Path("microsnoop.pth"))


def _encoder(cells: bool = False) -> Encoder:
    return Microsnoop(cells=cells, tile_size_px=TILE).convert(checkpoint())


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_output_is_that_of_the_authors_code(golden: Path, dtype: torch.dtype) -> None:
    found = differences(Microsnoop, golden, "microsnoop", dtype)
    assert len(found) >= 6
    for output, (distance, tolerance) in found.items():
        assert distance <= tolerance, output


def test_the_authors_tensors_come_back_bit_for_bit(golden: Path) -> None:
    assert_round_trip(Microsnoop(), read_checkpoint(golden, "microsnoop"))


@pytest.mark.parametrize("wrapped", [True, False])
def test_files_with_and_without_a_wrapper_give_one_encoder(wrapped: bool) -> None:
    encoder = assert_round_trip(Microsnoop(tile_size_px=TILE), checkpoint(wrapped))
    image = _image(1, 20, 20)
    np.testing.assert_array_equal(encoder.embed(image, ["nucleus"]).values, _encoder().embed(image, ["nucleus"]).values)


def test_the_keys_of_the_release_load_strictly(golden: Path) -> None:
    content = meta_checkpoint(golden, "microsnoop", "microsnoop_cnn")
    with torch.device("meta"):
        assert Microsnoop().convert(content).embed_dim == 256
        assert isinstance(Microsnoop.read_decoder(content), ResidualDecoder)


@pytest.mark.parametrize("cells", [True, False])
def test_the_contract_of_encoders_is_kept(cells: bool) -> None:
    family = Microsnoop(cells=cells, tile_size_px=64)
    check_encoder(family.convert(checkpoint()))


def test_a_field_is_the_mean_of_its_overlapping_tiles() -> None:
    encoder, image = _encoder(), _image(1, 30, 16)
    table = encoder.embed(image, ["nucleus"])
    starts = np.linspace(0, 30 - TILE, int(np.ceil(1.2 * 30 / TILE))).astype(int)
    tiles = [encoder.embed(image[:, y : y + TILE], ["nucleus"]).values for y in starts]
    np.testing.assert_allclose(table.values, np.mean(tiles, axis=0), atol=1e-6)
    assert table.metadata["Metadata_Tiles"].tolist() == [len(starts)]


def test_a_small_field_is_padded_before_its_pixels_are_scaled() -> None:
    image = _image(1, 9, 13)
    padded = np.pad(image, [(0, 0), (3, 4), (1, 2)])
    encoder = _encoder()
    np.testing.assert_array_equal(encoder.embed(image, ["actin"]).values, encoder.embed(padded, ["actin"]).values)


def test_channels_are_embedded_each_on_its_own() -> None:
    encoder, image = _encoder(), _image(2, 16, 16)
    both = encoder.embed(image, ["actin", "nucleus"]).values
    one = encoder.embed(image[:1], ["rna"]).values
    np.testing.assert_allclose(both[:, : encoder.embed_dim], one, atol=1e-6)


def test_brightness_and_contrast_change_nothing() -> None:
    encoder, image = _encoder(), _image(1, 16, 16)
    brighter = image.astype(np.uint16) * 100 + 1000
    np.testing.assert_allclose(
        encoder.embed(brighter, ["actin"]).values, encoder.embed(image, ["actin"]).values, atol=1e-4
    )


def test_an_empty_plane_has_an_embedding() -> None:
    values = _encoder().embed(np.zeros((1, 16, 16), np.uint8), ["actin"]).values
    assert np.isfinite(values).all()


def test_what_does_not_match_is_refused_by_name() -> None:
    content = checkpoint()
    name = "module.encoder.downsample.down.res_down_1.proj.1.bias"
    short = {key: tensor for key, tensor in content.content["model"].items() if key != name}
    with pytest.raises(WeightsError, match=r"1 missing \(encoder.downsample.down.res_down_1.proj.1.bias\)"):
        Microsnoop().convert(Checkpoint({"model": short}, Path("m.pth")))
    more = {**content.content["model"], "module.encoder.extra": torch.zeros(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected \(encoder.extra\)"):
        Microsnoop().convert(Checkpoint({"model": more}, Path("m.pth")))
    with pytest.raises(ConfigError, match="tile_size_px=0 must be at least 1"):
        Microsnoop(tile_size_px=0)


def test_the_network_is_read_off_the_shapes() -> None:
    network = _encoder().channels.backbone
    assert isinstance(network, ResidualCNN)
    assert network.widths == (3, 4)
