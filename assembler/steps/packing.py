"""Making one layer: choose its entries, pack them, and keep the record under its key."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from assembler.errors import ManifestError, placed
from assembler.manifest.loaded import BoundLayer
from assembler.manifest.models import Copy
from assembler.oci.descriptor import COMPRESSOR
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer
from assembler.pack.tarball import PackedLayer
from assembler.plan.graph import Plan, Step, compile_id, copied_key
from assembler.steps import image_files, layers
from assembler.steps.host_files import CopiedLayer, copied_layer
from assembler.steps.places import source_errors
from assembler.steps.session import StepReport
from assembler.steps.side_by_side import SideBySide, fills_host, width
from assembler.steps.wish import Wish
from assembler.tree.entry import Entry
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly


def make_layers(assembly: Assembly, plan: Plan, steps: Sequence[Step]) -> dict[str, BlobLayer]:
    """Make layers of wheels side by side; by step. Their entries are made one after the other, since it matters
    which of two wheels lies above, while the layers before are being packed.
    """

    def job(step: Step, wish: Wish, entries: tuple[Entry, ...] | None) -> tuple[str, BlobLayer]:
        with _reported(assembly, step, "pack") as report:
            twin = wish.from_twin() if entries is None else None
            packed, made = (
                (twin, {wish.key: twin}) if twin else wish.pack(entries or entries_of(assembly, plan, step))
            )
            _remember(wish, packed, made, report)
        return step.id, packed.layer

    at_once = min(width(), len(steps))
    with SideBySide[tuple[str, BlobLayer]](at_once, assembly.session.stop) as beside:
        for step in steps:
            layer = assembly.loaded.layers[step.layer or 0]
            wish = replace(_wish(assembly, step, layer, ()), inline=fills_host(at_once))
            with placed(layer.place):
                entries = None if wish.twin_is_there else entries_of(assembly, plan, step)
            beside.add(partial(job, step, wish, entries))
    return dict(beside.results)


def make_layer(assembly: Assembly, plan: Plan, step: Step) -> BlobLayer:
    """Make the layer of this step and remember it under its key."""
    index = step.layer
    if index is None:
        raise ValueError(f"`{step.id}` makes no layer")
    layer = assembly.loaded.layers[index]
    verb = step.kind if step.kind in ("packages", "run") else "pack"
    wish = _wish(assembly, step, layer, _inputs(assembly, step, layer))
    copied = copied_layer(assembly, index)
    with _reported(assembly, step, verb) as report:
        packed = wish.from_twin()
        if packed is not None:
            made = {wish.key: packed}
        elif layer.entry.packages or layer.entry.run:
            from assembler.steps.running import changed_layer

            packed, made = changed_layer(assembly, plan, index, wish)
        else:
            packed, made = wish.pack(copied.entries if copied else entries_of(assembly, plan, step))
        if copied:
            report.key, made = _settled(copied, packed, made)
        _remember(wish, packed, made, report)
    return packed.layer


@contextmanager
def _reported(assembly: Assembly, step: Step, verb: str) -> Iterator[StepReport]:
    """The block is this step; its errors say where the layer stands."""
    place = assembly.loaded.layers[step.layer or 0].place
    with assembly.session.step(step.id, verb, step.name, step.key) as report, placed(place):
        yield report


def _remember(wish: Wish, packed: PackedLayer, made: dict[str, PackedLayer], report: StepReport) -> None:
    wish.remember(made)
    sizes = size_text(packed.uncompressed_bytes), size_text(packed.layer.descriptor.size)
    report.detail = f"{packed.files} files, {sizes[0]} → {sizes[1]}"


def _settled(
    copied: CopiedLayer, packed: PackedLayer, made: dict[str, PackedLayer]
) -> tuple[str, dict[str, PackedLayer]]:
    """The layer's key, which may come out of the packing only, and what is remembered then: all that was made,
    under its key and under its shape.
    """
    diff_id = packed.layer.diff_id
    copied.settle(diff_id)
    by_compressor = {str(one.layer.descriptor.annotations[COMPRESSOR]): one for one in made.values()}
    records = {copied_key(compressor, diff_id): one for compressor, one in by_compressor.items()}
    records |= {copied.shape(compressor): one for compressor, one in by_compressor.items()}
    return copied_key(packed.layer.descriptor.annotations[COMPRESSOR], diff_id), records


def _inputs(assembly: Assembly, step: Step, layer: BoundLayer) -> tuple[str, ...]:
    """Digests of the packages, or of the archive, that a layer is made of."""
    if layer.entry.packages:
        return tuple(package.sha256 for package in assembly.debs.answer(step.id, lock=True) or ())
    if layer.entry.copy_ and layer.entry.copy_.source:
        return assembly.source_inputs(layer.scope, layer.entry.copy_.source)
    return ()


def _wish(assembly: Assembly, step: Step, layer: BoundLayer, inputs: tuple[str, ...]) -> Wish:
    # A second plan costs time. What needs no container is packed as fast from its content as from its twin.
    in_container = layer.entry.packages or layer.entry.run
    wanted = in_container or assembly.also or assembly.loaded.manifest.compression == "both"
    return Wish(
        session=assembly.session,
        key=step.key or "",  # a copied layer's may come out of the packing only, see `_settled`
        compression=assembly.compression,
        other_key=assembly.sibling_plan.step(step.id).key if wanted else None,
        both=assembly.also is not None,
        step=step.id,
        created_by=step.name,
        epoch=assembly.loaded.manifest.epoch,
        inputs=inputs,
        sending=assembly.sending,
    )


def entries_of(assembly: Assembly, plan: Plan, step: Step) -> tuple[Entry, ...]:
    """The entries of a layer that needs no container of its own."""
    index = step.layer or 0
    layer = assembly.loaded.layers[index]
    entry = layer.entry
    if assembly.wheels and entry.wheels:
        return assembly.wheels.entries(step)
    if entry.files:
        return layers.file_entries(entry.files, layer.scope.directory, layer.place)
    if entry.copy_ is not None and entry.copy_.image is not None:
        return image_files.copied_out(assembly.session, assembly.images[index], layer, entry.copy_)
    if entry.copy_ is not None:
        return layers.copied(_copied_tree(assembly, plan, layer, entry.copy_), entry.copy_, layer.place)
    raise ManifestError("this kind of layer cannot be built yet", place=layer.place)


def _copied_tree(assembly: Assembly, plan: Plan, layer: BoundLayer, copy: Copy) -> tuple[Entry, ...]:
    session = assembly.session
    if copy.artifact:
        from assembler.build.harvest import bundle_entries

        step_name, _, artifact = copy.artifact.partition(".")
        record = session.store.record(str(plan.step(compile_id(layer.scope, step_name)).key))
        if record is None:
            raise ManifestError(f"compile step `{step_name}` left nothing", place=layer.place)
        return bundle_entries(session.store, Digest.parse(record["bundle"]), artifact)
    from assembler.build import sources

    name = str(copy.source)
    with source_errors(layer.scope, name):
        return sources.source_entries(
            layer.scope.sources[name],
            assembly.source_answer(layer.scope, name) or {},
            layer.scope.directory,
            store=session.store,
            cache=session.options.cache,
            emit=session.emit,
            offline=session.options.offline,
        )
