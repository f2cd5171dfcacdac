"""Making one layer: choose its entries, pack them, and keep the record under its key."""

from __future__ import annotations

from typing import TYPE_CHECKING

from assembler.errors import ManifestError, StepError
from assembler.manifest.library import BoundLayer
from assembler.manifest.models import Copy
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer
from assembler.plan.graph import Plan, Step, compile_id, layer_id, layer_name
from assembler.steps import copying, layers
from assembler.steps.wish import Wish
from assembler.tree.entry import Entry
from assembler.units import size_text

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly


def make_layer(assembly: Assembly, plan: Plan, index: int) -> BlobLayer:
    """Make layer number `index` and remember it under its key."""
    layer = assembly.loaded.layers[index]
    step = plan.step(layer_id(index))
    verb = step.kind if step.kind in ("packages", "run") else "pack"
    wish = _wish(assembly, step, layer)
    with assembly.session.step(step.id, verb, step.name, step.key) as report:
        packed = wish.from_twin()
        if packed is None:
            if layer.entry.packages or layer.entry.run:
                from assembler.steps.running import changed_layer

                packed, made = changed_layer(assembly, plan, index, wish)
            else:
                packed, made = wish.pack(entries_of(assembly, plan, index))
                _check_unchanged(assembly, layer)
            wish.remember(made)
        sizes = size_text(packed.uncompressed_bytes), size_text(packed.layer.descriptor.size)
        report.detail = f"{packed.files} files, {sizes[0]} → {sizes[1]}"
    return packed.layer


def _wish(assembly: Assembly, step: Step, layer: BoundLayer) -> Wish:
    # A second plan costs time. What needs no container is packed as fast from its content as from its twin.
    in_container = layer.entry.packages or layer.entry.run
    wanted = in_container or assembly.also or assembly.loaded.manifest.compression == "both"
    return Wish(
        session=assembly.session,
        key=str(step.key),
        compression=assembly.compression,
        other_key=assembly.sibling_plan.step(step.id).key if wanted else None,
        both=assembly.also is not None,
        step=step.id,
        created_by=layer_name(layer.entry),
        epoch=assembly.loaded.manifest.epoch,
        sending=assembly.sending,
    )


def _check_unchanged(assembly: Assembly, layer: BoundLayer) -> None:
    """A path source that was changed after its key was made must not be remembered under that key."""
    copy = layer.entry.copy_
    if copy is None or copy.source is None or not layer.scope.sources[copy.source].path:
        return
    from assembler.build.checkout import tree_path
    from assembler.tree.fingerprint import changed_since

    source = layer.scope.sources[copy.source]
    state = assembly.tree(layer.scope, copy.source)
    if changed_since(tree_path(source, layer.scope.directory), state.fingerprint, ignore=source.ignore):
        raise StepError(
            f"the source `{copy.source}` was changed while it was packed", place=layer.place, hint="run it again"
        )


def entries_of(assembly: Assembly, plan: Plan, index: int) -> tuple[Entry, ...]:
    """The entries of a layer that needs no container of its own."""
    layer = assembly.loaded.layers[index]
    entry = layer.entry
    if entry.files:
        return layers.file_entries(entry.files, layer.scope.directory, layer.place)
    if entry.copy_ is not None and entry.copy_.image is not None:
        return copying.copied_out(assembly.session, assembly.images[index], layer, entry.copy_)
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
    return sources.source_entries(
        layer.scope.sources[name],
        assembly.source_answer(layer.scope, name) or {},
        layer.scope.directory,
        store=session.store,
        cache=session.options.cache,
        emit=session.emit,
        offline=session.options.offline,
    )
