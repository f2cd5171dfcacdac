"""What `assemble inspect` shows: an image's layers, sizes, origins and settings, and the files of a layer.

`inspect` gives the JSON value, `inspect_text` the same for people. Both look at documents only; a layer is opened
for `--files`, as a stream, and what it says is printed, never followed.

A layer is of the `base` or `ours`: ours are those whose line of history carries our mark. An image on a base that
we assembled as well cannot be told apart by that, so a caller who knows the base gives the number of its layers.
"""

from __future__ import annotations

import gzip
import shlex
import sys
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import IO, Any, cast

from assembler.cli_text import printable, size_text, table
from assembler.errors import UntrustedInputError
from assembler.oci.descriptor import BASE_DIGEST, BASE_NAME, TITLE, ZSTD, Descriptor
from assembler.oci.digest import Digest, Readable
from assembler.oci.image import History, ImageConfig, ImageIndex, ImageManifest
from assembler.oci.layout import Store

OUR_COMMENT = "assemble"
_LARGEST_HEADER = 16 << 20
_SKIP = 1 << 20
_GZIP, _ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_SETTINGS = (
    ("User", "user"),
    ("WorkingDir", "workdir"),
    ("Entrypoint", "entrypoint"),
    ("Cmd", "cmd"),
    ("ExposedPorts", "ports"),
    ("Volumes", "volumes"),
    ("StopSignal", "stop signal"),
)


def inspect(
    manifest: ImageManifest,
    config: ImageConfig,
    *,
    name: str = "",
    digest: Digest | None = None,
    base_layers: int | None = None,
    store: Store | None = None,
    index: ImageIndex | None = None,
    referrers: Sequence[Descriptor] | None = None,
) -> dict[str, Any]:
    """The image as a JSON value; sizes in bytes, as they are stored.

    `stored` of a layer says whether its blob is in `store`, null without one. `config` keeps the names of the
    image specification. Layers that history has no line for have an empty `created_by`. `images` are all images
    of the index that this one was chosen from, null without one. `referrers` are what is attached to it or to the
    index, null where nobody was asked.
    """
    layers = list(_layers(manifest, config, base_layers, store))
    total = sum(layer["size"] for layer in layers)
    ours = sum(layer["size"] for layer in layers if layer["origin"] == "ours")
    base = {"name": manifest.annotations.get(BASE_NAME), "digest": manifest.annotations.get(BASE_DIGEST)}
    return {
        "name": name,
        "digest": str(digest) if digest else None,
        "media_type": manifest.media_type,
        "platform": str(config.platform),
        "images": None if index is None else _images(index),
        "referrers": None if referrers is None else [_referrer(each) for each in referrers],
        "created": config.created,
        "base": base if any(base.values()) else None,
        "size": {"total": total, "base": total - ours, "ours": ours},
        "layers": layers,
        "annotations": dict(manifest.annotations),
        "config_digest": str(manifest.config.digest),
        "config": dict(config.config),
    }


def _images(index: ImageIndex) -> list[dict[str, Any]]:
    """What an index offers. `compression` is told only where an image comes in two."""
    has_twins = any(ZSTD in entry.annotations for entry in index.manifests)
    return [
        {
            "digest": str(entry.digest),
            "platform": str(entry.platform) if entry.platform else None,
            "compression": ("zstd" if ZSTD in entry.annotations else "gzip") if has_twins else None,
        }
        for entry in index.manifests
    ]


def _referrer(entry: Descriptor) -> dict[str, Any]:
    return {
        "digest": str(entry.digest),
        "artifact_type": entry.extra.get("artifactType"),
        "annotations": dict(entry.annotations),
    }


