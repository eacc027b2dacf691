"""The page of a report: one HTML file without scripts and without anything from elsewhere."""

from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files

from morphem.data.schema import UNKNOWN
from morphem.ingest.outcome import REFUSED
from morphem.report.charts import histograms, shorten
from morphem.report.contact import Picture
from morphem.report.facts import StudyFacts, totals
from morphem.report.markup import MAX_NAMED, Raw, bar, count, folded, named, table
from morphem.report.plates import plate_map, robust_limits

_MAPS_IN_ALL = 240
_MAX_KEPT = 12
_JPEG = "data:image/jpeg;base64,"


def page(title: str, version: str, n_bytes: int, facts: Sequence[StudyFacts], missing: Sequence[StudyFacts]) -> str:
    """Write the page.

    Args:
        title: Name of the shard set.
        version: Of the software.
        n_bytes: Size of all shards.
        facts: One entry for each study of the set.
        missing: Studies that were not written, with their failures.

    Returns:
        A whole HTML document.
    """
    style = files("morphem.report").joinpath("style.css").read_text(encoding="utf-8")
    anchors = [f"study-{place}" for place in range(1, len(facts) + len(missing) + 1)]
    refused = list(zip(missing, anchors[len(facts) :], strict=True))
    written = list(zip(facts, anchors, strict=False))
    maps = max(4, _MAPS_IN_ALL // max(1, len(facts)))
    parts = [
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(title)}: ingest report</title><style>{style}</style></head><body>",
        f"<header><h1>{escape(title)}</h1><p class=lead>{_lead(version, n_bytes, facts)}</p></header><main>",
        _warnings(refused, written),
        _overview(written),
        _channel_table(facts),
        *(_study(study, anchor, maps) for study, anchor in written),
        *(_not_written(study, anchor) for study, anchor in refused),
        "</main></body></html>\n",
    ]
    return "".join(parts)


def _lead(version: str, n_bytes: int, facts: Sequence[StudyFacts]) -> str:
    sums = totals(facts)
    counts = [count(len(facts), "study", "studies"), count(sums["images"], "image"), count(sums["planes"], "plane")]
    counts += [count(sums["cells"], "cell")] if sums["cells"] else []
    size = f"{n_bytes / 2**30:,.1f} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:,.1f} MiB"
    return f"Ingest report. {', '.join(counts)}; {size} of shards. Written by morphem {escape(version)}."


def _warnings(refused: Sequence[tuple[StudyFacts, str]], written: Sequence[tuple[StudyFacts, str]]) -> str:
    """What needs a look, first: one line for each study that has something."""
    lines = []
    for study, anchor in [*refused, *written]:
        said = _complaints(study)
        if study.report.state == REFUSED:
            said.insert(0, "<strong>not written</strong>")
        if said:
            lines.append(f'<li><a href="#{anchor}">{escape(study.study)}</a>: {"; ".join(said)}</li>')
    if not lines:
        return "<p class=good>Nothing odd was found: no image was left out, and every name was recognised.</p>"
    return f"<section class=warn><h2>Look at these first</h2><ul>{''.join(lines)}</ul></section>"


def _complaints(study: StudyFacts) -> list[str]:
    """Short HTML phrases: what was odd about a study."""
    report = study.report
    said = []
    if report.failures:
        of = f" of {report.n_found:,}" if report.n_found else ""
        said.append(f"<strong>{len(report.failures):,}{of} images left out</strong>")
    if report.lookalikes:
        said.append(f"{count(len(report.lookalikes), 'plane')} like another channel of the study")
    if report.unrecognised:
        said.append(f"names not recognised: {escape(', '.join(list(report.unrecognised)[:6]))}")
    if report.flat and not any("without signal" in sentence for sentence, _ in study.odd):
        said.append(f"{count(report.flat, 'plane')} without signal")
    return said + [escape(sentence) for sentence, _ in study.odd]


def _overview(written: Sequence[tuple[StudyFacts, str]]) -> str:
    if not written:
        return ""
    names = [Raw(f'<a href="#{anchor}">{escape(study.study)}</a>') for study, anchor in written]
    numbers = [
        (
            study.images,
            study.planes,
            study.cells,
            len(study.report.failures),
            _n_removed(study),
            len([plate for plate in study.plates if plate != UNKNOWN]),
        )
        for study, _ in written
    ]
    rows = [(name, *counts) for name, counts in zip(names, numbers, strict=True)]
    sums = ("all", *(sum(n or 0 for n in column) for column in zip(*numbers, strict=True)))
    head = ("study", "images", "planes", "cells", "left out", "curated away", "plates")
    return f"<h2>Studies</h2>{table(head, rows, sums if len(rows) > 1 else None)}"


