"""The generated parts of docs/zoo.md: `python -m morphem.zoo.page docs/zoo.md [--golden ../shared/golden]`."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path

from morphem.errors import ConfigError
from morphem.zoo import tables

_SIDE_FILES = (".keys.json", ".config.json", ".channel_map.json")


def sections(golden: Path | None = None) -> dict[str, str]:
    """Return the generated parts by name.

    Args:
        golden: Folder of golden records; without it, what they prove is left as it stands.
    """
    made = {
        "records": tables.markdown(tables.select()),
        "not compared": tables.not_compared_markdown(),
        "options": tables.options_markdown(),
    }
    if golden is not None:
        paths = [path for path in sorted(golden.glob("*.json")) if not path.name.endswith(_SIDE_FILES)]
        made["golden"] = tables.golden_markdown(paths)
    return made


def filled(text: str, parts: Mapping[str, str]) -> str:
    """Return a page with its generated parts replaced.

    Args:
        text: The page, with `<!-- NAME: generated -->` before and `<!-- end -->` after each part.
        parts: By name.

    Raises:
        ConfigError: If the page has no place for a part.
    """
    for name, part in parts.items():
        place = re.compile(rf"(<!-- {re.escape(name)}: generated -->\n).*?(<!-- end -->)", re.DOTALL)
        found = place.search(text)
        if found is None:
            raise ConfigError(f"the page has no place for the part '{name}'; write <!-- {name}: generated -->.")
        text = f"{text[: found.start()]}{found[1]}\n{part}\n\n{found[2]}{text[found.end() :]}"
    return text


def main() -> None:
    """Rewrite a page in place."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("--golden", type=Path, help="folder of golden records, to say anew what they prove")
    options = parser.parse_args()
    text = options.page.read_text(encoding="utf-8")
    options.page.write_text(filled(text, sections(options.golden)), encoding="utf-8")


if __name__ == "__main__":
    main()
