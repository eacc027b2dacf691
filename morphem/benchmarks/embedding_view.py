"""Two-dimensional views of feature tables: UMAP where it is installed, principal components otherwise, and a picture.

A view is for looking at: distances between far groups mean little in it, and it is never a score.

Source: McInnes et al. 2018, arXiv:1802.03426 (UMAP); settings of Kim et al.: 200 components, correlation, 50
neighbours, minimal distance 0.7.
"""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.bootstrap import generator
from morphem.errors import ConfigError, DataError

Method = Literal["auto", "umap", "pca"]
METHODS = ("auto", "umap", "pca")
Doubles = NDArray[np.float64]
_COLORS = (
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#bcbd22", "#17becf",
    "#393b79", "#e7ba52", "#637939", "#843c39", "#7b4173", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5",
)  # fmt: skip


@dataclass(frozen=True)
class View:
    """Positions of rows in two dimensions.

    Attributes:
        xy: (R, 2).
        method: `umap` or `pca`.
        note: How it was made; says so where UMAP was not installed.
    """

    xy: Doubles
    method: str
    note: str


def principal_components(values: NDArray[np.floating[Any]], count: int) -> Doubles:
    """Return the first components of centred rows, (R, count); each has its largest loading positive.

    Args:
        values: (R, F).
        count: At most R and F.
    """
    centred = np.asarray(values, np.float64) - values.mean(0, dtype=np.float64)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    kept = directions[:count]
    signs = np.sign(kept[np.arange(len(kept)), np.abs(kept).argmax(1)])
    return np.asarray(centred @ (kept * signs[:, None]).T, np.float64)


def embedding_view(
    values: NDArray[np.floating[Any]],
    method: Method = "auto",
    *,
    seed: int = 0,
    n_components: int = 200,
    n_neighbors: int = 50,
    min_dist: float = 0.7,
    metric: str = "correlation",
) -> View:
    """Place rows in two dimensions.

    Args:
        values: (R, F), finite, R at least 3.
        method: `umap` needs the extra; `pca` never does; `auto` takes UMAP where it is installed; the note says which.
        seed: Of UMAP, which then runs on one core.
        n_components: Principal components that UMAP is given; fewer where the table has fewer.
        n_neighbors: Of UMAP; fewer where the table has fewer rows.
        min_dist: Of UMAP, 0 to 1.
        metric: Of UMAP.

    Raises:
        ConfigError: If the method is unknown, or UMAP is asked for and not installed.
        DataError: If there are fewer than three rows, or two features.
    """
    if method not in METHODS:
        raise ConfigError(f"view='{method}' is one of {', '.join(METHODS)}.")
    if len(values) < 3 or values.shape[1] < 2:
        raise DataError(f"a view needs three rows and two features, not {len(values)} and {values.shape[1]}.")
    installed = importlib.util.find_spec("umap") is not None
    if method == "umap" and not installed:
        raise ConfigError("view='umap' needs umap-learn; install 'morphem[umap]', or take view=pca.")
    if method == "pca" or not installed:
        reason = "" if method == "pca" else "; UMAP is not installed ('morphem[umap]')"
        return View(principal_components(values, 2), "pca", f"first two principal components{reason}")
    count = min(n_components, *values.shape)
    few = min(n_neighbors, len(values) - 1)
    return View(
        _umap(principal_components(values, count), few, min_dist, metric if count > 2 else "euclidean", seed),
        "umap",
        f"UMAP of {count} principal components, {metric if count > 2 else 'euclidean'}, {few} neighbours, minimal "
        f"distance {min_dist:g}, seed {seed}",
    )


def _umap(values: Doubles, n_neighbors: int, min_dist: float, metric: str, seed: int) -> Doubles:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # UMAP warns that a seed costs it its threads
        import umap

        reducer = umap.UMAP(
            n_neighbors=n_neighbors, min_dist=min_dist, metric=metric, random_state=seed & 0x7FFFFFFF, n_jobs=1
        )
        return np.asarray(reducer.fit_transform(values), np.float64)


def write_view(view: View, labels: Sequence[str], path: str | Path, title: str = "", width_px: int = 1000) -> None:
    """Draw a view as PNG: a mark per row, by label, with a legend, and how it was made below.

    Marks are drawn in a random order, so that no label hides another because it comes last.

    Args:
        view: Of R rows.
        labels: R.
        path: Ends in `.png`.
        title: Above the picture.
        width_px: Of the picture, at least 400.

    Raises:
        ConfigError: If the ending is another.
    """
    from PIL import Image, ImageDraw, ImageFont

    path = Path(path)
    if path.suffix.lower() != ".png":
        raise ConfigError(f"the picture '{path}' has to end in .png.")
    if not path.parent.is_dir():
        raise ConfigError(f"the folder of the picture '{path}' does not exist; make it first.")
    scale = 2  # drawn at twice the size, so that dots are round
    size, legend, head = width_px * scale, 320 * scale, 60 * scale
    font = ImageFont.load_default(16 * scale)
    picture = Image.new("RGB", (size + legend, size + 2 * head), "white")
    draw = ImageDraw.Draw(picture)
    names = sorted(set(labels))
    number = {name: i for i, name in enumerate(names)}
    low, high = view.xy.min(0), view.xy.max(0)
    place = (view.xy - low) / np.maximum(high - low, 1e-12) * (size - 80 * scale) + 40 * scale
    radius = scale * float(np.clip(120 / np.sqrt(len(labels)), 2, 6))
    for row in generator(0, "view").permutation(len(labels)):
        _mark(draw, float(place[row, 0]), float(head + size - place[row, 1]), radius, number[labels[row]])
    draw.text((40 * scale, 20 * scale), title, fill="black", font=font)
    draw.text(
        (40 * scale, size + head + 20 * scale), view.note, fill="#555555", font=ImageFont.load_default(13 * scale)
    )
    pitch = min(26.0, max(11.0, (width_px - 40) / len(names)))  # many labels stand closer, in smaller letters
    small = ImageFont.load_default(round(min(16.0, pitch * 0.85) * scale))
    room = int((width_px - 20) / pitch)
    for i, name in enumerate(names[:room]):
        y = head + (20 + pitch * i) * scale
        _mark(draw, size + 7 * scale, y + pitch * 0.4 * scale, min(7.0, pitch * 0.3) * scale, i)
        shown = name if len(name) <= 30 else name[:27] + "..."
        draw.text((size + 24 * scale, y), shown, fill="black", font=small)
    if len(names) > room:
        draw.text((size, head + size), f"and {len(names) - room} more", fill="#555555", font=small)
    picture.resize((picture.width // scale, picture.height // scale), Image.Resampling.LANCZOS).save(path)


def _mark(draw: Any, x: float, y: float, radius: float, number: int) -> None:
    """Draw the mark of a label: twenty colours as dots, then again as squares, triangles and diamonds."""
    color = _COLORS[number % len(_COLORS)]
    shape = number // len(_COLORS) % 4
    if shape == 0:
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == 1:
        draw.rectangle((x - radius, y - radius, x + radius, y + radius), fill=color)
    elif shape == 2:
        draw.polygon([(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)], fill=color)
    else:
        draw.polygon([(x, y - radius), (x + radius, y), (x, y + radius), (x - radius, y)], fill=color)
