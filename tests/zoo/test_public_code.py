"""Checkpoints as each training code writes them: by its own modules where it is installed, or by its key names."""

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from lightly.models.modules import DINOProjectionHead, MaskedVisionTransformerTIMM, MaskedVisionTransformerTorchvision
from torch import Tensor, nn

import morphem
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.rgb_bag import IMAGENET_MEAN, IMAGENET_STD, RGBBagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.testing import check_encoder, check_file
from morphem.zoo.base import Checkpoint
from morphem.zoo.catalogue import recognise
from morphem.zoo.public_code import PublicCode

pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")  # lightly's head uses the old form
SIDE = 32
FACTS: dict[str, Any] = {"n_heads": 4, "layer_norm_eps": 1e-6}
IMAGE = np.random.default_rng(0).integers(0, 256, (2, SIDE, SIDE), dtype=np.uint8)
NAMES = ["actin", "nucleus"]
Tensors = dict[str, Tensor]


def vit(in_chans: int = 3, seed: int = 0, **settings: Any) -> nn.Module:
    """A small transformer of timm with weights that all matter."""
    arguments = {"embed_dim": 24, "depth": 4, "num_heads": 4, "img_size": SIDE, "num_classes": 0, **settings}
    network = timm.create_model("vit_small_patch16_224", pretrained=False, in_chans=in_chans, **arguments)
    torch.manual_seed(seed)
    network.load_state_dict({name: 0.2 * torch.randn(value.shape) for name, value in network.state_dict().items()})
    return network.eval()


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def head(prefix: str) -> Tensors:
    return under(prefix, DINOProjectionHead(24, 8, 4, 16).state_dict())


def colours(planes: np.ndarray) -> Tensor:
    """Planes as pictures, as DINO's, MAE's and the others' evaluation prepares colours, (P, 3, H, W)."""
    grey = torch.from_numpy(planes).float()[:, None].expand(-1, 3, -1, -1) / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (grey - mean) / std


def z_scores(planes: np.ndarray) -> Tensor:
    """Planes as CHAMMI-75's code prepares them, (P, 1, H, W)."""
    pixels = torch.from_numpy(planes).double()[:, None] / 255
    mean, variance = pixels.mean((2, 3), keepdim=True), pixels.var((2, 3), correction=0, keepdim=True)
    return ((pixels - mean) / (variance + 1e-7).sqrt()).float()


def load(content: Mapping[str, Any], tmp_path: Path, **facts: Any) -> Encoder:
    """Save as torch does, then load as a user does."""
    torch.save(dict(content), tmp_path / "checkpoint.pth")
    return morphem.load(tmp_path / "checkpoint.pth", family="public_code", **facts)


def assert_gives(encoder: Encoder, expected: Tensor) -> None:
    found = encoder.embed(IMAGE, NAMES, combine="none").values
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-5)


def assert_goes_back(encoder: Encoder, held: Mapping[str, Tensor]) -> None:
    """Check that the network's tensors come back under their names, and that they alone load again, strictly."""
    theirs = PublicCode().to_authors(encoder)
    for name, tensor in theirs.items():
        assert torch.equal(held[name], tensor), name
    facts = {} if encoder.card["layout"].startswith("resnet") else FACTS
    family = PublicCode(**facts, input_size_px=encoder.input_size_px)
    again = check_file(family, Checkpoint(theirs, Path("again")))
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name


def dino(network: nn.Module, student: nn.Module, **extra: Any) -> dict[str, Any]:
    """What `main_dino.py` saves."""
    return {
        "student": {**under("module.backbone.", student.state_dict()), **head("module.head.")},
        "teacher": {**under("backbone.", network.state_dict()), **head("head.")},
        "optimizer": {"state": {}, "param_groups": []},
        "epoch": 7,
        "dino_loss": {"center": torch.zeros(1, 16)},
        **extra,
    }


def test_dino_gives_the_teacher(tmp_path: Path) -> None:
    network, student = vit(), vit(seed=1)
    content = dino(network, student)
    encoder = load(content, tmp_path, **FACTS)
    assert_gives(encoder, network(colours(IMAGE)))
    assert_goes_back(encoder, content["teacher"])
    assert encoder.card["exported"] == "teacher"
    assert_gives(load(content, tmp_path, network="student", **FACTS), student(colours(IMAGE)))


def test_dinos_arguments_say_heads_and_epsilon(tmp_path: Path) -> None:
    network = vit(embed_dim=24, num_heads=6)
    encoder = load(dino(network, vit(seed=1), args=Namespace(arch="vit_small", patch_size=16)), tmp_path)
    assert_gives(encoder, network(colours(IMAGE)))


