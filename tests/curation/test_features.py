from pathlib import Path

import numpy as np
import pytest
import torch

from morphem.curation import Recipe, features_of, in_order
from morphem.curation.duplicates import NearDuplicates
from morphem.data.record import ImageRecord
from morphem.data.shards import ShardWriter, finish_set
from morphem.data.synthetic import default_studies, generate_image
from morphem.encoder import Encoder
from morphem.errors import DataError
from tests import small_shards
from tests.curation.plane_tables import image, table


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six fields of a synthetic study, and a noisy second picture of the first and the third."""
    study = default_studies()[2]
    fields = list(study.fields())[:6]
    records = [generate_image(study, field) for field in fields]
    generator = np.random.default_rng(0)
    for k in (0, 2):
        first = records[k]
        planes = [np.clip(p + generator.normal(0, 3, p.shape), 0, 255).astype(np.uint8) for p in first.planes]
        name = f"again-{k}"
        rows = [{**row, "imaging.multi_channel_id": name} for row in first.rows]
        records.append(ImageRecord(name, planes, rows, list(first.channel_names)))
    folder = tmp_path_factory.mktemp("shards")
    with ShardWriter(folder, study.name) as writer:
        for record in records:
            writer.add(record)
    finish_set(folder)
    return folder


def test_an_untrained_encoder_finds_second_pictures_and_nothing_else(root: Path) -> None:
    ids, features = features_of(root)
    assert len(ids) == 8
    planes = table(*(image(name) for name in ids))
    gone = Recipe((NearDuplicates(0.95),)).apply("s", planes, features).removed["near_duplicates"]
    assert gone == ["again-0", "again-2"]


def test_the_same_seed_gives_the_same_features_and_disturbs_no_other_draw(root: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    first = features_of(root, seed=5)[1]
    assert torch.rand(1) == expected
    assert np.array_equal(first, features_of(root, seed=5)[1])
    assert not np.allclose(first, features_of(root, seed=6)[1])


def test_a_given_model_is_used(root: Path, tmp_path: Path) -> None:
    from morphem.curation.features import untrained_encoder

    untrained_encoder(9).save_pretrained(tmp_path / "model")
    np.testing.assert_allclose(features_of(root, str(tmp_path / "model"))[1], features_of(root, seed=9)[1], atol=1e-5)
    assert isinstance(untrained_encoder(9), Encoder)


def test_one_study_of_a_set_can_be_asked_for(tmp_path: Path) -> None:
    for study in ("it's", "b"):
        record = small_shards.image("x", size=(32, 32), seed=len(study))
        rows = [{**row, "experiment.study": study} for row in record.rows]
        with ShardWriter(tmp_path, study) as writer:
            writer.add(ImageRecord("x", record.planes, rows, record.channel_names))
    finish_set(tmp_path)
    both, one = features_of(tmp_path), features_of(tmp_path, study="it's")
    assert (len(both[0]), one[0]) == (2, ["x"])
    with pytest.raises(DataError, match="two images with features have one name"):
        in_order(["x"], both)


def test_features_are_put_into_the_order_of_the_table() -> None:
    found = (["b", "a", "c"], np.array([[2.0], [1.0], [3.0]], np.float32))
    assert in_order(["a", "b"], found).tolist() == [[1.0], [2.0]]
    with pytest.raises(DataError, match="image 'd' and 1 more have no features"):
        in_order(["a", "d", "e"], found)


def test_no_bit_of_an_image_s_features_depends_on_its_neighbours(tmp_path: Path) -> None:
    records = [small_shards.image(f"i{k}", small_shards.PANEL[: 1 + k % 3], (32 + 8 * (k % 3), 40)) for k in range(8)]
    found = {}
    for name, order in {"all": range(8), "some": [4, 1, 3]}.items():
        found[name] = features_of(small_shards.write(tmp_path / name, [records[k] for k in order]))
    assert np.array_equal(in_order(["i1", "i3", "i4"], found["all"]), in_order(["i1", "i3", "i4"], found["some"]))
