"""Files of records: into the caches, out of them, by hand, and under their licences."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import constants

from morphem.errors import WeightsError
from morphem.zoo import licences
from morphem.zoo.base import Record, WebFile
from morphem.zoo.download import fetch, folder_of
from tests.zoo.servers import Behaviour, serving
from tests.zoo.tiny_family import HAND, HUB, NC, WEB, write


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return tmp_path / "cache"


@pytest.fixture
def behaviour(tmp_path: Path) -> Behaviour:
    write(tmp_path / "made.pth")
    return Behaviour((tmp_path / "made.pth").read_bytes())


@pytest.fixture
def address(behaviour: Behaviour) -> Iterator[str]:
    with serving(behaviour) as base:
        yield f"{base}/tiny.pth"


def at(address: str, sha256: str | None = None, record: Record = WEB) -> Record:
    return replace(record, location=WebFile(address, sha256))


def test_a_file_from_an_address_lands_in_the_cache_and_is_fetched_once(
    address: str, behaviour: Behaviour, cache: Path
) -> None:
    first = fetch(at(address), progress=False)
    assert first.path == cache / "zoo" / "tiny-web" / "tiny.pth"
    assert first.revision.startswith("sha256:")
    assert fetch(at(address), progress=False) == first
    assert len(behaviour.requests) == 1


def test_side_files_come_along(address: str, cache: Path) -> None:
    beside = address.replace("tiny.pth", "config.json")
    fetch(replace(WEB, location=WebFile(address, sidecars=(beside,))), progress=False)
    assert (cache / "zoo" / "tiny-web" / "config.json").is_file()


def test_without_a_published_hash_the_first_download_is_remembered(address: str, behaviour: Behaviour) -> None:
    path = fetch(at(address), progress=False).path
    path.unlink()
    behaviour.data = behaviour.data[:-1] + b"x"
    with pytest.raises(WeightsError, match="is not the file that was published"):
        fetch(at(address), progress=False)


def test_a_file_that_was_changed_in_the_cache_is_refused(address: str) -> None:
    path = fetch(at(address), progress=False).path
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(WeightsError, match=r"tiny\.pth is not the file that was published .*delete it and fetch"):
        fetch(at(address), progress=False)


def test_a_file_put_there_by_hand_must_be_the_published_one(cache: Path) -> None:
    found = write(cache / "zoo" / "tiny-web" / "tiny.pth")
    assert fetch(at("https://example.org/tiny.pth", found)).revision == f"sha256:{found}"
    with pytest.raises(WeightsError, match=rf"SHA-256 {found}, expected 00"):
        fetch(at("https://example.org/tiny.pth", "0" * 64))


@pytest.mark.parametrize("record", [WEB, HUB])
def test_offline_the_error_says_what_to_fetch_and_where_to_put_it(record: Record, cache: Path) -> None:
    what = {
        "tiny-web": r"fetch https://example\.org/tiny\.pth by hand",
        "tiny-hub": r"download model\.safetensors from",
    }
    with pytest.raises(WeightsError, match=what[record.name]) as caught:
        fetch(record, local_files_only=True)
    assert str(folder_of(record)) in str(caught.value)


def test_the_variable_of_the_hub_keeps_all_downloads_offline(
    address: str, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="offline, and not in the cache"):
        fetch(at(address))
    assert behaviour.requests == []


def test_without_a_network_the_error_says_where_a_file_by_hand_goes(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("morphem.zoo.http.time.sleep", lambda _: None)
    with pytest.raises(WeightsError, match=rf"cannot be fetched: .*put it into {cache}/zoo/tiny-web\."):
        fetch(at("http://127.0.0.1:1/tiny.pth"), progress=False)


def test_weights_that_only_a_person_can_fetch_say_what_to_do(cache: Path) -> None:
    with pytest.raises(
        WeightsError, match=r"fill in the form \(see https://example\.org/form\); put the file at"
    ) as caught:
        fetch(HAND)
    assert str(cache / "zoo" / "tiny-hand" / "hand.pth") in str(caught.value)


@pytest.mark.parametrize(("record", "name"), [(HAND, "hand.pth"), (WEB, "tiny.pth"), (HUB, "model.safetensors")])
def test_a_file_put_where_the_error_says_is_found(record: Record, name: str) -> None:
    found = write(folder_of(record) / name)
    assert fetch(record, local_files_only=True).revision == f"sha256:{found}"


def test_a_file_by_hand_may_be_replaced(cache: Path) -> None:
    write(cache / "zoo" / "tiny-hand" / "hand.pth")
    first = fetch(HAND)
    write(cache / "zoo" / "tiny-hand" / "hand.pth", seed=1)
    assert fetch(HAND).revision != first.revision


def test_a_revision_of_what_has_none_is_refused() -> None:
    with pytest.raises(WeightsError, match="has no revisions"):
        fetch(WEB, revision="v1")


def test_a_restricted_licence_stops_the_download_until_it_is_accepted(
    address: str, behaviour: Behaviour, cache: Path
) -> None:
    record = at(address, record=NC)
    with pytest.raises(WeightsError, match=r"under the licence CC-BY-NC-4\.0, which restricts .*--accept-license"):
        fetch(record)
    assert behaviour.requests == []
    fetch(record, accept_license=True, progress=False)
    assert len(behaviour.requests) == 1
    fetch(record)
    note = json.loads((cache / "zoo" / "tiny-nc" / "licence.json").read_text())
    assert note["license"] == "CC-BY-NC-4.0"
    assert note["accepted"][:2] == "20"


def test_another_licence_has_to_be_accepted_anew() -> None:
    licences.accept(NC)
    assert licences.is_accepted(NC)
    assert not licences.is_accepted(replace(NC, license="CC-BY-NC-ND-4.0"))


def test_a_damaged_note_of_a_licence_is_named(cache: Path) -> None:
    licences.accept(NC)
    (cache / "zoo" / "tiny-nc" / "licence.json").write_text("{")
    with pytest.raises(WeightsError, match=r"licence\.json is damaged"):
        licences.require(NC, True)


def test_an_open_licence_needs_no_word(address: str) -> None:
    assert fetch(at(address), progress=False).path.is_file()
    assert not licences.is_accepted(WEB)


def in_the_hubs_cache(cache: Path, commit: str, branch: str = "main") -> None:
    """Lay the file of `HUB` down as the hub's cache has it."""
    repository = cache.parent / "hub" / "models--lab--tiny"
    write(repository / "snapshots" / commit / "model.safetensors")
    (repository / "refs").mkdir(exist_ok=True)
    (repository / "refs" / branch).write_text(commit)


def test_a_file_of_the_hub_comes_from_its_cache_with_its_commit(cache: Path) -> None:
    in_the_hubs_cache(cache, "c" * 40)
    fetched = fetch(HUB, local_files_only=True)
    assert fetched.revision == "c" * 40
    assert fetched.path.name == "model.safetensors"


def test_the_pinned_commit_is_taken_and_another_only_where_asked_for(cache: Path) -> None:
    in_the_hubs_cache(cache, "a" * 40, "main")
    in_the_hubs_cache(cache, "b" * 40, "v2")
    pinned = replace(HUB, location=replace(HUB.location, revision="b" * 40))
    assert fetch(pinned, local_files_only=True).revision == "b" * 40
    assert fetch(pinned, revision="a" * 40, local_files_only=True).revision == "a" * 40
    assert fetch(HUB, revision="v2", local_files_only=True).revision == "b" * 40


def test_a_gated_repository_says_where_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub.errors import GatedRepoError

    def refuse(*_: object, **__: object) -> None:
        raise GatedRepoError.__new__(GatedRepoError)

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    with pytest.raises(WeightsError, match=r"ask at https://huggingface\.co/lab/tiny, then log in"):
        fetch(HUB)
