"""Optics and camera: blur, out-of-focus light, uneven illumination, debris, background and noise.

All batch effects live here, so they change how light is recorded and never what a treatment does.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from morphem.data.synthetic.scene import Plane, generator, spots


@dataclass(frozen=True)
class Optics:
    """How one channel of one field of view is recorded.

    Attributes:
        blur_px: Width of the point spread function and of defocus together.
        haze: Share of the light that comes from out of focus, 0 to 1.
        photons: Photons in a pixel of brightness 1; fewer photons, more noise.
        background: Light that is everywhere, in units of brightness.
        vignetting: Loss of light in the far corner, 0 to 1.
        centre: Where the light is brightest, (y, x) in shares of the image.
        glow: Light of the medium that grows towards one side of the image, in units of brightness.
        glow_angle: Direction of that side in radians.
        read_noise: Noise of the camera in electrons.
        debris: Mean number of pieces of bright dirt in a field of view.
    """

    blur_px: float = 0.7
    haze: float = 0.15
    photons: float = 400.0
    background: float = 0.10
    vignetting: float = 0.12
    centre: tuple[float, float] = (0.5, 0.5)
    glow: float = 0.0
    glow_angle: float = 0.0
    read_noise: float = 4.0
    debris: float = 0.15


def optics_of(strength: float, *words: int | str, transmitted: bool) -> Optics:
    """Draw the optics of one plate and channel.

    Args:
        strength: Size of the batch effect; 0 gives every plate the same optics, 1 is a normal screen.
        words: Seed, and what the optics are for.
        transmitted: Whether it is bright-field.
    """
    rng = generator(*words)
    normal = rng.standard_normal(7)
    # Bounded, so that no plate is unreadable however strong the effect.
    soft = np.tanh(normal / 2) * 2 * strength
    base = Optics()
    return Optics(
        blur_px=float(np.clip(base.blur_px * np.exp(0.22 * soft[0]), 0.35, 2.0)),
        haze=float(np.clip(base.haze * np.exp(0.4 * soft[1]), 0.0, 0.5)),
        photons=float(np.clip((4000.0 if transmitted else base.photons) * np.exp(0.5 * soft[2]), 25.0, 20000.0)),
        background=float(np.clip(base.background * np.exp(0.6 * soft[3]), 0.01, 0.6)),
        vignetting=float(np.clip(base.vignetting * np.exp(0.6 * soft[4]), 0.0, 0.6)),
        centre=(float(np.clip(0.5 + 0.15 * soft[5], 0, 1)), float(np.clip(0.5 + 0.15 * soft[6], 0, 1))),
        debris=0.0 if transmitted else base.debris,
    )


def expose(light: Plane, optics: Optics, rng: np.random.Generator) -> Plane:
    """Record a painted plane: what a camera would store, in electrons, (H, W), at least 0.

    Args:
        light: Painted plane, (H, W).
        optics: How it is recorded.
        rng: Where the noise comes from.
    """
    shape = light.shape
    image = gaussian_filter(light + _debris(optics, shape, rng), optics.blur_px, mode="nearest", truncate=3.0)
    image = (1 - optics.haze) * image + optics.haze * _out_of_focus(image)
    y, x = (np.linspace(0, 1, n) for n in shape)
    distance = np.square(y - optics.centre[0])[:, None] + np.square(x - optics.centre[1])[None, :]
    lamp = 1 - optics.vignetting * distance / 0.5
    side = 0.5 + np.sin(optics.glow_angle) * (y[:, None] - 0.5) + np.cos(optics.glow_angle) * (x[None, :] - 0.5)
    glow = optics.glow * np.square(np.clip(side, 0.0, None))
    electrons = optics.photons * np.clip((image + optics.background + glow) * lamp, 0.0, None)
    # Shot noise as a normal number of the right variance: its stream does not depend on the light, so rounding on
    # another machine cannot shift all noise that follows.
    noise = rng.standard_normal(shape) * np.sqrt(electrons + optics.read_noise**2)
    recorded: Plane = np.clip(electrons + noise, 0.0, None)
    return recorded


def _debris(optics: Optics, shape: tuple[int, ...], rng: np.random.Generator) -> Plane:
    """A few bright, blurred specks."""
    count = int(rng.poisson(optics.debris))
    if not count:
        return np.zeros(shape)
    x, y = rng.uniform(0, shape[1], count), rng.uniform(0, shape[0], count)
    return spots(shape, x, y, rng.uniform(0.8, 2.0, count), 1.5)


def _out_of_focus(image: Plane) -> Plane:
    """The light of the whole neighbourhood: a wide blur, computed on every fourth pixel's mean."""
    height, width = (n // 4 * 4 for n in image.shape)
    small = image[:height, :width].reshape(height // 4, 4, width // 4, 4).mean(axis=(1, 3))
    small = gaussian_filter(small, 2.5, mode="nearest", truncate=3.0)
    rows, columns = (np.clip((np.arange(n) - 1.5) / 4, 0, m - 1) for n, m in zip(image.shape, small.shape, strict=True))
    r, c = (np.minimum(p.astype(int), max(m - 2, 0)) for p, m in zip((rows, columns), small.shape, strict=True))
    fr, fc = (rows - r)[:, None], (columns - c)[None, :]
    wide: Plane = (
        (1 - fr) * (1 - fc) * small[np.ix_(r, c)]
        + (1 - fr) * fc * small[np.ix_(r, c + 1)]
        + fr * (1 - fc) * small[np.ix_(r + 1, c)]
        + fr * fc * small[np.ix_(r + 1, c + 1)]
    )
    return wide
