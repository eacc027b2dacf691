import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from morphem.data.schema import COLUMNS, channel_vocabulary
from morphem.data.shards import ShardSet, resolve_root
from morphem.data.synthetic import (
    SAMPLES,
    STAINS,
    UNTREATED,
    Phenotype,
    SyntheticStudy,
    Treatment,
    default_studies,
    generate_image,
    sample_root,
    write_sample,
)
from morphem.errors import ChannelError, ConfigError, DataError

CLUMPS = Phenotype("clumps", stress_fibres=0.05, actin_clumps=0.9)


def small(**changes):
    settings = {"name": "small", "channel_types": ("nucleus", "actin"), "size_px": (48, 64), "n_fields": 1}
    return SyntheticStudy(**(settings | {"treatments": (Treatment("compound 01", CLUMPS),)} | changes))


def digest(study):
    image = generate_image(study, next(study.fields()))
    return hashlib.sha256(b"".join(plane.tobytes() for plane in image.planes)).hexdigest()


def first(study):
    return generate_image(study, next(study.fields()))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_another_process_paints_the_same_bytes():
    code = (
        "import hashlib; from morphem.data.synthetic import default_studies, generate_image; "
        "s = default_studies()[1]; i = generate_image(s, next(s.fields())); "
        "print(hashlib.sha256(b''.join(p.tobytes() for p in i.planes)).hexdigest())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    assert there.stdout.strip() == digest(default_studies()[1])


def test_an_image_does_not_depend_on_the_images_made_before():
    study = small()
    fields = list(study.fields())
    alone = generate_image(study, fields[-1]).planes
    for field in fields:
        last = generate_image(study, field).planes
    assert all(np.array_equal(a, b) for a, b in zip(alone, last, strict=True))


def test_another_seed_gives_another_image():
    assert digest(small(seed=0)) != digest(small(seed=1))


def test_other_plates_show_other_cells():
    assert not np.array_equal(first(small()).planes[0], first(small().on_plates(5, 1)).planes[0])


def test_the_default_studies_have_one_to_five_channels_and_differ_in_size_and_magnification():
    studies = default_studies()
    assert sorted(len(study.channel_types) for study in studies) == [1, 2, 3, 4, 5]
    assert len({study.size_px for study in studies}) >= 4
    assert len({study.magnification for study in studies}) >= 3


def test_every_stain_is_a_name_of_the_channel_vocabulary():
    assert set(STAINS) <= set(channel_vocabulary())


@pytest.mark.parametrize("stain", STAINS)
def test_every_stain_shows_structure_and_uses_the_whole_range(stain):
    plane = first(small(channel_types=(stain,), confluency=(1.0, 1.0))).planes[0]
    assert plane.dtype == np.uint8
    assert plane.shape == (48, 64)
    assert (plane.min(), plane.max()) == (0, 255)
    assert plane.std() > 10


def test_a_row_has_the_22_columns_and_the_labels():
    row = first(small()).rows[1]
    assert set(row) == set(COLUMNS) | {"treatment", "phenotype"}
    assert (row["imaging.channel"], row["imaging.channel_type"]) == (2, "actin")


def test_bright_field_says_so_in_the_metadata():
    rows = first(small(channel_types=("nucleus", "bright-field"))).rows
    assert [row["microscopy.type"] for row in rows] == ["fluorescence", "bright-field"]


def test_cells_lie_inside_and_nuclei_are_brighter_there():
    image = first(small(channel_types=("nucleus",), size_px=(160, 160), confluency=(0.8, 0.8)))
    x, y = image.cells.T
    assert len(x) > 3
    assert ((image.cells >= 0) & (image.cells < 160)).all()
    assert image.planes[0][y, x].mean() > 2 * image.planes[0].mean()


def test_a_plate_holds_controls_and_replicates_in_a_layout_of_its_own():
    study = small(n_replicates=3, n_control_wells=4)
    plates = [study.wells(plate) for plate in range(2)]
    for wells in plates:
        names = [treatment.name for _, treatment in wells]
        assert (names.count("DMSO"), names.count("compound 01")) == (4, 3)
        assert len({well for well, _ in wells}) == 7
    assert [t.name for _, t in plates[0]] != [t.name for _, t in plates[1]]


def test_controls_are_marked_in_the_metadata():
    study = small()
    field = next(field for field in study.fields() if field.treatment is UNTREATED)
    row = generate_image(study, field).rows[0]
    assert (row["experiment.control"], row["phenotype"]) == ("negative", "untreated")


def test_without_penetrance_no_cell_responds():
    study = small(penetrance=0.0, size_px=(96, 96))
    field = next(field for field in study.fields() if field.treatment.name == "compound 01")
    assert set(generate_image(study, field).cell_labels["cell_phenotype"]) == {"untreated"}


def test_strength_0_is_an_untreated_cell():
    assert CLUMPS.at(0.0).traits() == Phenotype("clumps").traits()
    assert CLUMPS.at(1.0) == CLUMPS


def backgrounds(strength):
    """Low clip limit of the same channel on eight plates."""
    study = small(batch_effect=strength, n_plates=8, confluency=(0.3, 0.3), treatments=())
    fields = [field for field in study.fields() if field.well == "A01"]
    return np.asarray([generate_image(study, field).clip_limits[0][0] for field in fields])


def test_a_stronger_batch_effect_sets_plates_further_apart():
    weak, normal, strong = (np.ptp(backgrounds(strength)) for strength in (0.0, 1.0, 3.0))
    assert weak < normal < strong


def fold_accuracy(values, labels, plates):
    """Share of images whose nearest class mean, learnt on other plates, is their own."""
    hits = 0
    for plate in set(plates):
        test = plates == plate
        names = sorted(set(labels))
        scale = values[~test].std(0) + 1e-9
        means = np.stack([values[~test & (labels == name)].mean(0) for name in names])
        gaps = np.square((values[test][:, None] - means[None]) / scale).sum(2)
        hits += (np.asarray(names)[gaps.argmin(1)] == labels[test]).sum()
    return hits / len(labels)


@pytest.mark.slow
def test_the_mean_of_planes_hardly_tells_phenotypes_but_their_texture_does():
    study = replace(default_studies()[0], n_plates=6, n_replicates=2, n_control_wells=2, n_fields=1)
    means, textures, labels, plates = [], [], [], []
    for field in study.fields():
        planes = [plane.astype(float) for plane in generate_image(study, field).planes]
        means.append([plane.mean() for plane in planes])
        textures.append([statistic for plane in planes for statistic in texture(plane)])
        labels.append(field.treatment.phenotype.name)
        plates.append(field.plate)
    labels, plates = np.asarray(labels), np.asarray(plates)
    by_mean = fold_accuracy(np.asarray(means), labels, plates)
    by_texture = fold_accuracy(np.asarray(textures), labels, plates)
    assert by_mean < 0.35  # chance is 1/6
    assert by_texture > by_mean + 0.15


def texture(plane):
    """Shape of the histogram, and energy of differences at distances of 1 to 8 pixels, without the mean level."""
    z = (plane - plane.mean()) / (plane.std() + 1e-9)
    shape = [np.abs(z**3).mean(), (z**4).mean()]
    return shape + [np.square(z[d:] - z[:-d]).mean() for d in (1, 2, 4, 8)]


def test_an_unknown_stain_is_refused_with_the_nearest_name():
    with pytest.raises(ChannelError, match=r"No synthetic stain 'nucleuss'.*did you mean 'nucleus'"):
        small(channel_types=("nucleuss",))


def test_a_channel_given_twice_is_refused():
    with pytest.raises(ChannelError, match="must be different"):
        small(channel_types=("actin", "actin"))


@pytest.mark.parametrize(("key", "value"), [("penetrance", 1.5), ("batch_effect", -1.0), ("size_px", (8, 64))])
def test_a_setting_out_of_range_is_refused_by_name(key, value):
    with pytest.raises(ConfigError, match=key):
        small(**{key: value})


def test_a_study_goes_through_shards_and_back(tmp_path):
    write_sample(tmp_path / "set", [small(n_plates=1)])
    shards = ShardSet(str(tmp_path / "set"))
    table = shards.table(columns=["phenotype", "imaging.channel_type"]).to_pandas()
    assert set(table["phenotype"]) == {"untreated", "clumps"}
    assert set(table["imaging.channel_type"]) == {"nucleus", "actin"}
    assert len(table) == 2 * small(n_plates=1).n_images
    shards.verify()


def test_progress_is_called_once_per_image(tmp_path):
    calls = []
    write_sample(tmp_path / "set", [small(n_plates=1)], progress=lambda: calls.append(1))
    assert len(calls) == small(n_plates=1).n_images


def test_the_tiny_sample_has_all_five_studies(cache):
    root = sample_root("tiny")
    assert root.parent == cache
    assert set(json.loads((root / "manifest.json").read_text())["studies"]) == {s.name for s in default_studies()}


def test_a_sample_is_made_once(cache):
    root = sample_root("tiny")
    before = (root / "manifest.json").stat().st_mtime_ns
    assert sample_root("tiny") == root
    assert (root / "manifest.json").stat().st_mtime_ns == before


def test_asking_twice_at_once_gives_one_sample_and_no_litter(cache):
    with ThreadPoolExecutor(2) as pool:
        first_root, second_root = pool.map(sample_root, ["tiny", "tiny"])
    assert first_root == second_root
    assert [path.name for path in cache.iterdir()] == [first_root.name]
    ShardSet(str(first_root)).verify()


def test_a_failure_leaves_no_half_written_sample(cache, monkeypatch):
    def broken():
        raise RuntimeError("stop")

    monkeypatch.setitem(SAMPLES, "tiny", broken)
    with pytest.raises(RuntimeError, match="stop"):
        sample_root("tiny")
    assert list(cache.iterdir()) == []


def test_shards_find_a_sample_by_its_address(cache):
    assert Path(resolve_root("sample://tiny")) == sample_root("tiny")


def test_an_unknown_sample_is_refused_with_the_known_ones():
    with pytest.raises(DataError, match=r"No sample 'trian'; did you mean 'train'\?"):
        sample_root("trian")


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match="MORPHEM_CACHE"):
        sample_root("tiny")


def test_held_out_plates_are_not_trained_on():
    plates = {name: {(s.name, f.plate) for s in SAMPLES[name]() for f in s.fields()} for name in ("train", "heldout")}
    assert not plates["train"] & plates["heldout"]
