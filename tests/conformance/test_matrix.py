"""Every registered method over every registered channel strategy trains, or is refused with a reason."""

from pathlib import Path

import pytest

from morphem import registry
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.cli.plugins import main
from morphem.methods.dino import DINO
from morphem.testing import ContractError, check_gain, check_pair
from morphem.testing.gain import LEAST_GAIN
from morphem.testing.pairs import matrix_table, refusal
from tests.conformance import odd_methods
from tests.conformance.odd_parts import MeanOfChannels

PAIRS = [(method, strategy) for method in registry.names("methods") for strategy in registry.names("channels")]


@pytest.mark.parametrize(("method", "strategy"), PAIRS, ids=[f"{method}-{strategy}" for method, strategy in PAIRS])
def test_a_pair_is_built_or_refused_with_a_reason(method: str, strategy: str):
    reason = refusal(registry.get("methods", method), registry.get("channels", strategy))
    refused = method == "cha_mae" and strategy in ("bag_of_channels", "fixed_channels")
    assert (reason is not None) == refused, reason


@pytest.mark.slow
@pytest.mark.parametrize(("method", "strategy"), PAIRS, ids=[f"{method}-{strategy}" for method, strategy in PAIRS])
def test_a_pair_trains_and_resumes_or_is_refused(method: str, strategy: str):
    check_pair(registry.get("methods", method), registry.get("channels", strategy))


@pytest.mark.slow
@pytest.mark.parametrize(("method", "strategy"), PAIRS, ids=[f"{method}-{strategy}" for method, strategy in PAIRS])
def test_the_embeddings_of_a_pair_beat_those_of_an_untrained_encoder(method: str, strategy: str):
    cls, over = registry.get("methods", method), registry.get("channels", strategy)
    if reason := refusal(cls, over):
        pytest.skip(f"{method} refuses {strategy}: {reason}")
    assert check_gain(cls, over) >= LEAST_GAIN


def test_every_method_and_every_strategy_has_a_partner():
    open_pairs = [
        (method, strategy)
        for method, strategy in PAIRS
        if refusal(registry.get("methods", method), registry.get("channels", strategy)) is None
    ]
    assert {method for method, _ in open_pairs} == set(registry.names("methods"))
    assert {strategy for _, strategy in open_pairs} == set(registry.names("channels"))


@pytest.mark.usefixtures("odd_plugins")
def test_dino_trains_a_strategy_that_gives_one_embedding_per_image():
    assert check_pair(DINO, MeanOfChannels, epochs=15) is None


class Refusing(DINO):
    """Refuses strategies that embed planes alone."""

    @classmethod
    def compatible(cls, strategy):
        return "it compares whole images" if strategy.per_channel else None


class Yielding(Refusing):
    """Says that it refuses, but is built all the same."""

    def __init__(self, *args, **kwargs):
        asked, type(self).compatible = type(self).compatible, classmethod(lambda cls, strategy: None)
        super().__init__(*args, **kwargs)
        type(self).compatible = asked


def test_a_refusal_is_returned_with_its_reason():
    assert check_pair(Refusing, BagOfChannels) == "it compares whole images"


def test_a_method_that_refuses_a_strategy_but_is_built_with_it_is_caught():
    with pytest.raises(
        ContractError, match=r"does not work with BagOfChannels \(it compares whole images\), but is built"
    ):
        check_pair(Yielding, BagOfChannels)


@pytest.mark.usefixtures("odd_plugins")
def test_a_method_whose_smallest_instance_takes_no_encoder_is_named():
    with pytest.raises(ContractError, match=r"Agree: its tiny\(\) takes no `encoder`"):
        check_pair(odd_methods.Agree, MeanOfChannels)


def test_the_table_numbers_the_reasons():
    cells = {("mae", "bag"): None, ("mae", "slot"): "it needs tokens", ("dino", "bag"): None, ("dino", "slot"): None}
    assert matrix_table(cells).splitlines() == [
        "| method | `bag` | `slot` |",
        "|---|---|---|",
        "| `dino` | yes | yes |",
        "| `mae` | yes | no (1) |",
        "",
        "1. It needs tokens.",
    ]


def test_the_command_prints_the_matrix_of_what_is_registered(capsys: pytest.CaptureFixture[str]):
    assert main(["--matrix"]) == 0
    printed = capsys.readouterr().out
    for name in (*registry.names("methods"), *registry.names("channels")):
        assert f"`{name}`" in printed


def test_the_matrix_takes_no_group(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["methods", "--matrix"])
    assert "--matrix looks at all methods" in capsys.readouterr().err


def test_the_readme_has_the_table_that_the_command_prints(capsys: pytest.CaptureFixture[str]):
    readme = Path(__file__).parents[2] / "README.md"
    shown = [*registry.plugins("methods"), *registry.plugins("channels")]
    if any(plugin.package != "morphem" for plugin in shown):
        pytest.skip("plug-ins of other packages are installed, so the table has more rows")
    assert main(["--matrix"]) == 0
    assert capsys.readouterr().out.strip() in readme.read_text()
