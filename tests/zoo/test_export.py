"""Exports carry all that a stranger needs: weights, preparation, card, licence, proof; portable forms give the same."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import constants

import morphem
from morphem import registry
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.normalizers import SelfNormalize
from morphem.recipe import Recipe
from morphem.zoo import portable, verify
from morphem.zoo.base import Checkpoint
from morphem.zoo.export import Portable, export, push_to_hub
from morphem.zoo.golden import read_golden
from morphem.zoo.own_record import channel_sets, draw, write
from tests.zoo.test_golden_records import NAMES

CHANNELS = ["actin", "nucleus"]
JOINT = ["channel_attention", "channel_agnostic", "slot_attention", "memory_fusion"]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder.tiny().eval()


def images(n_images: int = 2, n_channels: int = 2, side: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n_images, n_channels, side, side), dtype=np.uint8)


def test_an_export_loads_and_gives_the_same_features(encoder: Encoder, tmp_path: Path) -> None:
    export(encoder, tmp_path / "mine")
    again = morphem.load(tmp_path / "mine")
    assert np.array_equal(again.embed(images(), CHANNELS).values, encoder.embed(images(), CHANNELS).values)


def test_an_export_carries_a_record_of_several_panels_and_sizes_in_both_precisions(
    encoder: Encoder, tmp_path: Path
) -> None:
    cases = export(encoder, tmp_path).cases
    record = json.loads((tmp_path / "golden.json").read_text())
    assert len({len(case["inputs"]["channels"]) for case in record["cases"].values()}) == 4
    assert len({tuple(name.split("_")[2].split("x")) for name in cases}) == 3
    report = verify.verify(tmp_path)
    assert report.ok
    assert len(report.comparisons) == 2 * len(cases)


def test_an_earlier_export_leaves_nothing_behind(encoder: Encoder, tmp_path: Path) -> None:
    for name in ("encoder.pt2", "encoder.onnx", "portable.json", "recipe.yaml"):
        (tmp_path / name).write_text("of an earlier export")
    export(encoder, tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == ["README.md", "config.json", "golden.json", "golden.safetensors", "model.safetensors"]


@pytest.mark.parametrize("name", ["fixed_channels", *JOINT])
def test_encoders_of_every_strategy_carry_a_record_that_verifies(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(registry.get("channels", name).tiny(), SelfNormalize(), input_size_px=16).eval()
    export(encoder, tmp_path)
    assert verify.verify(tmp_path).ok


def test_what_an_encoder_refuses_is_noted_in_its_record(tmp_path: Path) -> None:
    torch.manual_seed(0)
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=None).eval()
    encoder.save_pretrained(tmp_path)
    cases = write(encoder, tmp_path, "x")
    record = json.loads((tmp_path / "golden.json").read_text())
    assert len(cases) + len(record["refused"]) == 6


@pytest.mark.parametrize(
    ("domain", "dtype"), [("uint8", torch.uint8), ("uint16", torch.uint16), ("unit", torch.float32)]
)
def test_inputs_are_drawn_in_the_domain_of_the_encoder_and_from_the_seed(domain: str, dtype: torch.dtype) -> None:
    first = draw((1, 2, 40, 33), domain, seed=3)
    assert first.dtype == dtype
    assert torch.equal(first, draw((1, 2, 40, 33), domain, seed=3))
    assert not torch.equal(first, draw((1, 2, 40, 33), domain, seed=4))


def test_a_fixed_panel_is_recorded_in_both_orders() -> None:
    encoder = Encoder(registry.get("channels", "fixed_channels").tiny(), SelfNormalize(), input_size_px=16)
    first, second = channel_sets(encoder)
    assert list(reversed(first)) == second


@pytest.fixture
def run(encoder: Encoder, tmp_path: Path) -> Path:
    """The folder of a run as `fit` leaves it."""
    folder = tmp_path / "run"
    encoder.save_pretrained(
        folder / "encoder",
        card={
            "method": "dino",
            "exported": "teacher",
            "steps": 400,
            "channel_types": ["actin", "nucleus"],
            "probes": {"knn": 0.7512},
        },
    )
    config = {"data": {"root": "shards/cp", "query": "experiment.study == 'cp'"}, "seed_everything": 0}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_the_card_says_data_recipe_scores_licence_and_how_to_load(run: Path, tmp_path: Path) -> None:
    (tmp_path / "scores.json").write_text('{"benchmark": "chammi", "scores": {"chammi": 0.4875}}')
    out = tmp_path / "out"
    export(morphem.load(run), out, name="my-encoder", license="mit", run=run, scores=[tmp_path / "scores.json"])
    text = (out / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "mit"
    assert front["library_name"] == "morphem"
    for expected in (
        "# my-encoder",
        "Trained with morphem, method `dino`, 400 steps",
        "Network that was exported: teacher",
        "`data.root`: `shards/cp`",
        "`data.query`: `experiment.study == 'cp'`",
        "Channel types that training saw: actin, nucleus",
        "| chammi | chammi | 0.4875 |",
        "| probe during training | knn | 0.7512 |",
        "morphem fit --config recipe.yaml",
        "morphem.load(",
        "morphem models verify",
    ):
        assert expected in text
    assert yaml.safe_load((out / "recipe.yaml").read_text())["seed_everything"] == 0


def test_the_card_of_an_encoder_of_which_nothing_is_known_says_so(encoder: Encoder, tmp_path: Path) -> None:
    export(encoder, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert "No licence was stated. Until there is one, nobody but its owner may use these weights." in text
    assert "None was measured." in text
    assert "license:" not in text
    assert text.count("Not stated.") == 3


def test_the_code_on_the_card_runs(encoder: Encoder, tmp_path: Path) -> None:
    export(encoder, tmp_path)
    code = (tmp_path / "README.md").read_text().split("```python\n")[1].split("```")[0]
    scope: dict[str, Any] = {"images": images(2, 3)}
    exec(code.replace("this folder or hub id", str(tmp_path)), scope)
    assert scope["table"].values.shape == (2, 3 * encoder.embed_dim)


def test_scores_that_are_none_are_refused(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"x\.json holds no scores"):
        export(encoder, tmp_path / "out", scores=[tmp_path / "x.json"])


def test_a_licence_of_which_only_the_possibilities_are_known_is_not_replaced(encoder: Encoder, tmp_path: Path) -> None:
    encoder.card = {"family": "timm_vits", "restricted": True, "possible_licenses": ["apache-2.0", "DINOv3 License"]}
    with pytest.raises(ConfigError, match=r"Apache-2\.0 or DINOv3 License, which .*say with --record"):
        export(encoder, tmp_path, license="apache-2.0")
    export(encoder, tmp_path)
    assert "Apache-2.0 or DINOv3 License, which restricts" in (tmp_path / "README.md").read_text()


RESTRICTED = {"record": "unidino", "license": "cc-by-nc-4.0", "restricted": True, "source": "https://example.org"}


def test_a_licence_that_restricts_use_stays_with_the_weights(encoder: Encoder, tmp_path: Path) -> None:
    encoder.card = dict(RESTRICTED)
    with pytest.raises(ConfigError, match=r"come from 'unidino' under the licence CC-BY-NC-4\.0.*'mit' cannot take"):
        export(encoder, tmp_path, license="mit")
    export(encoder, tmp_path)
    assert RESTRICTED.items() <= morphem.load(tmp_path).card.items()
    assert "restricts what the weights may be used for" in (tmp_path / "README.md").read_text()


def test_fine_tuned_weights_keep_the_licence_they_came_with(encoder: Encoder, tmp_path: Path) -> None:
    finetune = pytest.importorskip("morphem.methods.finetune").Finetune.tiny()
    finetune.encoder.card = {}
    pretrained = finetune.encoder
    pretrained.save_pretrained(tmp_path / "theirs", card=dict(RESTRICTED))
    finetune.new_parts = ()
    finetune.load_weights(str(tmp_path / "theirs"))
    assert finetune.exported_encoder().card["license"] == "cc-by-nc-4.0"
    content: dict[str, Any] = {"state_dict": finetune.state_dict()}
    finetune.on_save_checkpoint(content)
    torch.save(content, tmp_path / "last.ckpt")
    assert morphem.load(tmp_path / "last.ckpt").card["restricted"] is True


@pytest.mark.parametrize("n_images", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_exported_program_gives_the_features_of_the_encoder(
    encoder: Encoder, n_images: int, tmp_path: Path
) -> None:
    forms = Portable(torch_export=True, channels=("nucleus", "actin"), size_px=(40, 24), n_images=n_images)
    written = export(encoder, tmp_path, forms=forms)
    assert written.portable["encoder.pt2"] < 1e-5
    notes = json.loads((tmp_path / "portable.json").read_text())
    assert notes["input"]["shape"] == [n_images, 2, 40, 24]
    assert notes["input"]["channels"] == ["nucleus", "actin"]
    program = torch.export.load(tmp_path / "encoder.pt2").module()
    pixels = torch.randint(0, 256, (n_images, 2, 40, 24), dtype=torch.uint8)
    table = encoder.embed(list(pixels), ["nucleus", "actin"], recipe=Recipe())
    np.testing.assert_allclose(program(pixels).detach().numpy(), table.values, atol=1e-5)
    assert notes["output"]["columns"] == list(table.columns)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["bag_of_channels", "channel_attention", "channel_agnostic", "slot_attention", "fixed_channels", "memory_fusion"],
)
def test_encoders_of_every_strategy_are_portable(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    encoder = Encoder(registry.get("channels", name).tiny(), SelfNormalize(), input_size_px=16).eval()
    written = export(encoder, tmp_path, forms=Portable(True, True))
    assert set(written.portable) == {"encoder.pt2", "encoder.onnx"}
    assert max(written.portable.values()) < 1e-5


@pytest.mark.slow
def test_onnx_gives_the_features_of_the_encoder_without_noise(tmp_path: Path) -> None:
    runtime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    noisy = Encoder(BagOfChannels.tiny(), SelfNormalize(saturation_noise=True), input_size_px=16).eval()
    export(noisy, tmp_path, forms=Portable(onnx=True, channels=tuple(CHANNELS), size_px=(16, 16), n_images=2))
    pixels = images()
    pixels[:, :, :4] = 255
    session = runtime.InferenceSession(tmp_path / "encoder.onnx", providers=["CPUExecutionProvider"])
    found = session.run(None, {"images": pixels})[0]
    plain = Encoder(noisy.channels, SelfNormalize(), input_size_px=16).eval()
    np.testing.assert_allclose(found, plain.embed(pixels, CHANNELS).values, atol=1e-5)


def test_onnx_without_its_packages_says_what_to_install(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(WeightsError, match=r"ONNX needs packages.*onnx.*pip install 'morphem\[onnx\]'"):
        export(encoder, tmp_path / "out", forms=Portable(onnx=True))
    assert not (tmp_path / "out").exists()


def test_a_portable_form_that_differs_is_not_kept(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = torch.export.load

    def wrong(path: Path) -> SimpleNamespace:
        module = honest(path).module()
        return SimpleNamespace(module=lambda: lambda pixels: module(pixels) + 0.01)

    monkeypatch.setattr(torch.export, "load", wrong)
    with pytest.raises(
        WeightsError, match=r"encoder\.pt2 gives other features than the encoder \(difference 1\.0e-02\)"
    ):
        export(encoder, tmp_path, forms=Portable(torch_export=True))
    assert not (tmp_path / "encoder.pt2").exists()


def test_what_torch_cannot_export_is_said_in_one_sentence(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("dynamic control flow\nwith a long explanation")

    monkeypatch.setattr(torch.export, "export", fail)
    with pytest.raises(WeightsError, match=r"cannot take this encoder apart: dynamic control flow$"):
        export(encoder, tmp_path, forms=Portable(torch_export=True))


def test_torchs_limits_are_back_after_tracing(encoder: Encoder) -> None:
    from torch._subclasses import fake_tensor

    before = fake_tensor.CONSTANT_NUMEL_LIMIT
    form = portable.TensorForm(encoder, CHANNELS, 1)
    portable.trace(form, draw((1, 2, 16, 16), "uint8", 0))
    assert before == fake_tensor.CONSTANT_NUMEL_LIMIT


def test_settings_of_portable_forms_without_a_form_are_refused() -> None:
    with pytest.raises(ConfigError, match="belong to --torch-export and --onnx"):
        Portable(channels=("nucleus",))


class FakeHub:
    """The two calls of the hub's API that are made; nothing leaves this machine."""

    calls: list[tuple[str, dict[str, Any]]]

    def __init__(self, **_: object) -> None:
        pass

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options: Any) -> SimpleNamespace:
        self.calls.append(("upload_folder", options))
        return SimpleNamespace(commit_url="https://huggingface.co/me/mine/commit/1")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[FakeHub]:
    FakeHub.calls = []
    monkeypatch.setattr("huggingface_hub.HfApi", FakeHub)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return FakeHub


