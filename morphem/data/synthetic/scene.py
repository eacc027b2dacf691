"""Paints synthetic cells: where they lie, what shape they have, and what each stain would show of them.

Everything is drawn from first shapes (warped ellipses, level sets of smooth noise, spots), in micrometres, without
optics: `camera.py` adds blur, uneven light and noise. A phenotype changes shape, texture or place of a structure, never
how much light it gives off.

Source: the idea of cells as modulated shapes with textured stains is SIMCEP, Lehmussaari et al. 2007,
https://doi.org/10.1109/TMI.2007.896925; filaments as level sets of smooth noise are our own shortcut.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from morphem.rng import mix

Plane = NDArray[np.float64]
Complex = NDArray[np.complex128]

_SPLINE_STD = 0.4794  # of a cubic B-spline series with unit white coefficients: (151 / 315) per axis


def generator(*words: int | str) -> np.random.Generator:
    """Return NumPy's generator for a seed made of integers and names; the same words give the same numbers.

    Args:
        words: What the numbers are for, as `morphem.rng.mix` takes them.
    """
    return np.random.Generator(np.random.PCG64(mix(*words) & ((1 << 64) - 1)))


@dataclass(frozen=True)
class Phenotype:
    """What a treatment does to cells; the defaults are an untreated, adherent cell.

    Attributes:
        name: Label of the phenotype.
        nuclear_size: Factor on the nuclear radius.
        nuclear_lobes: Depth of the lobes of the nuclear outline, 0 to 0.4.
        chromatin_grain: Factor on the grain size of the chromatin.
        chromatin_contrast: Contrast of the chromatin, 0 to 1.
        binucleate: Share of cells with two nuclei, 0 to 1.
        cell_size: Factor on the radius of the cell.
        elongation: Long over short axis of the cell.
        arborisation: Depth of the arms of the cell outline, 0 to 0.6.
        rounding: 0 is a flat, spread cell, 1 a ball.
        mitochondrial_fragmentation: 0 is a network of tubes, 1 are single grains.
        reticulum_coarseness: Factor on the mesh size of the endoplasmic reticulum.
        stress_fibres: Share of the actin that lies in parallel fibres, 0 to 1.
        actin_clumps: Share of the actin that lies in clumps, 0 to 1.
        golgi_dispersal: 0 is a ribbon beside the nucleus, 1 are stacks all over the cell.
        microtubule_bundling: 0 is a fine radial array, 1 are a few thick bundles.
        internalisation: Share of the receptor that sits in vesicles, 0 to 1.
        vesicles: Lysosomes per cell.
        vesicle_size: Factor on their radius.
        vacuoles: Vacuoles per cell.
    """

    name: str
    nuclear_size: float = 1.0
    nuclear_lobes: float = 0.04
    chromatin_grain: float = 1.0
    chromatin_contrast: float = 0.35
    binucleate: float = 0.02
    cell_size: float = 1.0
    elongation: float = 1.25
    arborisation: float = 0.12
    rounding: float = 0.0
    mitochondrial_fragmentation: float = 0.0
    reticulum_coarseness: float = 1.0
    stress_fibres: float = 0.6
    actin_clumps: float = 0.0
    golgi_dispersal: float = 0.0
    microtubule_bundling: float = 0.0
    internalisation: float = 0.0
    vesicles: float = 18.0
    vesicle_size: float = 1.0
    vacuoles: float = 0.0

    def traits(self) -> dict[str, float]:
        """Return the numbers by name."""
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "name"}

    def at(self, strength: float) -> "Phenotype":
        """Return the phenotype of a weaker or stronger treatment, between an untreated cell (0) and this one (1).

        Args:
            strength: 0 to 1.
        """
        rest = Phenotype(self.name).traits()
        return Phenotype(
            self.name, **{name: (1 - strength) * rest[name] + strength * value for name, value in self.traits().items()}
        )


@dataclass(frozen=True)
class Cells:
    """The cells of one image, K of them; positions and sizes in pixels.

    Attributes:
        x: Centre of the nucleus, (K,); cells just outside the image are there too, because they reach into it.
        y: As x.
        angle: Direction of the long axis in radians, (K,).
        radius_px: Radius of the cell, (K,).
        nucleus_px: Radius of the nucleus, (K,).
        responding: Whether the cell shows the phenotype, (K,), bool.
        traits: The numbers of `Phenotype` for every cell, (K,) each.
    """

    x: Plane
    y: Plane
    angle: Plane
    radius_px: Plane
    nucleus_px: Plane
    responding: NDArray[np.bool_]
    traits: dict[str, Plane]


@dataclass(frozen=True)
class Scene:
    """One field of view before any stain: which pixel belongs to which cell.

    Attributes:
        seed: Seed of everything painted on it.
        pixel_um: Side of a pixel in micrometres.
        cells: The cells.
        cell: Index of the cell at each pixel, (H, W); K where there is none.
        depth: 0 at the free edge of the cell, 1 at its centre, at most 0 outside, (H, W).
        margin: As depth, but also 0 where two cells touch, (H, W).
        nucleus: The same for nuclei, (H, W).
    """

    seed: int
    pixel_um: float
    cells: Cells
    cell: NDArray[np.intp]
    depth: Plane
    margin: Plane
    nucleus: Plane

    def per_pixel(self, values: Plane, outside: float = 0.0) -> Plane:
        """Spread one value per cell, (K,), over the pixels of the cells, (H, W)."""
        return np.append(values, outside)[self.cell]

    def trait(self, name: str) -> Plane:
        """Spread a trait of the phenotype over the pixels, (H, W)."""
        return self.per_pixel(self.cells.traits[name])

    def noise(self, name: str, scale_um: float) -> Plane:
        """Return smooth noise of mean 0 and variance 1 with grains of about `scale_um`, (H, W)."""
        return smooth_noise(generator(self.seed, name), self.cell.shape, scale_um / self.pixel_um)

    def body(self, edge: float = 0.08) -> Plane:
        """Return 1 inside the cells and 0 outside with a soft edge of a share `edge` of the radius, (H, W)."""
        return smoothstep(self.depth / edge)

    def nuclei(self, edge: float = 0.12) -> Plane:
        """Return 1 inside the nuclei and 0 outside, (H, W)."""
        return smoothstep(self.nucleus / edge)

    def expression(self, channel: str, spread: float = 0.22) -> Plane:
        """Return the brightness of each cell in one stain, spread over its pixels; log-normal, (H, W)."""
        draws = generator(self.seed, channel, "expression").standard_normal(len(self.cells.x))
        return self.per_pixel(np.exp(spread * draws))


def smoothstep(x: Plane) -> Plane:
    """Return 0 below 0, 1 above 1 and a smooth cubic between."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def ridge(x: Plane, width: float | Plane) -> Plane:
    """Return lines along the zero level of a field: 1 on it, falling to 0 at a distance of about 2 widths."""
    return np.exp(-np.square(x / width))


