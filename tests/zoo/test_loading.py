"""`morphem.load` by the name of a record, by a hub id, from a file of a family; what it must be told, and what not."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import morphem
from morphem.encoder import Encoder
from morphem.errors import ConfigError, PluginError, WeightsError
from morphem.zoo import catalogue
from morphem.zoo.base import Checkpoint
from tests.zoo.tiny_family import NC, Tiny, write

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 20, 20), dtype=np.uint8)


def features(encoder: Encoder) -> np.ndarray:
    return encoder.embed(IMAGE, ["nucleus", "actin"]).values


def test_records_are_listed_by_name(tiny_zoo: Path) -> None:
    assert morphem.list_models() == ["tiny-hub", "tiny-web", "tiny-nc", "tiny-hand"]


def test_a_record_loads_by_name_and_says_what_it_is(tiny_zoo: Path) -> None:
    found = write(tiny_zoo / "tiny-web" / "tiny.pth")
    encoder = morphem.load("tiny-web")
    assert encoder.origin == {"model": "tiny-web", "revision": f"sha256:{found}"}
    known = {"record": "tiny-web", "family": "tiny", "license": "mit", "restricted": False, "exported": "only"}
    assert known.items() <= encoder.card.items()
    assert np.array_equal(features(encoder), features(morphem.load(tiny_zoo / "tiny-web" / "tiny.pth")))


def test_a_hub_id_of_a_record_loads_that_record(tiny_zoo: Path) -> None:
    write(tiny_zoo / "tiny-hub" / "model.safetensors")  # a pickle under that name, as some authors write it
    assert morphem.load("lab/tiny").card["record"] == "tiny-hub"


def test_a_restricted_record_needs_a_word_once(tiny_zoo: Path) -> None:
    write(tiny_zoo / NC.name / "nc.pth")
    with pytest.raises(WeightsError, match=r"CC-BY-NC-4\.0, which restricts"):
        morphem.load(NC.name)
    morphem.load(NC.name, accept_license=True)
    assert morphem.load(NC.name).card["restricted"] is True


@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".safetensors", ".bin", ""])
def test_a_file_of_a_family_is_recognised_under_any_name(suffix: str, tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / f"file{suffix}")
    encoder = morphem.load(tmp_path / f"file{suffix}")
    assert encoder.card["family"] == "tiny"
    assert encoder.origin == {"model": str(tmp_path / f"file{suffix}")}


def test_safetensors_of_a_family_are_recognised_under_any_name(tiny_zoo: Path, tmp_path: Path) -> None:
    save_file(Tiny().to_authors(Encoder.tiny()), tmp_path / "file.pth")
    assert morphem.load(tmp_path / "file.pth").card["family"] == "tiny"


@pytest.mark.parametrize("name", ["model.pth", "pytorch_model.bin"])
def test_a_folder_with_one_file_of_weights_loads(name: str, tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "download" / name)
    (tmp_path / "download" / "config.json").write_text('{"model_type": "theirs"}')
    assert morphem.load(tmp_path / "download").card["family"] == "tiny"


def test_a_file_of_no_family_is_described(tiny_zoo: Path, tmp_path: Path) -> None:
    torch.save({"weights": {"a": torch.zeros(2)}, "epoch": 1}, tmp_path / "a.pth")
    expected = r"is of no family that morphem knows \(it holds 2 entries: weights, epoch\).*, one of tiny"
    with pytest.raises(WeightsError, match=expected):
        morphem.load(tmp_path / "a.pth")


def test_a_file_that_two_families_claim_has_to_be_called_by_name(
    tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twins = {"tiny": Tiny, "tiny_twin": Tiny}
    monkeypatch.setattr(catalogue, "families", lambda: twins)
    monkeypatch.setattr(catalogue, "family", twins.__getitem__)
    write(tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"may be of the families tiny and tiny_twin; .*family='tiny'"):
        morphem.load(tmp_path / "a.pth")
    assert morphem.load(tmp_path / "a.pth", family="tiny_twin").card["family"] == "tiny_twin"


def test_two_records_of_one_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "families", lambda: {"tiny": Tiny, "twin": Tiny})
    with pytest.raises(PluginError, match="Two families have a record 'tiny-hub': tiny and twin"):
        catalogue.entries()


def test_a_family_that_cannot_be_imported_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(group: str, name: str) -> type[Tiny]:
        if name == "broken":
            raise PluginError("Plug-in 'broken' cannot be imported")
        return Tiny

    monkeypatch.setattr("morphem.registry.names", lambda group: ["broken", "tiny"])
    monkeypatch.setattr("morphem.registry.get", get)
    with pytest.warns(UserWarning, match="goes on without family 'broken': Plug-in 'broken' cannot"):
        assert list(catalogue.families()) == ["tiny"]


def test_a_fact_goes_to_the_family(tiny_zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.pth")
    scales: list[float] = []
    convert = Tiny.convert
    monkeypatch.setattr(Tiny, "convert", lambda self, file: (scales.append(self.scale), convert(self, file))[1])
    morphem.load(tmp_path / "a.pth", scale=2.0)
    assert scales == [2.0]


def test_an_unknown_fact_is_refused_with_the_nearest(tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.pth")
    with pytest.raises(ConfigError, match="No fact of the family 'tiny' 'scael'; did you mean 'scale'"):
        morphem.load(tmp_path / "a.pth", scael=2.0)


def test_a_file_elsewhere_may_be_said_to_be_of_a_record(tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.pth")
    assert morphem.load(tmp_path / "a.pth", record="tiny-nc").card["license"] == "CC-BY-NC-4.0"
    with pytest.raises(WeightsError, match="No record 'tiny-wep'; did you mean 'tiny-web'"):
        morphem.load(tmp_path / "a.pth", record="tiny-wep")
    with pytest.raises(ConfigError, match="is of the family 'tiny', not 'other'"):
        morphem.load(tmp_path / "a.pth", record="tiny-nc", family="other")


def test_of_a_file_whose_record_is_unknown_the_stricter_licence_is_assumed(tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.pth")
    card = morphem.load(tmp_path / "a.pth").card
    assert "license" not in card
    assert card["possible_licenses"] == ["mit", "CC-BY-NC-4.0"]
    assert card["restricted"] is True


@pytest.mark.parametrize("said", [{"family": "tiny"}, {"record": "tiny-web"}, {"scale": 2.0}])
def test_what_has_no_effect_on_a_folder_of_ours_is_refused(said: dict, tiny_zoo: Path, tmp_path: Path) -> None:
    Encoder.tiny().save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=f"{next(iter(said))}.* has no effect on"):
        morphem.load(tmp_path, **said)


@pytest.mark.parametrize("said", [{"family": "tiny"}, {"record": "tiny-web"}])
def test_a_record_by_name_needs_no_family(said: dict, tiny_zoo: Path) -> None:
    with pytest.raises(ConfigError, match="has no effect on 'tiny-web', which is a record itself"):
        morphem.load("tiny-web", **said)


def test_a_wrong_family_is_refused_by_its_conversion(tiny_zoo: Path, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "a.pth")
    with pytest.raises(WeightsError, match=r"a\.pth is no tiny encoder"):
        morphem.load(tmp_path / "a.pth", family="tiny")


def test_a_missing_tensor_is_refused_with_its_name(tiny_zoo: Path, tmp_path: Path) -> None:
    tensors = Tiny().to_authors(Encoder.tiny())
    gone = next(iter(tensors))
    del tensors[gone]
    save_file(tensors, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match=f"1 missing \\({gone.removeprefix('net.')}\\)"):
        morphem.load(tmp_path / "a.safetensors")


def test_truncated_safetensors_are_refused_by_name(tiny_zoo: Path, tmp_path: Path) -> None:
    save_file(Tiny().to_authors(Encoder.tiny()), tmp_path / "a.safetensors")
    data = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(data[:-100])
    with pytest.raises(WeightsError, match=r"a\.safetensors is damaged"):
        morphem.load(tmp_path / "a.safetensors")


def test_classes_that_the_user_lets_through_reach_the_reader(tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.pth")
    content = torch.load(tmp_path / "a.pth")
    torch.save({**content, "extra": Checkpoint}, tmp_path / "b.pth")
    with pytest.raises(WeightsError, match=r"it wants to build morphem\.zoo\.base\.Checkpoint"):
        morphem.load(tmp_path / "b.pth")
    assert morphem.load(tmp_path / "b.pth", inert=["morphem.zoo.base.Checkpoint"]).card["family"] == "tiny"


def test_a_damaged_side_file_is_named(tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.pth")
    (tmp_path / "a.config.json").write_text("{")
    with pytest.raises(WeightsError, match=r"a\.config\.json is damaged"):
        morphem.load(tmp_path / "a.pth")


def test_a_hub_id_that_is_no_record_takes_no_family(tiny_zoo: Path) -> None:
    with pytest.raises(ConfigError, match=r"'some/body' is no record of the zoo.*download its file and give the path"):
        morphem.load("some/body", family="tiny")


def test_loading_leaves_the_global_generator_as_it_was(tiny_zoo: Path, tmp_path: Path) -> None:
    write(tmp_path / "a.pth")
    before = torch.random.get_rng_state()
    morphem.load(tmp_path / "a.pth")
    assert torch.equal(before, torch.random.get_rng_state())
