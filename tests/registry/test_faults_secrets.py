"""Credentials and tokens are in nothing that anybody can read: output, logs, errors, the cache, arguments."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Program
from support.faulty_proxy import Cut, Fault, FaultyProxy, Reply, Tokens, faulty_proxy, once
from support.registry import RunningRegistry

pytestmark = pytest.mark.registry

BASIC = "cm9ib3Q6czNjcmV0LXBhc3N3b3Jk"  # robot:s3cret-password


@pytest.fixture
def proxy(registry: RunningRegistry) -> Iterator[FaultyProxy]:
    with faulty_proxy(registry.host) as running:
        running.tokens = Tokens(uses=3)
        yield running


@pytest.fixture
def auth(proxy: FaultyProxy, tmp_path: Path) -> Path:
    path = tmp_path / "auth.json"
    path.write_text(json.dumps({"auths": {proxy.host: {"auth": BASIC}}}))
    return path


_CHILD = """
import logging, sys
logging.basicConfig(level=logging.DEBUG)
from pathlib import Path
from assembler.errors import AssembleError
from assembler.oci.digest import Digest
from assembler.oci.descriptor import Descriptor
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Settings
host, auth, *repositories = sys.argv[1:]
client = Client(Settings(credential_files=(Path(auth),)), RetryPolicy(attempts=2, sleep=lambda s: None, silence=2))
print(repr(client), vars(client))
for repository in repositories:
    target = Reference.parse(f"{host}/{repository}")
    data = Path(__file__).read_bytes() if "__file__" in globals() else b"data" * 50_000
    blob = Descriptor(media_type="application/octet-stream", digest=Digest.of(data), size=len(data))
    try:
        import io
        client.upload(target, blob, lambda: io.BytesIO(data))
        with client.open_blob(target, blob) as stream:
            stream.read()
        print("done")
    except AssembleError as error:
        print(error.render(), repr(error), vars(error))
        import traceback; traceback.print_exc()
for connection in client._connections.values():
    print(vars(connection), vars(connection._authenticator))
"""


def test_credentials_are_in_nothing_that_is_printed(proxy: FaultyProxy, auth: Path, repository: str) -> None:
    """With every logger at its loudest, in errors, in their traces and in what objects say of themselves."""
    signed = f"http://{proxy.host}/elsewhere?X-Amz-Signature=s3cret-signature"
    faults: dict[str, Fault] = {
        "cut": Cut("body"),
        "gone": Reply(403, {}, b'{"errors":[{"code":"DENIED","message":"no"}]}'),
        "busy": Reply(503),
        "moved": Reply(307, {"Location": signed}),
        "stale": Reply(401, {"WWW-Authenticate": f'Bearer realm="http://{proxy.host}/token",service="x"'}),
        "crooked": Reply(401, {"WWW-Authenticate": 'Bearer realm="http://u:s3cret-realm@example.org/t"'}),
    }
    proxy.rule = lambda request: next(
        (fault for name, fault in faults.items() if f"/{name}/" in request.path and request.method == "PUT"), None
    )
    names = [f"{repository}/{name}" for name in ("good", *faults)]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, proxy.host, str(auth), *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    printed = done.stdout + done.stderr
    assert printed.count("done") >= 1
    assert printed.count("error: ") == 6
    assert proxy.tokens is not None
    assert proxy.tokens.logins > 2
    assert BASIC not in printed
    # urllib3 writes the addresses of requests at its level DEBUG, which nothing of ours turns on.
    ours = [line for line in printed.splitlines() if not line.startswith("DEBUG:urllib3")]
    assert [line for line in ours if "s3cret" in line] == []
    assert "s3cret-token" not in printed
    assert "s3cret-password" not in printed


@pytest.mark.parametrize("fault", [None, Reply(403), Reply(503, {"Retry-After": "0"})], ids=["good", "403", "503"])
def test_a_run_of_the_program_tells_no_credentials(
    proxy: FaultyProxy, auth: Path, repository: str, tmp_path: Path, fault: Fault | None
) -> None:
    (tmp_path / "file").write_text("content")
    manifest = tmp_path / "m.yaml"
    manifest.write_text(
        "manifest: 1\nname: m\nplatforms: [linux/amd64]\nruntime: scratch\n"
        "sources: {here: {path: .}}\nlayers:\n  - copy: {source: here, path: file, to: /file}\n"
    )
    if fault:
        proxy.rule = once(fault, method="PUT", times=100)
    program = Program(tmp_path / "cache")
    target = f"{proxy.host}/{repository}/cli:1"
    ended = program(manifest, "--push", target, "-v", env={"REGISTRY_AUTH_FILE": str(auth)})
    assert (ended.code == 0) == (fault is None), ended.stderr
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path != auth]
    everything = ended.stdout.encode() + ended.stderr.encode() + b"".join(written)
    assert target.encode() in everything
    assert b"s3cret" not in everything
    assert BASIC.encode() not in everything