@lru_cache(maxsize=128)
def _spline_basis(length: int, spacing: float) -> Plane:
    """Values of the cubic B-splines with knots `spacing` apart at pixels 0 to length - 1, (length, n)."""
    position = np.arange(length) / spacing
    knot = np.arange(int(position[-1]) + 4) - 1.0
    t = np.abs(position[:, None] - knot[None, :])
    return np.where(t < 1, 2 / 3 - t**2 + t**3 / 2, np.clip(2 - t, 0, None) ** 3 / 6)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, ...], scale_px: float) -> Plane:
    """Draw smooth noise of mean 0 and variance 1: a spline with random coefficients, much faster than filtering.

    Args:
        rng: Where the numbers come from.
        shape: (H, W).
        scale_px: Distance of the knots in pixels; grains are about twice as wide. At least 1.
    """
    # Rounded, so that nearby sizes share one basis: the cache holds a few matrices only.
    rows, columns = (_spline_basis(n, round(max(scale_px, 1.0), 1)) for n in shape)
    return rows @ rng.standard_normal((rows.shape[1], columns.shape[1])) @ columns.T / _SPLINE_STD


def spots(shape: tuple[int, ...], x: Plane, y: Plane, weight: Plane, sigma_px: float) -> Plane:
    """Add Gaussian spots at positions between pixels, (H, W); a spot of weight 1 has a peak of about 1.

    Args:
        shape: (H, W).
        x: Columns, (S,).
        y: Rows, (S,).
        weight: Heights, (S,).
        sigma_px: Width of all spots.
    """
    canvas = np.zeros(shape)
    column, row = np.floor(x).astype(int), np.floor(y).astype(int)
    for dy in (0, 1):
        for dx in (0, 1):
            share = weight * np.abs(1 - dx - (x - column)) * np.abs(1 - dy - (y - row))
            ok = (row + dy >= 0) & (row + dy < shape[0]) & (column + dx >= 0) & (column + dx < shape[1])
            np.add.at(canvas, (row[ok] + dy, column[ok] + dx), share[ok])
    blurred: Plane = gaussian_filter(canvas, sigma_px, mode="constant", truncate=3.0)
    return blurred * (2 * np.pi * sigma_px**2 + 1)


