"""The packer alone: `python pack.py DIRECTORY STORE` lists a directory and packs it, as a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

from assembler.oci.layout import Store
from assembler.pack.tarball import pack
from assembler.tree.directory import read_directory

if __name__ == "__main__":
    pack(read_directory(Path(sys.argv[1])), Store(Path(sys.argv[2])).create())
