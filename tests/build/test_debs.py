"""Packages: reading what apt prints, and fetching files by hash from a server that is not always well."""

from __future__ import annotations

import hashlib
import http.server
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from assembler.build.debs import Package, fetch, parse_uris, with_snapshots
from assembler.build.download import Patience
from assembler.errors import LockError, RegistryError, StepError
from assembler.events import Event, StepProgress, ignore
from assembler.oci.layout import Store

HASH = "1896a2aacf4ad681ff5eacc24a5b0ca4d5d9c9b9c9e4b6de5197bc1e116ea619"
PRINTED = (
    "Note, selecting 'libgomp1' for regex 'libgomp.'\n"
    "'http://deb.debian.org/debian/pool/main/g/gcc-12/gcc-12-base_12.2.0-14%2bdeb12u1_amd64.deb' "
    f"gcc-12-base_12.2.0-14+deb12u1_amd64.deb 37596 SHA256:{HASH}\n"
    "'http://deb.debian.org/debian-security/pool/updates/main/g/g++/g%2b%2b_12.2.0-3_amd64.deb' "
    f"g++_4%3a12.2.0-3_amd64.deb 1356 SHA256:{HASH}\n"
)
PATIENCE = Patience(attempts=3, first=0.0, sleep=lambda _seconds: None)


def package(data: bytes = b"deb", url: str = "http://localhost/pool/a.deb", **changes: str) -> Package:
    made = Package(
        name="libfoo1",
        version="1:2.3-4",
        architecture="amd64",
        sha256=hashlib.sha256(data).hexdigest(),
        size=len(data),
        url=url,
    )
    return replace(made, **changes) if changes else made  # type: ignore[arg-type]


def test_reads_what_apt_prints() -> None:
    one, other = parse_uris(PRINTED)
    assert (one.name, one.version, one.architecture, one.size) == ("g++", "4:12.2.0-3", "amd64", 1356)
    assert one.url.endswith("/g%2b%2b_12.2.0-3_amd64.deb")
    assert (other.label, other.sha256) == ("gcc-12-base=12.2.0-14+deb12u1", HASH)
    assert one.filename == "g++_4%3a12.2.0-3_amd64.deb"
    assert parse_uris("") == ()


def test_a_password_does_not_reach_the_lock() -> None:
    line = f"'https://user:secret@apt.example.org/pool/a_1_all.deb' a1_1_all.deb 5 SHA256:{HASH}"
    assert parse_uris(line)[0].url == "https://apt.example.org/pool/a_1_all.deb"


@pytest.mark.parametrize(
    ("line", "fact"),
    [
        (f"'http://h/a' libfoo_1_amd64.deb 5 MD5Sum:{HASH[:32]}", "knows no SHA-256"),
        ("'http://h/a' libfoo_1_amd64.deb 5", "knows no SHA-256"),
        (f"'http://h/a' libfoo_1_amd64.deb five SHA256:{HASH}", "no package"),
        (f"'http://h/a' ../evil_1_amd64.deb 5 SHA256:{HASH}", "no package"),
        (f"'http://h/a' ..%2fevil_1_amd64.deb 5 SHA256:{HASH}", "cannot be"),
        (f"'http://h/a' libfoo_1%2f..%2f_amd64.deb 5 SHA256:{HASH}", "cannot be"),
        (f"'http://h/a' libfoo_1_amd64.deb 5 SHA256:{HASH[:-1]}g", "cannot be"),
        (f"'http://h/a' libfoo_1_amd64.deb 0 SHA256:{HASH}", "cannot be"),
        (f"'cdrom:disc/a' libfoo_1_amd64.deb 5 SHA256:{HASH}", "cannot be"),
    ],
)
def test_refuses_lines_that_are_no_package(line: str, fact: str) -> None:
    with pytest.raises(StepError, match=fact):
        parse_uris(line)


def test_json_round_trip_and_damage() -> None:
    one = package(snapshot="debian-security/20250906T101112Z")
    assert Package.from_json(one.to_json()) == one
    assert "snapshot" not in package().to_json()
    for damage in ({"sha256": "x"}, {"name": "../a"}, {"size": "5"}, {"extra": "1"}, {"snapshot": "other/1"}):
        with pytest.raises(LockError, match="damaged"):
            Package.from_json({**one.to_json(), **damage})


def test_snapshots_come_from_release_files(tmp_path: Path) -> None:
    def release(name: str, label: str, date: str) -> None:
        text = (
            f"-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nOrigin: Debian\nLabel: {label}\nDate: {date}\n"
        )
        (tmp_path / name).write_text(text)

    release("deb.example.org_debian_dists_bookworm_InRelease", "Debian", "Sat, 06 Sep 2025 10:11:12 UTC")
    release("deb.example.org_debian_dists_bookworm-updates_InRelease", "Debian", "Sun, 07 Sep 2025 10:11:12 UTC")
    release("deb.example.org_other_dists_stable_InRelease", "Other", "Sun, 07 Sep 2025 10:11:12 UTC")
    (tmp_path / "deb.example.org_broken_dists_x_InRelease").write_text(
        "Origin: Debian\nLabel: Debian\nDate: soon\n"
    )
    urls = [f"http://deb.example.org/{archive}/pool/main/a.deb" for archive in ("debian", "other", "broken")]
    found = with_snapshots([package(url=url) for url in [*urls, "http://deb.example.org/flat/a.deb"]], tmp_path)
    assert [p.snapshot for p in found] == ["debian/20250907T101112Z", "", "", ""]


