"""Layers that are the difference which something made in the runtime base: packages and commands."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from assembler.pack.tarball import PackedLayer
from assembler.plan.graph import Plan, layer_id
from assembler.steps import compiling
from assembler.steps.materialise import image_for
from assembler.steps.owners import owners_of
from assembler.steps.wish import Wish

if TYPE_CHECKING:
    from assembler.steps.assembly import Assembly


def changed_layer(
    assembly: Assembly, plan: Plan, index: int, wish: Wish
) -> tuple[PackedLayer, dict[str, PackedLayer]]:
    """Run layer `index` in a container of what it stands on, and pack what it changed; see `Wish.pack`."""
    from assembler.build.difference import difference

    session = assembly.session
    layer = assembly.loaded.layers[index]
    step = layer_id(index)
    stack = compiling.stack(assembly, plan, index, packages_only=layer.entry.run is None)
    image = image_for(session, stack)
    owners = functools.cache(lambda: owners_of(session, stack))
    with session.buildah.container(image, f"layer-{index}", owners=owners) as container:
        if layer.entry.packages:
            packages = assembly.debs.answer(step, lock=True) or ()
            compiling.install_packages(session, container, packages, layer.entry.packages.apt, step)
        elif layer.entry.run:
            run = layer.entry.run
            container.run(
                run.command,
                env=run.env,
                network=run.network,
                log=session.run.log(f"layer-{index}", str(plan.step(step).key)),
            )
        with (
            session.buildah.container(image, f"below-{index}", owners=owners) as below,
            below.mounted() as lower,
            container.mounted() as upper,
        ):
            entries = difference(
                lower,
                upper,
                container.upper_directory(upper),
                epoch=assembly.loaded.manifest.epoch,
                lower_owner=below.owner_reader,
                upper_owner=container.owner_reader,
            )
            return wish.pack(entries)
