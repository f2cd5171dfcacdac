"""A part of a source distribution: `python fetch.py NAME==VERSION SUBDIRECTORY CACHE TARGET`, run as a child."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from assembler.build.sources import fetch_source, lock_source
from assembler.manifest.models import Source
from assembler.oci.layout import Store

if __name__ == "__main__":
    requirement, subdirectory, cache_text, target = sys.argv[1:]
    source, cache = Source(sdist=requirement, subdirectory=subdirectory), Path(cache_text)
    store = Store(cache / "store").create()
    answer = lock_source(source, cache, cache=cache, store=store)
    shutil.copytree(fetch_source(source, answer, cache, store=store, cache=cache).path, target, symlinks=True)
