"""The registry against real packages: folders with modules and *.dist-info, put on sys.path."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from morphem import registry
from morphem.errors import PluginError


class Site:
    """A site-packages folder that a test fills with packages."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.modules: list[str] = []

    def install(self, package: str, entry_points: str, *, version: str = "1.0", metadata: bool = True, **modules: str):
        info = self.folder / f"{package.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: {version}\n")
        (info / "entry_points.txt").write_text(entry_points)
        for name, source in modules.items():
            (self.folder / f"{name}.py").write_text(source)
            self.modules.append(name)
        registry.refresh()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.syspath_prepend(str(tmp_path))
    packages = Site(tmp_path)
    registry.refresh()
    yield packages
    monkeypatch.undo()
    for name in packages.modules:
        sys.modules.pop(name, None)
    registry.refresh()


GOOD = "[morphem.methods]\nvicreg = lab_good:VICReg\n"


def test_our_own_plugins_are_registered_like_a_strangers():
    assert registry.find("methods", "dino").package == "morphem"
    assert registry.find("channels", "bag_of_channels").class_path == "morphem.channels.bag_of_channels.BagOfChannels"


def test_a_strangers_plugin_is_found_with_its_package_and_version(site: Site):
    site.install("lab-good", GOOD, version="2.3", lab_good="class VICReg: pass")
    plugin = registry.find("methods", "vicreg")
    assert (plugin.package, plugin.version, plugin.target) == ("lab-good", "2.3", "lab_good:VICReg")
    assert registry.get("methods", "vicreg").__name__ == "VICReg"


def test_listing_imports_nothing(site: Site):
    site.install("lab-good", GOOD, lab_good="raise RuntimeError('imported')")
    assert "vicreg" in registry.names("methods")
    assert registry.find("methods", "vicreg")
    assert "lab_good" not in sys.modules


def test_names_are_sorted_and_come_once(site: Site):
    site.install("lab-a", "[morphem.methods]\nzebra = a:Z\nant = a:A\n")
    names = registry.names("methods")
    assert names == sorted(set(names))
    assert {"ant", "zebra", "dino"} <= set(names)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("import a_package_that_is_not_installed", "ModuleNotFoundError: No module named"),
        ("raise RuntimeError('first line\\nsecond line')", "RuntimeError: first line;"),
        ("raise ValueError", "ValueError;"),
        ("def broken(:", "SyntaxError"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_plugin_is_reported_by_name_and_package(site: Site, source: str, reason: str):
    site.install("lab-bad", "[morphem.methods]\nbad = lab_bad:Bad\n", version="0.9", lab_bad=source)
    with pytest.raises(PluginError) as caught:
        registry.get("methods", "bad")
    message = str(caught.value)
    assert message.startswith("Plug-in 'bad' (lab_bad:Bad) of lab-bad 0.9 cannot be imported: ")
    assert reason in message
    assert message.endswith("update or uninstall lab-bad.")
    assert "\n" not in message


def test_a_broken_plugin_leaves_the_others_working(site: Site):
    site.install("lab-bad", "[morphem.methods]\nbad = lab_bad:Bad\n", lab_bad="1 / 0")
    site.install("lab-good", GOOD, lab_good="class VICReg: pass")
    assert {"bad", "vicreg", "dino"} <= set(registry.names("methods"))
    assert registry.get("methods", "vicreg").__name__ == "VICReg"


def test_two_packages_with_one_name_are_refused_naming_both(site: Site):
    site.install("lab-one", "[morphem.methods]\nvicreg = one:VICReg\n", version="1.0")
    site.install("lab-two", "[morphem.methods]\nvicreg = two:VICReg\n", version="2.0")
    with pytest.raises(PluginError, match=r"claimed by lab-one 1\.0 \(one:VICReg\) and lab-two 2\.0 \(two:VICReg\)"):
        registry.get("methods", "vicreg")


def test_two_packages_that_register_the_same_class_are_refused_too(site: Site):
    site.install("lab-one", GOOD)
    site.install("lab-copy", GOOD)
    with pytest.raises(PluginError, match=r"lab-copy .* and lab-one .*; uninstall one of them"):
        registry.find("methods", "vicreg")


def test_nobody_can_take_over_one_of_our_names(site: Site):
    site.install("lab-dino", "[morphem.methods]\ndino = lab_dino:DINO\n")
    with pytest.raises(PluginError, match=r"claimed by lab-dino .* and morphem "):
        registry.get("methods", "dino")


def test_a_name_claimed_twice_leaves_the_others_working(site: Site):
    site.install("lab-one", "[morphem.methods]\nvicreg = one:VICReg\n")
    site.install("lab-two", "[morphem.methods]\nvicreg = two:VICReg\nbyol = two:BYOL\n", two="class BYOL: pass")
    assert registry.get("methods", "byol").__name__ == "BYOL"


def test_one_name_in_two_groups_is_no_clash(site: Site):
    site.install("lab", "[morphem.methods]\nant = lab_m:M\n[morphem.channels]\nant = lab_m:C\n", lab_m="M = C = 1")
    assert registry.find("methods", "ant").target == "lab_m:M"
    assert registry.find("channels", "ant").target == "lab_m:C"


def test_an_older_copy_further_down_the_path_is_not_a_second_package(site: Site, tmp_path_factory, monkeypatch):
    site.install("lab-good", GOOD, version="2.0", lab_good="class VICReg: pass")
    older = Site(tmp_path_factory.mktemp("older"))
    older.install("lab.good", GOOD, version="1.0")
    monkeypatch.setattr(sys, "path", [*sys.path, str(older.folder)])
    registry.refresh()
    assert registry.find("methods", "vicreg").version == "2.0"


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match=r"No plug-in of group 'methods' 'dinno'; did you mean 'dino'\? known: "):
        registry.get("methods", "dinno")


