"""The distribution API as this project needs it; the only module that imports oras.

oras-py gives the session and knows the grammar of URLs. It reads whole blobs into memory, has no mount and no
useful retry, keeps one token for everything, and reads no `registries.conf` and no `certs.d`, so transfers,
tokens, credentials and places are ours, on its `requests` session: see `connection`, `authentication`, `settings`.

Every method takes references as the user wrote them and finds out where they are (`Settings.home`); what only
reads an image asks the mirrors first.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from assembler.errors import RegistryError
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest, Readable
from assembler.oci.reference import Reference
from assembler.registry.answers import ManifestDocument, MountAnswer
from assembler.registry.authentication import Credentials, Scopes, pull, push
from assembler.registry.certificates import read_certificates
from assembler.registry.connection import Body, Connection, joined
from assembler.registry.credentials import find_credentials
from assembler.registry.limits import check_size
from assembler.registry.mirrors import Mirrors, impatient
from assembler.registry.receiving import discard
from assembler.registry.refusal import RefusedError, TransientError, redacted
from assembler.registry.retry import RetryPolicy
from assembler.registry.sending import Sending
from assembler.registry.settings import Endpoint, Located, Settings, read_settings
from assembler.registry.stream import BlobStream
from assembler.registry.upload import UploadSession

if TYPE_CHECKING:
    import requests

ACCEPT = ", ".join(
    (
        media_types.MANIFEST,
        media_types.INDEX,
        media_types.DOCKER_MANIFEST,
        media_types.DOCKER_INDEX,
        *media_types.DOCKER_SCHEMA_1,  # asked for, so that a very old image can be named as such
    )
)
MANIFEST_LIMIT = 4 << 20  # distribution-spec: registries should refuse more
# Registry 2.8 writes its links in place: who pushes a blob a second time makes it unreadable for a moment.
_RACES = ("DIGEST_INVALID", "MANIFEST_BLOB_UNKNOWN")
_CONFIG_LIMIT = 16 << 20
T = TypeVar("T")


class Client:
    """Talks to any number of registries. Safe to use from several threads; nothing is sent before it is needed."""

    def __init__(
        self,
        settings: Settings | None = None,
        policy: RetryPolicy | None = None,
        *,
        insecure: Collection[str] = (),
    ) -> None:
        """`insecure` names registries beside those that the configuration files call so."""
        known = read_settings() if settings is None else settings
        self._settings = replace(known, insecure=known.insecure | frozenset(insecure))
        self._policy = policy or RetryPolicy()
        self._connections: dict[tuple[Endpoint, bool], Connection] = {}
        self._mirrors = Mirrors()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of all connections. The client can be used again."""
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()

    # manifests

    def get_manifest(self, reference: Reference) -> ManifestDocument:
        """The manifest or index that a tag or digest names; RegistryError when it is not there or not that one."""
        return self._first(reference, self._get_manifest)

    def _get_manifest(self, reference: Located) -> ManifestDocument:
        url = self._url(reference, "manifest")
        response, data = self._connection(reference).document(
            url, reference, MANIFEST_LIMIT, scopes=(pull(reference.repository),), headers={"Accept": ACCEPT}
        )
        digest = Digest.of(data)
        if reference.digest and digest != reference.digest:
            raise RegistryError(f"expected {reference.digest}, the bytes give {digest}", place=str(reference))
        media_type = response.headers.get("Content-Type", "").partition(";")[0].strip()
        return ManifestDocument(media_type, data, digest)

    def head_manifest(self, reference: Reference) -> Descriptor | None:
        """Type, digest and size of what a tag or digest names, or None when there is no such thing.

        Asked of the registry itself, since it is what a push will change.
        """
        reference = self._settings.home(reference)
        url = self._url(reference, "manifest")
        response = self._pull("HEAD", reference, url, headers={"Accept": ACCEPT}, missing=True)
        discard(response)
        if response.status_code == 404:
            return None
        try:
            return Descriptor(
                media_type=response.headers.get("Content-Type", "").partition(";")[0].strip(),
                digest=Digest.parse(response.headers.get("Docker-Content-Digest")),
                size=int(response.headers["Content-Length"]),
            )
        except (ValueError, KeyError):  # the specification allows an answer without these
            document = self._get_manifest(reference)
            return Descriptor(media_type=document.media_type, digest=document.digest, size=len(document.data))

    def put_manifest(self, reference: Reference, media_type: str, data: bytes) -> Digest:
        """Store a manifest or index under the reference's tag, else under its digest. Returns its digest."""
        digest = Digest.of(data)
        if reference.tag is None:
            reference = reference.at(digest)
        elif reference.digest:
            reference = reference.tagged(reference.tag)
        reference = self._settings.home(reference)
        connection = self._connection(reference)
        response = connection.request(
            "PUT",
            self._url(reference, "manifest"),
            reference,
            scopes=(push(reference.repository),),
            expect=(201, 202),
            headers={"Content-Type": media_type},
            body=Body.of(data),
            races=_RACES,
        )
        discard(response)
        said = response.headers.get("Docker-Content-Digest")
        if said and said != digest:
            raise RegistryError(f"expected {digest}, the registry stored `{said}`", place=str(reference))
        return digest

    # blobs

    def has_blob(self, reference: Reference, digest: Digest) -> int | None:
        """The size of a blob in the reference's repository, or None when it is not there. No mirror is asked."""
        reference = self._settings.home(reference)
        response = self._pull("HEAD", reference, self._url(reference, "blob", digest), missing=True)
        discard(response)
        if response.status_code == 404:
            return None
        size = response.headers.get("Content-Length", "")
        return int(size) if size.isdigit() else 0

    def get_blob(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """A small blob, verified: an image config."""
        if descriptor.size > _CONFIG_LIMIT:
            fact = f"expected at most {_CONFIG_LIMIT} bytes, the manifest announces {descriptor.size}"
            raise RegistryError(fact, place=f"{reference.name}@{descriptor.digest}")

        def ask(place: Located) -> bytes:
            def once() -> bytes:
                with self.open_blob(place, descriptor) as stream:
                    return stream.read()

            data: bytes = self._connection(place).retrying(once)
            return data

        return self._first(reference, ask, blob=True)

    def open_blob(self, reference: Reference, descriptor: Descriptor) -> BlobStream:
        """A blob as a stream (also a context manager; close it) that ends with VerifyError unless it was what the
        descriptor promises. When the connection breaks while reading, it goes on from there on another.
        """

        def opened(place: Located) -> BlobStream:
            places = [place]

            def open_at(start: int) -> requests.Response:
                # The rest, after a break, may come from any place that has it.
                if places:
                    return self._blob_at(places.pop(), descriptor, start)
                return self._first(reference, lambda other: self._blob_at(other, descriptor, start), blob=True)

            return BlobStream(open_at, place, descriptor, self._policy)

        return self._first(reference, opened, blob=True)

    def _blob_at(self, place: Located, descriptor: Descriptor, start: int) -> requests.Response:
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        url = self._url(place, "blob", descriptor.digest)
        return self._pull("GET", place, url, headers=headers, expect=(200, 206, 416) if start else (200,))

    def neighbours(self, target: Reference, others: Iterable[Reference | None]) -> tuple[str, ...]:
        """The repositories of the others from which blobs can be mounted into the target's, as `mount` takes them:
        those that lie in the same registry, whatever name they are known by.
        """
        return self._settings.neighbours(target, others)

    def mount(self, target: Reference, source_repository: str, digest: Digest) -> MountAnswer:
        """Make a blob of another repository of the same registry appear in the target's, without moving it.
        `neighbours` has the repositories from which this can be.

        A registry that declines may have opened an upload session: pass it on to `upload`. One that refuses
        because we may not read the source counts as declining.
        """
        target = self._settings.home(target)
        url = self._url(target, "upload")
        query = f"?mount={quote(digest, safe=':')}&from={quote(source_repository, safe='/')}"
        scopes = (push(target.repository), pull(source_repository))
        try:
            response = self._connection(target).request(
                "POST", url + query, target, scopes=scopes, expect=(201, 202), headers={"Content-Length": "0"}
            )
        except RefusedError:
            return MountAnswer(mounted=False)
        discard(response)
        if response.status_code == 201:
            return MountAnswer(mounted=True)
        location = response.headers.get("Location")
        return MountAnswer(
            mounted=False, session=joined(response.url, location, str(target)) if location else None
        )

    def upload(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        progress: Callable[[int], None] | None = None,
        *,
        session: str | None = None,
    ) -> None:
        """Send a blob; `open_blob` is called again when it has to start over. See `sending` for how.

        `progress` is told the number of bytes that are through, which falls when it starts over. `session` is
        one that a declined mount left. The registry checks the digest; RegistryError when it disagrees.
        """
        reference = self._settings.home(reference)
        check_size(reference, descriptor)
        connection = self._connection(reference)
        Sending(
            connection,
            reference,
            descriptor,
            open_blob,
            open_session=lambda: self.open_upload(reference),
            is_there=lambda: self.has_blob(reference, descriptor.digest) == descriptor.size,
            progress=progress,
            session=UploadSession(connection, reference, session) if session else None,
        ).run()

    def confirm_blob(self, reference: Reference, descriptor: Descriptor) -> None:
        """The registry said that it took this blob: RegistryError when it does not have it."""

        def look() -> None:
            found = self.has_blob(reference, descriptor.digest)
            if found is None or found not in (0, descriptor.size):
                has = "has nothing" if found is None else f"has {found} bytes"
                fact = f"the registry took blob {descriptor.digest} of {descriptor.size} bytes, and {has}"
                raise TransientError(fact, place=reference.name, hint="look at its log and its storage")

        self._connection(self._settings.home(reference)).retrying(look)

    def check_push(self, reference: Reference) -> None:
        """May we push there? Opens an upload and cancels it. RegistryError says what is missing."""
        self.open_upload(reference).cancel()

    def open_upload(self, reference: Reference) -> UploadSession:
        """Open an upload, for a blob that is sent in pieces."""
        reference = self._settings.home(reference)
        response = self._connection(reference).request(
            "POST",
            self._url(reference, "upload"),
            reference,
            scopes=(push(reference.repository),),
            expect=(202,),
            headers={"Content-Length": "0"},
        )
        discard(response)
        return UploadSession.opened(self._connection(reference), reference, response)

    # anything else

    def request(
        self,
        method: str,
        reference: Reference,
        path: str,
        *,
        scopes: Scopes,
        expect: Collection[int],
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
    ) -> requests.Response:
        """A request that has no method here, for a path below the reference's repository or on its registry.

        The answer's body is not read yet. RegistryError for other answers, and for a path on another host.
        """
        reference = self._settings.home(reference)
        connection = self._connection(reference)
        base = connection.url(f"{reference.endpoint.host}/v2/{reference.repository}/")
        url = urljoin(base, path)
        if urlsplit(url)[:2] != urlsplit(base)[:2]:
            fact = f"the registry sends us on to another host, `{redacted(url)}`"
            raise RegistryError(fact, place=str(reference))
        return connection.request(method, url, reference, scopes=scopes, expect=expect, headers=headers, body=body)

    # one connection for each registry

    def _first(self, reference: Reference, ask: Callable[[Located], T], *, blob: bool = False) -> T:
        """What the first place that can answers: the mirrors, then the registry itself."""
        mirrors = self._settings.mirrors(reference, blob=blob)
        return self._mirrors.first(mirrors, lambda: self._settings.home(reference), ask)

    def _pull(
        self,
        method: str,
        reference: Reference,
        url: str,
        *,
        headers: dict[str, str] | None = None,
        missing: bool = False,
        expect: Collection[int] = (200,),
    ) -> requests.Response:
        return self._connection(reference).request(
            method,
            url,
            reference,
            scopes=(pull(reference.repository),),
            expect=(200, 404) if missing else expect,
            headers=headers,
        )

    def _url(self, reference: Reference, kind: str, digest: Digest | None = None) -> str:
        """URLs by oras's grammar; it takes a host without dot or port for a part of the repository."""
        from oras.container import Container

        endpoint = self._settings.home(reference).endpoint
        container = Container(reference.repository, registry=endpoint.host)
        container.registry, container.namespace = endpoint.host, None
        container.repository = reference.repository
        if kind == "blob":
            path = container.get_blob_url(str(digest))
        elif kind == "upload":
            path = container.upload_blob_url()
        else:
            path = container.manifest_url(str(reference.digest or reference.tag or "latest"))
        return self._connection(reference).url(path)

    def _connection(self, reference: Reference) -> Connection:
        place = self._settings.home(reference)
        key = (place.endpoint, place.is_mirror)
        with self._lock:
            connection = self._connections.get(key)
            if connection is None:
                connection = _connect(place, self._settings, self._policy)
                self._connections[key] = connection
            return connection


def _connect(place: Located, settings: Settings, policy: RetryPolicy) -> Connection:
    """oras's session for this host, with connections for many threads and blocks fit for layers."""
    from oras.logger import logger
    from oras.provider import Registry

    from assembler.registry.sessions import equip

    logger.set_level(100)  # it would print to the terminal, which belongs to `cli`
    endpoint, mirror = place.endpoint, place.is_mirror
    directory = settings.certificates(endpoint)
    session: requests.Session = Registry(hostname=endpoint.host).session
    equip(session, endpoint, read_certificates(directory) if directory else None, mirror=mirror)

    def credentials(reference: Reference) -> Credentials | None:
        return find_credentials(reference, settings.credential_files, settings.credential_helpers)

    return Connection(endpoint, session, credentials, impatient(policy) if mirror else policy)
