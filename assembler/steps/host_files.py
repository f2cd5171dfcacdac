"""Layers of files that lie on this host: what they will be, found out without packing them where that is possible.

Such a layer is keyed by its diff ID, the digest of its tar. That says all: two trees that give the same tar give
the same layer, whatever their names, times and places. What it costs to know it:

- nothing but looks (`stat`), when no file was changed since the layer was last made or looked at;
- nothing at all, when the store never had a layer of this shape, which is its tar without the contents: then the
  layer cannot be there, and its diff ID comes out of the packing, which hashes the tar anyway;
- else one reading, at the speed of hashing, as after a checkout that gave all files new times.

A layer is remembered under what was packed, never under what was expected. Files that change between the look and
the end of the packing are an error all the same: the layer would be of no single moment.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from assembler.errors import StepError
from assembler.oci.digest import Digest
from assembler.pack.tarball import compressor_id, diff_id_of
from assembler.plan.key import key_of
from assembler.steps.layers import copied
from assembler.steps.places import source_errors
from assembler.tree.directory import entries_of
from assembler.tree.fingerprint import Row, StatCache, Survey, changed_row, digest_rows, walk
from assembler.tree.selection import chosen_names

if TYPE_CHECKING:
    from assembler.manifest.loaded import Scope
    from assembler.manifest.models import Copy
    from assembler.oci.layout import Store
    from assembler.steps.assembly import Assembly
    from assembler.tree.entry import Entry


@dataclass(frozen=True, slots=True)
class Look:
    """A directory as this run first saw it, at the time `now`."""

    root: Path
    ignore: tuple[str, ...]
    now: int
    rows: Sequence[Row]
    survey: Survey


class CopiedLayer:
    """One layer that is copied from a directory of this host, as it was looked at."""

    def __init__(self, look: Look, copy: Copy, place: str, epoch: int, cache: StatCache) -> None:
        self.place = place
        self._look = look
        self._copy = copy
        self._epoch = epoch
        self._cache = cache
        self._diff_id: Digest | None = None

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What goes into the layer. ManifestError when that is nothing that can be named."""
        return copied(entries_of(self._look.root, self._rows), self._copy, self.place)

    def diff_id(self, store: Store, compressor: str, *, exact: bool) -> Digest | None:
        """What the layer will be. Unless `exact`, None for one that the store surely has not.

        StepError when files change while they are read.
        """
        if self._diff_id is None:
            look = self._look
            self._diff_id = self._cache.known_layer(look.root, look.ignore, self._name, self._survey.fingerprint)
        if self._diff_id is None and (exact or store.record(self.shape(compressor)) is not None):
            self.settle(diff_id_of(self.entries, epoch=self._epoch))
        return self._diff_id

    def shape(self, compressor: str) -> str:
        """The key of the layer's tar without its contents: the store remembers that it had such a layer."""
        return key_of("shape", {"entries": self._outline, "epoch": self._epoch, "compressor": compressor})

    @cached_property
    def _outline(self) -> str:
        """The digest of everything that the tar says, but for the contents of files."""
        lines = [
            f"{entry.path}\0{entry.kind}\0{entry.mode}\0{entry.uid}\0{entry.gid}\0{entry.size}\0{entry.link}"
            for entry in self.entries
        ]
        return hashlib.sha256("\0\0".join(lines).encode()).hexdigest()

    def settle(self, diff_id: Digest) -> None:
        """The layer was read, and this is what it is. StepError when its files are not those of the look any more,
        or not those of an earlier reading.
        """
        look = self._look
        changed = changed_row(look.root, self._rows)
        if changed is None and self._diff_id not in (None, diff_id):
            changed = self._copy.path or "."
        if changed is not None:
            raise StepError(
                f"`{changed}` of the source `{self._copy.source}` was changed while it was read",
                place=self.place,
                hint="let whatever writes there end, and run again",
            )
        self._diff_id = diff_id
        if self._survey.settled:
            self._cache.remember_layer(look.root, look.ignore, self._name, self._survey.fingerprint, diff_id)

    @cached_property
    def _rows(self) -> Sequence[Row]:
        """The rows that the layer is made of: with the directory itself, in case that it is empty."""
        if not self._copy.path:
            return self._look.rows
        names = chosen_names((path for path, _ in self._look.rows), self._copy.path)
        exact = self._copy.path.strip("/")
        return [row for row in self._look.rows if row[0] in names or row[0] == exact]

    @cached_property
    def _survey(self) -> Survey:
        if not self._copy.path:
            return self._look.survey
        return digest_rows(self._look.root, self._rows, self._look.now)

    @cached_property
    def _name(self) -> str:
        """What else decides about the tar."""
        copy = self._copy.model_dump(mode="json", include={"path", "to", "mode", "user", "group"})
        return key_of("copied", {"copy": copy, "epoch": self._epoch})


class Copies:
    """The directories that a run copies from, looked at once whoever asks: layers, platforms, compressions."""

    def __init__(self, cache: StatCache) -> None:
        self._cache = cache
        self._looks: dict[tuple[str, tuple[str, ...]], Look] = {}
        self._layers: dict[tuple[int, str, int, str], CopiedLayer] = {}

    def look(self, root: Path, ignore: Sequence[str]) -> Look:
        """The directory as it was. Raises RequestError as `assembler.tree.fingerprint.walk` does."""
        key = (str(root.absolute()), tuple(ignore))
        if key not in self._looks:
            now = time.time_ns()
            rows = walk(root, ignore)
            self._looks[key] = Look(root, tuple(ignore), now, rows, digest_rows(root, rows, now))
        return self._looks[key]

    def layer(self, look: Look, copy: Copy, place: str, epoch: int) -> CopiedLayer:
        """A layer of files of a directory."""
        key = (id(look), copy.model_dump_json(), epoch, place)
        if key not in self._layers:
            self._layers[key] = CopiedLayer(look, copy, place, epoch, self._cache)
        return self._layers[key]


def look_at(assembly: Assembly, scope: Scope, name: str) -> Look:
    """The files of a path source, as they were when this run first looked at them."""
    from assembler.build.checkout import tree_path

    source = scope.sources[name]
    with source_errors(scope, name):
        return assembly.session.copies.look(tree_path(source, scope.directory), source.ignore)


def copied_layer(assembly: Assembly, index: int) -> CopiedLayer | None:
    """Layer number `index`, if it is copied from a directory of this host."""
    layer = assembly.loaded.layers[index]
    copy = layer.entry.copy_
    if copy is None or copy.source is None or not layer.scope.sources[copy.source].path:
        return None
    look = look_at(assembly, layer.scope, copy.source)
    return assembly.session.copies.layer(look, copy, layer.place, assembly.loaded.manifest.epoch)


def tree_facts(assembly: Assembly, *, exact: bool) -> dict[int, str | None]:
    """The diff IDs of the layers that are copied from directories of this host, for the plan."""
    store, compressor = assembly.session.store, compressor_id(assembly.compression)
    layers = ((index, copied_layer(assembly, index)) for index in range(len(assembly.loaded.layers)))
    return {index: layer.diff_id(store, compressor, exact=exact) for index, layer in layers if layer}