def test_chammi75s_code_gives_a_bag_of_channels(tmp_path: Path) -> None:
    network = vit(in_chans=1)
    content = dino(network, vit(in_chans=1, seed=1))
    encoder = load(content, tmp_path, pixels="per_plane", **FACTS)
    assert_gives(encoder, network(z_scores(IMAGE)))
    check_encoder(encoder)


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_dinov2_with_registers_and_chunks(chunked: bool, nested: bool, tmp_path: Path) -> None:
    network = vit(reg_tokens=3, init_values=1e-5, no_embed_class=True)
    plain: Tensors = dict(network.state_dict())
    theirs = {("register_tokens" if name == "reg_token" else name): tensor for name, tensor in plain.items()}
    theirs["mask_token"] = torch.zeros(1, 24)
    # Meta's table has a row for the class token, which timm adds to the token
    theirs["pos_embed"] = torch.cat([torch.full((1, 1, 24), 0.5), plain["pos_embed"]], dim=1)
    theirs["cls_token"] = plain["cls_token"] - 0.5
    if chunked:
        moved = {}
        for name, tensor in theirs.items():
            parts = name.split(".")
            moved[f"blocks.{int(parts[1]) // 2}.{name[7:]}" if parts[0] == "blocks" else name] = tensor
        theirs = moved
    backbone = {**under("backbone.", theirs), **head("dino_head."), **head("ibot_head.")}
    if nested:
        content: dict[str, Any] = {
            "model": {
                **under("teacher.", backbone),
                **under("student.", backbone),
                "dino_loss.center": torch.zeros(1, 16),
            },
            "optimizer": {},
            "iteration": 3,
        }
    else:
        content = {"teacher": backbone}
    encoder = load(content, tmp_path, position_offset=0.0, position_antialias=True, **FACTS)
    assert_gives(encoder, network(colours(IMAGE)))
    assert_goes_back(encoder, content["model" if nested else "teacher"])
    assert encoder.card["exported"] == "teacher"


def test_fsdp_and_compilation_leave_no_trace_in_names(tmp_path: Path) -> None:
    network = vit()
    wrapped = under("backbone._fsdp_wrapped_module.", network.state_dict())
    assert_gives(load({"teacher": wrapped}, tmp_path, **FACTS), network(colours(IMAGE)))
    compiled = under("_orig_mod.backbone.", network.state_dict())
    assert_gives(load({"model": compiled}, tmp_path, **FACTS), network(colours(IMAGE)))


def test_mae_leaves_its_decoder_out(tmp_path: Path) -> None:
    network = vit()
    model = {
        **network.state_dict(),
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 5, 8),
        "decoder_embed.weight": torch.zeros(8, 24),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "decoder_pred.bias": torch.zeros(3),
    }
    content = {
        "model": model,
        "optimizer": {},
        "epoch": 1,
        "scaler": {},
        "args": Namespace(model="mae_vit_base_patch16"),
    }
    wide = vit(num_heads=12)
    content["model"] = {**model, **wide.state_dict()}
    encoder = load(content, tmp_path)
    assert_gives(encoder, wide(colours(IMAGE)))
    assert_goes_back(load(content, tmp_path, **FACTS), content["model"])
    patches = wide.forward_features(colours(IMAGE))[:, 1:].mean(1)  # type: ignore[operator]
    assert_gives(load(content, tmp_path, pooling="mean"), patches)


def test_mae_fine_tuned_normalises_the_mean_of_its_patches(tmp_path: Path) -> None:
    network = vit(global_pool="avg")
    assert "fc_norm.weight" in network.state_dict()
    model = {**network.state_dict(), "head.weight": torch.zeros(5, 24), "head.bias": torch.zeros(5)}
    content = {"model": model, "args": Namespace(model="vit_base_patch16")}
    assert_gives(load(content, tmp_path, **FACTS), network(colours(IMAGE)))
    with pytest.raises(WeightsError, match="fc_norm"):
        load(content, tmp_path, n_heads=4, layer_norm_eps=1e-5)


def lightning(state: Tensors) -> dict[str, Any]:
    """What Lightning saves around a state."""
    return {
        "epoch": 3,
        "global_step": 9,
        "pytorch-lightning_version": "2.1.2",
        "state_dict": state,
        "loops": {},
        "callbacks": {},
        "optimizer_states": [],
        "lr_schedulers": [],
    }


