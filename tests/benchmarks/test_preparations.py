"""What tables say about their making, against what a protocol asks for; no torch is needed."""

from dataclasses import replace
from typing import Any

import pytest

from morphem.benchmarks.base import Benchmark, FeatureRecipe, Part
from morphem.benchmarks.preparations import PREPARATIONS, feature_differences
from morphem.benchmarks.rbc_mc import RbcMc
from morphem.features import FeatureTable

OWN = {"name": "SelfNormalize", "init_args": {"saturation_noise": True}}
QUIET = {"name": "SelfNormalize", "init_args": {}}
CHAIN = {"name": "Chain", "init_args": {"steps": [], "input_domain": "uint8"}}
SPECS: dict[str, dict[str, Any]] = {
    "without_noise": {"normalizer": QUIET, "input_size_px": 224},
    "square_resized_first": {"normalizer": CHAIN, "after_resize": QUIET, "fit": "crop_and_stretch"},
    "resized_only": {"normalizer": CHAIN, "after_resize": {"name": "Divide", "init_args": {}}},
    "grey_levels": {"normalizer": {"name": "morphem.protocol_pixels.NoiseInOneChannel", "init_args": {}}},
    "unresized": {"normalizer": {"name": "Chain", "init_args": {"steps": [{"name": "PadToPatches"}]}}},
}


def _protocol(recipe: FeatureRecipe) -> Benchmark:
    class Protocol(RbcMc):
        def parts_in_use(self) -> tuple[Part, ...]:
            return tuple(replace(part, recipe=recipe) for part in self.parts)

    return Protocol()


def _table(settings: dict[str, Any] | None = None, spec: dict[str, Any] | None = None) -> FeatureTable:
    provenance: dict[str, Any] = {}
    if settings is not None:
        provenance["settings"] = settings
    if spec is not None:
        provenance["encoder"] = {"name": "Encoder", "init_args": spec}
    return replace(RbcMc.tiny(0, 1.0).table, provenance=provenance)


@pytest.mark.parametrize("name", SPECS)
def test_the_spec_of_an_encoder_tells_whether_pixels_were_prepared(name: str) -> None:
    benchmark = _protocol(FeatureRecipe(prepare=name))
    assert feature_differences(benchmark, {"table": _table(spec=SPECS[name])}) == ()
    (said,) = feature_differences(benchmark, {"table": _table(spec={"normalizer": OWN, "input_size_px": 224})})
    assert f"not as the protocol ({name}: {PREPARATIONS[name]})" in said


def test_what_was_cut_otherwise_is_named() -> None:
    benchmark = _protocol(FeatureRecipe(unit="cell", crop_size_px=100))
    settings = {"unit": "cell", "tile_size_px": None, "crop_size_px": 96, "mask": "zero"}
    assert feature_differences(benchmark, {"table": _table(settings)}) == (
        "features have crop_size_px=96 instead of the protocol's 100",
        "features have mask='zero' instead of the protocol's 'none'",
    )


def test_a_size_that_the_protocol_leaves_open_is_no_difference() -> None:
    settings = {"unit": "tile", "tile_size_px": 224, "crop_size_px": None, "mask": "none"}
    assert feature_differences(_protocol(FeatureRecipe(unit="tile")), {"table": _table(settings)}) == ()


def test_tables_of_others_say_nothing() -> None:
    assert feature_differences(RbcMc(), {"table": _table()}) == ()
