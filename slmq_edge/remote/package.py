"""What runs on the device, as one file: Python starts a zip archive that holds a __main__.py.

The same sources give the same bytes on every machine: names in order, one date, and no compression,
whose bytes are its library's. So the archive's digest says which runner a device has.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import slmq_edge

PACKAGE = Path(slmq_edge.__file__).parent
FILES, FOLDERS = ("__init__.py", "errors.py"), ("runner", "profiles")
MAIN = b"""import sys

from slmq_edge.runner.__main__ import main

sys.exit(main(sys.argv[1:]))
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can tell
UNIX, MODE = 3, 0o100644 << 16


@functools.cache
def runner() -> tuple[str, bytes]:
    """Return the SHA-256 and the bytes of the archive."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, content in sorted([("__main__.py", MAIN), *_sources()]):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.create_system, entry.external_attr = UNIX, MODE
            archive.writestr(entry, content, zipfile.ZIP_STORED)
    content = stream.getvalue()
    return hashlib.sha256(content).hexdigest(), content


def runner_zipapp(folder: Path) -> Path:
    """Write the archive as ``<sha256>.pyz`` into ``folder``; return its path."""
    digest, content = runner()
    path = folder / f"{digest}.pyz"
    path.write_bytes(content)
    return path


def _sources() -> Iterator[tuple[str, bytes]]:
    found = [PACKAGE / name for name in FILES]
    for folder in FOLDERS:
        found += (PACKAGE / folder).rglob("*.py")
    for path in found:
        name = path.relative_to(PACKAGE.parent).as_posix()
        yield name, path.read_bytes().replace(b"\r\n", b"\n")
