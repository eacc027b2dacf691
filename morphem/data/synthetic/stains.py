"""What each stain shows of a scene: one function per channel type, in arbitrary units of light, without optics.

A phenotype moves light from one structure to another inside a cell and keeps its sum about the same, so that the mean
of a plane says nothing about the treatment.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from morphem.data.synthetic.scene import Plane, Scene, generator, ridge, smoothstep, spots
from morphem.errors import ChannelError, unknown_name


def paint(scene: Scene, channel_type: str) -> Plane:
    """Paint one channel of a scene, (H, W), at least 0; bright-field is 1 where there is nothing.

    Args:
        scene: From `build_scene`.
        channel_type: One of `STAINS`.

    Raises:
        ChannelError: If there is no painter for this channel type.
    """
    if channel_type not in STAINS:
        raise ChannelError(unknown_name("synthetic stain", channel_type, STAINS))
    return STAINS[channel_type](scene)


def _nucleus(scene: Scene) -> Plane:
    """DNA: grainy chromatin with dark nucleoli."""
    fine, coarse = scene.noise("chromatin", 0.7), scene.noise("chromatin coarse", 1.6)
    blend = np.clip(scene.trait("chromatin_grain") - 1.0, 0.0, 1.0)
    grain = (1 - blend) * fine + blend * coarse
    nucleoli = smoothstep((scene.noise("nucleoli", 1.5) - 1.0) / 0.5)
    texture = np.clip(1 + scene.trait("chromatin_contrast") * grain - 0.45 * nucleoli * (1 - blend), 0.05, None)
    dome = np.sqrt(np.clip(scene.nucleus, 0.0, 1.0))
    return scene.nuclei() * texture * (0.65 + 0.35 * dome) * scene.expression("nucleus")


def _cytoplasm(scene: Scene) -> Plane:
    """Thickness of the cell outside its nucleus: thick beside the nucleus, thin at the edge."""
    flat = 0.15 + 0.85 * np.clip(scene.depth, 0.0, 1.0) ** 1.3
    return scene.body() * flat * (1 - 0.75 * scene.nuclei(0.25)) * (1 - _vacuoles(scene))


def _vacuoles(scene: Scene) -> Plane:
    """1 in the round holes of vacuolated cells, 0 elsewhere."""
    if not scene.cells.traits["vacuoles"].any():
        return np.zeros(scene.depth.shape)
    x, y, _ = _scatter(scene, "vacuoles", 0.25, 0.75)
    sizes = generator(scene.seed, "vacuole sizes").uniform(0.5, 1.6, len(x))
    holes = spots(scene.depth.shape, x, y, sizes, 1.3 / scene.pixel_um)
    return smoothstep((holes - 0.35) / 0.35) * scene.body() * (1 - scene.nuclei())


def _scatter(scene: Scene, trait: str, inner: float, outer: float) -> tuple[Plane, Plane, NDArray[np.int64]]:
    """Draw positions in the cells, as many per cell as a trait says, between two shares of the cell's radius."""
    cells = scene.cells
    rng = generator(scene.seed, trait, "positions")
    counts = rng.poisson(np.clip(cells.traits[trait], 0.0, 400.0))
    owner = np.repeat(np.arange(len(cells.x)), counts)
    distance = np.sqrt(rng.uniform(inner**2, outer**2, len(owner))) * cells.radius_px[owner]
    angle = rng.uniform(0, 2 * np.pi, len(owner))
    stretch = np.sqrt(np.clip(cells.traits["elongation"][owner], 1.0, None))
    z = (distance * np.cos(angle) * stretch + 1j * distance * np.sin(angle) / stretch) * np.exp(1j * cells.angle[owner])
    return cells.x[owner] + z.real, cells.y[owner] + z.imag, owner


def _reticulum(scene: Scene) -> Plane:
    """Endoplasmic reticulum: a mesh, denser around the nucleus."""
    fine = ridge(scene.noise("reticulum", 0.75), 0.45)
    coarse = ridge(scene.noise("reticulum coarse", 1.7), 0.4)
    blend = np.clip(scene.trait("reticulum_coarseness") - 1.0, 0.0, 1.0)
    mesh = (1 - blend) * fine + blend * 1.05 * coarse
    haze = 0.5 + 0.3 * scene.noise("reticulum haze", 4.0)
    return _cytoplasm(scene) * (0.35 * np.clip(haze, 0.1, None) + mesh) * scene.expression("endoplasmic reticulum")


