"""Compiles Python files of a wheel. Run as a program by the Python version that will load them, never imported.

Reads JSON from standard input: `archive`, a zip file; `output`, a file to be written; `sources`, pairs of a
member's name and the path that the code is to carry. Appends each `.pyc` to the output and answers, on standard
output, with the list of their sizes; 0 stands for what is no valid source. The header has the hash of the source
and asks for it not to be checked (PEP 552, unchecked hash-based), so there is no time in it.

Any Python from 3.8 on must understand this file.
"""

import importlib.util
import json
import marshal
import os
import struct
import sys
import zipfile

_UNCHECKED_HASH = 1


def main() -> None:
    """Do what standard input asks for."""
    request = json.load(sys.stdin)
    sizes = []
    with zipfile.ZipFile(request["archive"]) as archive, open(request["output"], "wb") as output:  # noqa: PTH123
        for name, path in request["sources"]:
            sizes.append(output.write(compiled(archive.read(name), path)))
    os.write(1, json.dumps(sizes).encode())


def compiled(source: bytes, path: str) -> bytes:
    """The `.pyc` of a source, or nothing when it is not one: some packages have templates that look like it."""
    try:
        code = compile(source, path, "exec", dont_inherit=True, optimize=0)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return b""
    header = importlib.util.MAGIC_NUMBER + struct.pack("<L", _UNCHECKED_HASH)
    return header + importlib.util.source_hash(source) + marshal.dumps(code)


if __name__ == "__main__":
    main()
