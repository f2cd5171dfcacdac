"""What one run shares: options, the store, the run directory, and the doors to buildah and to registries.

The expensive parts are made when they are first asked for, so that a run that needs no container probes none and
a run that pushes nowhere imports no registry client.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from assembler.errors import NodeError, refused
from assembler.events import Emit, Note, Outcome, StepFinished, StepStarted
from assembler.oci.cache import default_cache
from assembler.oci.hold import hold
from assembler.oci.layout import Store

if TYPE_CHECKING:
    from assembler.build.container import Buildah
    from assembler.build.runs import RunDirectory
    from assembler.oci.reference import Reference
    from assembler.registry.client import Client
    from assembler.steps.host_files import Copies
    from assembler.steps.locking import Locking
    from assembler.steps.sending import Sending
    from assembler.steps.shared import SharedCache
    from assembler.tree.fingerprint import StatCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line (or a caller) asks for beside the manifest.

    `update` names lock entries to resolve again; `*` is all of them. `jobs` None means: from cores and memory.
    `cache_from` and `cache_to` are repositories, see `assembler.steps.shared`. `enter` is called with the words
    that start a command in a user namespace when a step needs containers and we are not root. It does not return:
    a program starts itself again there. Without it such a step is a NodeError.
    """

    cache: Path = field(default_factory=default_cache)
    offline: bool = False
    locked: bool = False
    update: frozenset[str] = frozenset()
    jobs: int | None = None
    keep: bool = False
    secrets: Mapping[str, Path] = field(default_factory=dict)
    insecure: tuple[str, ...] = ()
    cache_from: tuple[str, ...] = ()
    cache_to: tuple[str, ...] = ()
    enter: Callable[[tuple[str, ...]], NoReturn] | None = None


class Session:
    """One run of the program. A context manager: leaving it removes the run's containers and scratch space."""

    def __init__(self, options: Options, emit: Emit) -> None:
        self.options = options
        self.emit = emit
        self.store = Store(options.cache / "store")
        self.lockings: dict[tuple[Path, bool], Locking] = {}
        self.sending: Sending | None = None
        """The push of this run, from the moment when its targets are known."""
        self.stop = threading.Event()
        """Set when the run fails while some of its work goes on in other threads."""
        self.compiler_caches: list[Mapping[str, str | int]] = []
        """How often compiler caches had the answer, step by step, as `Result` of the pipeline has it."""
        self._client_lock = threading.Lock()
        self._client: Client | None = None
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Session:
        cache = self.options.cache
        try:
            cache.mkdir(parents=True, exist_ok=True)
            self.store.create()
            self._stack.enter_context(hold(self.store, on_wait=self._waiting))
        except OSError as error:
            fact = f"the cache cannot be used: {refused(error)}"
            hint = "`--cache DIR`, or ASSEMBLE_CACHE, names another directory"
            raise NodeError(fact, place=str(cache), hint=hint) from error
        return self

    def _waiting(self) -> None:
        self.emit(Note(text="the store is being freed by `assemble gc`; waiting for it to end"))

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if "shared" in self.__dict__:
            self.shared.close(abandon=kind is not None and not issubclass(kind, Exception))
        self._stack.close()

    @cached_property
    def run(self) -> RunDirectory:
        """This run's directory; making it also clears up after runs that died."""
        from assembler.build.runs import RunDirectory

        return self._stack.enter_context(RunDirectory.create(self.options.cache))

    @cached_property
    def buildah(self) -> Buildah:
        """The door to buildah, on storage that was probed on this host."""
        self.enter()
        from assembler.build.container import Buildah
        from assembler.build.node import probe_storage

        return Buildah(probe_storage(self.options.cache), self.run, self.emit)

    def enter(self) -> None:
        """Go on as root of a user namespace, unless we are root or nobody said how; NodeError without a way."""
        if os.geteuid() and self.options.enter:
            from assembler.build.namespace import way_or_error

            self.options.enter(way_or_error().before)

    @property
    def client(self) -> Client:
        """The door to registries. Safe to use from several threads."""
        with self._client_lock:
            if self._client is None:
                from assembler.registry.client import Client

                self._client = Client(insecure=self.options.insecure)
            return self._client

    @cached_property
    def shared(self) -> SharedCache:
        """What other nodes have made, in registries."""
        from assembler.steps.shared import SharedCache

        return SharedCache(self)

    def start_sending(self, targets: Sequence[Reference]) -> None:
        """Have the credentials for these targets tried in time, and layers sent there while they are packed."""
        from assembler.steps.sending import Sending

        self.sending = self._stack.enter_context(Sending(targets, lambda: self.client))

    def ready(self) -> None:
        """Wait until it is known that we may push; raises what stands against it. At once without targets."""
        if self.sending:
            self.sending.ready()

    @cached_property
    def stat_cache(self) -> StatCache:
        """Content digests of source trees by their stat data."""
        from assembler.tree.fingerprint import StatCache

        return StatCache(self.options.cache / "stat")

    @cached_property
    def copies(self) -> Copies:
        """Directories of this host that layers are copied from."""
        from assembler.steps.host_files import Copies

        return Copies(self.stat_cache)

    @contextlib.contextmanager
    def step(self, identifier: str, verb: str, name: str, key: str | None = None) -> Iterator[StepReport]:
        """Report a step: started now, finished when the block ends well."""
        report = StepReport()
        started = time.monotonic()
        self.emit(StepStarted(step=identifier, verb=verb, name=name))
        yield report
        self.emit(
            StepFinished(
                step=identifier,
                verb=verb,
                name=name,
                outcome=report.outcome,
                seconds=time.monotonic() - started,
                detail=report.detail,
                key=report.key or key,
            )
        )


@dataclass(slots=True)
class StepReport:
    """Filled in by the block of `Session.step`; `key` where it was not known at the start."""

    outcome: Outcome = "built"
    detail: str = ""
    key: str | None = None
