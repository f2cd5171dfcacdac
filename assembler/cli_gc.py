"""The verb `gc`: free the store, containers of dead runs, and old logs; say how much."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from assembler.cli_text import size_text
from assembler.gc import DAY_SECONDS, check_writable, collect, plan_gc
from assembler.oci.layout import Store
from assembler.steps.housekeeping import clear


def gc_command(arguments: Namespace, cache: Path) -> int:
    """Free, or with `--dry-run` only say what would be."""
    store = Store(cache / "store")
    if store.root.exists():
        check_writable(store)
    keep = 0.0 if arguments.all else arguments.keep_days * DAY_SECONDS
    freed_elsewhere = 0 if arguments.dry_run else clear(cache, keep)
    plan = plan_gc(store, runs_directory=cache / "runs", keep_seconds=keep)
    if arguments.dry_run:
        counts = {"blobs": len(plan.blobs), "records": len(plan.records), "size": plan.size, "in_use": plan.in_use}
        sentence = f"would free {size_text(plan.size)} in {len(plan.blobs)} blobs and {len(plan.records)} records"
    else:
        freed = collect(plan)
        size = freed.size + freed_elsewhere
        counts = {"blobs": freed.blobs, "records": freed.records, "size": size, "in_use": freed.in_use}
        sentence = f"freed {size_text(size)} in {freed.blobs} blobs and {freed.records} records"
    if arguments.json:
        print(json.dumps(counts))
    else:
        print(sentence + (", other runs are alive" if counts["in_use"] else ""))
    return 0
