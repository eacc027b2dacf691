"""Does a checkpoint, loaded by morphem, give what its golden record says? In every case, in every output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from morphem.encoder import Encoder, evaluating
from morphem.errors import WeightsError
from morphem.zoo import catalogue
from morphem.zoo.base import Checkpoint, Pretrained
from morphem.zoo.golden import Golden, read_golden
from morphem.zoo.own_record import OwnExport

NO_REASON = "the family does not compute it and gives no reason"


@dataclass(frozen=True)
class Comparison:
    """One output of one case.

    Attributes:
        file: The checkpoint's file.
        case: Name of the case.
        output: Name of the output.
        double: Whether in double precision.
        difference: Largest absolute difference; NaN where there is none to tell.
        tolerance: What it may be.
        fault: Why there is no difference to tell: another shape, or an error; empty otherwise.
    """

    file: str
    case: str
    output: str
    double: bool
    difference: float
    tolerance: float
    fault: str = ""

    @property
    def ok(self) -> bool:
        """Whether the output is right."""
        return not self.fault and self.difference <= self.tolerance  # false for NaN


@dataclass(frozen=True)
class Omission:
    """An output that was not compared.

    Attributes:
        case: Name of the case.
        output: Name of the output.
        reason: Why.
    """

    case: str
    output: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What the verification of a golden record found.

    Attributes:
        name: Of the record.
        family: Short name of the family that read it.
        files: Checkpoints that were loaded.
        beside: Files of weights that the record names and that are no checkpoint of the family (heads).
        comparisons: All of them.
        omissions: All of them.
    """

    name: str
    family: str
    files: tuple[str, ...]
    beside: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    omissions: tuple[Omission, ...]

    @property
    def ok(self) -> bool:
        """Whether something was compared, and all of it is right."""
        return bool(self.comparisons) and all(comparison.ok for comparison in self.comparisons)

    @property
    def worst(self) -> Comparison | None:
        """The comparison that is worst for its tolerance."""
        return max(self.comparisons, key=severity, default=None)


def severity(comparison: Comparison) -> float:
    """Return a difference in tolerances; infinite where there is none to tell.

    Args:
        comparison: Any.
    """
    if comparison.fault or comparison.difference != comparison.difference:
        return float("inf")
    return comparison.difference / comparison.tolerance


def verify(path: str | Path) -> Report:
    """Compare a checkpoint with its golden record.

    Args:
        path: `NAME.json`, or a folder that `morphem models export` wrote.

    Raises:
        WeightsError: If the record cannot be read, is of no family, or its checkpoint does not load.
    """
    golden = read_golden(Path(path))
    if OwnExport.is_own(golden.record):
        own = OwnExport(golden.path.parent)
        comparisons, computed = _compare(golden, own.file, own.load, lambda encoder: own.replay_with(encoder))
        return Report(golden.name, "morphem", (own.file,), (), tuple(comparisons), _omitted(golden, computed, {}))
    name, family = family_of(golden)
    return _verify_family(golden, name, family)


def family_of(golden: Golden) -> tuple[str, Pretrained]:
    """Return the family that reads a golden record, with its facts.

    Args:
        golden: The record.

    Raises:
        WeightsError: If none does, or several do.
    """
    found = {name: cls.from_golden(golden.record) for name, cls in catalogue.families().items()}
    known = {name: family for name, family in found.items() if family is not None} or _by_checkpoint(golden)
    if len(known) != 1:
        who = f"is claimed by {' and '.join(sorted(known))}" if known else "is of no family that morphem knows"
        raise WeightsError(
            f"the golden record {golden.path} (fixture '{golden.name}', peer '{golden.record.get('peer')}') {who}."
        )
    return next(iter(known.items()))


def _by_checkpoint(golden: Golden) -> dict[str, Pretrained]:
    """Return the family that recognises the record's checkpoint, told the facts under the name that it goes by."""
    try:
        name, cls = catalogue.recognise(Checkpoint.read(golden.checkpoints()[0]))
    except WeightsError:
        return {}
    family = cls.from_golden({**golden.record, "fixture": cls.fixture}) if cls.fixture else None
    return {} if family is None else {name: family}


def _verify_family(golden: Golden, name: str, family: Pretrained) -> Report:
    files, beside, comparisons, computed = [], [], [], set()
    for path in golden.checkpoints():
        checkpoint = Checkpoint.read(path)
        if not family.recognises(checkpoint):
            beside.append(path.name)
            continue
        files.append(path.name)

        def load(checkpoint: Checkpoint = checkpoint) -> Encoder:
            return family.convert(checkpoint)

        def replay(encoder: Encoder, checkpoint: Checkpoint = checkpoint) -> Any:
            return lambda case, inputs: family.replay(encoder, checkpoint, golden.record, case, inputs)

        found, outputs = _compare(golden, path.name, load, replay)
        comparisons += found
        computed |= outputs
    if not files:
        raise WeightsError(f"the family '{name}' recognises none of the files of {golden.path}: {', '.join(beside)}.")
    omissions = _omitted(golden, computed, family.not_compared)
    return Report(golden.name, name, tuple(files), tuple(beside), tuple(comparisons), omissions)


