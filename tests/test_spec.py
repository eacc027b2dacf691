"""Specs: objects remember how they were built and are built again from plain data, and from nothing else."""

import copy
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from morphem import registry
from morphem.errors import PluginError, WeightsError
from morphem.spec import Configurable, from_spec, to_spec

LAB = """
from abc import ABC, abstractmethod
from dataclasses import dataclass
from morphem.spec import Configurable

@dataclass(frozen=True)
class Crop:
    size_px: int
    area: tuple[float, float] = (0.5, 1.0)

class Part(Configurable):
    def __init__(self, width: int = 3, crops=(), parts=(), named=None, extra: str = "x"):
        self.width, self.crops, self.parts, self.named = width, crops, parts, named

class Child(Part):
    def __init__(self, depth: int, **kwargs):
        super().__init__(**kwargs)
        self.depth = depth

class Silent(Part):
    pass

class Loose(Configurable):
    def __init__(self, *parts):
        self.parts = parts

class Abstract(Configurable, ABC):
    @abstractmethod
    def run(self): ...

class Plain:
    pass

def function():
    raise RuntimeError("built")
"""
POINTS = """[morphem.backbones]
part = lab_spec:Part
plain = lab_spec:Plain
function = lab_spec:function
abstract = lab_spec:Abstract
"""


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """The module of an installed third-party package."""
    info = tmp_path / "lab_spec-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: lab-spec\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(POINTS)
    (tmp_path / "lab_spec.py").write_text(LAB)
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.refresh()
    import lab_spec

    yield lab_spec
    monkeypatch.undo()
    sys.modules.pop("lab_spec", None)
    registry.refresh()


def through_json(spec):
    return json.loads(json.dumps(spec))


def test_defaults_are_part_of_the_spec(lab):
    assert to_spec(lab.Part()) == {
        "name": "part",
        "init_args": {"width": 3, "crops": [], "parts": [], "named": None, "extra": "x"},
    }


def test_arguments_are_recorded_whether_named_or_not(lab):
    assert to_spec(lab.Part(5)) == to_spec(lab.Part(width=5))


def test_a_registered_class_is_named_shortly_and_another_by_its_path(lab):
    assert to_spec(lab.Part())["name"] == "part"
    assert to_spec(lab.Child(depth=1))["name"] == "lab_spec.Child"


def test_a_subclass_records_its_own_arguments_and_those_behind_its_kwargs(lab):
    spec = to_spec(lab.Child(depth=2, width=7))
    assert spec["init_args"] == {"depth": 2, "width": 7}
    child = from_spec(through_json(spec))
    assert (type(child), child.depth, child.width) == (lab.Child, 2, 7)


def test_a_subclass_without_its_own_init_is_recorded(lab):
    assert from_spec(to_spec(lab.Silent(width=9))).width == 9


def test_parts_come_back_wherever_they_stand(lab):
    whole = lab.Part(parts=[lab.Part(1), lab.Part(2)], named={"left": lab.Part(4)})
    again = from_spec(through_json(to_spec(whole)))
    assert [part.width for part in again.parts] == [1, 2]
    assert again.named["left"].width == 4


def test_a_spec_built_again_gives_the_same_spec(lab):
    spec = through_json(to_spec(lab.Part(2, crops=[lab.Crop(8)], parts=[lab.Child(1, width=2)])))
    assert to_spec(from_spec(spec)) == spec


def test_dataclasses_come_back_as_themselves_and_equal(lab):
    crops = [lab.Crop(8), lab.Crop(4, area=(0.1, 0.2))]
    again = from_spec(through_json(to_spec(lab.Part(crops=crops)))).crops
    assert again == crops
    assert isinstance(again[0].area, tuple)


def test_a_mapping_that_merely_looks_like_a_spec_stays_a_mapping(lab):
    named = {"name": "part", "init_args": {}, "more": 1}
    assert from_spec(to_spec(lab.Part(named=named))).named == named


def test_numpy_numbers_become_plain_ones_so_that_checkpoints_stay_loadable(lab, tmp_path: Path):
    spec = to_spec(lab.Part(width=np.int64(3), named={"a": np.float32(0.5), "b": np.float64(2.0), "c": np.str_("s")}))
    assert type(spec["init_args"]["width"]) is int
    assert [type(value) for value in spec["init_args"]["named"].values()] == [float, float, str]
    torch.save(spec, tmp_path / "spec.pt")
    assert torch.load(tmp_path / "spec.pt", weights_only=True) == spec