def test_addresses_in_order() -> None:
    one = package(url="http://deb.example.org/debian/pool/main/a.deb", snapshot="debian/20250906T101112Z")
    assert list(one.addresses(["http://mirror/debian/"])) == [
        "http://deb.example.org/debian/pool/main/a.deb",
        "http://mirror/debian/pool/main/a.deb",
        "http://snapshot.debian.org/archive/debian/20250906T221112Z/pool/main/a.deb",
        "http://snapshot.debian.org/archive/debian/20250906T101112Z/pool/main/a.deb",
    ]
    assert list(package(url="http://h/flat/a.deb").addresses(["http://mirror"])) == ["http://h/flat/a.deb"]


@dataclass
class Server:
    """A web server: path → answers (status, body), used up one by one, the last one again and again."""

    answers: dict[str, list[tuple[int, bytes]]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            answers = state.answers.get(self.path, [(404, b"")])
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        state.url = f"http://127.0.0.1:{running.server_port}"
        yield state
        running.shutdown()
        thread.join()


def test_fetches_once_and_then_asks_nobody(server: Server, store: Store) -> None:
    bodies = {f"/pool/{n}.deb": bytes([n]) * (1000 + n) for n in range(9)}
    server.answers = {path: [(200, body)] for path, body in bodies.items()}
    packages = [package(body, server.url + path, name=f"lib{path[6]}a") for path, body in bodies.items()]
    events: list[Event] = []
    paths = fetch(packages, store, events.append, step="s")
    assert {p: path.read_bytes() for p, path in paths.items()} == dict(zip(packages, bodies.values(), strict=True))
    total = sum(p.size for p in packages)
    progress = [event for event in events if isinstance(event, StepProgress)]
    assert max(event.done_bytes for event in progress) == total
    assert {event.total_bytes for event in progress} == {total}
    server.asked.clear()
    assert fetch(packages, store, ignore) == paths
    assert fetch(packages, store, ignore, offline=True) == paths
    assert server.asked == []


def test_a_mirror_helps_when_the_archive_dropped_or_replaced_the_file(server: Server, store: Store) -> None:
    server.answers["/mirror/pool/main/a.deb"] = [(503, b""), (200, b"deb")]
    server.answers["/replaced/pool/main/a.deb"] = [(200, b"bad")]
    one = package(url=f"{server.url}/debian/pool/main/a.deb")
    mirrors = [f"{server.url}/replaced", f"{server.url}/mirror"]
    assert fetch([one], store, ignore, mirrors=mirrors, patience=PATIENCE)[one].read_bytes() == b"deb"
    assert server.asked == [f"/{d}/pool/main/a.deb" for d in ("debian", "replaced", "mirror", "mirror")]


def test_gone_from_everywhere_names_package_and_places(server: Server, store: Store) -> None:
    gone = package(url=f"{server.url}/debian/pool/main/a.deb")
    with pytest.raises(LockError) as caught:
        fetch([gone], store, ignore, mirrors=[f"{server.url}/mirror"], patience=PATIENCE)
    text = caught.value.render()
    assert "libfoo1=1:2.3-4" in text
    assert f"{server.url}/debian/pool/main/a.deb" in text
    assert f"{server.url}/mirror/pool/main/a.deb" in text
    assert "assemble lock --update" in text


def test_an_archive_out_of_order_is_not_called_gone(server: Server, store: Store) -> None:
    server.answers["/pool/a.deb"] = [(500, b"")]
    server.answers["/pool/b.deb"] = [(500, b"")]
    packages = [package(url=f"{server.url}/pool/{n}.deb", name=f"lib{n}") for n in "ab"]
    with pytest.raises(RegistryError, match="cannot be downloaded"):
        fetch(packages, store, ignore, threads=1, patience=PATIENCE)
    assert list((store.root / "tmp").iterdir()) == []


def test_offline_names_what_is_missing(store: Store) -> None:
    with pytest.raises(LockError) as caught:
        fetch([package()], store, ignore, offline=True)
    assert "libfoo1=1:2.3-4" in caught.value.render()


def test_a_local_archive_is_verified_too(tmp_path: Path, store: Store) -> None:
    (tmp_path / "pool").mkdir()
    (tmp_path / "pool/a.deb").write_bytes(b"deb")
    good = package(url=f"file:{tmp_path}/pool/a.deb")
    assert fetch([good], store, ignore)[good].read_bytes() == b"deb"
    with pytest.raises(LockError, match="gone"):
        fetch([package(b"dab", url=f"copy://{tmp_path}/pool/a.deb")], store, ignore)
