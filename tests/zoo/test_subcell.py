from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from morphem.channels.pooled_channels import PairedChannels, PooledChannels
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError, DataError, WeightsError
from morphem.testing import check_encoder
from morphem.testing.batches import tiny_batch
from morphem.zoo.base import Checkpoint
from morphem.zoo.subcell import CHANNELS, SubCell
from morphem.zoo.subcell_locations import LOCATIONS, SubCellClassifier
from tests.zoo.golden_replay import (
    FLOAT64,
    assert_round_trip,
    differences,
    meta_checkpoint,
    read_checkpoint,
    read_record,
)

NAMES = ("subcell_rybg", "subcell_ybg", "subcell_bg")
PIXELS = np.random.default_rng(0)


def weights(n_channels: int, width: int = 24, index: str = "1", patch: int = 16, side: int = 2) -> dict[str, Tensor]:
    """A small file in the authors' layout, random."""
    generator = torch.Generator().manual_seed(n_channels)
    layer = "encoder.encoder.layer.0."
    shapes: dict[str, tuple[int, ...]] = {
        "encoder.embeddings.cls_token": (1, 1, width),
        "encoder.embeddings.position_embeddings": (1, side * side + 1, width),
        "encoder.embeddings.patch_embeddings.projection.weight": (width, n_channels, patch, patch),
        "encoder.embeddings.patch_embeddings.projection.bias": (width,),
        **{f"{layer}attention.attention.{part}.weight": (width, width) for part in ("query", "key", "value")},
        **{f"{layer}attention.attention.{part}.bias": (width,) for part in ("query", "key", "value")},
        f"{layer}attention.output.dense.weight": (width, width),
        f"{layer}attention.output.dense.bias": (width,),
        f"{layer}intermediate.dense.weight": (2 * width, width),
        f"{layer}intermediate.dense.bias": (2 * width,),
        f"{layer}output.dense.weight": (width, 2 * width),
        f"{layer}output.dense.bias": (width,),
        **{
            f"{layer}layernorm_{place}.{kind}": (width,) for place in ("before", "after") for kind in ("weight", "bias")
        },
        "encoder.layernorm.weight": (width,),
        "encoder.layernorm.bias": (width,),
        **{f"pool_model.attention_{gate}.{index}.weight": (5, width) for gate in "uv"},
        **{f"pool_model.attention_{gate}.{index}.bias": (5,) for gate in "uv"},
        "pool_model.attention.weight": (2, 5),
        "pool_model.attention.bias": (2,),
    }
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def checkpoint(n_channels: int, index: str = "1") -> Checkpoint:
    return Checkpoint(weights(n_channels, index=index), Path("subcell.pth"))


