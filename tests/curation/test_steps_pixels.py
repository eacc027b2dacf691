import math

import numpy as np
import pytest

from morphem.curation.steps_pixels import Foreground, Intensity, Quality, Select
from morphem.errors import ChannelError, ConfigError, DataError
from tests.curation.plane_tables import image, kept, names, table


def _bright(means: list[list[float]]):
    return table(*(image(f"i{k}", quality__mean=pair) for k, pair in enumerate(means)))


def _too_dark(values: list[float], deviations: float) -> list[bool]:
    """The rule again, from the definition."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    gaps = sorted(abs(value - median) for value in values)
    mad = gaps[middle] if len(gaps) % 2 else (gaps[middle - 1] + gaps[middle]) / 2
    return [value < median - deviations * 1.4826 * mad for value in values]


@pytest.mark.parametrize("deviations", [1.0, 2.0, 3.0])
def test_dark_planes_are_those_far_below_the_median_of_their_channel(deviations: float) -> None:
    generator = np.random.default_rng(0)
    means = generator.normal([500, 90], [40, 5], (41, 2))
    means[[3, 17], [0, 1]] = [100, 20]
    planes = _bright(means.tolist())
    dark = [_too_dark(means[:, channel].tolist(), deviations) for channel in (0, 1)]
    expected = [name for k, name in enumerate(names(planes)) if not (dark[0][k] or dark[1][k])]
    assert kept(Intensity(deviations=deviations), planes) == expected
    assert not {"i3", "i17"} & set(expected)


def test_the_offset_and_gain_of_the_camera_change_nothing() -> None:
    means = np.random.default_rng(1).normal(300, 30, (30, 2))
    means[4] = 60
    one, other = _bright(means.tolist()), _bright((means * 7 + 1000).tolist())
    assert kept(Intensity(deviations=2), one) == kept(Intensity(deviations=2), other)


def test_an_image_goes_when_any_or_when_all_of_its_planes_are_dark() -> None:
    planes = _bright([[100, 50], [101, 51], [99, 49], [100, 1], [1, 1], [102, 52], [98, 48]])
    assert kept(Intensity(deviations=3), planes) == ["i0", "i1", "i2", "i5", "i6"]
    assert kept(Intensity(deviations=3, planes="all"), planes) == ["i0", "i1", "i2", "i3", "i5", "i6"]


def test_the_darkest_share_of_the_planes_goes() -> None:
    planes = _bright([[float(k), 1000.0 - k] for k in range(20)])
    assert kept(Intensity(darkest=0.1), planes) == [f"i{k}" for k in range(2, 18)]


def test_equally_dark_planes_stay_together() -> None:
    planes = _bright([[5.0, 5.0]] * 10)
    assert len(kept(Intensity(darkest=0.3), planes)) == 10
    assert len(kept(Intensity(deviations=3), planes)) == 10


def test_one_rule_for_dark_planes_is_needed() -> None:
    for settings in ({}, {"deviations": 3, "darkest": 0.1}):
        with pytest.raises(ConfigError, match="intensity needs one rule"):
            Intensity(**settings)


def test_planes_without_a_mean_are_an_error() -> None:
    with pytest.raises(DataError, match=r"'intensity' needs the column 'quality\.mean'"):
        kept(Intensity(deviations=3), table(image("a")))
    with pytest.raises(DataError, match=r"\(actin\) of image 'b' does not have"):
        kept(Intensity(deviations=3), _bright([[1, 1]]).replace("i0", "b").assign(**{"quality.mean": [1.0, math.nan]}))


def test_images_with_too_little_foreground_in_the_nucleus_go() -> None:
    planes = table(
        image("empty", quality__foreground=[0.009, 0.9]),
        image("just", quality__foreground=[0.01, 0.0]),
        image("other", ("actin",), quality__foreground=[0.0]),
    )
    assert kept(Foreground(), planes) == ["just", "other"]
    assert Foreground().remark(planes) == "foreground: 1 of 3 images have no channel 'nucleus' and were kept"
    assert kept(Foreground(0.5, "actin"), planes) == ["empty"]


def test_the_channel_of_the_foreground_has_its_aliases() -> None:
    assert Foreground(channel_type="DAPI").channel_type == "nucleus"
    with pytest.raises(ChannelError, match="nearest"):
        Foreground(channel_type="nucleolusses")


def test_a_query_keeps_images_whose_planes_all_match() -> None:
    planes = table(
        image("sharp", quality__focus=[0.5, 0.6]),
        image("half", quality__focus=[0.5, 0.1]),
        image("blank", quality__focus=[0.5, None]),
    )
    assert kept(Quality("quality.focus > 0.3"), planes) == ["sharp"]
    assert kept(Quality("quality.focus > 0.3", planes="any"), planes) == ["sharp", "half", "blank"]
    one = "imaging.channel_type != 'actin' or quality.focus == None or quality.focus > 0.3"
    assert kept(Quality(one), planes) == ["sharp", "blank"]


def test_a_query_reads_whole_numbers_texts_and_labels() -> None:
    planes = table(
        image("a", geometry__width=100, experiment__plate="P1", donor="7"),
        image("b", geometry__width=90, experiment__plate="P1", donor=""),
        image("c", geometry__width=1000),
    )
    assert kept(Select("geometry.width > 95"), planes) == ["a", "c"]
    assert kept(Select("experiment.plate == 'unknown'"), planes) == ["c"]
    assert kept(Select("donor == None"), planes) == ["b", "c"]


def test_a_query_on_pixels_and_one_without_are_two_steps() -> None:
    for query in ("quality.focus > 0.1", "experiment.plate == 'P1' and n_cells > 0"):
        with pytest.raises(ConfigError, match="use 'quality'"):
            Select(query)
    with pytest.raises(ConfigError, match="use 'select'"):
        Quality("geometry.width > 1")


def test_a_query_on_a_column_that_is_not_there_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no column 'experiment\.plat'.*experiment\.plate"):
        kept(Select("experiment.plat == 'a'"), table(image("a", experiment__plate="a")))


def test_images_without_cells_can_be_asked_for() -> None:
    planes = table(image("a"), image("b")).assign(n_cells=[0, 0, 7, 7])
    assert kept(Quality("n_cells > 0"), planes) == ["b"]


def test_a_label_that_says_unknown_is_a_text() -> None:
    planes = table(image("a", donor="unknown"), image("b", donor="nan"), image("c"))
    assert kept(Select("donor == 'unknown'"), planes) == ["a"]
    assert kept(Select("donor == None"), planes) == ["b", "c"]
