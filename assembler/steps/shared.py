"""The shared cache: what other nodes have made, found by key in a registry, and what this one made, kept there.

A result that is found stays where it is for as long as nobody reads it: an image refers to its layers like to
those of a base, and a push mounts them. What a run needs of it is fetched, verified, into the store. The image is
asked for before its layers, and these before what is compiled for them, so that a node with nothing asks one
question when all is there.

Whoever may write to such a repository decides what is in the images of those who read it. So reading and writing
are two settings: a builder that is not trusted only reads. A cache is a help and no need: one that cannot be
asked, or answers nonsense, costs a warning, and the work is done here.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final

from assembler.errors import AssembleError, RequestError, UntrustedInputError
from assembler.events import Note
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import BlobLayer
from assembler.oci.reference import Reference
from assembler.steps.materialise import fetch_blob
from assembler.steps.shared_export import WRITERS, Export

if TYPE_CHECKING:
    from assembler.registry.client import Client
    from assembler.registry.results import Kind, StepResult
    from assembler.steps.assembly import Assembly
    from assembler.steps.session import Session
    from assembler.steps.stacking import BuiltImage

PLACE: Final = "cache"
"""Where a plan says that a result is."""

_QUESTIONS: Final = 8
_ATTEMPTS: Final = 2


def parse_repositories(texts: Iterable[str], option: str) -> tuple[Reference, ...]:
    """Read what `--cache-from` and `--cache-to` name; RequestError for anything but repositories."""
    found = []
    for text in texts:
        try:
            reference = Reference.parse(text)
        except ValueError as error:
            raise RequestError(
                str(error), place=option, hint="such as `registry.example.com/team/cache`"
            ) from error
        if reference.tag or reference.digest:
            fact = f"expected a repository, got a tag or digest too: `{text}`"
            raise RequestError(fact, place=option, hint="tags of a cache are the keys of steps")
        found.append(reference)
    return tuple(dict.fromkeys(found))


class SharedCache:
    """The shared caches of one run: those it reads, those it writes."""

    def __init__(self, session: Session) -> None:
        self._session = session
        options = session.options
        self._sources = () if options.offline else parse_repositories(options.cache_from, "--cache-from")
        self._targets = parse_repositories(options.cache_to, "--cache-to")
        self._found: dict[str, StepResult | None] = {}
        self._given_up: set[Reference] = set()
        self._lock = threading.Lock()
        self._impatient: Client | None = None
        self._writers = ThreadPoolExecutor(WRITERS, "cache")  # has no thread before it has work
        self._stopped = threading.Event()
        self._keeping: list[Future[None]] = []
        self.counts = {"found": 0, "written": 0}
        """Results that were found and used, and that were written."""

    @property
    def is_read(self) -> bool:
        """Is there a cache to look into?"""
        return bool(self._sources)

    @property
    def _client(self) -> Client:
        """Less patient than the one that pushes: nothing depends on the answer but time."""
        with self._lock:
            if self._impatient is None:
                from assembler.registry.client import Client
                from assembler.registry.retry import RetryPolicy

                policy = RetryPolicy(attempts=_ATTEMPTS)
                self._impatient = Client(policy=policy, insecure=self._session.options.insecure)
            return self._impatient

    def close(self, *, abandon: bool) -> None:
        """Wait for what is being written, or give it up."""
        if abandon:
            self._stopped.set()
        self._writers.shutdown(cancel_futures=abandon)

    # reading

    def ask(self, keys: Mapping[str, Sequence[Kind]]) -> None:
        """Look for results of these kinds under these keys, all at once; each is looked for once in a run."""
        new = [key for key in keys if key not in self._found] if self._sources else []
        if len(new) == 1:
            self._found[new[0]] = self._find(new[0], keys[new[0]])
        elif new:
            with ThreadPoolExecutor(min(_QUESTIONS, len(new)), "ask") as pool:
                found = pool.map(self._find, new, [keys[key] for key in new])
                self._found |= dict(zip(new, found, strict=True))

    def _find(self, key: str, kinds: Sequence[Kind]) -> StepResult | None:
        from assembler.registry.results import find_result

        for source in self._sources:
            if source in self._given_up:
                continue
            try:
                found = find_result(self._client, source, key)
                if found is not None and found.kind not in kinds:
                    fact = f"expected the result of the step {key[:12]} to be of the kind {' or '.join(kinds)}"
                    raise UntrustedInputError(f"{fact}, it is of the kind {found.kind}", place=source.name)
            except UntrustedInputError as error:
                self._session.emit(Note(text=f"the cache {source.name} is wrong: {error.fact}", level="warning"))
                continue
            except AssembleError as error:
                self._give_up(source, error, "is not read")
                continue
            if found is not None:
                return found
        return None

    def is_to_blame(self, error: AssembleError) -> bool:
        """Is it about something that a cache has promised, and can the work be done without?"""
        place = error.place or ""
        return any(place == source.name or place.startswith(f"{source.name}@") for source in self._sources)

    def do_without(self, error: AssembleError) -> None:
        """No cache is read any more, and nothing of what was found counts."""
        for source in self._sources:
            self._give_up(source, error, "is not read")
        self._sources = ()
        self._found.clear()

    def _give_up(self, repository: Reference, error: AssembleError, what: str) -> None:
        """Warn, once, that a cache is of no use in this run."""
        with self._lock:
            if repository in self._given_up:
                return
            self._given_up.add(repository)
        reasons = (error.fact, *error.detail, error.hint or "")
        text = f"the cache {repository.name} {what} in this run: {'; '.join(filter(None, reasons))}"
        self._session.emit(Note(text=text, level="warning"))

    def place_of(self, key: str) -> str:
        """Where the result of a key is that was asked for; nothing when no cache has it."""
        return PLACE if self._found.get(key) else ""

    def layer(self, key: str, created_by: str) -> BlobLayer | None:
        """The layer of this key, where it was found."""
        result = self._found.get(key)
        if result is None or result.kind != "layer":
            return None
        self._use()
        return BlobLayer(
            descriptor=Descriptor.from_json(result.record["descriptor"]),
            diff_id=Digest.parse(result.record["diff_id"]),
            created_by=created_by,
            origin=result.origin,
        )

    def bring(self, key: str) -> bool:
        """Fetch what a compile step of this key left, and remember it in the store. False when no cache has it."""
        result = self._found.get(key)
        if result is None or result.kind != "compile":
            return False
        bundle = result.blob(Digest.parse(result.record["bundle"]))
        try:
            if bundle and not self._session.store.has(bundle.digest):
                fetch_blob(self._session, result.origin, bundle)
        except AssembleError as error:
            self._forget(key, error)
            return False
        self._session.store.put_record(key, dict(result.record))
        self._use()
        return True

    def image(self, key: str) -> StepResult | None:
        """The image of this key, its manifest and config in the store now. None when no cache has it."""
        from assembler.registry.results import DOCUMENT

        self.ask({key: ("image",)})
        result = self._found.get(key)
        if result is None or result.kind != "image":
            return None
        try:
            for blob in result.blobs:
                if blob.media_type == DOCUMENT and not self._session.store.has(blob.digest):
                    self._session.store.put(self._client.get_blob(result.origin, blob))
        except AssembleError as error:
            self._forget(key, error)
            return None
        self._use()
        return result

    def refuse(self, key: str, problems: Sequence[str]) -> None:
        """What was found under this key is not what it should be: it is as if it had not been found."""
        self._forget(key, AssembleError("it is not what was asked for", detail=problems))

    def _use(self) -> None:
        with self._lock:
            self.counts["found"] += 1

    def _forget(self, key: str, error: AssembleError) -> None:
        result = self._found.get(key)
        self._found[key] = None
        reasons = "; ".join(filter(None, (error.fact, *error.detail)))
        place = result.origin.name if result else "the cache"
        text = f"the result of {key[:12]} in {place} is of no use: {reasons}"
        self._session.emit(Note(text=text, level="warning"))

    # writing

    def keep(self, key: str) -> None:
        """Write a result of the store, in the background: what is compiled is not to be lost with a later step."""
        for target in self._targets:
            self._keeping.append(self._writers.submit(self._keep_one, target, key))

    def _keep_one(self, target: Reference, key: str) -> None:
        try:
            self._count(Export(self._session, self._client, target, self._stopped).write(key))
        except AssembleError as error:
            self._give_up(target, error, "is not written")

    def _count(self, written: int) -> None:
        with self._lock:
            self.counts["written"] += written

    def export(
        self, assemblies: Sequence[Assembly], built: Sequence[BuiltImage], pushed: Sequence[Reference]
    ) -> None:
        """Write everything that these images were made of and that a cache has not. `pushed` has their layers."""
        for future in self._keeping:
            future.result()
        for target in self._targets:
            if target not in self._given_up:
                self._export(target, assemblies, built, pushed)

    def _export(
        self,
        target: Reference,
        assemblies: Sequence[Assembly],
        built: Sequence[BuiltImage],
        pushed: Sequence[Reference],
    ) -> None:
        work = Export(self._session, self._client, target, self._stopped, pushed, self._found)
        work.origins |= {
            layer.descriptor.digest: layer.origin
            for image in built
            for layer in image.image.layers
            if layer.origin
        }
        with self._session.step(f"cache:{target}", "cache", target.name) as report:
            try:
                written = sum(work.write_all(assembly) for assembly in assemblies)
            except AssembleError as error:
                self._give_up(target, error, "is not written")
                report.outcome = "skipped"
                return
            self._count(written)
            report.outcome = "pushed" if written else "present"
            report.detail = f"{written} results, {work.summary()}" if written else ""