def _layers(
    manifest: ImageManifest, config: ImageConfig, base_layers: int | None, store: Store | None
) -> Iterator[dict[str, Any]]:
    lines: list[History | None] = [entry for entry in config.history if not entry.empty_layer]
    if len(lines) != len(manifest.layers):
        # Squashed or hand-made images: which line belongs to which layer cannot be known.
        lines = [None] * len(manifest.layers)
    for position, (layer, line) in enumerate(zip(manifest.layers, lines, strict=True)):
        is_ours = line is not None and line.comment == OUR_COMMENT
        if base_layers is not None:
            is_ours = position >= base_layers
        yield {
            "index": position,
            "digest": str(layer.digest),
            "diff_id": str(config.diff_ids[position]) if position < len(config.diff_ids) else None,
            "media_type": layer.media_type,
            "size": layer.size,
            "created_by": line.created_by if line else "",
            "origin": "ours" if is_ours else "base",
            "stored": store.has(layer.digest) if store else None,
            "annotations": dict(layer.annotations),
        }


def inspect_text(value: Mapping[str, Any]) -> str:
    """What `inspect` gave, for people: facts, settings, and a table of the layers, lowest first."""
    base = value["base"] or {}
    size = value["size"]
    facts = [
        ("image", value["name"]),
        ("digest", value["digest"]),
        ("platform", value["platform"]),
        ("created", value["created"]),
        ("base", "@".join(filter(None, (base.get("name"), base.get("digest"))))),
        (
            "size",
            f"{size_text(size['total'])} ({size_text(size['base'])} base, {size_text(size['ours'])} ours)",
        ),
        *((label, _setting_text(value["config"].get(field))) for field, label in _SETTINGS),
    ]
    parts = [table([[label, printable(str(fact))] for label, fact in facts if fact])]
    parts += _listed("images of the index", _image_lines(value))
    parts += _listed("attached", _referrer_lines(value))
    parts += _listed("environment", value["config"].get("Env") or ())
    parts += _listed("labels", _pairs(value["config"].get("Labels")))
    parts += _listed("annotations", _pairs(value["annotations"]))
    rows = [
        [
            str(layer["index"]),
            size_text(layer["size"]),
            layer["origin"],
            _compression_text(layer["media_type"]),
            Digest(layer["digest"]).short,
            Digest(layer["diff_id"]).short if layer["diff_id"] else "",
            _shortened(printable(layer["created_by"])),
        ]
        for layer in value["layers"]
    ]
    headers = ["layer", "size", "origin", "format", "digest", "diff ID", "created by"]
    parts += ["", table(rows, headers, right={0, 1})]
    return "\n".join(parts)


def _image_lines(value: Mapping[str, Any]) -> Iterator[str]:
    for image in value["images"] or ():
        shown = " (this one)" if image["digest"] == value["digest"] else ""
        known = filter(None, (image["platform"], image["compression"], image["digest"]))
        yield "  ".join(known) + shown


def _referrer_lines(value: Mapping[str, Any]) -> Iterator[str]:
    for entry in value["referrers"] or ():
        yield "  ".join(filter(None, (entry["annotations"].get(TITLE), entry["artifact_type"], entry["digest"])))


def _listed(title: str, entries: Iterable[object]) -> list[str]:
    lines = [f"  {printable(str(entry))}" for entry in entries]
    return ["", title, *lines] if lines else []


def _pairs(mapping: Mapping[str, str] | None) -> list[str]:
    return [f"{name}={text}" for name, text in sorted((mapping or {}).items())]


def _compression_text(media_type: str) -> str:
    """`gzip`, `zstd` or `tar` of a layer's media type; Docker separates with a dot."""
    last = media_type.replace(".", "+").rpartition("+")[2]
    return last if last in ("gzip", "zstd", "tar") else "?"


def _setting_text(value: object) -> str:
    if isinstance(value, list):
        return shlex.join(str(word) for word in value)
    if isinstance(value, dict):
        return " ".join(sorted(str(name) for name in value))
    return "" if value is None else str(value)


def _shortened(text: str, most: int = 100) -> str:
    """A line of history for a table; those of Dockerfiles run to pages. JSON has the whole."""
    return text if len(text) <= most else text[: most - 1] + "…"


# files


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFile:
    """One entry of a layer as the tar says it; `link` is the target of a symbolic or hard link."""

    path: str
    kind: str
    mode: int
    uid: int
    gid: int
    size: int
    link: str = ""

    def to_json(self) -> dict[str, Any]:
        """The fields; the mode in octal, as text."""
        return {**asdict(self), "mode": f"{self.mode:04o}"}