def test_solo_learn_gives_its_backbone(tmp_path: Path) -> None:
    network, momentum = vit(), vit(seed=1)
    state = {
        **under("backbone.", network.state_dict()),
        **under("momentum_backbone.", momentum.state_dict()),
        "classifier.weight": torch.zeros(10, 24),
        "momentum_classifier.weight": torch.zeros(10, 24),
        "projector.0.weight": torch.zeros(8, 24),
        "momentum_projector.0.weight": torch.zeros(8, 24),
        "predictor.0.weight": torch.zeros(8, 8),
        "queue": torch.zeros(2, 4),
        "dino_loss_func.center": torch.zeros(1, 16),
    }
    encoder = load(lightning(state), tmp_path, **FACTS)
    assert_gives(encoder, network(colours(IMAGE)))
    assert_goes_back(encoder, state)
    assert_gives(load(lightning(state), tmp_path, network="momentum_backbone", **FACTS), momentum(colours(IMAGE)))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_solo_learns_resnets(name: str, tmp_path: Path) -> None:
    network = getattr(torchvision.models, name)()
    network.fc = nn.Identity()
    state = {**under("backbone.", network.state_dict()), "classifier.bias": torch.zeros(10)}
    encoder = load(lightning(state), tmp_path, input_size_px=SIDE)
    assert_gives(encoder, network.eval()(colours(IMAGE)))
    assert_goes_back(encoder, state)


def test_solo_learns_mae_keeps_its_decoder_apart(tmp_path: Path) -> None:
    network = vit()
    state = {
        **under("backbone.", network.state_dict()),
        "decoder.mask_token": torch.zeros(1, 1, 8),
        "decoder.decoder_embed.weight": torch.zeros(8, 24),
        "classifier.bias": torch.zeros(10),
    }
    assert_gives(load(lightning(state), tmp_path, **FACTS), network(colours(IMAGE)))


def test_lightlys_resnets_are_sequences(tmp_path: Path) -> None:
    network = torchvision.models.resnet18()
    sequence = nn.Sequential(*list(network.children())[:-1])
    state = {
        **under("backbone.", sequence.state_dict()),
        "projection_head.layers.0.weight": torch.zeros(8, 512),
    }
    encoder = load(lightning(state), tmp_path, input_size_px=SIDE)
    assert_gives(encoder, sequence.eval()(colours(IMAGE)).flatten(1))
    assert_goes_back(encoder, state)


def test_lightlys_mae_on_timm(tmp_path: Path) -> None:
    network = vit()
    masked = MaskedVisionTransformerTIMM(network, weight_initialization="skip", pos_embed_initialization="skip")
    state = {**under("backbone.", masked.state_dict()), "decoder.decoder_embed.weight": torch.zeros(8, 24)}
    encoder = load(lightning(state), tmp_path, **FACTS)
    assert_gives(encoder, masked.encode(colours(IMAGE))[:, 0])
    assert_goes_back(encoder, state)