def test_an_unknown_group_is_answered_with_the_nearest():
    with pytest.raises(PluginError, match=r"No plug-in group 'method'; did you mean 'methods'\?"):
        registry.names("method")


def test_a_package_with_a_damaged_entry_points_file_is_named_and_skipped(site: Site):
    site.install("lab-good", GOOD, lab_good="class VICReg: pass")
    site.install("lab-odd", "[morphem.methods]\nthis line has no equals sign\n")
    assert registry.get("methods", "vicreg")
    (fault,) = registry.faults()
    assert (fault.package, "entry_points.txt" in fault.reason) == ("lab_odd", True)


def test_a_damaged_file_that_does_not_concern_us_is_passed_over(site: Site):
    site.install("lab-odd", "[console_scripts]\nthis line has no equals sign\n")
    assert registry.faults() == ()
    assert "dino" in registry.names("methods")


def test_a_registration_in_a_misspelt_group_is_reported(site: Site):
    site.install("lab-odd", "[morphem.method]\nvicreg = lab_good:VICReg\n")
    (fault,) = registry.faults()
    assert fault.package == "lab-odd"
    assert "did you mean 'methods'?" in fault.reason


def test_a_registration_of_a_whole_module_is_reported(site: Site):
    site.install("lab-odd", "[morphem.methods]\nvicreg = lab_good\n")
    assert "not of the form module:name" in registry.faults()[0].reason
    assert "vicreg" not in registry.names("methods")


def test_an_unknown_name_mentions_what_could_not_be_read(site: Site):
    site.install("lab-odd", "[morphem.methods]\nvicreg = lab_good\n")
    with pytest.raises(PluginError, match=r"Left out: lab-odd, 'vicreg' points to 'lab_good'"):
        registry.find("methods", "vicreg")


def test_a_package_without_metadata_is_named_after_its_folder(site: Site):
    site.install("lab-good", GOOD, version="0.7", metadata=False, lab_good="class VICReg: pass")
    plugin = registry.find("methods", "vicreg")
    assert (plugin.package, plugin.version) == ("lab_good", "0.7")


def test_extras_behind_a_target_are_ignored(site: Site):
    site.install("lab-good", "[morphem.methods]\nvicreg = lab_good : VICReg [gpu]\n", lab_good="class VICReg: pass")
    assert registry.find("methods", "vicreg").class_path == "lab_good.VICReg"
    assert registry.get("methods", "vicreg").__name__ == "VICReg"


def test_a_class_knows_its_name_also_through_a_module_that_re_exports_it(site: Site):
    site.install(
        "lab-good",
        "[morphem.methods]\nvicreg = lab_front:VICReg\n",
        lab_inner="class VICReg: pass",
        lab_front="from lab_inner import VICReg",
    )
    assert registry.name_of(registry.get("methods", "vicreg")) == "vicreg"


def test_a_class_that_nobody_registered_has_no_name():
    assert registry.name_of(int) is None


def test_refresh_sees_a_package_installed_since(site: Site):
    assert "vicreg" not in registry.names("methods")
    site.install("lab-good", GOOD)
    assert "vicreg" in registry.names("methods")
