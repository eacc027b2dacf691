import json
from pathlib import Path

import numpy as np
import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.encoder import Encoder, evaluating
from morphem.errors import ChannelError, ConfigError, DataError, WeightsError
from morphem.normalizers import SelfNormalize
from morphem.types import ChannelBatch

PANEL = ["nucleus", "actin", "mitochondria"]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    strategy = BagOfChannels(VisionTransformer.tiny())
    return Encoder(strategy, SelfNormalize(saturation_noise=True), input_size_px=16)


@pytest.fixture
def planes() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 3, 30, 26), dtype=np.uint8)


class OnePerImage(ChannelStrategy):
    """The mean of the planes, as one vector."""

    per_channel = False

    def __init__(self) -> None:
        super().__init__()
        self.embed_dim = 4
        self.weight = torch.nn.Parameter(torch.arange(4.0))

    def forward(self, batch: ChannelBatch) -> torch.Tensor:
        brightest = batch.planes.amax((1, 2, 3))
        image = batch.image_of_plane()
        total = brightest.new_zeros(batch.n_images).index_add(0, image, brightest)
        return total[:, None] * self.weight

    @classmethod
    def tiny(cls) -> "OnePerImage":
        return cls()


def test_one_image_gives_one_row_with_the_columns_of_every_channel(encoder: Encoder, planes: np.ndarray) -> None:
    table = encoder.embed(planes[0], PANEL)
    assert table.values.shape == (1, 3 * 16)
    assert table.values.dtype == np.float32
    assert table.columns[0] == "Cells_Morphem_Actin_0000"
    assert table.columns[-1] == "Cells_Morphem_Nucleus_0015"


@pytest.mark.parametrize("combine", ["concat", "mean", "none"])
def test_channels_permuted_with_their_names_change_nothing(encoder: Encoder, planes: np.ndarray, combine: str) -> None:
    order = [2, 0, 1]
    straight = encoder.embed(planes, PANEL, combine=combine, key="k")
    permuted = encoder.embed(planes[:, order], [PANEL[i] for i in order], combine=combine, key="k")
    assert permuted.columns == straight.columns
    np.testing.assert_allclose(permuted.values, straight.values, atol=1e-6)
    assert permuted.metadata.equals(straight.metadata)


def test_channels_permuted_without_their_names_do_change_something(encoder: Encoder, planes: np.ndarray) -> None:
    straight, swapped = encoder.embed(planes, PANEL), encoder.embed(planes[:, [1, 0, 2]], PANEL)
    assert np.abs(straight.values - swapped.values).max() > 1e-3


def test_an_image_does_not_depend_on_its_batch_mates(encoder: Encoder, planes: np.ndarray) -> None:
    together = encoder.embed(planes, PANEL)
    alone = np.concatenate([encoder.embed(image, PANEL).values for image in planes])
    np.testing.assert_allclose(together.values, alone, atol=1e-6)


def test_images_of_other_sizes_in_the_batch_make_no_difference(encoder: Encoder, planes: np.ndarray) -> None:
    other = np.full((3, 70, 41), 255, np.uint8)
    mixed = encoder.embed([planes[0], other, planes[1]], PANEL)
    np.testing.assert_allclose(mixed.values[[0, 2]], encoder.embed(planes[:2], PANEL).values, atol=1e-6)


def test_a_list_of_images_is_embedded_as_an_array_of_them(encoder: Encoder, planes: np.ndarray) -> None:
    tensors = [torch.from_numpy(image) for image in planes]
    np.testing.assert_array_equal(encoder.embed(tensors, PANEL).values, encoder.embed(planes, PANEL).values)


def test_noise_on_saturated_pixels_depends_on_the_key_alone(encoder: Encoder) -> None:
    image = np.full((1, 20, 20), 255, np.uint8)
    image[0, :5] = 3
    first = encoder.embed(image, ["nucleus"], key="a").values
    assert np.array_equal(first, encoder.embed(image, ["nucleus"], key="a").values)
    assert not np.array_equal(first, encoder.embed(image, ["nucleus"], key="b").values)


def test_aliases_of_channels_are_resolved(encoder: Encoder, planes: np.ndarray) -> None:
    assert encoder.embed(planes[:, :1], ["DAPI"]).columns[0] == "Cells_Morphem_Nucleus_0000"