def _n_removed(study: StudyFacts) -> int:
    return sum(step["removed"] for step in study.report.curation)


def _channel_table(facts: Sequence[StudyFacts]) -> str:
    """Planes of each channel type over all studies, the commonest first."""
    counts: dict[str, int] = {}
    where: dict[str, list[str]] = {}
    for study in facts:
        for kind, n in study.channel_types.items():
            counts[kind] = counts.get(kind, 0) + n
            where.setdefault(kind, []).append(study.study)
    if not counts:
        return ""
    most = max(counts.values())
    rows = [
        (kind, n, bar(n / most), named(where[kind], 4))
        for kind, n in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]
    return f"<h2>Channel types</h2>{table(('channel type', 'planes', '', 'studies'), rows)}"


def _study(study: StudyFacts, anchor: str, maps: int) -> str:
    cells = f", {count(study.cells, 'cell')}" if study.cells else ""
    parts = [
        f'<section id="{anchor}"><h2>{escape(study.study)}</h2>',
        f"<p class=lead>{count(study.images, 'image')}, {count(study.planes, 'plane')}{cells}.</p>",
        _oddities(study),
        _sheet(study),
        _counts(study),
        _plate_maps(study, maps),
        _histograms(study),
        _curation(study),
        _remarks(study),
        "</section>",
    ]
    return "".join(parts)


def _not_written(study: StudyFacts, anchor: str) -> str:
    return (
        f'<section id="{anchor}"><h2>{escape(study.study)}</h2>'
        "<p>This study is not in the set: too many of its images could not be used.</p>"
        f"{_oddities(study)}{_curation(study)}{_remarks(study)}</section>"
    )


def _oddities(study: StudyFacts) -> str:
    report = study.report
    lists = [(f"{count(len(report.failures), 'image')} left out", [_about(name, why) for name, why in report.failures])]
    lists.append(
        (
            f"{count(len(report.lookalikes), 'plane')} like another channel of the study",
            [_about(image, sentence) for image, _, sentence in report.lookalikes],
        )
    )
    unrecognised = [f"{name}: {count(n, 'plane')}" for name, n in report.unrecognised.most_common()]
    lists += [(f"{count(len(unrecognised), 'name')} not recognised", unrecognised), *study.odd]
    found = "".join(folded(sentence, names) for sentence, names in lists if names)
    return f"<h3>Odd things</h3>{found}" if found else ""


def _about(name: str, sentence: str) -> str:
    return sentence if name in sentence else f"{name}: {sentence}"


def _sheet(study: StudyFacts) -> str:
    sheet = study.sheet
    if not sheet.images:
        return ""
    which = "All images" if len(sheet.images) == sheet.n_images else f"{len(sheet.images)} of {sheet.n_images:,} images"
    colour = "Colours are false, one per channel. " if sheet.legend else "The channel is shown in grey. "
    if sheet.legend and set(study.channel_types) <= {"r", "g", "b"}:
        colour = "Red, green and blue are laid over each other; scaled one by one, they are not the camera's colours. "
    lead = f"{which}, as stored: {study.scaling} {colour}{sheet.scale}"
    legend = "".join(
        f'<li><i style="background:{colour}"></i>{escape(name)}</li>' for name, colour in sheet.legend.items()
    )
    alone = ""
    if sheet.alone:
        extra = f"; {escape(named(sheet.not_mixed, 4))} not mixed into the colours above" if sheet.not_mixed else ""
        lead_alone = f"Each channel of {escape(shorten(sheet.alone[0].name, 60))}{extra}:"
        alone = f"<p class=quiet>{lead_alone}</p><div class=sheet>{''.join(map(_figure, sheet.alone))}</div>"
    shown = "".join(map(_figure, sheet.images))
    listed = f"<ul class=legend>{legend}</ul>" if legend else ""
    return f"<h3>Images</h3><p class=quiet>{escape(lead)}</p>{listed}<div class=sheet>{shown}</div>{alone}"


def _figure(picture: Picture) -> str:
    lines = [escape(shorten(line, 44)) for line in picture.caption.split("\n")]
    name = escape(picture.name, quote=True)
    return (
        f'<figure><img src="{picture.data}" width="{picture.width}" height="{picture.height}" alt="{name}" '
        f'title="{name}"><figcaption>{"<br>".join(lines)}</figcaption></figure>'
    )


