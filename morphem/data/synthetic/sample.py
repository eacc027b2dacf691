"""The sample data: five synthetic studies, written as shards into the user's cache on first use."""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from tqdm.auto import tqdm

from morphem.data.cache import cache_folder
from morphem.data.shards import ShardWriter, finish_set
from morphem.data.synthetic.scene import Phenotype
from morphem.data.synthetic.study import SyntheticStudy, Treatment, generate_image
from morphem.errors import DataError, unknown_name

# Part of the folder's name: a change in any pixel or label needs a new number, so that nobody mixes old and new.
SAMPLE_VERSION = 2

# Half of a normal screen: batch effects stay visible, and a few minutes of training on a CPU see past them.
BATCH_EFFECT = 0.5

LOBED = Phenotype("lobed nuclei", nuclear_size=0.97, nuclear_lobes=0.3, chromatin_grain=1.6, arborisation=0.05)
GRAINS = Phenotype("fragmented mitochondria", mitochondrial_fragmentation=1.0, reticulum_coarseness=1.5, vacuoles=4.0)
COLLAPSED = Phenotype("collapsed actin", stress_fibres=0.05, actin_clumps=0.9, arborisation=0.45)
DISPERSED = Phenotype("dispersed golgi", golgi_dispersal=1.0, reticulum_coarseness=2.0)
SPINDLE = Phenotype("spindle cells", elongation=3.2, arborisation=0.05)
INTERNALISED = Phenotype("internalised receptor", internalisation=0.8)
VACUOLES = Phenotype("vacuoles", vacuoles=9.0, reticulum_coarseness=1.3)
ROUND = Phenotype("rounded cells", rounding=0.9, stress_fibres=0.1)
BUNDLES = Phenotype("bundled microtubules", microtubule_bundling=1.0, binucleate=0.3)
SWOLLEN = Phenotype("swollen lysosomes", vesicles=8.0, vesicle_size=2.0)


def _compounds(*phenotypes: Phenotype, per_phenotype: int = 1) -> tuple[Treatment, ...]:
    """One or more made-up compounds for each phenotype, the first at full strength."""
    names = iter(range(1, 1000))
    return tuple(
        Treatment(f"compound {next(names):02d}", phenotype, strength=1.0 - 0.2 * k)
        for phenotype in phenotypes
        for k in range(per_phenotype)
    )


def default_studies() -> tuple[SyntheticStudy, ...]:
    """Return the five studies of the sample, with 5, 4, 3, 2 and 1 channels."""
    return (
        SyntheticStudy(
            name="synthetic-painting",
            channel_types=("nucleus", "endoplasmic reticulum", "actin", "golgi body", "mitochondria"),
            treatments=_compounds(LOBED, GRAINS, COLLAPSED, DISPERSED, SPINDLE),
            pixel_um=0.5,
            cell_line="painted cells",
            batch_effect=BATCH_EFFECT,
        ),
        SyntheticStudy(
            name="synthetic-live",
            channel_types=("nucleus", "mitochondria", "lysosome", "bright-field"),
            treatments=_compounds(GRAINS, SWOLLEN, ROUND),
            magnification="40x",
            pixel_um=0.40,
            size_px=(224, 256),
            n_plates=1,
            cell_line="live cells",
            batch_effect=BATCH_EFFECT,
        ),
        SyntheticStudy(
            name="synthetic-cytoskeleton",
            channel_types=("nucleus", "microtubules", "actin"),
            treatments=_compounds(BUNDLES, COLLAPSED, SPINDLE),
            magnification="40x",
            pixel_um=0.45,
            size_px=(240, 240),
            n_plates=1,
            cell_line="stained cells",
            batch_effect=BATCH_EFFECT,
        ),
        SyntheticStudy(
            name="synthetic-receptor",
            channel_types=("nucleus", "protein"),
            treatments=_compounds(INTERNALISED, LOBED, per_phenotype=2),
            magnification="10x",
            pixel_um=1.0,
            size_px=(160, 224),
            cell_um=16.0,
            cell_line="reporter cells",
            batch_effect=BATCH_EFFECT,
        ),
        SyntheticStudy(
            name="synthetic-brightfield",
            channel_types=("bright-field",),
            treatments=_compounds(VACUOLES, SPINDLE, ROUND),
            size_px=(208, 208),
            cell_line="unstained cells",
            batch_effect=BATCH_EFFECT,
        ),
    )


def _train() -> tuple[SyntheticStudy, ...]:
    return default_studies()


def _heldout() -> tuple[SyntheticStudy, ...]:
    painting = default_studies()[0]
    return (replace(painting.on_plates(10, 4), n_replicates=8, n_control_wells=8, n_fields=2),)


def _tiny() -> tuple[SyntheticStudy, ...]:
    """The five studies with few, small images: for tests."""
    return tuple(
        replace(
            study,
            size_px=(72 + 8 * k, 96 - 8 * k),
            pixel_um=1.3 * study.pixel_um,
            treatments=study.treatments[:1],
            n_plates=1,
            n_replicates=2,
            n_control_wells=2,
            n_fields=1,
        )
        for k, study in enumerate(default_studies())
    )


SAMPLES: dict[str, Callable[[], tuple[SyntheticStudy, ...]]] = {"train": _train, "heldout": _heldout, "tiny": _tiny}


def write_sample(
    root: str | os.PathLike[str],
    studies: Iterable[SyntheticStudy],
    progress: Callable[[], object] | None = None,
) -> None:
    """Paint studies and write them as a shard set.

    Args:
        root: Folder of the shard set; may hold other studies already.
        studies: Studies with different names.
        progress: Called after each image.

    Raises:
        DataError: If the set has one of the studies already, or the disk is full.
    """
    for study in studies:
        with ShardWriter(Path(root), study.name) as writer:
            for field in study.fields():
                writer.add(generate_image(study, field))
                if progress is not None:
                    progress()
    finish_set(Path(root))


def sample_root(name: str) -> Path:
    """Return the folder of a sample, and make it on first use; two processes may ask at once.

    Args:
        name: `train`: five studies to train on. `heldout`: other plates of the first of them, to probe on, with the
            labels `treatment` and `phenotype`. `tiny`: a few small images of all five, for tests.

    Raises:
        DataError: If there is no such sample, or the cache folder cannot be written.
    """
    if name not in SAMPLES:
        raise DataError(unknown_name("sample", name, SAMPLES))
    root = cache_folder() / f"sample-v{SAMPLE_VERSION}-{name}"
    if not (root / "manifest.json").is_file():
        try:
            _make(root, name)
        except OSError as fault:
            raise DataError(
                f"cannot write the sample data to {root} ({fault}); set MORPHEM_CACHE to a folder with 100 MB to spare."
            ) from fault
    return root


def _make(root: Path, name: str) -> None:
    """Write a sample beside its place and move it there in one step; whoever comes second throws his away."""
    root.parent.mkdir(parents=True, exist_ok=True)
    _sweep(root)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        studies = SAMPLES[name]()
        total = sum(study.n_images for study in studies)
        with tqdm(total=total, desc=f"Making sample data '{name}' (once)", unit="image", disable=None) as bar:
            write_sample(partial, studies, progress=bar.update)
        partial.chmod(0o755)
        try:
            partial.rename(root)
        except OSError:
            if not (root / "manifest.json").is_file():
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _sweep(root: Path) -> None:
    """Remove what a killed process left a day or more ago."""
    for left in root.parent.glob(f".{root.name}.*"):
        if time.time() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
