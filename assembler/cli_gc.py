"""The verb `gc`: free the store, containers of dead runs, caches and old logs; say how much of what."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from assembler.cli_namespace import enter
from assembler.cli_text import size_text
from assembler.gc import DAY_SECONDS, check_writable, collect, plan_gc
from assembler.oci.layout import Store
from assembler.steps.housekeeping import Cleared, clear, has_storage


def gc_command(arguments: Namespace, cache: Path) -> int:
    """Free, or with `--dry-run` only say what would be."""
    if arguments.shared:
        return _shared(arguments)
    store = Store(cache / "store")
    if store.root.exists():
        check_writable(store)
    if os.geteuid() and arguments.may_start_again and not arguments.dry_run and has_storage(cache):
        from assembler.build.namespace import way_in

        way = way_in()
        if way.identity is None:
            print("warning: containers stay, since a user namespace cannot be made here", file=sys.stderr)
        else:
            enter(way.before)  # files of containers may be those of other ids
    keep = 0.0 if arguments.all else arguments.keep_days * DAY_SECONDS
    cleared = clear(cache, keep, dry_run=arguments.dry_run)
    plan = plan_gc(store, runs_directory=cache / "runs", keep_seconds=keep)
    if arguments.dry_run:
        blobs, records, size, in_use = len(plan.blobs), len(plan.records), plan.size, plan.in_use
    else:
        freed = collect(plan)
        blobs, records, size, in_use = freed.blobs, freed.records, freed.size, freed.in_use
    counts = {
        "blobs": blobs,
        "records": records,
        "images": cleared.images,
        "containers": cleared.containers,
        "sizes": {"store": size, **cleared.sizes},
        "size": size + cleared.size,
        "in_use": in_use,
    }
    print(json.dumps(counts) if arguments.json else _sentence(counts, cleared, dry_run=arguments.dry_run))
    return 0


def _shared(arguments: Namespace) -> int:
    """Free shared caches: results, whose blobs the registry's own garbage collection frees later."""
    from assembler.registry.client import Client
    from assembler.registry.results import expired
    from assembler.registry.tags import delete_manifest
    from assembler.steps.shared import parse_repositories

    client = Client(insecure=arguments.insecure)
    keep = 0.0 if arguments.all else arguments.keep_days * DAY_SECONDS
    counts = []
    for repository in parse_repositories(arguments.shared, "--shared"):
        kept, old = expired(client, repository, keep_seconds=keep)
        for result in old if not arguments.dry_run else ():
            delete_manifest(client, result.origin)
        counts.append({"repository": repository.name, "kept": kept, "freed": len(old)})
    if arguments.json:
        print(json.dumps(counts))
        return 0
    for count in counts:
        verb = "would free" if arguments.dry_run else "freed"
        print(f"{count['repository']}: {verb} {count['freed']} results, {count['kept']} are kept")
    return 0


def _sentence(counts: dict[str, Any], cleared: Cleared, *, dry_run: bool) -> str:
    """`freed 3 GiB: 12 blobs and 7 records (1 GiB), ccache (2 GiB)`."""
    store = f"{counts['blobs']} blobs and {counts['records']} records"
    parts = [f"{store} ({size_text(counts['sizes']['store'])})"]
    sizes = dict(cleared.sizes)
    containers = sizes.pop("containers", 0)
    if cleared.images or cleared.containers:
        kept = f" and {cleared.containers} kept containers" if cleared.containers else ""
        size = f" ({size_text(containers)})" if containers else ""
        parts.append(f"{cleared.images} images of containers{kept}{size}")
    parts += [f"{kind} ({size_text(size)})" for kind, size in sorted(sizes.items(), key=lambda one: -one[1])]
    text = f"{'would free' if dry_run else 'freed'} {size_text(counts['size'])}: {', '.join(parts)}"
    return f"{text}; other runs are alive" if counts["in_use"] else text