def _counts(study: StudyFacts) -> str:
    most = max(study.channels.values())
    parts = [
        "<h3>Counts</h3>",
        table(("channel", "planes", ""), [(k, n, bar(n / most)) for k, n in study.channels.items()]),
    ]
    plates = [(plate, *numbers) for plate, numbers in study.plates.items()]
    if plates:
        shown = table(("plate", "images", "wells", "cells"), plates[:MAX_NAMED])
        more = f"<p class=quiet>and {len(plates) - MAX_NAMED:,} more plates</p>" if len(plates) > MAX_NAMED else ""
        parts.append(
            f"{shown}{more}"
            if len(plates) <= 8
            else f"<details><summary>{len(plates):,} plates</summary>{shown}{more}</details>"
        )
    about = [(name, _values(values)) for name, values in study.about.items()]
    parts.append(table(("metadata", "values (number of images)"), about))
    if study.report.labels:
        parts.append(f"<p>Labels: {escape(', '.join(study.report.labels))}.</p>")
    return "".join(parts)


def _values(values: Mapping[str, int]) -> str:
    if len(values) == 1:
        return next(iter(values))
    return named([f"{value} ({n:,})" for value, n in values.items()], 6)


def _plate_maps(study: StudyFacts, maps: int) -> str:
    """For each measure the plates next to each other in one scale of colours."""
    if not study.wells:
        return ""
    n_plates = max(1, min(4, maps // len(study.wells)))
    plates = list(study.plate_sizes)[:n_plates]
    parts = []
    for measure in study.wells[:maps]:
        values = {plate: measure.plates[plate] for plate in plates if plate in measure.plates}
        if not values:
            continue
        limits = robust_limits(value for wells in values.values() for value in wells.values())
        drawn = "".join(
            f"<figure>{plate_map(shorten(plate, 40), measure.unit, wells, study.plate_sizes[plate], limits)}</figure>"
            for plate, wells in values.items()
        )
        parts.append(f"<h4>{escape(measure.title)}</h4><div class=charts>{drawn}</div>")
    n_hidden = len(study.plate_sizes) - len(plates)
    hidden = f" {count(n_hidden, 'more plate')} not shown." if n_hidden else ""
    lead = (
        "Mean over the images of a well, in one scale for the plates of a measure; the scale ends at the 2nd and 98th "
        f"percentile of the wells. A dot is a well without a value.{hidden}"
    )
    return f"<h3>Plate maps</h3><p class=quiet>{lead}</p>{''.join(parts)}"


def _histograms(study: StudyFacts) -> str:
    drawn = []
    for entry in study.histograms:
        colours = {name: study.sheet.legend[name] for name in entry.rows if name in study.sheet.legend}
        colours = colours if len(colours) == len(entry.rows) else {}
        chart = histograms(entry.title, entry.unit, entry.rows, colours)
        drawn.append(f"<figure><figcaption>{escape(entry.title)}</figcaption>{chart}</figure>")
    notes = "".join(f"<p class=quiet>{escape(note)}</p>" for note in study.notes)
    if not drawn:
        return notes
    lead = "Bars count planes (or images) and fill the height of each row; a mark stands at the median."
    return f"<h3>Distributions</h3><p class=quiet>{lead}</p><div class=charts>{''.join(drawn)}</div>{notes}"


def _curation(study: StudyFacts) -> str:
    report = study.report
    if not report.curation:
        return ""
    start = max(1, int(report.curation[0]["before"]))
    rows = [
        (str(step["step"]), int(step["before"]), int(step["removed"]), int(step["after"]), bar(step["after"] / start))
        for step in report.curation
    ]
    parts = ["<h3>Curation</h3>", table(("step", "before", "removed", "after", "left"), rows)]
    for step, pictures in report.pictures.items():
        if pictures.get("dropped"):  # what a step without effect has kept is seen on the contact sheet
            for word in ("kept", "dropped"):
                parts.append(_row_of_pictures(f"Some of the images that {step} {word}:", pictures.get(word, ())))
    parts += [
        folded(f"{step}: {count(len(names), 'image')} removed", names)
        for step, names in report.curated_away.items()
        if names
    ]
    return "".join(parts)


def _row_of_pictures(caption: str, pictures: Sequence[str]) -> str:
    shown = [picture for picture in pictures if picture.startswith(_JPEG)][:_MAX_KEPT]
    if not shown:
        return ""
    images = "".join(
        f'<figure><img src="{escape(data, quote=True)}" alt="{escape(caption)}"></figure>' for data in shown
    )
    return f"<p class=quiet>{escape(caption)}</p><div class=sheet>{images}</div>"


def _remarks(study: StudyFacts) -> str:
    report = study.report
    lines = [f"{remark}: {count(n, 'image')}" for remark, n in report.remarks.most_common()]
    unknown = [
        column if n >= report.planes else f"{column} ({count(n, 'plane')})" for column, n in report.unknown.items()
    ]
    lines += [f"Unknown: {', '.join(unknown)}"] if unknown else []
    if not lines:
        return ""
    return f"<div class=plain><h3>Remarks</h3><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul></div>"