def test_an_unknown_channel_is_refused_with_the_nearest_name(encoder: Encoder, planes: np.ndarray) -> None:
    with pytest.raises(ChannelError, match=r"(?s)nucleu5.*nucleus"):
        encoder.embed(planes, ["nucleu5", "actin", "mitochondria"])


def test_a_repeated_channel_is_refused_even_under_an_alias(encoder: Encoder, planes: np.ndarray) -> None:
    with pytest.raises(ChannelError, match="'nucleus' is named more than once"):
        encoder.embed(planes, ["nucleus", "DAPI", "actin"])


def test_a_wrong_number_of_channels_is_refused(encoder: Encoder, planes: np.ndarray) -> None:
    with pytest.raises(ChannelError, match=r"2 channels \(nucleus, actin\) are named for an image of 3 planes"):
        encoder.embed(planes, ["nucleus", "actin"])


def test_a_single_string_of_channels_is_refused(encoder: Encoder, planes: np.ndarray) -> None:
    with pytest.raises(ChannelError, match="must be a list of names"):
        encoder.embed(planes, "nucleus")


@pytest.mark.parametrize("dtype", [np.uint16, np.float32, np.dtype(">u2")])
def test_pixels_of_other_types_are_refused_with_the_remedy(encoder: Encoder, planes: np.ndarray, dtype: object) -> None:
    with pytest.raises(DataError, match=r"8-bit pixels .* scale them to 0 to 255"):
        encoder.embed(planes.astype(dtype), PANEL)


@pytest.mark.filterwarnings("error")
def test_flipped_and_read_only_arrays_are_taken(encoder: Encoder, planes: np.ndarray) -> None:
    flipped, frozen = planes[0, :, ::-1], planes[0].copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(encoder.embed(frozen, PANEL).values, encoder.embed(planes[0], PANEL).values)
    np.testing.assert_array_equal(encoder.embed(flipped, PANEL).values, encoder.embed(flipped.copy(), PANEL).values)


def test_a_plane_without_a_channel_axis_is_refused(encoder: Encoder, planes: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"axes \(channel, height, width\)"):
        encoder.embed(planes[0, 0], ["nucleus"])


def test_an_unknown_way_to_combine_is_refused(encoder: Encoder, planes: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="must be one of concat, mean, none"):
        encoder.embed(planes, PANEL, combine="sum")


def test_the_mean_of_channels_is_the_mean_of_their_embeddings(encoder: Encoder, planes: np.ndarray) -> None:
    each = encoder.embed(planes, PANEL, combine="concat").values.reshape(4, 3, 16)
    np.testing.assert_allclose(encoder.embed(planes, PANEL, combine="mean").values, each.mean(1), atol=1e-6)


def test_without_combining_every_plane_has_a_row_that_says_its_channel(encoder: Encoder, planes: np.ndarray) -> None:
    table = encoder.embed(planes, PANEL, combine="none")
    assert table.metadata["Metadata_Channel"].tolist() == sorted(PANEL) * 4
    each = encoder.embed(planes, PANEL).values.reshape(12, 16)
    np.testing.assert_array_equal(table.values, each)


def test_a_strategy_of_one_vector_per_image_takes_no_combination(planes: np.ndarray) -> None:
    encoder = Encoder(OnePerImage(), SelfNormalize(), input_size_px=16)
    assert encoder.embed(planes, PANEL).columns == tuple(f"Cells_Morphem_Image_{i:04d}" for i in range(4))
    with pytest.raises(ConfigError, match="has no effect on OnePerImage"):
        encoder.embed(planes, PANEL, combine="mean")


def test_embedding_leaves_training_mode_and_random_state_alone(encoder: Encoder, planes: np.ndarray) -> None:
    encoder.train()
    encoder.channels.backbone.network.blocks[0].eval()
    state = torch.get_rng_state()
    encoder.embed(planes, PANEL)
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training
    assert not encoder.channels.backbone.network.blocks[0].training


def test_stochastic_depth_is_off_while_embedding(planes: np.ndarray) -> None:
    strategy = BagOfChannels(
        VisionTransformer(
            "vit_tiny_patch16_224", 0.9, patch_size_px=8, image_size_px=16, embed_dim=16, depth=4, n_heads=2
        )
    )
    encoder = Encoder(strategy, SelfNormalize(), input_size_px=16).train()
    assert np.array_equal(encoder.embed(planes, PANEL).values, encoder.embed(planes, PANEL).values)