def place_cells(
    rng: np.random.Generator,
    shape: tuple[int, int],
    phenotype: Phenotype,
    *,
    cell_px: float,
    nucleus_px: float,
    confluency: float,
    penetrance: float,
) -> Cells:
    """Draw the cells of a field of view; each keeps its distance from the others as well as it can.

    Args:
        rng: Where the numbers come from.
        shape: (H, W).
        phenotype: What responding cells look like.
        cell_px: Mean radius of an untreated cell in pixels.
        nucleus_px: Mean radius of its nucleus in pixels.
        confluency: Area of all cells over area of the image if they did not touch, about 0.2 to 1.5.
        penetrance: Share of cells that respond, 0 to 1.
    """
    margin = 0.8 * cell_px
    height, width = shape[0] + 2 * margin, shape[1] + 2 * margin
    count = max(1, int(rng.poisson(confluency * height * width / (np.pi * cell_px**2))))
    points = np.empty((0, 2))
    for _ in range(count):
        tries = rng.random((6, 2)) * (height, width) - margin
        gaps = np.hypot(*(tries[:, None] - points[None]).transpose(2, 0, 1)).min(axis=1, initial=1e9)
        best = int(gaps.argmax())
        if gaps[best] > 2.1 * nucleus_px:  # nuclei of a monolayer do not overlap
            points = np.vstack([points, tries[best]])
    return _grow(rng, points, phenotype, cell_px, nucleus_px, penetrance)


def _grow(
    rng: np.random.Generator, points: Plane, phenotype: Phenotype, cell_px: float, nucleus_px: float, penetrance: float
) -> Cells:
    count = len(points)
    responding = rng.random(count) < penetrance
    rest, changed = Phenotype(phenotype.name).traits(), phenotype.traits()
    jitter = np.exp(0.12 * rng.standard_normal((len(rest), count)))
    traits = {
        name: np.where(responding, changed[name], rest[name]) * factor
        for name, factor in zip(rest, jitter, strict=True)
    }
    traits["binucleate"] = (rng.random(count) < np.where(responding, changed["binucleate"], rest["binucleate"])) * 1.0
    # DNA content doubles between G1 and G2, so nuclear area is bimodal.
    cycle = np.where(rng.random(count) < 0.3, 1.14, 1.0)
    radius = cell_px * traits["cell_size"] * np.exp(0.12 * rng.standard_normal(count)) * (1 - 0.4 * traits["rounding"])
    return Cells(
        x=points[:, 1],
        y=points[:, 0],
        angle=rng.random(count) * 2 * np.pi,
        radius_px=radius,
        nucleus_px=nucleus_px * traits["nuclear_size"] * cycle * np.exp(0.06 * rng.standard_normal(count)),
        responding=responding,
        traits=traits,
    )