def _mitochondria(scene: Scene) -> Plane:
    """A network of tubes that breaks up into grains."""
    tubes = ridge(scene.noise("tubes", 1.5), 0.22) * smoothstep(1.2 + scene.noise("breaks", 2.2))
    grains = smoothstep((scene.noise("grains", 0.62) - 0.75) / 0.9) * 1.15
    blend = np.clip(scene.trait("mitochondrial_fragmentation"), 0.0, 1.0)
    near = smoothstep((scene.depth - 0.08) / 0.5)
    light = (1 - blend) * tubes + blend * grains
    return (light + 0.06) * near * scene.body() * (1 - scene.nuclei(0.2)) * scene.expression("mitochondria")


def _fibres(scene: Scene, name: str, period_um: float) -> Plane:
    """Parallel lines along the long axis of each cell, interrupted and slightly wavy."""
    cells = scene.cells
    rng = generator(scene.seed, name)
    angle = scene.per_pixel(cells.angle + 0.25 * rng.standard_normal(len(cells.x)))
    phase = scene.per_pixel(rng.uniform(0, 2 * np.pi, len(cells.x)))
    y, x = np.mgrid[: scene.depth.shape[0], : scene.depth.shape[1]]
    across = (y * np.cos(angle) - x * np.sin(angle)) * scene.pixel_um
    wave = 2 * np.pi * across / period_um + phase + 1.5 * scene.noise(name + " bend", 5.0)
    lines = smoothstep((np.cos(wave) - 0.35) / 0.65)
    return lines * smoothstep(0.9 + scene.noise(name + " gaps", 3.0))


def _actin(scene: Scene) -> Plane:
    """A rim under the membrane, and fibres or clumps inside."""
    rim = np.exp(-np.square((scene.margin - 0.035) / 0.05)) * (scene.depth > -0.02)
    ruffles = np.clip(0.75 + 0.45 * scene.noise("ruffles", 2.5), 0.1, None)
    clumps = smoothstep((scene.noise("clumps", 1.2) - 0.9) / 0.6) * 1.3
    fibre, clump = np.clip(scene.trait("stress_fibres"), 0, 1), np.clip(scene.trait("actin_clumps"), 0, 1)
    inside = fibre * _fibres(scene, "stress fibres", 2.6) + clump * (clumps + 0.08) + 0.16
    cortex = 0.9 * rim * ruffles * (1 - 0.35 * clump)
    return (scene.body() * inside * (0.45 + 0.55 * np.clip(scene.depth, 0, 1)) + cortex) * scene.expression("actin")


def _microtubules(scene: Scene) -> Plane:
    """Microtubules that spread from a centre beside the nucleus."""
    cells = scene.cells
    rng = generator(scene.seed, "centrosomes")
    side = 0.7 * cells.nucleus_px * np.exp(1j * rng.uniform(0, 2 * np.pi, len(cells.x)))
    y, x = np.mgrid[: scene.depth.shape[0], : scene.depth.shape[1]]
    dx, dy = x - scene.per_pixel(cells.x + side.real), y - scene.per_pixel(cells.y + side.imag)
    distance = np.hypot(dx, dy) * scene.pixel_um
    angle = np.arctan2(dy, dx) + 0.07 * scene.noise("curl", 5.0) + 0.10 * scene.noise("sway", 9.0)
    blend = np.clip(scene.trait("microtubule_bundling"), 0, 1)
    fine = max(0.35, 0.6 * scene.pixel_um)  # a microtubule is thinner than a pixel; the optics make it this wide
    thin = sum(
        _rays(angle + scene.noise(f"rays {n}", 3.0) / n, distance, n, fine) * smoothstep((distance - start) / 5)
        for n, start in ((22, 0.0), (38, 4.0), (66, 9.0))
    )
    bundles = _rays(angle + 1.5 * scene.noise("bundles", 4.0) / 9, distance, 9, 2.4 * fine) * 0.9
    light = (1 - blend) * (0.75 * thin + 0.10) + blend * (bundles + 0.32) + 0.5 * np.exp(-np.square(distance / 2.2))
    fade = 0.3 + 0.7 * np.clip(scene.depth, 0, 1)
    plane: Plane = scene.body() * light * fade * (1 - 0.5 * scene.nuclei(0.4)) * scene.expression("microtubules")
    return plane


def _rays(angle: Plane, distance: Plane, count: int, width_um: float) -> Plane:
    """Lines of one width that run outwards from a centre, `count` of them."""
    return ridge(2.0 / count * np.sin(0.5 * count * angle) * distance, width_um)