def test_native_sizes_are_embedded_in_groups_of_one_size() -> None:
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=None)
    generator = np.random.default_rng(1)
    images = [generator.integers(0, 256, (2, *size), dtype=np.uint8) for size in [(16, 24), (8, 8), (16, 24), (32, 8)]]
    together = encoder.embed(images, ["nucleus", "actin"]).values
    alone = np.concatenate([encoder.embed(image, ["nucleus", "actin"]).values for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_native_sizes_of_a_strategy_per_image_stay_in_the_order_of_the_images() -> None:
    encoder = Encoder(OnePerImage(), SelfNormalize(), input_size_px=None)
    images = [np.random.default_rng(i).integers(0, 256, (2, 8 + i % 2, 8), dtype=np.uint8) for i in range(4)]
    together = encoder.embed(images, ["nucleus", "actin"]).values
    alone = np.concatenate([encoder.embed(image, ["nucleus", "actin"]).values for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_native_sizes_that_the_patch_does_not_divide_are_refused(planes: np.ndarray) -> None:
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=None)
    with pytest.raises(DataError, match="30 x 26 pixels do not divide"):
        encoder.embed(planes, PANEL)


def test_a_dense_batch_is_refused_where_pixels_are_expected(encoder: Encoder) -> None:
    batch = ChannelBatch.from_planes([[torch.zeros(16, 16, dtype=torch.uint8)]], [["nucleus"]])
    with pytest.raises(DataError, match="ragged batches of pixels"):
        encoder.features(batch._replace(planes=torch.zeros(1, 1, 16, 16)))


def test_saved_and_loaded_weights_give_the_same_numbers(encoder: Encoder, planes: np.ndarray, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "model", card={"exported": "teacher", "channel_types": PANEL, "license": "mit"})
    again = Encoder.from_pretrained(tmp_path / "model")
    np.testing.assert_array_equal(again.embed(planes, PANEL).values, encoder.embed(planes, PANEL).values)
    assert again.card == {"exported": "teacher", "channel_types": PANEL, "license": "mit"}
    assert again.provenance()["weights_fingerprint"] == encoder.provenance()["weights_fingerprint"]
    assert again.origin["model"] == str(tmp_path / "model")


def test_the_config_says_what_is_needed_to_use_the_weights(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path, card={"exported": "student"})
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["format_version"] == 1
    assert config["embed_dim"] == 16
    assert config["exported"] == "student"
    assert config["spec"]["init_args"]["normalizer"]["init_args"]["saturation_noise"] is True
    assert (tmp_path / "README.md").read_text().startswith("---\nlibrary_name: morphem\n")


def test_a_card_may_not_claim_what_the_encoder_says_itself(encoder: Encoder, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="embed_dim"):
        encoder.save_pretrained(tmp_path, card={"embed_dim": 3})


def test_weights_of_another_architecture_are_refused_with_all_differences(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["spec"]["init_args"]["channels"]["init_args"]["backbone"]["init_args"]["depth"] = 3
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"12 missing \(channels\.backbone\.network\.blocks\.2\.norm1\.weight,"):
        Encoder.from_pretrained(tmp_path)


def test_weights_that_were_changed_after_saving_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsError, match="SHA-256 differs"):
        Encoder.from_pretrained(tmp_path)


def test_a_newer_format_is_refused_with_the_remedy(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(WeightsError, match="update morphem"):
        Encoder.from_pretrained(tmp_path)


def test_a_config_that_names_a_strangers_class_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["spec"] = {"name": "os.system", "init_args": {"command": "true"}}
    path.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"os\.system"):
        Encoder.from_pretrained(tmp_path)


def test_loading_leaves_the_random_state_alone(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    state = torch.get_rng_state()
    Encoder.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("name", "value"), [("input_size_px", 0), ("interpolation", "nearest")])
def test_settings_that_make_no_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=name):
        Encoder(BagOfChannels.tiny(), SelfNormalize(), **{name: value})


def test_evaluation_mode_is_undone_after_an_error() -> None:
    module, seen = torch.nn.Linear(1, 1), []

    def fails() -> None:
        with evaluating(module):
            seen.append(module.training)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fails()
    assert seen == [False]
    assert module.training
