"""Bases: what a manifest stacks on or compiles in, from each of the five places where one can come from.

A base is first a name, a key and an identity for the lock; its image (two small documents) is read or made only
when a step asks for it. Making one is needed for `bootstrap` and for another manifest of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assembler.errors import LockError, ManifestError, placed
from assembler.events import StepOutput
from assembler.manifest.models import Base, Bootstrap
from assembler.manifest.search import display
from assembler.oci.descriptor import BASE_DIGEST, BASE_NAME
from assembler.oci.digest import Digest
from assembler.oci.image import BaseLayer, BlobLayer, Image, ImageConfig, ImageManifest, append
from assembler.oci.platform import Platform
from assembler.oci.reference import Reference
from assembler.pack.compress import Compression, compressor_id, other_than
from assembler.plan.graph import BaseFact, StepState
from assembler.plan.key import key_of
from assembler.steps.locking import Locking
from assembler.steps.records import layer_from_record
from assembler.steps.wish import Wish

if TYPE_CHECKING:
    from assembler.build.debs import Package
    from assembler.steps.assembly import Assembly
    from assembler.steps.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseHandle:
    """A base that is known but not necessarily here.

    `identity` says what the base is made of without our format version, for the lock; `image` reads or makes
    it; `depth` counts its layers; `packages` are the distribution packages in it, None where nobody knows them;
    `reference` is set for a registry base, `files` are those on disk that say which image it is. `annotations` are
    what an image on it says of it. `origins` are where its layers lie, lowest first; those that it does not tell
    of are in the store.
    """

    fact: BaseFact
    identity: str | None
    image: Callable[[], Image]
    depth: Callable[[], int]
    packages: Callable[[], tuple[Package, ...] | None] = lambda: None
    reference: Reference | None = None
    files: tuple[Path, ...] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    origins: Callable[[], tuple[Reference, ...]] = tuple


def base_handle(assembly: Assembly, role: str, base: Base, directory: Path | None = None) -> BaseHandle:
    """The base that a manifest names as its `devel` or `runtime`, or an image that is copied out of.

    Relative paths start from `directory`, or from that of the manifest.
    """
    session, directory, platform = assembly.session, directory or assembly.loaded.path.parent, assembly.platform
    # The layers of a runtime base are compressed like those that come on it, so that whoever reads those can read
    # all. A devel base stays as it is: nothing is to be compiled again for the sake of a compression or a date.
    is_shipped = role == "runtime"
    compression, also = (assembly.compression, assembly.also) if is_shipped else (None, None)
    epoch = assembly.loaded.source_date_epoch if is_shipped else None
    with placed(f"{display(assembly.loaded.path)}: {role}"):
        if base.reference:
            return registry_base(session, assembly.locking, role, base.reference, platform)
        if base.oci:
            path, _, name = base.oci.partition(":")
            return layout_base(session, role, directory / path, name or None, platform)
        if base.bootstrap:
            return bootstrap_base(
                session, assembly.locking, role, base.bootstrap, platform, compression or "zstd", also
            )
        if base.manifest:
            nested = assembly.base_of(directory / base.manifest, base.with_, compression, also, epoch)
            return manifest_base(role, nested)
    return scratch_base(platform)


def manifest_base(role: str, nested: Assembly) -> BaseHandle:
    """A base that is another manifest of ours; assembled when its image is asked for."""
    plan = nested.plan()
    todo = plan.image.state != "cached"
    fact = BaseFact(
        key=plan.image.key,
        name=nested.loaded.manifest.name,
        state="todo" if todo else "cached",
        detail=f"{role}, {len(plan.work)} steps" if todo else role,
    )
    return BaseHandle(
        fact=fact,
        identity=nested.identity,
        image=lambda: as_base(nested.build().image),
        depth=lambda: nested.runtime.depth() + len(nested.plan().layer_steps()),
        packages=lambda: installed(nested),
        origins=nested.runtime.origins,
    )


def known_packages(assembly: Assembly) -> tuple[Package, ...] | None:
    """The distribution packages of an image as far as the lock can know them; None while some are not locked."""
    try:
        found = list(assembly.runtime.packages() or ())
    except LockError:
        return None
    for step in assembly.debs.layers:
        packages = assembly.debs.answer(step, lock=False)
        if packages is None:
            return None
        found += packages
    return tuple(found)


def installed(assembly: Assembly) -> tuple[Package, ...] | None:
    """All distribution packages of an image; None where the lock can never know them, as of a registry base.

    LockError while some are not locked.
    """
    if assembly.runtime.packages() is None:
        return None
    found = known_packages(assembly)
    if found is None:
        raise LockError("the packages of the base are not locked", place=str(assembly.loaded.path))
    return found


def scratch_base(platform: Platform) -> BaseHandle:
    """The empty base."""
    image = Image.scratch(platform)
    key = key_of("scratch", {"platform": str(platform)})
    return BaseHandle(
        fact=BaseFact(key=key, name="scratch"),
        identity="scratch",
        image=lambda: image,
        depth=lambda: 0,
        packages=lambda: (),
    )


def registry_base(session: Session, locking: Locking, role: str, text: str, platform: Platform) -> BaseHandle:
    """A base in a registry: its tag is pinned by the lock, its manifest and config are kept in the store."""
    try:
        reference = Reference.parse(text)
    except ValueError as error:
        raise ManifestError(str(error), place=f"{role} base") from error
    request = {"reference": str(reference), "platform": str(platform)}

    def resolve() -> dict[str, Any]:
        from assembler.registry.resolve import resolve_base

        found = resolve_base(session.client, reference, platform)
        session.store.put(found.manifest_bytes)
        session.store.put(found.config_bytes)
        return {
            "manifest": str(Digest.of(found.manifest_bytes)),
            "config": str(found.manifest.config.digest),
            "layers": len(found.manifest.layers),
            **({"index": str(found.index_digest)} if found.index_digest else {}),
        }

    answer = locking.answer("base", locking.name_on(role, platform), request, resolve)
    digest = Digest.parse(answer["manifest"])
    config_digest = Digest.parse(answer["config"])
    pinned = reference.at(digest)

    def image() -> Image:
        if not (session.store.has(digest) and session.store.has(config_digest)):
            if session.options.offline:
                raise LockError(
                    "the base's manifest and config are not in the store, and `--offline` forbids to fetch them",
                    place=str(pinned),
                )
            from assembler.registry.resolve import resolve_base

            found = resolve_base(session.client, pinned, platform)
            session.store.put(found.manifest_bytes)
            session.store.put(found.config_bytes)
        manifest = ImageManifest.from_bytes(session.store.read(digest))
        config = ImageConfig.from_bytes(session.store.read(config_digest))
        return Image.from_base(manifest, config, pinned)

    def depth() -> int:
        return int(answer["layers"]) if "layers" in answer else len(image().layers)

    fact = BaseFact(key=digest.hex, name=str(reference), detail=f"{role}, by reference")
    return BaseHandle(
        fact=fact,
        identity=digest.hex,
        image=image,
        depth=depth,
        reference=pinned,
        origins=lambda: (pinned,) * depth(),
        annotations=base_annotations(reference, Digest.parse(answer.get("index", digest))),
    )


def base_annotations(reference: Reference, digest: Digest) -> dict[str, str]:
    """Which base an image stands on, so that it can be found out and rebased later (image-spec annotations.md).

    The name is complete, with registry and tag; `digest` is that of what it names, an index where it names one. A
    lock of an earlier version does not know the index: the digest is then the image's.
    """
    named = reference if reference.tag or reference.digest else reference.tagged("latest")
    return {BASE_NAME: str(named), BASE_DIGEST: str(reference.digest or digest)}


def layout_base(session: Session, role: str, directory: Path, name: str | None, platform: Platform) -> BaseHandle:
    """A base in an OCI layout on disk. Its blobs are linked (or copied) into the store when the image is read."""
    from assembler.oci.bases import load_layout

    found = load_layout(directory, name, platform)
    digest = Digest.of(found.manifest_bytes)

    def image() -> Image:
        for descriptor in found.manifest.layers:
            _adopt(
                session, directory / "blobs" / "sha256" / descriptor.digest.hex, descriptor.digest, descriptor.size
            )
        session.store.put(found.manifest_bytes)
        session.store.put(found.config_bytes)
        return Image.from_base(found.manifest, found.config, None)

    fact = BaseFact(key=digest.hex, name=f"oci:{directory.name}", detail=role)
    return BaseHandle(
        fact=fact,
        identity=digest.hex,
        image=image,
        depth=lambda: len(found.manifest.layers),
        files=(directory / "index.json",),
    )


def _adopt(session: Session, path: Path, digest: Digest, size: int) -> None:
    """Take a blob of a foreign layout into the store, verified."""
    with path.open("rb") as stream:
        session.store.put_stream(stream, digest, size)


def bootstrap_base(
    session: Session,
    locking: Locking,
    role: str,
    bootstrap: Bootstrap,
    platform: Platform,
    compression: Compression = "zstd",
    also: Compression | None = None,
) -> BaseHandle:
    """A root file system made from distribution packages; no registry is needed.

    Its one layer is packed in `compression`, and where it is made now, at the same time in `also`.
    """
    from assembler.build import bootstrap as bootstrapping
    from assembler.build.debs import Package

    request = {**bootstrap.model_dump(mode="json", exclude={"mirrors"}), "platform": str(platform)}
    name = f"{bootstrap.distribution} {bootstrap.suite}"

    def resolve() -> dict[str, Any]:
        with session.step(f"lock:{role}", "lock", f"{name} packages") as report:
            packages = bootstrapping.resolve(bootstrap, platform)
            report.outcome, report.detail = "ok", f"{len(packages)} packages"
        return {"packages": [package.to_json() for package in packages]}

    answer = locking.answer("packages", locking.name_on(role, platform), request, resolve)
    packages = tuple(Package.from_json(value) for value in answer["packages"])
    identity = key_of("bootstrap-identity", {"packages": sorted(package.sha256 for package in packages)})

    def key_in(compression: Compression) -> str:
        compressor = compressor_id(compression)
        return key_of("bootstrap", {"packages": identity, "request": request, "compressor": compressor})

    key = key_in(compression)
    wish = Wish(
        session=session,
        key=key,
        compression=compression,
        other_key=key_in(other_than(compression)),
        both=also is not None,
        step=f"base:{key[:12]}",
        created_by=f"bootstrap {name}",
        inputs=tuple(package.sha256 for package in packages),
    )

    def image() -> Image:
        return _bootstrap_image(wish, bootstrap, packages, name, platform)

    state: StepState = "cached" if layer_from_record(session.store, key) else "todo"
    fact = BaseFact(
        key=key,
        name=name,
        state=state,
        detail=f"{role}, {len(packages)} packages",
        bytes_download=sum(p.size for p in packages if not session.store.has(Digest.from_hex(p.sha256))),
    )
    return BaseHandle(fact=fact, identity=identity, image=image, depth=lambda: 1, packages=lambda: packages)


def _bootstrap_image(
    wish: Wish, bootstrap: Bootstrap, packages: tuple[Package, ...], name: str, platform: Platform
) -> Image:
    from assembler.build import bootstrap as bootstrapping
    from assembler.build.debs import fetch

    session = wish.session
    layer = layer_from_record(session.store, wish.key, wish.created_by)
    if layer is None:
        session.shared.ask({wish.key: ("layer",)})
        layer = session.shared.layer(wish.key, wish.created_by)
    if layer is None:
        with session.step(wish.step, "bootstrap", name, wish.key) as report:
            packed = wish.from_twin()
            if packed is None:
                session.enter()
                offline = session.options.offline
                paths = fetch(packages, session.store, session.emit, offline=offline, step=wish.step)
                with bootstrapping.assembled(
                    bootstrap,
                    packages,
                    paths,
                    session.run.scratch("bootstrap"),
                    platform=platform,
                    log=session.run.log(f"bootstrap-{bootstrap.suite}", wish.key),
                    on_line=lambda line: session.emit(StepOutput(step=wish.step, line=line)),
                ) as entries:
                    packed, made = wish.pack(entries)
                wish.remember(made)
            layer = packed.layer
            report.detail = f"{len(packages)} packages"
    return stack_on_scratch(layer, platform)


def stack_on_scratch(layer: BlobLayer, platform: Platform) -> Image:
    """A base image of one layer of ours."""
    return append(Image.scratch(platform), [layer])


def as_base(image: Image, origin: Reference | None = None) -> Image:
    """The same image, seen as a base: its own layers can no longer be opened, only referred to."""
    layers = tuple(
        layer
        if isinstance(layer, BaseLayer)
        else BaseLayer(descriptor=layer.descriptor, diff_id=layer.diff_id, origin=layer.origin or origin)
        for layer in image.layers
    )
    return replace(image, layers=layers, annotations={})
