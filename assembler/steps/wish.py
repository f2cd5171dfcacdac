"""How a layer is wished for: under which key, in which compression, and whether in the other one at the same time.

A layer whose twin in the other compression is in the store is never made anew, but compressed from there: what a
command did in a container would be done twice, and could come out differently.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assembler.events import StepProgress
from assembler.oci.image import BlobLayer
from assembler.pack.compress import Compression, other_than
from assembler.pack.tarball import Follower, PackedLayer, pack
from assembler.pack.twins import pack_twins, recompress
from assembler.process import StoppedError
from assembler.steps.records import layer_from_record, layer_record
from assembler.steps.sending import Sending
from assembler.steps.session import Session
from assembler.tree.entry import Entry


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """One layer. `other_key` is that of its twin, None when it is not known; `both` asks for the twin too.

    `step` is told the progress, `created_by` is the layer's line of history, `epoch` the time of its entries.
    `inputs` are the digests (hexadecimal SHA-256) of packages and archives that it is made of, for its record.
    With `sending`, the layer is sent while it is packed; a twin follows when the image is pushed. `inline` says
    that as many layers are packed at once as fill the host: see `assembler.pack.inline`.
    """

    session: Session
    key: str
    compression: Compression
    other_key: str | None
    both: bool
    step: str
    created_by: str
    epoch: int = 0
    inputs: tuple[str, ...] = ()
    sending: Sending | None = None
    inline: bool = False

    def pack(self, entries: Sequence[Entry]) -> tuple[PackedLayer, dict[str, PackedLayer]]:
        """The layer of these entries, and all layers that were made by that, by key; not yet remembered."""
        if self.sending is None:
            return self._pack(entries, None)
        with self.sending.following() as follower:
            packed, made = self._pack(entries, follower)
            if follower:
                follower.finish(packed.layer.descriptor.digest)
        return packed, made

    def _pack(
        self, entries: Sequence[Entry], follower: Follower | None
    ) -> tuple[PackedLayer, dict[str, PackedLayer]]:
        session, total = self.session, sum(entry.size for entry in entries)

        def progress(done: int) -> None:
            if session.stop.is_set():
                raise StoppedError
            if self.sending:
                self.sending.look()
            session.emit(StepProgress(step=self.step, done_bytes=done, total_bytes=total))

        if self.both and self.other_key and not layer_from_record(session.store, self.other_key):
            compressions = self.compression, other_than(self.compression)
            packed, twin = pack_twins(
                entries,
                session.store,
                compressions,
                epoch=self.epoch,
                created_by=self.created_by,
                progress=progress,
                follower=follower,
            )
            return packed, {self.key: packed, self.other_key: twin}
        packed = pack(
            entries,
            session.store,
            compression=self.compression,
            epoch=self.epoch,
            created_by=self.created_by,
            progress=progress,
            follower=follower,
            inline=self.inline,
        )
        return packed, {self.key: packed}

    @property
    def twin_is_there(self) -> bool:
        """Is the layer in the store in the other compression?"""
        return bool(self.other_key and layer_from_record(self.session.store, self.other_key))

    def from_twin(self) -> PackedLayer | None:
        """The layer, compressed from its twin; None when that is not in the store."""
        store = self.session.store
        twin = layer_from_record(store, self.other_key, self.created_by) if self.other_key else None
        record = store.record(self.other_key) if self.other_key else None
        if twin is None or record is None:
            return None
        total = int(record["uncompressed_bytes"])
        layer: BlobLayer = recompress(
            twin,
            store,
            self.compression,
            progress=lambda done: self.session.emit(
                StepProgress(step=self.step, done_bytes=done, total_bytes=total)
            ),
        )
        return PackedLayer(layer=layer, uncompressed_bytes=total, files=int(record["files"]))

    def remember(self, made: dict[str, PackedLayer]) -> None:
        """Keep the records of layers whose blobs are in the store."""
        for key, packed in made.items():
            self.session.store.put_record(key, layer_record(packed, self.inputs))
