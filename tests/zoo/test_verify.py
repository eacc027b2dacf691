"""`verify` finds every kind of difference, says what it did not compare, and reads the tolerances of records."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from morphem.cli import main
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.zoo import catalogue, verify
from morphem.zoo.base import Checkpoint
from morphem.zoo.export import export
from morphem.zoo.golden import Golden, read_golden
from tests.zoo.tiny_family import Tiny, write


@pytest.fixture
def record(tiny_zoo: Path, tmp_path: Path) -> Path:
    """A golden record of the small family, with one case."""
    write(tmp_path / "tiny.pth")
    images = torch.randint(0, 256, (2, 2, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoder = Tiny().convert(Checkpoint.read(tmp_path / "tiny.pth"))
    features = torch.from_numpy(encoder.embed(images, ["nucleus", "actin"]).values)
    save_file({"a.images": images, "a.features": features}, tmp_path / "tiny.golden.safetensors")
    content = {
        "fixture": "tiny",
        "peer": "tiny",
        "container": {"file": "tiny.pth"},
        "cases": {
            "a": {
                "inputs": {"images": "a.images", "channels": ["nucleus", "actin"]},
                "outputs": {"features": "a.features"},
            }
        },
    }
    (tmp_path / "tiny.json").write_text(json.dumps(content))
    return tmp_path / "tiny.json"


def change(record: Path, **changes: Any) -> None:
    record.write_text(json.dumps({**json.loads(record.read_text()), **changes}))


def with_features(record: Path, features: torch.Tensor) -> None:
    file = record.with_name("tiny.golden.safetensors")
    save_file({**load_file(file), "a.features": features}, file)


def features(record: Path) -> torch.Tensor:
    return load_file(record.with_name("tiny.golden.safetensors"))["a.features"]


def test_the_right_features_are_right(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "verify", str(record)]) == 0
    assert "tiny: ok, 1 outputs compared; largest difference 0.0e+00" in capsys.readouterr().out


def test_a_difference_past_the_tolerance_is_shown_and_fails(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_features(record, features(record) + 1e-3)
    assert main(["models", "verify", str(record)]) == 1
    shown = capsys.readouterr()
    assert "a  features  1.0e-03  of 5e-05  WRONG" in shown.out
    assert "tiny: WRONG in 1 of 1 outputs; largest difference 1.0e-03" in shown.out
    assert f"not as recorded: {record}" in shown.err


@pytest.mark.parametrize("where", ["case", "precision"])
def test_the_tolerance_of_the_record_counts(record: Path, where: str) -> None:
    with_features(record, features(record) + 1e-3)
    wide = {"features": {"suggested_absolute_tolerance_float32": 2e-3}}
    if where == "case":
        cases = json.loads(record.read_text())["cases"]
        change(record, cases={"a": {**cases["a"], "precision": wide}})
    else:
        change(record, precision={"per_case": {"a": wide}, "largest_suggested_tolerance_float32": 1.0})
    assert verify.verify(record).ok


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ({"tolerance": 1e-3}, 1e-3),
        ({"tolerance": {"features": 2e-3}}, 2e-3),
        ({"features": {"tolerance": 3e-3}}, 5e-5),
        ({"suggested_absolute_tolerance_float32": 4e-3}, 4e-3),
        ({}, 5e-5),
    ],
)
def test_tolerances_are_found_in_the_case(case: dict, expected: float) -> None:
    golden = Golden(Path("x.json"), {"cases": {"a": case}}, {})
    assert golden.tolerance("a", "features") == expected
    assert golden.tolerance("a", "features", double=True) == 1e-6


def test_double_precision_is_compared_where_the_record_has_it(record: Path) -> None:
    file = record.with_name("tiny.golden.safetensors")
    save_file({**load_file(file), "a.features_f64": features(record).double() + 1e-5}, file)
    single, double = verify.verify(record).comparisons
    assert single.ok
    assert double.double
    assert not double.ok


def test_another_shape_is_wrong(record: Path) -> None:
    with_features(record, features(record)[:, :-1].contiguous())
    (comparison,) = verify.verify(record).comparisons
    assert "shape (2, 32), expected (2, 31)" in comparison.fault
    assert not comparison.ok


@pytest.mark.parametrize("which", ["found", "expected", "both"])
def test_nan_is_right_only_where_the_record_has_it(record: Path, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    spoiled = features(record).clone()
    spoiled[0, 3] = float("nan")
    if which != "found":
        with_features(record, spoiled)
    if which != "expected":
        monkeypatch.setattr(Tiny, "replay", lambda *args: {"features": spoiled})
    assert verify.verify(record).ok is (which == "both")


def test_a_case_that_fails_is_wrong_and_the_others_are_tried(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = json.loads(record.read_text())["cases"]
    bad = {**cases["a"], "inputs": {**cases["a"]["inputs"], "channels": ["nucleus", "nonsense"]}}
    change(record, cases={"bad": bad, **cases})
    assert main(["models", "verify", str(record)]) == 1
    out = capsys.readouterr().out
    assert "ChannelError" in out
    assert "nonsense" in out
    assert "WRONG in 1 of 2 outputs" in out


def test_what_is_not_compared_is_named_with_the_reason_of_the_family(
    record: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = json.loads(record.read_text())["cases"]
    cases["a"]["outputs"] |= {"logits": "a.features", "tokens": "a.features"}
    change(record, cases=cases)
    monkeypatch.setattr(Tiny, "not_compared", {"a.logits": "the head is no part of the encoder"})
    assert main(["models", "verify", str(record)]) == 0
    out = capsys.readouterr().out
    assert "not compared: a.logits: the head is no part of the encoder" in out
    assert f"not compared: a.tokens: {verify.NO_REASON}" in out
    assert "1 outputs compared, 2 not compared" in out


def test_a_record_of_which_nothing_was_compared_is_not_verified(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tiny, "replay", lambda *args: {})
    assert main(["models", "verify", str(record)]) == 1


def test_a_record_of_no_family_is_refused(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change(record, peer="somebody")
    with pytest.raises(WeightsError, match=r"\(fixture 'tiny', peer 'somebody'\) is of no family"):
        verify.verify(record)
    assert main(["models", "verify", str(record)]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().err


def test_a_record_that_two_families_claim_is_refused(record: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "families", lambda: {"tiny": Tiny, "twin": Tiny})
    with pytest.raises(WeightsError, match="is claimed by tiny and twin"):
        verify.verify(record)


def test_files_that_are_no_checkpoint_of_the_family_are_named_as_beside(record: Path) -> None:
    torch.save({"head": torch.zeros(1)}, record.with_name("head.pth"))
    change(record, container={"files": {"tiny.pth": "the encoder", "head.pth": "a head"}})
    report = verify.verify(record)
    assert report.ok
    assert (report.files, report.beside) == (("tiny.pth",), ("head.pth",))


@pytest.mark.parametrize(
    ("break_it", "sentence"),
    [
        (lambda record: record.unlink(), "does not exist"),
        (lambda record: record.write_text("{"), "is not a golden record"),
        (lambda record: record.write_text("{}"), "it has no cases"),
        (lambda record: record.with_name("tiny.golden.safetensors").unlink(), r"needs tiny\..*safetensors beside it"),
        (lambda record: record.with_name("tiny.pth").unlink(), r"names the checkpoint .*tiny\.pth, which is not there"),
        (lambda record: change(record, container={}), "names no checkpoint"),
    ],
)
def test_a_damaged_record_is_refused_with_what_is_wrong(record: Path, break_it: Any, sentence: str) -> None:
    break_it(record)
    with pytest.raises(WeightsError, match=sentence):
        verify.verify(record)


def test_a_record_may_name_its_checkpoint_among_its_files_alone(record: Path) -> None:
    change(record, container={}, files=["tiny.golden.safetensors", "tiny.json", "tiny.pth"])
    assert verify.verify(record).files == ("tiny.pth",)


def test_an_output_that_the_tensors_lack_is_named(record: Path) -> None:
    cases = json.loads(record.read_text())["cases"]
    cases["a"]["outputs"]["more"] = "a.more"
    change(record, cases=cases)
    with pytest.raises(WeightsError, match=r"names the output 'a\.more', which its tensors lack"):
        verify.verify(record)


def test_several_records_are_verified_in_one_call(record: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(record, record.with_name("gone.json"))
    assert main(["models", "verify", "--quiet", str(record), str(record.with_name("gone.json"))]) == 1
    shown = capsys.readouterr()
    assert "1 of 2 records verified" in shown.out
    assert "gone.json: NOT VERIFIED" in shown.err


def test_weights_that_changed_after_the_export_are_found(tmp_path: Path) -> None:
    folder = export(Encoder.tiny().eval(), tmp_path / "mine").folder
    assert verify.verify(folder).ok
    assert verify.verify(folder / "golden.json").ok
    torch.manual_seed(1)
    Encoder.tiny().save_pretrained(folder)  # other weights under the same record
    report = verify.verify(folder)
    assert not report.ok
    assert not any(comparison.ok for comparison in report.comparisons)


def test_a_record_reads_its_inputs_as_tensors_and_as_values(record: Path) -> None:
    inputs = read_golden(record).inputs("a")
    assert inputs["images"].shape == (2, 2, 20, 20)
    assert inputs["channels"] == ["nucleus", "actin"]