def _golgi(scene: Scene) -> Plane:
    """A ribbon on one side of the nucleus, or stacks all over the cell."""
    cells = scene.cells
    rng = generator(scene.seed, "golgi")
    side = 1.15 * cells.nucleus_px * np.exp(1j * rng.uniform(0, 2 * np.pi, len(cells.x)))
    y, x = np.mgrid[: scene.depth.shape[0], : scene.depth.shape[1]]
    dx, dy = x - scene.per_pixel(cells.x + side.real), y - scene.per_pixel(cells.y + side.imag)
    reach = np.hypot(dx, dy) / scene.per_pixel(0.75 * cells.nucleus_px, outside=1.0)
    patch = smoothstep((1.25 - reach + 0.3 * scene.noise("golgi outline", 1.8)) / 0.5)
    ribbon = patch * (0.35 + ridge(scene.noise("cisternae", 0.9), 0.4)) * 1.6
    stacks = smoothstep((scene.noise("stacks", 0.95) - 1.25) / 0.5) * smoothstep((scene.depth - 0.1) / 0.3) * 2.2
    blend = np.clip(scene.trait("golgi_dispersal"), 0, 1)
    light = (1 - blend) * ribbon + blend * stacks + 0.05 * np.clip(scene.depth, 0, 1)
    return light * scene.body() * (1 - 0.85 * scene.nuclei(0.25)) * scene.expression("golgi body")


def _lysosomes(scene: Scene) -> Plane:
    """Separate round vesicles, most of them beside the nucleus."""
    x, y, owner = _scatter(scene, "vesicles", 0.2, 0.8)
    size = scene.cells.traits["vesicle_size"][owner]
    rng = generator(scene.seed, "vesicle brightness")
    weight = np.exp(0.5 * rng.standard_normal(len(x)))
    shape = scene.depth.shape
    small = spots(shape, x, y, weight * (size < 1.4), max(0.45 / scene.pixel_um, 0.6))
    large = spots(shape, x, y, weight * (size >= 1.4), max(1.0 / scene.pixel_um, 0.8))
    inside = scene.body() * (1 - 0.9 * scene.nuclei(0.2))
    return inside * (small + large + 0.05) * scene.expression("lysosome")


def _receptor(scene: Scene) -> Plane:
    """A labelled receptor: diffuse with a bright membrane, or in vesicles after internalisation."""
    share = np.clip(scene.trait("internalisation"), 0, 1)
    membrane = np.exp(-np.square((scene.margin - 0.05) / 0.07)) * (scene.depth > 0)
    cytosol = 0.55 * _cytoplasm(scene) * (1 + 0.15 * scene.noise("patches", 2.0))
    diffuse = cytosol + 0.3 * membrane + 0.12 * scene.nuclei()
    grains = smoothstep((scene.noise("endosomes", 0.9) - 0.9) / 0.6) * smoothstep((scene.depth - 0.12) / 0.3)
    pits = (1.1 * grains + 0.26 * np.clip(scene.depth, 0, 1)) * (1 - scene.nuclei(0.2))
    return scene.body() * ((1 - 0.6 * share) * diffuse + share * pits) * scene.expression("protein", 0.4)


def _brightfield(scene: Scene) -> Plane:
    """Transmitted light a little out of focus: cells act as lenses, so edges shine outside and are dark inside."""
    ball = scene.trait("rounding")
    height = np.clip(scene.depth, 0, 1) ** (0.6 - 0.2 * ball) * scene.body(0.1) * (1 + 1.2 * ball)
    height = height + 0.45 * np.sqrt(np.clip(scene.nucleus, 0, 1)) * (1 - 0.5 * ball)
    height = height + 0.07 * scene.noise("granules", 0.8) * scene.body() * (1 - 0.6 * scene.nuclei())
    height = height - 0.30 * _vacuoles(scene)
    sigma = 0.75 / scene.pixel_um
    near, far = (gaussian_filter(height, s, mode="nearest", truncate=3.0) for s in (sigma, 2.4 * sigma))
    nucleoli = 0.10 * smoothstep((scene.noise("nucleoli", 1.5) - 1.0) / 0.5) * scene.nuclei()
    plane: Plane = np.clip(1.0 - 0.75 * (near - far) - 0.04 * near - nucleoli, 0.05, None)
    return plane


STAINS: dict[str, Callable[[Scene], Plane]] = {
    "nucleus": _nucleus,
    "endoplasmic reticulum": _reticulum,
    "mitochondria": _mitochondria,
    "actin": _actin,
    "microtubules": _microtubules,
    "golgi body": _golgi,
    "lysosome": _lysosomes,
    "protein": _receptor,
    "bright-field": _brightfield,
}