def test_an_export_is_pushed_to_the_hub(encoder: Encoder, hub: type[FakeHub], tmp_path: Path) -> None:
    export(encoder, tmp_path, license="mit")
    (tmp_path / "secret.txt").write_text("not ours")
    assert push_to_hub(tmp_path, "me/mine", private=True) == "https://huggingface.co/me/mine/commit/1"
    (_, made), (_, sent) = hub.calls
    assert made == {"repo_id": "me/mine", "private": True, "exist_ok": True}
    assert sent["folder_path"] == str(tmp_path)
    assert {"config.json", "model.safetensors", "README.md", "golden.json"} <= set(sent["allow_patterns"])
    assert "secret.txt" not in sent["allow_patterns"]


@pytest.mark.parametrize(
    ("card", "sentence"),
    [({}, "states no licence"), (RESTRICTED, r"under CC-BY-NC-4\.0 .*morphem never mirrors such weights")],
)
def test_weights_that_may_not_be_published_are_not_pushed(
    encoder: Encoder, hub: type[FakeHub], tmp_path: Path, card: dict[str, Any], sentence: str
) -> None:
    encoder.card = dict(card)
    export(encoder, tmp_path)
    with pytest.raises(WeightsError, match=sentence):
        push_to_hub(tmp_path, "me/mine")
    assert hub.calls == []