def test_lightlys_mae_on_torchvision(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = torchvision.models.VisionTransformer(SIDE, 16, 2, 4, 24, 48).eval()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    masked = MaskedVisionTransformerTorchvision(
        network, weight_initialization="skip", pos_embed_initialization="skip"
    ).eval()
    state = under("backbone.", masked.state_dict())
    encoder = load(lightning(state), tmp_path, **FACTS)
    assert_gives(encoder, masked.encode(colours(IMAGE))[:, 0])
    assert_goes_back(encoder, state)


def test_lightlys_student_and_teacher_have_to_be_told_apart(tmp_path: Path) -> None:
    student, teacher = vit(), vit(seed=1)
    state = {
        **under("student_backbone.", student.state_dict()),
        **under("teacher_backbone.", teacher.state_dict()),
        **head("student_head."),
        **head("teacher_head."),
        "criterion.center": torch.zeros(1, 16),
    }
    with pytest.raises(WeightsError, match=r"holds 2 networks \(student_backbone, teacher_backbone\); say which"):
        load(lightning(state), tmp_path, **FACTS)
    encoder = load(lightning(state), tmp_path, network="teacher_backbone", **FACTS)
    assert_gives(encoder, teacher(colours(IMAGE)))


def test_three_colours_are_a_bag_of_grey_pictures_and_named_channels_are_not(tmp_path: Path) -> None:
    network = vit()
    encoder = load({"model": network.state_dict()}, tmp_path, **FACTS)
    assert isinstance(encoder.channels, RGBBagOfChannels)
    check_encoder(encoder)
    named = load(
        {"model": network.state_dict()}, tmp_path, channels=["dna", "actin", "mito"], pixels="full_scale", **FACTS
    )
    assert isinstance(named.channels, FixedChannels)
    image = np.random.default_rng(1).integers(0, 256, (3, SIDE, SIDE), dtype=np.uint8)
    found = named.embed(image[[2, 0, 1]], ["mitochondria", "nucleus", "actin"]).values
    expected = network(torch.from_numpy(image).float()[None] / 255)
    np.testing.assert_allclose(found, expected.detach().numpy(), atol=2e-5)


def test_other_numbers_of_channels_have_to_be_named(tmp_path: Path) -> None:
    network = vit(in_chans=5)
    with pytest.raises(
        WeightsError, match=r"takes 5 channels; their names, in the order of the weights, are not given"
    ):
        load({"model": network.state_dict()}, tmp_path, pixels="per_plane", **FACTS)
    with pytest.raises(WeightsError, match=r"are 1 are given|1 are given \(actin\)"):
        load({"model": network.state_dict()}, tmp_path, pixels="per_plane", channels=["actin"], **FACTS)
    five = ["dna", "er", "rna", "agp", "mito"]
    encoder = load({"model": network.state_dict()}, tmp_path, mean=0.25, std=0.5, channels=five, **FACTS)
    image = np.random.default_rng(1).integers(0, 256, (5, SIDE, SIDE), dtype=np.uint8)
    expected = network((torch.from_numpy(image).float()[None] / 255 - 0.25) / 0.5)
    np.testing.assert_allclose(encoder.embed(image, five).values, expected.detach().numpy(), atol=2e-5)


def test_heads_and_epsilon_are_asked_for_by_name(tmp_path: Path) -> None:
    content = {"model": vit().state_dict()}
    with pytest.raises(WeightsError, match=r"does not say n_heads and layer_norm_eps, which change the features"):
        load(content, tmp_path)
    with pytest.raises(WeightsError, match=r"does not say layer_norm_eps"):
        load(content, tmp_path, n_heads=4)
    with pytest.raises(WeightsError, match=r"n_heads=5 does not divide the width 24"):
        load(content, tmp_path, n_heads=5, layer_norm_eps=1e-6)


def test_what_was_done_to_pixels_is_asked_for_where_there_are_no_colours(tmp_path: Path) -> None:
    content = {"model": vit(in_chans=1).state_dict()}
    for facts in ({}, {"pixels": "imagenet"}):
        with pytest.raises(
            WeightsError, match=r"does not say what was done to pixels, and its 1 channels are no colours"
        ):
            load(content, tmp_path, **FACTS, **facts)


def test_tensors_of_no_known_part_are_refused_unless_they_are_left_out(tmp_path: Path) -> None:
    network = vit()
    content = lightning({**under("backbone.", network.state_dict()), "gate.weight": torch.zeros(3)})
    with pytest.raises(WeightsError, match=r"holds 1 tensors of no known part \(gate.weight\)"):
        load(content, tmp_path, **FACTS)
    assert_gives(load(content, tmp_path, ignore=["gate."], **FACTS), network(colours(IMAGE)))
    inside = lightning(under("backbone.", {**network.state_dict(), "blocks.0.gate": torch.zeros(3)}))
    with pytest.raises(WeightsError, match=r"1 unexpected \(blocks.0.gate\)"):
        load(inside, tmp_path, **FACTS)
    del inside["state_dict"]["backbone.blocks.0.gate"], inside["state_dict"]["backbone.norm.bias"]
    with pytest.raises(WeightsError, match=r"1 missing \(norm.bias\)"):
        load(inside, tmp_path, **FACTS)


def test_resnets_of_other_forms_are_refused(tmp_path: Path) -> None:
    network = torchvision.models.resnet18()
    network.conv1 = nn.Conv2d(3, 64, 3, bias=False)
    with pytest.raises(WeightsError, match=r"is a resnet18 for tiny pictures"):
        load(lightning(under("backbone.", network.state_dict())), tmp_path)
    with pytest.raises(ConfigError, match=r"have no effect on .* a ResNet"):
        load(lightning(under("backbone.", torchvision.models.resnet18().state_dict())), tmp_path, **FACTS)


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"pixels": "zscore"}, "pixels='zscore' must be one of imagenet, per_plane, full_scale"),
        ({"mean": 0.5}, "give mean and std together"),
        ({"mean": 0.5, "std": 1.0, "pixels": "per_plane"}, "they take its place"),
        ({"n_heads": 0}, "n_heads=0 must be at least 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(facts: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PublicCode(**facts)


def test_an_unknown_network_is_named_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"No network 'techer'.*teacher"):
        load(dino(vit(), vit(seed=1)), tmp_path, network="techer", **FACTS)


def test_files_without_a_network_are_refused() -> None:
    content = Checkpoint({"state_dict": {"of.something.else": torch.zeros(2)}, "epoch": 1}, Path("x.ckpt"))
    assert not PublicCode.recognises(content)
    with pytest.raises(WeightsError, match=r"holds no transformer or ResNet .* it holds state_dict, epoch"):
        PublicCode().convert(content)


def test_released_weights_belong_to_their_own_family(golden: Path) -> None:
    for file in ("morphem_train.ckpt", "dinov2_boc.ckpt", "kim_dino.ckpt", "chammi75_mae_boc.ckpt"):
        content = Checkpoint.read(golden / file)
        assert PublicCode.recognises(content)
        assert recognise(content)[0] != "public_code"