def test_a_list_changed_after_the_call_does_not_change_the_spec(lab):
    crops = [1]
    part = lab.Part(crops=crops)
    crops.append(2)
    assert to_spec(part)["init_args"]["crops"] == [1]


def test_a_part_that_is_a_module_registers_no_weights_twice():
    class Wrapper(nn.Module, Configurable):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

    wrapper = Wrapper(nn.Linear(2, 2))
    assert list(wrapper.state_dict()) == ["inner.weight", "inner.bias"]
    twin = copy.deepcopy(wrapper)
    assert twin._init_args["inner"] is twin.inner


def test_an_argument_that_is_no_plain_data_is_refused_by_name(lab):
    with pytest.raises(WeightsError, match=r"part\.named\.net is a Linear, which cannot be saved"):
        to_spec(lab.Part(named={"net": nn.Linear(1, 1)}))


def test_arguments_without_names_are_refused_when_saved(lab):
    part = lab.Loose(1, 2)
    with pytest.raises(WeightsError, match=r"lab_spec\.Loose was built with '\*parts'"):
        to_spec(part)


def test_a_wrong_call_fails_as_any_python_call_does(lab):
    with pytest.raises(TypeError, match="depth"):
        lab.Child()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (None, "not a spec"),
        ([], "not a spec"),
        ({"init_args": {}}, "not a spec"),
        ({"name": 3, "init_args": {}}, "not a spec"),
        ({"name": "part", "init_args": [1]}, "'init_args' of 'part' are not a mapping"),
        ({"name": "part", "init_args": {"hight": 1}}, "'part' does not take these arguments: .*'hight'"),
        ({"name": "lab_spec.Child", "init_args": {}}, "missing a required argument: 'depth'"),
        ({"name": "nobody", "init_args": {}}, "'nobody' is not a registered plug-in; install"),
        ({"name": "lab_spec.Missing", "init_args": {}}, "'lab_spec.Missing' does not exist in the installed lab_spec"),
        ({"name": "morphem.nowhere.Thing", "init_args": {}}, "'morphem.nowhere.Thing' does not exist in the installed"),
        ({"name": "abstract", "init_args": {}}, "'abstract' is abstract"),
        ({"name": "plain", "init_args": {}}, "'plain' is no part that a spec may build"),
        ({"name": "function", "init_args": {}}, "'function' is no part that a spec may build"),
    ],
)
def test_a_bad_spec_is_refused(lab, spec, message):
    with pytest.raises(WeightsError, match=message):
        from_spec(spec)


@pytest.mark.parametrize(
    "name",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "torch.nn.Linear",
        "lab_spec.function",
        "morphem.registry.get",
        "x",
    ],
)
def test_a_spec_runs_nothing_that_is_no_part(lab, name: str):
    with pytest.raises(WeightsError):
        from_spec({"name": name, "init_args": {}})


def test_a_spec_imports_no_module_of_a_package_without_plugins(lab, tmp_path: Path):
    (tmp_path / "stranger.py").write_text("raise SystemExit('ran')")
    with pytest.raises(WeightsError, match=r"'stranger\.Thing' is not a registered plug-in"):
        from_spec({"name": "stranger.Thing", "init_args": {}})


def test_a_name_that_two_packages_claim_is_refused_naming_both(lab, tmp_path: Path):
    info = tmp_path / "other_lab-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-lab\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[morphem.backbones]\npart = other:Part\n")
    registry.refresh()
    with pytest.raises(PluginError, match=r"lab-spec 1\.0 .* and other-lab 3\.0"):
        from_spec({"name": "part", "init_args": {}})


def test_a_name_known_in_two_groups_is_saved_as_a_path_and_refused_as_a_name(lab, tmp_path: Path):
    with (tmp_path / "lab_spec-1.0.dist-info" / "entry_points.txt").open("a") as file:
        file.write("[morphem.channels]\npart = lab_spec:Child\n")
    registry.refresh()
    spec = to_spec(lab.Part(width=6))
    assert spec["name"] == "lab_spec.Part"
    assert type(from_spec(spec)) is lab.Part
    with pytest.raises(WeightsError, match="'part' is registered in the groups channels and backbones"):
        from_spec({"name": "part", "init_args": {}})


@dataclass(frozen=True)
class Local:
    """A dataclass of no installed package."""

    size: int = 1


def test_parts_of_no_installed_package_can_be_saved_but_say_why_they_cannot_be_loaded(lab):
    spec = to_spec(lab.Part(named={"local": Local()}))
    with pytest.raises(WeightsError, match=r"test_spec\.Local' is not a registered plug-in"):
        from_spec(spec)