def test_a_push_without_the_hub_is_refused(
    encoder: Encoder, hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export(encoder, tmp_path, license="mit")
    with pytest.raises(WeightsError, match="'mine' is no hub id"):
        push_to_hub(tmp_path, "mine")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="cannot be written to offline"):
        push_to_hub(tmp_path, "me/mine")


def test_a_hub_that_refuses_is_reported_in_one_sentence(
    encoder: Encoder, hub: type[FakeHub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("401 Client Error\nmore")

    export(encoder, tmp_path, license="mit")
    monkeypatch.setattr(FakeHub, "create_repo", refuse)
    with pytest.raises(WeightsError, match=r"'me/mine' cannot be written \(401 Client Error\); log in"):
        push_to_hub(tmp_path, "me/mine")


NOT_PORTABLE = {"microsnoop": "its percentiles are numpy's"}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_encoders_of_every_family_are_exported_and_verify(name: str, golden: Path, tmp_path: Path) -> None:
    record = read_golden(golden / f"{name}.json")
    _, family = verify.family_of(record)
    encoder = family.convert(Checkpoint.read(record.checkpoints()[0]))
    forms = Portable() if name in NOT_PORTABLE else Portable(torch_export=True)
    export(encoder, tmp_path, forms=forms)
    report = verify.verify(tmp_path)
    assert report.ok
    assert len(report.comparisons) >= 8
    first, again = family.to_authors(encoder), family.to_authors(morphem.load(tmp_path))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_what_is_not_portable_says_so(golden: Path) -> None:
    record = read_golden(golden / "microsnoop.json")
    encoder = verify.family_of(record)[1].convert(Checkpoint.read(record.checkpoints()[0]))
    form = portable.TensorForm(encoder, ["nucleus"], 1)
    with pytest.raises(WeightsError, match=r"torch\.export cannot take this encoder apart: .*numpy"):
        portable.trace(form, draw((1, 1, 224, 224), "uint8", 0))