def _compare(golden: Golden, file: str, load: Any, replay: Any) -> tuple[list[Comparison], set[tuple[str, str]]]:
    """Run all cases on one checkpoint; gives the comparisons, and which outputs were computed."""
    comparisons: list[Comparison] = []
    computed: set[tuple[str, str]] = set()
    for double in (False, True):
        cases = [case for case in golden.cases if not double or golden.has_double(case)]
        if not cases:
            continue
        encoder = load()
        run = replay(encoder.double() if double else encoder)
        for case in cases:
            expected = dict(golden.outputs(case, double))
            try:
                with evaluating(encoder):
                    outputs: Mapping[str, Tensor] = run(case, golden.inputs(case))
            except Exception as fault:  # a case that fails is reported as wrong, and the others are still tried
                wrong = f"{type(fault).__name__}: {fault}"
                comparisons += [_faulty(golden, file, case, name, double, wrong) for name in expected]
                computed |= {(case, name) for name in expected}
                continue
            for name, tensor in expected.items():
                if name in outputs:
                    computed.add((case, name))
                    comparisons.append(_compared(golden, file, case, name, double, outputs[name], tensor))
    return comparisons, computed


def _faulty(golden: Golden, file: str, case: str, output: str, double: bool, fault: str) -> Comparison:
    return Comparison(
        file, case, output, double, float("nan"), golden.tolerance(case, output, double), " ".join(fault.split())
    )


def _compared(
    golden: Golden, file: str, case: str, output: str, double: bool, found: Tensor, expected: Tensor
) -> Comparison:
    found = torch.as_tensor(found)
    if found.shape != expected.shape:
        fault = f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}"
        return _faulty(golden, file, case, output, double, fault)
    if not expected.numel():
        return _faulty(golden, file, case, output, double, "the record holds no number")
    gone = expected.isnan()  # a record marks what the authors left out (an empty tile) with NaN
    if not torch.equal(found.isnan(), gone):
        fault = f"NaN in {int(found.isnan().sum())} places, expected in {int(gone.sum())}"
        return _faulty(golden, file, case, output, double, fault)
    apart = (found.double() - expected.double()).abs()[~gone]
    difference = apart.max().item() if apart.numel() else 0.0
    return Comparison(file, case, output, double, difference, golden.tolerance(case, output, double))


def _omitted(golden: Golden, computed: set[tuple[str, str]], reasons: Mapping[str, str]) -> tuple[Omission, ...]:
    """Return what no checkpoint gave, with the reasons of the family."""
    omissions = []
    for case in golden.cases:
        for output, _ in golden.outputs(case):
            if (case, output) not in computed:
                keys = (f"{golden.name}.{case}.{output}", f"{golden.name}.{case}", f"{case}.{output}", case, output)
                reason = next((reasons[key] for key in keys if key in reasons), NO_REASON)
                omissions.append(Omission(case, output, reason))
    return tuple(omissions)


def lines(report: Report, golden_path: str | Path) -> list[str]:
    """Return a report as text, a line per output.

    Args:
        report: What was found.
        golden_path: What the user gave.
    """
    files = ", ".join(report.files) + (f" (beside: {', '.join(report.beside)})" if report.beside else "")
    rows = [_row(comparison, len(report.files) > 1) for comparison in report.comparisons]
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
    text = [f"{golden_path}: family {report.family}, {files}"]
    text += ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)) for row in rows]
    text += [f"  not compared: {left.case}.{left.output}: {left.reason}" for left in report.omissions]
    return [*text, _verdict(report)]


def _row(comparison: Comparison, with_file: bool) -> tuple[str, ...]:
    name = f"{comparison.output} (float64)" if comparison.double else comparison.output
    number = comparison.fault or f"{comparison.difference:.1e}"
    file = f"{comparison.file}: " if with_file else ""
    verdict = "ok" if comparison.ok else "WRONG"
    return (f"{file}{comparison.case}", name, number, f"of {comparison.tolerance:.0e}", verdict)


def _verdict(report: Report) -> str:
    wrong = sum(not comparison.ok for comparison in report.comparisons)
    left = f", {len(report.omissions)} not compared" if report.omissions else ""
    if not report.comparisons:
        return f"{report.name}: NOT VERIFIED: nothing was compared{left}"
    worst = report.worst
    assert worst is not None
    what = f"largest difference {largest(report.comparisons):.1e}"
    if wrong:
        return f"{report.name}: WRONG in {wrong} of {len(report.comparisons)} outputs{left}; {what}"
    share = f"at most {severity(worst):.2g} of the tolerance ({worst.case}.{worst.output})"
    return f"{report.name}: ok, {len(report.comparisons)} outputs compared{left}; {what}, {share}"


def largest(comparisons: Sequence[Comparison]) -> float:
    """Return the largest difference of some comparisons, NaN where no output has one.

    Args:
        comparisons: Any.
    """
    return max((c.difference for c in comparisons if c.difference == c.difference), default=float("nan"))
