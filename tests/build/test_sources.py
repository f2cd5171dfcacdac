"""Sources: locked, fetched over real HTTP and git, unpacked once, and honest about every fault."""

from __future__ import annotations

import hashlib
import http.server
import io
import os
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from support.needs import lacking

from assembler.build import sources
from assembler.build.download import Patience, download, open_session
from assembler.build.git import Repository, is_commit, repository_url
from assembler.build.python_index import index_urls, sdist_version
from assembler.errors import (
    AssembleError,
    LockError,
    ManifestError,
    RegistryError,
    RequestError,
    UntrustedInputError,
)
from assembler.events import Event, StepFinished
from assembler.manifest.models import Source
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.tree.archive import SOURCE_TIME

FAST = Patience(attempts=3, first=0)
Answer = Callable[["_Handler"], None]


@dataclass
class Server:
    """A web server on loopback; `files` by path, `faults` are used up one a request, before the file is served."""

    url: str
    files: dict[str, tuple[bytes, Mapping[str, str]]] = field(default_factory=dict)
    faults: list[Answer] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)

    def serve(self, path: str, data: bytes, **headers: str) -> str:
        self.files[path] = (data, {name.replace("_", "-"): value for name, value in headers.items()})
        return self.url + path


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Server

    def do_GET(self) -> None:
        self.state.requests.append((self.path, self.headers.get("Range")))
        if self.state.faults:
            self.state.faults.pop(0)(self)
            return
        found = self.state.files.get(self.path)
        if found is None:
            self.answer(404, b"")
            return
        data, headers = found
        start = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-")
        if start != "0" and self.headers.get("If-Range") == headers.get("ETag"):
            span = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            self.answer(206, data[int(start) :], {**headers, **span})
        else:
            self.answer(200, data, headers)

    def answer(
        self, status: int, data: bytes, headers: Mapping[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        """Be quiet."""


def _status(status: int) -> Answer:
    return lambda handler: handler.answer(status, b"sorry")


def _cut(data: bytes, headers: Mapping[str, str] | None = None) -> Answer:
    def answer(handler: _Handler) -> None:
        handler.answer(200, data[: len(data) // 2], headers, length=len(data))
        handler.close_connection = True

    return answer


@pytest.fixture
def web() -> Iterator[Server]:
    handler = type("Handler", (_Handler,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        state = Server(url=f"http://127.0.0.1:{server.server_port}")
        handler.state = state  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield state
        server.shutdown()
        thread.join()


@dataclass
class Place:
    """A cache with its store, and the events of what was fetched."""

    root: Path
    store: Store
    events: list[Event] = field(default_factory=list)

    def lock(self, source: Source, **options: Any) -> dict[str, Any]:
        return sources.lock_source(source, self.root, cache=self.root / "cache", patience=FAST, **options)

    def fetch(self, source: Source, answer: Mapping[str, Any], **options: Any) -> sources.Checkout:
        return sources.fetch_source(
            source,
            answer,
            self.root,
            store=self.store,
            cache=self.root / "cache",
            emit=self.events.append,
            patience=FAST,
            **options,
        )


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, Store(tmp_path / "cache/store").create())


def _archive(name: str = "pkg-1.0", **files: str) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for path, text in (files or {"README": "hello"}).items():
            info = tarfile.TarInfo(f"{name}/{path}")
            info.size = len(text)
            archive.addfile(info, io.BytesIO(text.encode()))
    return buffer.getvalue()


def _sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# archives


def test_archive_is_locked_fetched_once_and_found_offline(place: Place, web: Server) -> None:
    data = _archive()
    source = Source(archive=web.serve("/pkg.tar.gz", data, Content_Encoding="gzip"))
    assert sources.request_of(source) == {"archive": source.archive}
    answer = place.lock(source)
    assert answer == {"sha256": _sha(data), "size": len(data)}
    checkout = place.fetch(source, answer)
    assert (checkout.path / "README").read_text() == "hello"
    assert checkout.digest == sources.source_digest(source, answer, place.root)
    assert place.fetch(source, answer, offline=True) == checkout
    assert len(web.requests) == 1
    again = Source(archive="http://127.0.0.1:1/mirror.tar.gz")
    assert sources.source_digest(again, answer, place.root) == checkout.digest
    assert not list((place.root / "cache/sources").glob(".*"))


def test_fetch_reports_itself(place: Place, web: Server) -> None:
    data = _archive()
    source = Source(archive=web.serve("/pkg.tar.gz", data), sha256=_sha(data))
    assert place.lock(source, offline=True) == {"sha256": _sha(data)}
    place.fetch(source, place.lock(source))
    finished = [event for event in place.events if isinstance(event, StepFinished)]
    assert [(event.verb, event.outcome) for event in finished] == [("fetch", "pulled")]


def test_errors_500_and_a_cut_are_survived_and_resumed(place: Place, web: Server) -> None:
    data = _archive(big=os.urandom(300_000).hex())
    url = web.serve("/pkg.tar.gz", data, ETag='"1"')
    web.faults = [_status(500), _status(429), _cut(data, {"ETag": '"1"'}), _status(503)]
    source = Source(archive=url, sha256=_sha(data))
    assert (place.fetch(source, place.lock(source)).path / "big").exists()
    assert web.requests[-1][1] == f"bytes={len(data) // 2}-"


def test_a_cut_without_validator_starts_over(place: Place, web: Server) -> None:
    data = _archive(big=os.urandom(300_000).hex())
    url = web.serve("/pkg.tar.gz", data)
    web.faults = [_cut(data)]
    source = Source(archive=url, sha256=_sha(data))
    place.fetch(source, place.lock(source))
    assert [part for _, part in web.requests] == [None, None]


def test_another_file_between_two_parts_starts_over(place: Place, web: Server) -> None:
    data = _archive(big=os.urandom(300_000).hex())
    url = web.serve("/pkg.tar.gz", data, ETag='"new"')
    web.faults = [_cut(data[::-1], {"ETag": '"old"'})]
    source = Source(archive=url, sha256=_sha(data))
    assert place.fetch(source, place.lock(source)).path.is_dir()


def test_wrong_hash_is_refused_and_nothing_is_stored(place: Place, web: Server) -> None:
    source = Source(archive=web.serve("/pkg.tar.gz?token=secret", _archive()), sha256="0" * 64)
    with pytest.raises(UntrustedInputError, match="expected `sha256:000") as caught:
        place.fetch(source, place.lock(source))
    assert "secret" not in str(caught.value)
    assert list((place.store.root / "blobs/sha256").iterdir()) == []
    assert list((place.store.root / "tmp").iterdir()) == []


def test_wrong_size_and_endless_failures(place: Place, web: Server) -> None:
    url = web.serve("/x", b"12345")
    with open_session() as session, pytest.raises(UntrustedInputError, match="expected 4 bytes, the server has 5"):
        download(session, url, place.store, digest=Digest.of(b"1234"), size=4, patience=FAST)
    web.faults = [_status(502)] * 3
    with open_session() as session, pytest.raises(RegistryError, match="answered 502") as caught:
        download(session, url, place.store, digest=None, patience=FAST)
    assert caught.value.detail == ("tried 3 times",)
    with open_session() as session, pytest.raises(RegistryError, match="connection refused"):
        download(session, "http://127.0.0.1:1/x", place.store, digest=None, patience=FAST)


def test_gone_is_a_manifest_error_first_and_a_lock_error_later(place: Place, web: Server) -> None:
    source = Source(archive=web.url + "/gone.tar.gz")
    with pytest.raises(ManifestError, match="404"):
        place.lock(source)
    with pytest.raises(LockError, match="404"):
        place.fetch(source, {"sha256": "0" * 64})


def test_offline_says_what_is_missing(place: Place, web: Server) -> None:
    for source in (
        Source(archive=web.serve("/a.tar.gz", _archive())),
        Source(sdist="six==1.17.0"),
        Source(git="https://127.0.0.1:1/x.git", ref="main"),
    ):
        with pytest.raises(RequestError, match="`--offline` forbids"):
            place.lock(source, offline=True)
    with pytest.raises(RequestError, match="`--offline` forbids"):
        place.fetch(source, {"commit": "1" * 40}, offline=True)
    assert web.requests == []


def test_local_archive_strip_subdirectory_and_ignore(place: Place) -> None:
    (place.root / "x.tgz").write_bytes(_archive(**{"src/a.c": "c", "src/a.o": "o", "doc/x": "d"}))
    source = Source(archive="x.tgz", subdirectory="src", ignore=("*.o",))
    answer = place.lock(source, offline=True)
    checkout = place.fetch(source, answer)
    assert [path.name for path in checkout.path.iterdir()] == ["a.c"]
    entries = sources.source_entries(source, answer, place.root, store=place.store, cache=place.root / "cache")
    assert [entry.path for entry in entries] == ["a.c"]
    other = Source(archive="x.tgz", strip=0)
    assert (place.fetch(other, answer).path / "pkg-1.0/src/a.o").exists()
    assert sources.source_digest(other, answer, place.root) != checkout.digest
    with pytest.raises(ManifestError, match="expected a directory `nope` in the source"):
        place.fetch(Source(archive="x.tgz", subdirectory="nope"), answer)
    (place.root / "x.tgz").write_bytes(_archive(other="file"))
    changed = Source(archive="x.tgz", strip=1)
    with pytest.raises(UntrustedInputError, match="expected `sha256:"):
        place.fetch(changed, answer)


def test_hostile_archive_leaves_no_checkout(place: Place) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("../../evil"))
    (place.root / "x.tar").write_bytes(buffer.getvalue())
    source = Source(archive="x.tar")
    with pytest.raises(UntrustedInputError, match="evil"):
        place.fetch(source, place.lock(source))
    assert [path.suffix for path in (place.root / "cache/sources").iterdir()] == [".lock"]


def test_killed_making_is_cleared_up_and_many_make_one(place: Place, web: Server) -> None:
    data = _archive(**{f"f{number}": "x" for number in range(200)})
    source = Source(archive=web.serve("/x.tgz", data), sha256=_sha(data))
    answer = place.lock(source)
    tree = place.fetch(source, answer).path
    tree.with_suffix(".json").unlink()  # killed before the record was written
    (tree / "f0").write_text("half")
    stale = tree.with_name(f".{tree.name}-dead")
    (stale / "tree").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        found = {job.result() for job in [pool.submit(place.fetch, source, answer) for _ in range(8)]}
    assert found == {sources.Checkout(path=tree, digest=sources.source_digest(source, answer, place.root))}
    assert (tree / "f0").read_text() == "x"
    assert not stale.exists()


def test_damaged_answer(place: Place) -> None:
    for source, answer in (
        (Source(archive="x"), {}),
        (Source(archive="x"), {"sha256": 3}),
        (Source(git="x", ref="y"), {"commit": "main"}),
    ):
        with pytest.raises(LockError, match="in the lock's answer"):
            sources.source_digest(source, answer, place.root)


# source distributions


def _json_page(file: str, data: bytes) -> bytes:
    return (
        b'{"meta": {"api-version": "1.1"}, "name": "my-pkg", "files": ['
        b'{"filename": "my_pkg-1.0-py3-none-any.whl", "url": "x.whl", "hashes": {}},'
        b'{"filename": "%s", "url": "../../files/%s", "size": %d, "hashes": {"sha256": "%s"}}]}'
        % (file.encode(), file.encode(), len(data), _sha(data).encode())
    )


def _html_page(file: str, data: bytes) -> bytes:
    href = f"../../files/{file}#sha256={_sha(data)}"
    return f'<!DOCTYPE html><html><body><a href="x.whl">x</a><a href="{href}">{file}</a></body></html>'.encode()


@pytest.mark.parametrize("form", ["json", "html"])
def test_sdist_from_an_index(place: Place, web: Server, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    data = _archive("my_pkg-1.0.0")
    file = "my_pkg-1.0.0.tar.gz"
    page = (_json_page if form == "json" else _html_page)(file, data)
    kind = "application/vnd.pypi.simple.v1+json" if form == "json" else "text/html; charset=utf-8"
    web.serve("/simple/my-pkg/", page, Content_Type=kind)
    web.serve(f"/files/{file}", data)
    monkeypatch.setenv("UV_DEFAULT_INDEX", web.url + "/simple/")
    web.faults = [_status(503)]
    source = Source(sdist="My.Pkg==1.0")
    answer = place.lock(source)
    assert answer["file"] == file
    assert answer["sha256"] == _sha(data)
    assert not any("http" in str(value) for value in answer.values())
    assert (place.fetch(source, answer).path / "README").exists()
    with pytest.raises(ManifestError, match="other versions only") as caught:
        place.lock(Source(sdist="my-pkg==2.0"))
    assert caught.value.hint == "it has 1.0.0"
    with pytest.raises(ManifestError, match="found none"):
        place.lock(Source(sdist="unknown==2.0"))
    with pytest.raises(LockError, match=r"my_pkg-1\.0\.0\.zip"):
        place.fetch(source, {**answer, "file": "my_pkg-1.0.0.zip", "sha256": "1" * 64})


def test_real_sdist_of_the_users_index(place: Place) -> None:
    source = Source(sdist="six==1.17.0")
    try:
        answer = place.lock(source)
        checkout = place.fetch(source, answer)
    except RegistryError as error:
        lacking(f"no Python index in reach: {error}")
    assert answer["sha256"] == "ff70335d468e7eb6ec65b95b99d3a2836546063f63acc5171de367e834932a81"
    assert (checkout.path / "six.py").exists()


def test_index_settings_in_their_order(tmp_path: Path) -> None:
    (tmp_path / ".config/pip").mkdir(parents=True)
    (tmp_path / ".config/uv").mkdir()
    (tmp_path / ".config/pip/pip.conf").write_text(
        "[global]\nindex-url = https://pip/simple/\nextra-index-url =\n  https://extra/1\n  https://extra/2\n"
    )
    home = {"HOME": str(tmp_path)}
    assert index_urls(home) == ("https://extra/1", "https://extra/2", "https://pip/simple")
    assert index_urls({**home, "PIP_INDEX_URL": "https://env/"})[-1] == "https://env"
    uv = {**home, "UV_DEFAULT_INDEX": "mine=https://uv/a=b", "UV_INDEX": "x=https://x https://y"}
    assert index_urls({**uv, "PIP_CONFIG_FILE": os.devnull}) == ("https://x", "https://y", "https://uv/a=b")
    (tmp_path / ".config/uv/uv.toml").write_text(
        '[[index]]\nurl = "https://one"\n[[index]]\nurl = "https://two"\ndefault = true\n'
        '[[index]]\nurl = "https://hidden"\nexplicit = true\n'
    )
    assert index_urls(home) == ("https://one", "https://extra/1", "https://extra/2", "https://two")
    (tmp_path / ".config/uv/uv.toml").write_text("damaged [")
    assert index_urls(home)[-1] == "https://pip/simple"


@pytest.mark.parametrize(
    ("file", "project", "version"),
    [
        ("six-1.17.0.tar.gz", "six", "1.17.0"),
        ("llama_cpp_python-0.3.36.tar.gz", "llama-cpp-python", "0.3.36"),
        ("zope-interface-5.0.zip", "zope.interface", "5.0"),
        ("zope.interface-5.0.zip", "Zope_Interface", "5.0"),
        ("six-1.17.0-py2.py3-none-any.whl", "six", None),
        ("sixth-1.0.tar.gz", "six", None),
    ],
)
def test_names_of_source_distributions(file: str, project: str, version: str | None) -> None:
    assert sdist_version(file, project) == version


# paths


def test_path_is_copied_without_what_is_ignored(place: Place) -> None:
    root = place.root / "project"
    (root / "src").mkdir(parents=True)
    (root / "src/a.c").write_text("c")
    (root / "src/a.o").write_text("o")
    (root / "run").write_text("#!")
    (root / "run").chmod(0o750)
    (root / "link").symlink_to("src/a.c")
    os.link(root / "src/a.c", root / "same.c")
    (root / ".git").mkdir()
    source = Source(path="project", ignore=("*.o",))
    assert place.lock(source) == {}
    checkout = place.fetch(source, {})
    names = sorted(str(path.relative_to(checkout.path)) for path in checkout.path.rglob("*"))
    assert names == ["link", "run", "same.c", "src", "src/a.c"]
    assert (checkout.path / "same.c").samefile(checkout.path / "src/a.c")
    assert checkout.path.lstat().st_mtime == (checkout.path / "src/a.c").stat().st_mtime == SOURCE_TIME
    (root / "src/a.o").write_text("changed, and ignored")
    assert place.fetch(source, {}) == checkout
    (root / "src/a.c").write_text("changed")
    changed = place.fetch(source, {})
    assert changed.digest != checkout.digest
    assert (changed.path / "src/a.c").read_text() == "changed"
    entries = sources.source_entries(source, {}, place.root, store=place.store, cache=place.root / "cache")
    assert {entry.content for entry in entries if entry.kind == "file"} == {root / "run", root / "same.c"}
    part = Source(path="project", subdirectory="src")
    assert sorted(path.name for path in place.fetch(part, {}).path.iterdir()) == ["a.c", "a.o"]


def test_path_that_is_no_directory(place: Place) -> None:
    (place.root / "x.tar").write_text("")
    with pytest.raises(ManifestError, match="found none"):
        sources.source_digest(Source(path="gone"), {}, place.root)
    with pytest.raises(ManifestError, match="found a file"):
        sources.source_digest(Source(path="x.tar"), {}, place.root)


# git


def _run(directory: Path, *argv: str) -> str:
    identity = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "tag.gpgsign=false",
    ]
    allow = ["-c", "protocol.file.allow=always", "-c", "init.defaultBranch=main"]
    command = ["git", "-C", str(directory), *identity, *allow, *argv]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def _commit(root: Path, **files: str) -> str:
    root.mkdir(exist_ok=True)
    if not (root / ".git").exists():
        _run(root, "init", "-q")
    for path, text in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    _run(root, "add", "-A")
    _run(root, "commit", "-q", "--allow-empty", "-m", "change")
    return _run(root, "rev-parse", "HEAD")


def test_git_ref_is_pinned_and_the_lock_wins(place: Place) -> None:
    upstream = place.root / "upstream"
    attributes = "a.txt export-ignore\nb.txt export-subst eol=crlf\n"
    first = _commit(upstream, **{"a.txt": "1\n", "b.txt": "$Format:%H$\n", ".gitattributes": attributes})
    _run(upstream, "tag", "-a", "v1", "-m", "annotated")
    _run(upstream, "branch", "feature/v1")
    source = Source(git=f"file://{upstream}", ref="v1")
    answer = place.lock(source)
    assert answer == {"commit": first}
    assert sources.request_of(source) == {"git": source.git, "ref": "v1"}
    second = _commit(upstream, **{"a.txt": "2"})
    _run(upstream, "tag", "-f", "-a", "v1", "-m", "moved")
    assert place.lock(source) == {"commit": second}
    assert place.lock(Source(git="upstream", ref="feature/v1"), offline=True) == {"commit": first}
    checkout = place.fetch(source, answer)
    assert (checkout.path / "a.txt").read_bytes() == b"1\n"
    assert (checkout.path / "b.txt").read_bytes() == b"$Format:%H$\n"
    assert not (checkout.path / ".git").exists()
    assert place.fetch(source, answer, offline=True) == checkout
    assert place.fetch(Source(git=str(upstream), ref=second), {"commit": second}).digest != checkout.digest


def test_git_commit_that_is_gone(place: Place) -> None:
    upstream = place.root / "upstream"
    _commit(upstream, a="1")
    source = Source(git="upstream", ref="main")
    place.fetch(source, place.lock(source))
    with pytest.raises(LockError, match="commit `1111") as caught:
        place.fetch(source, {"commit": "1" * 40})
    assert "lock --update" in str(caught.value.hint)
    with pytest.raises(ManifestError, match="expected a tag or branch `v9`"):
        place.lock(Source(git="upstream", ref="v9"))
    with pytest.raises(ManifestError, match="tag or branch `abcdef1`") as wanted:
        place.lock(Source(git="upstream", ref="abcdef1"))
    assert "all of its digits" in str(wanted.value.hint)
    with pytest.raises(RegistryError, match="git cannot read"):
        place.lock(Source(git=f"file://{place.root}/nothing", ref="main"))


def test_old_commit_of_a_server_that_gives_refs_only(place: Place) -> None:
    upstream = place.root / "upstream"
    first = _commit(upstream, a="1")
    for number in range(3):
        _commit(upstream, a=str(number + 2))
    _run(upstream, "config", "uploadpack.allowAnySHA1InWant", "false")
    _run(upstream, "config", "protocol.version", "0")
    source = Source(git="upstream", ref="main")
    place.fetch(source, place.lock(source))
    assert (place.fetch(source, {"commit": first}).path / "a").read_text() == "1"


def test_git_cache_that_was_killed_half_way(place: Place) -> None:
    commit = _commit(place.root / "upstream", a="1")
    repository = Repository(place.root / "cache", f"file://{place.root}/upstream")
    (repository.path / "objects").mkdir(parents=True)
    (repository.path / "HEAD").write_text("rubbish")
    source = Source(git="upstream", ref="main")
    assert place.fetch(source, {"commit": commit}).path.is_dir()
    (repository.path / "shallow.lock").touch()
    newer = _commit(place.root / "upstream", a="2")
    assert (place.fetch(source, {"commit": newer}).path / "a").read_text() == "2"


@pytest.mark.parametrize("ref", ["-x", "--upload-pack=touch x", "a..b", "a b", "x:y", "a*", "x@{1}", "a.lock"])
def test_git_refs_that_are_no_refs(place: Place, ref: str) -> None:
    _commit(place.root / "upstream", a="1")
    with pytest.raises((ManifestError, ValueError), match="expected"):
        place.lock(Source(git="upstream", ref=ref))


@pytest.mark.parametrize(
    "url", ["-x", "--upload-pack=x", "ext::sh -c true", "ftp://x/y", "javascript://x", "gone"]
)
def test_git_urls_that_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(ManifestError):
        repository_url(url, tmp_path)


def test_git_urls_that_are_taken(tmp_path: Path) -> None:
    for url in ("https://example.org/x.git", "git@example.org:x/y.git", "ssh://git@example.org/x"):
        assert repository_url(url, tmp_path) == url
    assert repository_url("./x", tmp_path) == f"file://{tmp_path}/x"


def test_git_runs_nobodys_hooks(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = place.root / "upstream"
    _commit(upstream, **{"a.txt": "1", ".gitattributes": "* filter=evil\n"})
    home = place.root / "home"
    hooks = home / "hooks"
    hooks.mkdir(parents=True)
    (hooks / "reference-transaction").write_text(f"#!/bin/sh\ntouch {place.root}/ran\n")
    (hooks / "reference-transaction").chmod(0o755)
    (home / ".gitconfig").write_text(
        f"[core]\nhooksPath = {hooks}\nautocrlf = true\n[init]\ntemplateDir = {home}\n"
        f'[filter "evil"]\nsmudge = touch {place.root}/ran\n[safe]\ndirectory = *\n'
    )
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_DIR", str(place.root / "elsewhere"))
    source = Source(git="upstream", ref="main")
    assert (place.fetch(source, place.lock(source)).path / "a.txt").read_text() == "1"
    assert not (place.root / "ran").exists()


def test_git_submodules(place: Place) -> None:
    _commit(place.root / "inner", deep="3")
    _commit(place.root / "library", code="2")
    _run(place.root / "library", "submodule", "add", "-q", "../inner", "in")
    _commit(place.root / "library")
    _commit(place.root / "upstream", main="1")
    _run(place.root / "upstream", "submodule", "add", "-q", "../library", "third_party/lib")
    commit = _commit(place.root / "upstream")
    plain = place.fetch(Source(git="upstream", ref="main"), {"commit": commit})
    assert list((plain.path / "third_party/lib").iterdir()) == []
    source = Source(git="upstream", ref="main", submodules=True)
    whole = place.fetch(source, {"commit": commit})
    assert (whole.path / "third_party/lib/code").read_text() == "2"
    assert (whole.path / "third_party/lib/in/deep").read_text() == "3"
    assert whole.digest != plain.digest


@pytest.mark.parametrize("url", ["file:///etc", "/etc", "ext::sh", "--x", ""])
def test_submodule_must_not_read_this_host(place: Place, url: str) -> None:
    upstream = place.root / "upstream"
    (upstream / "x").mkdir(parents=True)
    inner = _commit(place.root / "inner", a="1")
    _commit(upstream, **{".gitmodules": f'[submodule "x"]\n\tpath = x\n\turl = {url}\n'})
    _run(upstream, "update-index", "--add", "--cacheinfo", f"160000,{inner},x")
    _run(upstream, "commit", "-q", "-m", "link")
    commit = _run(upstream, "rev-parse", "HEAD")
    with Repository(place.root / "cache", f"file://{upstream}").opened() as repository:
        repository.fetch(commit)
        repository.url = "https://example.org/x.git"
        with pytest.raises(UntrustedInputError, match="submodule `x`"):
            repository.submodules(commit)


def test_commits() -> None:
    assert is_commit("a" * 40)
    assert not is_commit("a" * 39)
    assert issubclass(LockError, AssembleError)