_KINDS = {
    tarfile.DIRTYPE: "directory",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "fifo",
}
_LETTERS = {"directory": "d", "symlink": "l", "hardlink": "h", "device": "c", "fifo": "p", "file": "-"}


def layer_files(stream: Readable, name: str = "layer") -> Iterator[LayerFile]:
    """The entries of a layer, in the tar's order, in constant memory; `stream` is read once, forward.

    The compression is told by the first bytes, not by a media type. Raises UntrustedInputError with `name` as
    place when it is no tar, or is cut off.
    """
    try:
        with tarfile.open(
            fileobj=cast("IO[bytes]", _Forward(_opened(cast("IO[bytes]", stream)))), mode="r:"
        ) as archive:
            while (member := archive.next()) is not None:
                # The archive remembers every member for extraction, of which there is none.
                archive.members.clear()  # type: ignore[attr-defined]
                yield LayerFile(
                    path=member.name,
                    kind=_KINDS.get(member.type, "file"),
                    mode=member.mode & 0o7777,
                    uid=member.uid,
                    gid=member.gid,
                    size=member.size if member.isreg() else 0,
                    link=member.linkname,
                )
    except Exception as error:
        if isinstance(error, (*_decompression_errors(), tarfile.TarError, EOFError, ValueError, RecursionError)):
            raise UntrustedInputError(f"expected a tar archive: {error}", place=name) from error
        raise


def stored_layer_files(store: Store, layer: Descriptor) -> Iterator[LayerFile]:
    """The entries of a layer of the store; FileNotFoundError when its blob is not there."""
    with store.open(layer.digest) as stream:
        yield from layer_files(stream, f"layer {layer.digest.short}")


def files_text(files: Iterable[LayerFile]) -> Iterator[str]:
    """A line a file, as they come: mode, owner, size, path, target."""
    for file in files:
        mode = f"{_LETTERS[file.kind]}{file.mode:04o}"
        arrow = f" -> {printable(file.link)}" if file.link else ""
        yield f"{mode}  {f'{file.uid}:{file.gid}':<9}  {size_text(file.size):>8}  {printable(file.path)}{arrow}"


class _Forward:
    """A stream as `tarfile` wants it without ever going back: `seek` reads on.

    `tarfile` takes a header's word for its size and reads it at once; the limit keeps a hostile one from
    filling the memory.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._position = 0

    def read(self, amount: int = -1) -> bytes:
        if not 0 <= amount <= _LARGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size_text(amount)}")
        parts = []
        while amount and (data := self._stream.read(amount)):
            parts.append(data)
            amount -= len(data)
            self._position += len(data)
        return b"".join(parts)

    def tell(self) -> int:
        return self._position

    def seek(self, position: int) -> int:
        if position < self._position:
            raise tarfile.ReadError("an entry that begins before the last one ends")
        while self._position < position and self.read(min(_SKIP, position - self._position)):
            pass
        return self._position


class _Rewound:
    """A stream with its first bytes put back, so that a pipe can be looked into."""

    def __init__(self, first: bytes, stream: IO[bytes]) -> None:
        self._first = first
        self._stream = stream

    def read(self, amount: int = -1) -> bytes:
        if self._first:
            taken = self._first if amount < 0 else self._first[:amount]
            self._first = self._first[len(taken) :]
            return taken + (self._stream.read() if amount < 0 else b"")
        return self._stream.read(amount)


def _opened(stream: IO[bytes]) -> IO[bytes]:
    first = b""
    while len(first) < 4 and (more := stream.read(4 - len(first))):
        first += more
    whole = cast("IO[bytes]", _Rewound(first, stream))
    if first.startswith(_GZIP):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=whole, mode="rb"))
    if first.startswith(_ZSTD):
        import zstandard

        reader = zstandard.ZstdDecompressor().stream_reader(whole, read_across_frames=True)
        return cast("IO[bytes]", reader)
    return whole


def _decompression_errors() -> tuple[type[Exception], ...]:
    """What a damaged stream raises. Asked when an error is handled: by then zstandard is loaded, if ever."""
    module: Any = sys.modules.get("zstandard")
    return (zlib.error, gzip.BadGzipFile, *([module.ZstdError] if module else []))
