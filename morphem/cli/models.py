"""`morphem models`: pretrained encoders listed, shown, downloaded, converted, verified and exported."""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

EPILOG = """\
examples:
  morphem models list
  morphem models show morphem
  morphem models download morphem
  morphem models convert downloads/checkpoint.pth --output encoders/theirs
  morphem models verify encoders/theirs
  morphem models export runs/dino_boc/version_0 --output encoders/mine --license mit --onnx
"""


def parser() -> argparse.ArgumentParser:
    """Return the options of the command."""
    result = argparse.ArgumentParser(
        prog="morphem models", description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = result.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_list(commands)
    _add_show(commands)
    _add_download(commands)
    _add_convert(commands)
    _add_verify(commands)
    _add_export(commands)
    return result


def _command(commands: Any, name: str, words: str, example: str) -> Any:
    made = commands.add_parser(
        name,
        help=words,
        description=f"{words[0].upper()}{words[1:]}.",
        epilog=f"example: morphem models {name} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return made.add_argument


def _add_list(commands: Any) -> None:
    add = _command(commands, "list", "list all records, with licence and the channels that they take", "--open")
    add("pattern", nargs="?", default="", help="records whose name, family or summary contains this")
    add("--open", action="store_true", help="only those whose licence does not restrict use")
    add("--markdown", action="store_true", help="print the table of docs/zoo.md")


def _add_show(commands: Any) -> None:
    add = _command(commands, "show", "print all that is known of a record", "morphem")
    add("name", help="of the record (morphem models list)")


def _add_download(commands: Any) -> None:
    add = _command(commands, "download", "fetch the file of a record into the cache", "morphem")
    add("name", help="of the record (morphem models list)")
    add("--revision", help="commit, tag or branch, for files on the hub")
    add("--accept-license", action="store_true", help="accept a licence that restricts use; remembered")


def _add_loading(add: Any) -> None:
    add("--family", help="short name of the family, where it cannot be told from the file")
    add("--record", help="name of the record that the file is of")
    add("--fact", action="append", default=[], metavar="NAME=VALUE", help="what the file cannot show, e.g. n_heads=12")
    add("--inert", action="append", default=[], metavar="CLASS", help="class that a pickle may name; never built")
    add("--accept-license", action="store_true", help="accept a licence that restricts use; remembered")


def _add_convert(commands: Any) -> None:
    add = _command(
        commands, "convert", "turn the file of a known family into a folder of morphem", "x.pth --output encoders/x"
    )
    add("file", help="file of weights, or the name of a record")
    add("--output", required=True, type=Path, help="folder to write")
    add("--name", help="of the model (default: name of the folder)")
    _add_loading(add)


def _add_verify(commands: Any) -> None:
    add = _command(
        commands,
        "verify",
        "compare checkpoints with their golden records",
        "encoders/mine ../shared/golden/unidino.json",
    )
    add("paths", nargs="+", metavar="PATH", help="JSON file of a golden record, or an exported folder")
    add("--quiet", action="store_true", help="print one line per record")


def _add_export(commands: Any) -> None:
    add = _command(
        commands, "export", "write an encoder as a folder for the hub", "runs/dino_boc/version_0 --output encoders/mine"
    )
    add("run", help="run, folder, checkpoint, file of a known family, or record")
    add("--output", required=True, type=Path, help="folder to write")
    add("--name", help="of the model (default: name of the folder)")
    add("--license", help="of the weights, as the hub spells it: mit, apache-2.0, cc-by-nc-4.0, ...")
    add("--scores", action="append", default=[], type=Path, metavar="JSON", help="scores of `morphem benchmark`")
    add("--torch-export", action="store_true", help="also write encoder.pt2 (torch.export), compared with the encoder")
    add("--onnx", action="store_true", help="also write encoder.onnx, compared with the encoder (needs morphem[onnx])")
    add("--channels", nargs="+", default=(), metavar="NAME", help="planes that encoder.pt2 and encoder.onnx take")
    add("--size-px", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="size that they take (default: native)")
    add("--n-images", type=int, default=1, help="images per call of them (default: %(default)s)")
    add("--push-to-hub", metavar="OWNER/NAME", help="upload the folder afterwards")
    add("--private", action="store_true", help="with --push-to-hub: make a new repository private")
    _add_loading(add)


def main(argv: Sequence[str]) -> int:
    """Run the command.

    Args:
        argv: Words after `models`.

    Returns:
        0, or 1 if something that was verified is wrong.

    Raises:
        MorphemError: For what the user can put right; the caller prints it.
    """
    options = parser().parse_args(list(argv))
    commands = {
        "list": _list,
        "show": _show,
        "download": _download,
        "convert": _convert,
        "verify": _verify,
        "export": _export,
    }
    return commands[options.command](options)


def _list(options: argparse.Namespace) -> int:
    from morphem.zoo import tables

    entries = tables.select(options.pattern, open_only=options.open)
    if options.markdown:
        print(tables.markdown(entries))
        return 0
    width = min(120, max(80, shutil.get_terminal_size((120, 24)).columns))
    print("\n".join(tables.terminal(entries, width)))
    return 0


def _show(options: argparse.Namespace) -> int:
    from morphem.zoo import tables

    print("\n".join(tables.show(_entry(options.name))))
    return 0


def _entry(name: str) -> Any:
    from morphem.errors import WeightsError, unknown_name
    from morphem.zoo import catalogue

    entry = catalogue.find(name)
    if entry is None:
        raise WeightsError(unknown_name("record", name, catalogue.list_models()))
    return entry


def _download(options: argparse.Namespace) -> int:
    from morphem.weights import file_sha256
    from morphem.zoo import download, licences

    record = _entry(options.name).record
    print(licences.notice(record))
    fetched = download.fetch(record, revision=options.revision, accept_license=options.accept_license)
    print(f"file       {fetched.path} ({fetched.path.stat().st_size / 1e6:.1f} MB)")
    print(f"revision   {fetched.revision}")
    print(f"sha256     {file_sha256(fetched.path)}")
    print(f"next       morphem embed --model {record.name} --data SHARDS --output features.parquet")
    return 0


def _load(source: str, options: argparse.Namespace) -> Any:
    from morphem import zoo

    return zoo.load(
        source,
        family=options.family,
        record=options.record,
        accept_license=options.accept_license,
        inert=options.inert,
        **facts_of(options.fact),
    )


def facts_of(words: Sequence[str]) -> dict[str, Any]:
    """Read NAME=VALUE, the value as YAML: numbers, true and false, lists, else text."""
    import yaml

    from morphem.errors import ConfigError

    facts: dict[str, Any] = {}
    for word in words:
        name, sign, value = word.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--fact '{word}' must have the form NAME=VALUE, for example n_heads=12.")
        try:
            facts[name] = yaml.safe_load(value)
        except yaml.YAMLError as fault:
            raise ConfigError(f"--fact '{word}': the value is no number, list or text.") from fault
    return facts


def _convert(options: argparse.Namespace) -> int:
    from morphem.zoo.export import export

    written = export(_load(options.file, options), options.output, name=options.name)
    print(f"converted  {options.file}")
    _print_written(written)
    return 0


def _print_written(written: Any) -> None:
    print(f"wrote      {written.folder}: config.json, model.safetensors, README.md,")
    print(f"           golden.json ({len(written.cases)} cases to verify it by)")
    for file, difference in written.portable.items():
        print(f"           {file}, which differs from the encoder by at most {difference:.1e}")
    print(f"next       morphem models verify {written.folder}")


def _verify(options: argparse.Namespace) -> int:
    from morphem.cli import explain
    from morphem.errors import MorphemError
    from morphem.zoo import verify

    wrong: list[str] = []
    for path in options.paths:
        try:
            report = verify.verify(path)
        except MorphemError as fault:
            print(f"{path}: NOT VERIFIED: {explain(fault)}", file=sys.stderr)
            wrong.append(path)
            continue
        text = verify.lines(report, path)
        print("\n".join(text[-1:] if options.quiet else text), flush=True)
        if not report.ok:
            wrong.append(path)
    if len(options.paths) > 1:
        print(f"{len(options.paths) - len(wrong)} of {len(options.paths)} records verified")
    if wrong:
        print(f"morphem: error: not as recorded: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


def _export(options: argparse.Namespace) -> int:
    from morphem.zoo import export as exporting

    forms = exporting.Portable(
        options.torch_export,
        options.onnx,
        tuple(options.channels),
        tuple(options.size_px) if options.size_px else None,
        options.n_images,
    )
    _check_push(options)
    encoder = _load(options.run, options)
    if options.push_to_hub:
        exporting.check_may_be_published(
            {**encoder.card, **({"license": options.license} if options.license else {})}, options.run
        )
    written = exporting.export(
        encoder,
        options.output,
        name=options.name,
        license=options.license,
        run=options.run,
        scores=options.scores,
        forms=forms,
    )
    print(f"exported   {options.run}")
    _print_written(written)
    if options.push_to_hub:
        print(f"pushed     {exporting.push_to_hub(written.folder, options.push_to_hub, private=options.private)}")
    return 0


def _check_push(options: argparse.Namespace) -> None:
    from morphem.errors import ConfigError

    if options.private and not options.push_to_hub:
        raise ConfigError("--private has no effect without --push-to-hub.")
    if options.push_to_hub and options.output.resolve() == Path.cwd():
        raise ConfigError(
            "--push-to-hub uploads the output folder; give a folder of its own, not the working directory."
        )