def _image(n_channels: int, height: int = 32, width: int = 48) -> np.ndarray:
    return PIXELS.integers(0, 256, (n_channels, height, width), dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_every_output_is_that_of_the_authors_code(golden: Path, name: str, dtype: torch.dtype) -> None:
    found = differences(SubCell, golden, name, dtype)
    assert found
    for output, (distance, tolerance) in found.items():
        assert distance <= tolerance, output


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_tensors_come_back_bit_for_bit(golden: Path, name: str) -> None:
    family = SubCell.from_golden(read_record(golden, name))
    assert family is not None
    assert_round_trip(family, read_checkpoint(golden, name))


@pytest.mark.parametrize("index", ["0", "1"])
def test_both_layouts_of_the_pooling_give_one_encoder(index: str) -> None:
    encoder = assert_round_trip(SubCell(n_heads=4), checkpoint(2, index))
    other = SubCell(n_heads=4).convert(checkpoint(2))
    image = _image(2)
    same = encoder.embed(image, ["nucleus", "protein"]).values == other.embed(image, ["nucleus", "protein"]).values
    assert same.all()


@pytest.mark.parametrize(("name", "n_channels"), [("subcell_rybg", 4), ("subcell_ybg", 3), ("subcell_bg", 2)])
def test_the_keys_of_the_release_load_strictly(golden: Path, name: str, n_channels: int) -> None:
    content = meta_checkpoint(golden, name, f"subcell_vitb16_{n_channels}ch")
    facts = next(record.facts for record in SubCell.records if len(record.vocabulary) == n_channels)
    with torch.device("meta"):
        encoder = SubCell(**facts).convert(content)
    assert encoder.embed_dim == 1536


def test_there_are_eight_releases_of_four_channel_sets() -> None:
    assert len(SubCell.records) == 8
    assert {record.vocabulary for record in SubCell.records} == {
        tuple(CHANNELS[letter] for letter in letters) for letters in ("rybg", "rbg", "ybg", "bg")
    }


def test_the_contract_of_encoders_is_kept() -> None:
    encoder = SubCell(channels=["nucleus", "actin", "mitochondria"], n_heads=4).convert(checkpoint(3))
    check_encoder(encoder, tiny_batch(panels=PooledChannels.panels))


def test_channels_go_by_name_and_alias_in_any_order() -> None:
    encoder, image = SubCell(n_heads=4).convert(checkpoint(4)), _image(4)
    table = encoder.embed(image, ["microtubules", "endoplasmic reticulum", "nucleus", "protein"])
    again = encoder.embed(image[::-1], ["protein", "dapi", "ER", "tubulin"])
    np.testing.assert_array_equal(again.values, table.values)


def test_min_and_max_are_those_of_all_channels_together() -> None:
    encoder, image = SubCell(n_heads=4).convert(checkpoint(2)), _image(2)
    names = ["nucleus", "protein"]
    table = encoder.embed(image, names).values
    brighter = image.astype(np.uint16) * 10 + 7
    np.testing.assert_allclose(encoder.embed(brighter, names).values, table, atol=1e-4)
    dimmed = image.copy()
    dimmed[1] //= 2
    assert np.abs(encoder.embed(dimmed, names).values - table).max() > 1e-3


def test_other_channels_are_refused_by_name() -> None:
    with pytest.raises(ChannelError, match="takes exactly nucleus, protein"):
        SubCell(n_heads=4).convert(checkpoint(2)).embed(_image(2), ["nucleus", "actin"])


def test_pixels_that_fill_no_patch_change_nothing_but_the_limits() -> None:
    encoder, image = SubCell(n_heads=4).convert(checkpoint(2)), _image(2, 40, 55)
    image[0, 0, :2] = (0, 255)
    table = encoder.embed(image, ["nucleus", "protein"]).values
    np.testing.assert_array_equal(encoder.embed(image[:, :32, :48], ["nucleus", "protein"]).values, table)


def test_images_smaller_than_a_patch_are_refused() -> None:
    with pytest.raises(DataError, match="12 x 48 pixels do not divide into patches of 16 x 16"):
        SubCell(n_heads=4).convert(checkpoint(2)).embed(_image(2, 12), ["nucleus", "protein"])


def test_heads_are_never_guessed() -> None:
    with pytest.raises(WeightsError, match="a width of 24, not the 768 of the releases, and no shape shows"):
        SubCell().convert(checkpoint(2))
    with pytest.raises(WeightsError, match="n_heads=5 does not divide it"):
        SubCell(n_heads=5).convert(checkpoint(2))


def test_three_channels_have_to_be_named() -> None:
    with pytest.raises(WeightsError, match=r"does not say what its 3 channels show; give channels=\['microtubules'"):
        SubCell(n_heads=4).convert(checkpoint(3))
    assert SubCell(["er", "dna", "golgi"], n_heads=4).convert(checkpoint(3)).channels.channels[2] == "golgi body"  # type: ignore[index]


def test_another_number_of_names_is_refused() -> None:
    with pytest.raises(ChannelError, match="takes 4 channels, but 1 are named"):
        SubCell(channels=["nucleus"], n_heads=4).convert(checkpoint(4))


def test_pairs_embed_images_of_more_channels() -> None:
    encoder = SubCell(pairs=["actin", "mitochondria"], n_heads=4).convert(checkpoint(2))
    assert isinstance(encoder.channels, PairedChannels)
    table = encoder.embed(_image(3), ["mitochondria", "nucleus", "actin"])
    assert table.values.shape == (1, 2 * 48)
    with pytest.raises(ConfigError, match="needs the file of two channels, but channels names 3"):
        SubCell(channels=["nucleus", "actin", "protein"], pairs=["actin"])
    with pytest.raises(WeightsError, match="takes 4 channels; pairs needs the file of two"):
        SubCell(pairs=["actin"], n_heads=4).convert(checkpoint(4))


def _without(content: Mapping[str, Tensor], name: str) -> Checkpoint:
    return Checkpoint({key: value for key, value in content.items() if key != name}, Path("subcell.pth"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: _without(w, "encoder.layernorm.bias"), r"1 missing \(encoder.layernorm.bias\)"),
        (
            lambda w: _without(w, "encoder.encoder.layer.0.attention.attention.key.weight"),
            r"1 missing \(encoder.encoder.layer.0.attention.attention.key.weight\)",
        ),
        (
            lambda w: Checkpoint({**w, "encoder.pooler.dense.weight": w["encoder.layernorm.bias"]}, Path("s.pth")),
            "pooler",
        ),
        (lambda w: _without(w, "pool_model.attention.weight"), "is no SubCell encoder"),
    ],
)
def test_what_does_not_match_is_refused_by_name(change: object, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        SubCell(n_heads=4).convert(change(weights(2)))  # type: ignore[operator]


def test_heads_give_probabilities_of_named_locations(tmp_path: Path) -> None:
    torch.manual_seed(0)
    files = []
    for number, places in enumerate(((0, 2, 4), (0, 3, 6))):  # with and without dropouts between the layers
        widths = (48, 7, 6, len(LOCATIONS))
        head = {
            f"{place}.{kind}": torch.randn(*((widths[i + 1], widths[i]) if kind == "weight" else (widths[i + 1],)))
            for i, place in enumerate(places)
            for kind in ("weight", "bias")
        }
        torch.save(head, tmp_path / f"{number}.pth")
        files.append(tmp_path / f"{number}.pth")
    classifier = SubCell.read_classifier(*files)
    table = SubCell(n_heads=4).convert(checkpoint(2)).embed(_image(2), ["nucleus", "protein"])
    found = classifier.table(table)
    assert found.columns[0] == "Cells_SubCell_Location_ActinFilaments"
    assert len(found.columns) == 31
    singles = [SubCell.read_classifier(file)(torch.from_numpy(table.values)) for file in files]
    np.testing.assert_allclose(found.values, torch.stack(singles).mean(0).detach().numpy(), atol=1e-6)
    with pytest.raises(DataError, match="takes 48 features and gives 31 classes, but the table has 31 features"):
        classifier.table(found)


def test_files_that_are_no_heads_are_refused(tmp_path: Path) -> None:
    torch.save({"of.something.else": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=r"is no head of SubCell: its keys are of\.something\.else"):
        SubCell.read_classifier(tmp_path / "other.pth")
    with pytest.raises(WeightsError, match="0 files of heads"):
        SubCell.read_classifier()


def test_the_heads_of_the_release_load_strictly(golden: Path) -> None:
    content = meta_checkpoint(golden, "subcell_rybg", "classifier_head").content
    with torch.device("meta"):
        classifier = SubCellClassifier()
    state = classifier.state_dict()
    assert {tuple(tensor.shape) for tensor in content.values()} == {tuple(tensor.shape) for tensor in state.values()}


def test_a_wrong_number_of_heads_or_epsilon_is_seen(golden: Path) -> None:
    """Shapes fit all the same: only the golden vector tells."""
    record, content = read_record(golden, "subcell_bg"), read_checkpoint(golden, "subcell_bg")
    tensors = load_file(golden / "subcell_bg.golden.safetensors")
    inputs = {"images": tensors["other_size.images"]}
    for family in (SubCell(n_heads=6), SubCell(n_heads=12, layer_norm_eps=1e-6)):
        encoder: Encoder = family.convert(content).double()
        found = family.replay(encoder, content, record, "other_size", inputs)["features"]
        assert float((found - tensors["other_size.features_f64"]).abs().max()) > 10 * FLOAT64