def build_scene(cells: Cells, shape: tuple[int, int], pixel_um: float, seed: int) -> Scene:
    """Give every pixel to the cell that reaches deepest into it, and draw the nuclei.

    Args:
        cells: From `place_cells`.
        shape: (H, W).
        pixel_um: Side of a pixel in micrometres.
        seed: Seed of outlines and textures.
    """
    rng = generator(seed, "outlines")
    mean_px = float(cells.radius_px.mean()) if len(cells.x) else 10.0
    warp = [smooth_noise(rng, shape, 0.35 * mean_px) * 0.10 * mean_px for _ in range(2)]
    phases = rng.random((len(cells.x), 4)) * 2 * np.pi
    depth, second, nucleus = (np.full(shape, -9.0) for _ in range(3))
    cell = np.full(shape, len(cells.x), dtype=np.intp)
    for k in range(len(cells.x)):
        window = _window(cells, k, shape)
        if window is None:
            continue
        own = _cell_depth(cells, k, window, warp, phases[k])
        cell[window][own > np.maximum(depth[window], 0.0)] = k
        np.maximum(second[window], np.minimum(own, depth[window]), out=second[window])
        np.maximum(depth[window], own, out=depth[window])
        np.maximum(nucleus[window], _nuclear_depth(cells, k, window, warp, phases[k]), out=nucleus[window])
    margin = np.minimum(depth, 1.5 * (depth - second))
    return Scene(seed, pixel_um, cells, cell, depth, margin, np.where(depth > 0, nucleus, -9.0))


def _window(cells: Cells, k: int, shape: tuple[int, int]) -> tuple[slice, slice] | None:
    """The part of the image that a cell can reach, or None."""
    reach = cells.radius_px[k] * max(1.9, 1.6 * float(cells.traits["elongation"][k]) ** 0.5)
    low = [max(0, int(c - reach)) for c in (cells.y[k], cells.x[k])]
    high = [min(n, int(c + reach) + 1) for c, n in zip((cells.y[k], cells.x[k]), shape, strict=True)]
    if low[0] >= high[0] or low[1] >= high[1]:
        return None
    return slice(low[0], high[0]), slice(low[1], high[1])


def _relative(cells: Cells, k: int, window: tuple[slice, slice], warp: list[Plane], amount: float) -> Complex:
    """Warped coordinates of a window in the frame of a cell, x along the long axis, as complex numbers."""
    dy = np.arange(window[0].start, window[0].stop)[:, None] - cells.y[k] + amount * warp[0][window]
    dx = np.arange(window[1].start, window[1].stop)[None, :] - cells.x[k] + amount * warp[1][window]
    z: Complex = (dx + 1j * dy) * np.exp(-1j * cells.angle[k])
    return z


def _cell_depth(cells: Cells, k: int, window: tuple[slice, slice], warp: list[Plane], phase: Plane) -> Plane:
    rounding = min(1.0, float(cells.traits["rounding"][k]))
    stretch = max(1.0, float(cells.traits["elongation"][k]) * (1 - rounding) + rounding) ** 0.5
    z = _relative(cells, k, window, warp, 1.0 - 0.8 * rounding)
    z = z.real / stretch + 1j * z.imag * stretch
    distance = np.abs(z) + 1e-9
    direction = z / distance
    arms = cells.traits["arborisation"][k] * (1 - rounding)
    cube = direction**3
    wave = (cube * np.exp(1j * phase[0])).real + 0.7 * (cube * direction**2 * np.exp(1j * phase[1])).real
    depth: Plane = 1.0 - distance / (cells.radius_px[k] * np.clip(1.0 + arms * wave, 0.3, None))
    return depth


def _nuclear_depth(cells: Cells, k: int, window: tuple[slice, slice], warp: list[Plane], phase: Plane) -> Plane:
    z = _relative(cells, k, window, warp, 0.25)
    radius = cells.nucleus_px[k]
    stretch = float(cells.traits["elongation"][k]) ** 0.35
    centres = [0.0 + 0.0j]
    if cells.traits["binucleate"][k]:
        radius, stretch = 0.86 * radius, 1.0
        centres = [radius * 0.95 * np.exp(1j * phase[2]), -radius * 0.95 * np.exp(1j * phase[2])]
    deepest = np.full(z.shape, -9.0)
    for centre in centres:
        q = z - centre
        q = q.real / stretch + 1j * q.imag * stretch
        distance = np.abs(q) + 1e-9
        direction = q / distance
        wave = (direction**3 * np.exp(1j * phase[3])).real + 0.6 * (direction**2 * np.exp(1j * phase[2])).real
        lobes = 1.0 + cells.traits["nuclear_lobes"][k] * wave
        np.maximum(deepest, 1.0 - distance / (radius * lobes), out=deepest)
    return deepest
