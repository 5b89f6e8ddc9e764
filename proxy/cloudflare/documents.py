"""YAML that reads back as what was meant, and files that are all written or none."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from proxy.errors import SluiceError


class File(NamedTuple):
    """A file to be written: its path below the directory, its text, and its mode."""

    path: str
    text: str
    mode: int = 0o644


class Indented(yaml.SafeDumper):
    """Writes lists indented, and no anchors."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent what stands in a list, too."""
        super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        """Write everything where it stands."""
        return True


class _Dumper(Indented):
    """Texts of several lines stand as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def dumped(documents: Sequence[Any], comment: str = "") -> str:
    """Return YAML of one or several documents, under `comment`.

    Raises SluiceError if it doesn't read back as the same.
    """
    head = "".join(f"# {line}\n" if line else "#\n" for line in comment.splitlines())
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
    if list(yaml.safe_load_all(head + text)) != list(documents):
        raise SluiceError("a YAML file doesn't read back as it was written")
    return head + text


def write_all(directory: Path, files: Sequence[File], *, replace: bool) -> None:
    """Write `files` below `directory`, which is made; each appears whole.

    Without `replace` nothing is written if one of them is there: raises SluiceError that names those.
    """
    places = [directory / file.path for file in files]
    if not replace and (there := [str(place) for place in places if os.path.lexists(place)]):
        raise SluiceError(f"already there, and kept (--force replaces): {', '.join(there)}")
    for place in places:
        if place.is_dir():
            raise SluiceError(f"{place} is a directory")
    for file, place in zip(files, places, strict=True):
        place.parent.mkdir(parents=True, exist_ok=True)
        _write(place, file, replace=replace)


def _write(place: Path, file: File, *, replace: bool) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as arriving:
            arriving.write(file.text)
            os.fchmod(arriving.fileno(), file.mode)
            arriving.flush()
            os.fsync(arriving.fileno())
        if replace:
            os.replace(name, place)
        else:
            # Unlike rename, link fails where somebody else has made the file meanwhile.
            os.link(name, place)
    finally:
        Path(name).unlink(missing_ok=True)
