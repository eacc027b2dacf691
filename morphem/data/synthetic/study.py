"""Synthetic studies: plates of wells with treatments, controls and replicates, and the images taken of them."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

from morphem.data.shards import ImageRecord
from morphem.data.synthetic.camera import expose, optics_of
from morphem.data.synthetic.scene import Phenotype, Plane, Scene, build_scene, generator, place_cells
from morphem.data.synthetic.stains import STAINS, paint
from morphem.errors import ChannelError, ConfigError, unknown_name
from morphem.rng import mix

_DYES = {
    "nucleus": "Hoechst",
    "endoplasmic reticulum": "concanavalin A",
    "mitochondria": "MitoTracker",
    "actin": "phalloidin",
    "microtubules": "anti-tubulin",
    "golgi body": "anti-GM130",
    "lysosome": "LysoTracker",
    "protein": "receptor-GFP",
    "bright-field": "transmitted light",
}


@dataclass(frozen=True)
class Treatment:
    """A compound in a well.

    Attributes:
        name: Name of the compound; becomes `experiment.reagent` and the label `treatment`.
        phenotype: What it does; its name becomes the label `phenotype`.
        strength: How much of it, 0 to 1.
        control: `no`, `negative` or `positive`.
    """

    name: str
    phenotype: Phenotype
    strength: float = 1.0
    control: str = "no"


UNTREATED = Treatment("DMSO", Phenotype("untreated"), control="negative")


@dataclass(frozen=True)
class Field:
    """One field of view of a study, before it is painted.

    Attributes:
        plate: Number of the plate, from 0.
        well: Name of the well, such as `B03`.
        site: Number of the field in the well, from 0.
        treatment: What is in the well.
    """

    plate: int
    well: str
    site: int
    treatment: Treatment


@dataclass(frozen=True)
class SyntheticStudy:
    """A synthetic study: one microscope, one panel of stains, one layout of plates.

    Attributes:
        name: Name of the study.
        channel_types: Stains in panel order, one to nine of `morphem.data.synthetic.STAINS`.
        treatments: What is tested, beside the untreated control.
        magnification: Of the objective, such as `20x`.
        pixel_um: Side of a pixel in micrometres.
        size_px: Height and width of an image in pixels, at least 16.
        first_plate: Number of the first plate; other plates of the same study are other replicates.
        n_plates: Plates.
        n_replicates: Wells of each treatment on a plate.
        n_control_wells: Wells with untreated cells on a plate.
        n_fields: Images of each well.
        cell_um: Mean radius of a cell in micrometres.
        nucleus_um: Mean radius of a nucleus in micrometres.
        confluency: Least and greatest area of all cells over the area of the image; drawn for every image.
        penetrance: Share of the cells in a treated well that respond, 0 to 1.
        batch_effect: Differences of light, focus, background and noise between plates and wells; 0 is none, 1 that of a
            normal screen, 3 a bad one.
        cell_line: As in the metadata.
        cell_type: As in the metadata.
        seed: Seed of everything.
    """

    name: str
    channel_types: tuple[str, ...]
    treatments: tuple[Treatment, ...] = ()
    magnification: str = "20x"
    pixel_um: float = 0.65
    size_px: tuple[int, int] = (192, 192)
    first_plate: int = 0
    n_plates: int = 2
    n_replicates: int = 2
    n_control_wells: int = 4
    n_fields: int = 2
    cell_um: float = 18.0
    nucleus_um: float = 7.0
    confluency: tuple[float, float] = (0.6, 1.3)
    penetrance: float = 0.95
    batch_effect: float = 1.0
    cell_line: str = "synthetic"
    cell_type: str = "adherent"
    seed: int = 0

    def __post_init__(self) -> None:
        for channel_type in self.channel_types:
            if channel_type not in STAINS:
                raise ChannelError(unknown_name("synthetic stain", channel_type, STAINS))
        if not self.channel_types or len(set(self.channel_types)) < len(self.channel_types):
            raise ChannelError(f"study '{self.name}': channel_types must be different and at least one.")
        _check(self.name, "size_px", min(self.size_px), 16, 16384)
        _check(self.name, "penetrance", self.penetrance, 0, 1)
        _check(self.name, "batch_effect", self.batch_effect, 0, 10)
        _check(self.name, "pixel_um", self.pixel_um, 0.05, 5)
        for key in ("n_plates", "n_fields"):
            _check(self.name, key, getattr(self, key), 1, 10**6)
        _check(self.name, "wells per plate", len(self.wells(0)), 1, 384)

    def wells(self, plate: int) -> tuple[tuple[str, Treatment], ...]:
        """Return the wells of a plate with their treatments; where a treatment lies differs from plate to plate.

        Args:
            plate: Number of the plate.
        """
        treated = [treatment for treatment in self.treatments for _ in range(self.n_replicates)]
        layout = [UNTREATED] * self.n_control_wells + treated
        order = generator(self.seed, self.name, "layout", plate).permutation(len(layout))
        n_columns = max(2, int(np.ceil(np.sqrt(1.5 * len(layout)))))
        names = (f"{chr(ord('A') + k // n_columns)}{k % n_columns + 1:02d}" for k in range(len(layout)))
        return tuple((name, layout[i]) for name, i in zip(names, order, strict=True))

    def fields(self) -> Iterator[Field]:
        """Iterate over all fields of view in the order of plate, well and site."""
        for plate in range(self.first_plate, self.first_plate + self.n_plates):
            for well, treatment in self.wells(plate):
                for site in range(self.n_fields):
                    yield Field(plate, well, site, treatment)

    @property
    def n_images(self) -> int:
        """Number of fields of view."""
        return self.n_plates * self.n_fields * (self.n_control_wells + self.n_replicates * len(self.treatments))

    def on_plates(self, first_plate: int, n_plates: int) -> Self:
        """Return the same study on other plates: same treatments, other layout, cells and batch effects."""
        return replace(self, first_plate=first_plate, n_plates=n_plates)


def _check(study: str, key: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"study '{study}': {key} must be {low} to {high}, is {value}.")


def generate_image(study: SyntheticStudy, field: Field) -> ImageRecord:
    """Paint and record one field of view; a pure function of the study's settings and the field.

    Args:
        study: The study.
        field: One of `study.fields()`, or any other.
    """
    scene = _scene(study, field)
    planes, limits = [], []
    for channel_type in study.channel_types:
        plane, low, high = _to_uint8(_record(study, field, scene, channel_type))
        planes.append(plane)
        limits.append((low, high))
    cells = scene.cells
    height, width = study.size_px
    inside = (cells.x >= 0) & (cells.x < width) & (cells.y >= 0) & (cells.y < height)
    names = np.where(cells.responding, field.treatment.phenotype.name, UNTREATED.phenotype.name)
    return ImageRecord(
        image_id=image_id(study, field),
        planes=planes,
        rows=[_row(study, field, number) for number in range(len(planes))],
        channel_names=[_DYES[channel_type] for channel_type in study.channel_types],
        clip_limits=limits,
        cells=np.floor(np.stack([cells.x[inside], cells.y[inside]], axis=1)).astype(np.int32),
        cell_labels={"cell_phenotype": [str(name) for name in names[inside]]},
    )


def image_id(study: SyntheticStudy, field: Field) -> str:
    """Return the identifier of a field of view, unique among all studies."""
    return f"{study.name}_p{field.plate:02d}_{field.well}_f{field.site}".lower()


def _scene(study: SyntheticStudy, field: Field) -> Scene:
    words = (study.seed, study.name, "field", field.plate, field.well, field.site)
    rng = generator(*words)
    cells = place_cells(
        rng,
        study.size_px,
        field.treatment.phenotype.at(field.treatment.strength),
        cell_px=study.cell_um / study.pixel_um,
        nucleus_px=study.nucleus_um / study.pixel_um,
        confluency=float(rng.uniform(*study.confluency)),
        penetrance=study.penetrance,
    )
    return build_scene(cells, study.size_px, study.pixel_um, mix(*words))


def _record(study: SyntheticStudy, field: Field, scene: Scene, channel_type: str) -> Plane:
    words = (study.seed, study.name, channel_type, field.plate)
    transmitted = channel_type == "bright-field"
    optics = optics_of(study.batch_effect, *words, "plate", transmitted=transmitted)
    rng = generator(*words, field.well, "well")
    focus, medium = np.tanh(rng.standard_normal(2))
    optics = replace(
        optics,
        blur_px=float(optics.blur_px * np.exp(0.15 * study.batch_effect * focus)),
        background=float(optics.background * np.exp(0.3 * study.batch_effect * medium)),
        # The medium is deeper towards the wall of a well and glows more there, differently in every well.
        glow=float((0.15 if transmitted else 0.4) * study.batch_effect * rng.random() ** 2),
        glow_angle=float(2 * np.pi * rng.random()),
    )
    return expose(paint(scene, channel_type), optics, generator(*words, field.well, field.site, "noise"))


def _to_uint8(plane: Plane) -> tuple[NDArray[np.uint8], float, float]:
    """Clip to the 0.1 and 99.9 percentiles and scale to 0..255, as ingest does with real planes."""
    low, high = (float(value) for value in np.percentile(plane, (0.1, 99.9)))
    scaled = (np.clip(plane, low, high) - low) * (255.0 / max(high - low, 1e-9))
    return np.rint(scaled).astype(np.uint8), low, high


def _row(study: SyntheticStudy, field: Field, number: int) -> dict[str, str | int]:
    """The 22 columns of one channel plane, and the labels."""
    channel_type = study.channel_types[number]
    identifier = image_id(study, field)
    return {
        "experiment.study": study.name,
        "experiment.plate": f"{study.name}-plate-{field.plate:02d}",
        "experiment.well": field.well,
        "experiment.reagent": field.treatment.name,
        "experiment.control": field.treatment.control,
        "biology.organism": "synthetic",
        "biology.cell_line": study.cell_line,
        "biology.cell_type": study.cell_type,
        "imaging.multi_channel_id": identifier,
        "imaging.panel": ",".join(_DYES[name] for name in study.channel_types),
        "imaging.channel": number + 1,
        "imaging.channel_type": channel_type,
        "microscopy.type": "bright-field" if channel_type == "bright-field" else "fluorescence",
        "microscopy.magnification": study.magnification,
        "microscopy.fov": str(field.site),
        "geometry.width": study.size_px[1],
        "geometry.height": study.size_px[0],
        "geometry.depth": "1",
        "geometry.channels": len(study.channel_types),
        "geometry.z_slice": "0",
        "geometry.timepoint": "0",
        "storage.path": f"synthetic/{study.name}/{identifier}-ch{number}.png",
        "treatment": field.treatment.name,
        "phenotype": field.treatment.phenotype.name,
    }
