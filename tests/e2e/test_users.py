"""Builds by real users: root, one with subordinate ids, one with one id, and where there are no namespaces."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.cli import Ended, Program
from support.containers import empty_storage_at_the_end
from support.needs import need, need_root
from support.registry import RunningRegistry
from support.users import Person, person

from assembler.oci.layout import Store
from assembler.tree.decompress import Stream

pytestmark = [pytest.mark.tools, pytest.mark.slow]

BASE = """\
manifest: 1
name: base
runtime: {bootstrap: {suite: bookworm, packages: [ca-certificates]}}
compression: gzip
"""
APPLICATION = """\
manifest: 1
name: application
devel: oci:base
runtime: oci:base
sources: {hello: {path: ./source}}
compile:
  hello:
    toolchain: script
    source: hello
    packages: {apt: [tcc, libc6-dev]}
    script: {commands: [[sh, -ec, "mkdir -p /build/out; tcc -o /build/out/hello hello.c"]]}
    artifacts: {bin: out/hello}
layers:
  - packages: {apt: [openssh-client, dbus, iputils-ping]}
  - copy: {artifact: hello.bin, to: /usr/local/bin/}
  - files: [{path: /etc/application.conf, content: "here\\n"}]
  - run: {command: [sh, -e, /usr/local/share/owners.sh]}
"""
SCRIPT_LAYER = """\
  - files: [{path: /usr/local/share/owners.sh, content: "SCRIPT"}]
"""
PLAIN = """\
manifest: 1
name: plain
runtime: oci:base
sources: {code: {path: ./source}}
layers:
  - copy: {source: code, to: /srv/code/}
  - files: [{path: /etc/plain.conf, content: "here\\n"}]
"""
OWNERS = r"""
useradd --create-home app
echo x > /home/app/x
ln -s x /home/app/link
chown -R app:app /home/app
cp -a /etc/shadow /etc/copied
chown --reference=/etc/shadow /etc/issue
tar -C /var -cf /srv/moved.tar --sort=name --mtime=@0 mail local
mkdir /srv/moved && tar -C /srv/moved -xf /srv/moved.tar
mv /etc/gshadow /etc/aside && mv /etc/aside /etc/gshadow
cp -p /usr/bin/chage /srv/program && chown 12:13 /srv/program && ln /srv/program /srv/name
ln -s nowhere /srv/l && chown -h 7:8 /srv/l && mv /srv/l /srv/link
chmod 4755 /usr/bin/wall
echo "# more" >> /etc/shadow
rm /usr/bin/expiry
mkfifo /srv/pipe && chown games /srv/pipe
find / -xdev ! -path '/proc/*' -group shadow | sort > /srv/list
"""


@dataclass(frozen=True)
class Ground:
    """A directory that everybody can read: the base as an OCI layout, the project with its lock, and .debs."""

    root: Path
    program: Program

    @property
    def project(self) -> Path:
        """Manifests, source, base."""
        return self.root / "project"

    def give(self, one: Person) -> None:
        """A copy of the project for a user, and what root has fetched, so that nothing is fetched twice."""
        shutil.rmtree(one.project)
        shutil.copytree(self.project, one.project)
        shutil.copytree(self.program.cache / "store/blobs", one.cache / "store/blobs")
        one.own()
        subprocess.run(["chown", "-R", f"{one.name}:", str(one.home / ".cache")], check=True)


@pytest.fixture(scope="module")
def ground() -> Iterator[Ground]:
    need_root()
    need("buildah", "mmdebstrap")
    with contextlib.ExitStack() as stack:
        root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="assemble-users-", dir="/var/tmp")))
        root.chmod(0o755)
        cache = root / "cache"
        stack.enter_context(empty_storage_at_the_end(cache))
        found = Ground(root, Program(cache))
        (found.project / "source").mkdir(parents=True)
        (found.project / "source/hello.c").write_text("int main(void) { return 0; }\n")
        (root / "base.yaml").write_text(BASE)
        found.program.ok(root / "base.yaml", "--output", f"oci:{found.project}/base")
        layer = SCRIPT_LAYER.replace("SCRIPT", json.dumps(OWNERS)[1:-1])
        text = APPLICATION.replace("  - run:", f"{layer}  - run:")
        (found.project / "application.yaml").write_text(text)
        yield found


@pytest.fixture(scope="module")
def of_root(ground: Ground) -> str:
    """What root makes of it; leaves the lock that the others use."""
    return ground.program.ok("application.yaml", cwd=ground.project)


@pytest.fixture(scope="module")
def with_ranges(ground: Ground, of_root: str) -> Iterator[Person]:
    with person(ranges=True) as one:
        ground.give(one)
        yield one


@pytest.fixture(scope="module")
def with_one_id(ground: Ground, of_root: str) -> Iterator[Person]:
    with person(ranges=False) as one:
        ground.give(one)
        yield one


def ok(ended: Ended) -> str:
    assert ended.code == 0, ended.stderr
    return ended.stdout.rstrip("\n")


def write(one: Person, name: str, text: str) -> str:
    (one.project / name).write_text(text)
    one.own()
    return name


def run_manifest(command: str) -> str:
    layers = f"layers: [{{run: {{command: [sh, -ec, {json.dumps(command)}]}}}}]\n"
    return f"manifest: 1\nname: refused\nruntime: oci:base\n{layers}"


def test_root_makes_files_of_others(ground: Ground, of_root: str) -> None:
    """Else equal images would say little."""
    store = Store(ground.program.cache / "store")
    digest = of_root.partition("sha256:")[2]
    manifest = json.loads((store.root / "blobs/sha256" / digest).read_bytes())
    owners: dict[str, tuple[int, int, int]] = {}
    capable: set[str] = set()
    for layer in manifest["layers"][1:]:
        with Stream(store.root / "blobs/sha256" / layer["digest"].removeprefix("sha256:")) as stream:
            path = ground.root / "layer.tar"
            with path.open("wb") as file:
                while data := stream.read(1 << 20):
                    file.write(data)
        with tarfile.open(path) as tar:
            for member in tar:
                owners[member.name] = (member.uid, member.gid, member.mode)
                if "SCHILY.xattr.security.capability" in member.pax_headers:
                    capable.add(member.name)
    assert owners["usr/bin/ssh-agent"][1] and owners["usr/bin/ssh-agent"][2] & 0o2000
    assert owners["etc/copied"][1] == owners["etc/issue"][1] == owners["etc/shadow"][1] == 42
    assert owners["srv/program"] == (12, 13, 0o755), "a new owner takes the setgid bit away"
    assert owners["srv/link"][:2] == (7, 8)
    assert capable == {"usr/bin/ping"}


def test_a_user_with_ranges_makes_the_image_of_root(with_ranges: Person, of_root: str) -> None:
    assert ok(with_ranges("application.yaml")) == of_root
    assert (with_ranges.cache / "containers").is_dir()


def test_a_user_with_one_id_makes_the_image_of_root(with_one_id: Person, of_root: str) -> None:
    absent = {"XDG_RUNTIME_DIR": "/run/user/none", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/none"}
    assert ok(with_one_id("application.yaml", environment=absent)) == of_root
    assert (with_one_id.cache / "containers-one").is_dir()


def test_with_one_id_what_becomes_another_user_is_refused(with_one_id: Person) -> None:
    manifest = write(with_one_id, "su.yaml", run_manifest("su -s /bin/sh daemon -c 'touch /tmp/x'"))
    ended = with_one_id(manifest)
    assert ended.code == 1
    assert "a program becomes another user" in ended.stderr
    assert "`su` becomes user 1" in ended.stderr
    assert "/etc/subuid" in ended.stderr


def test_with_one_id_owners_that_cannot_be_known_are_refused(with_one_id: Person) -> None:
    command = "cd /var/local; touch plain; mkdir directory; touch given; chown root:staff given"
    ended = with_one_id(write(with_one_id, "setgid.yaml", run_manifest(command)))
    assert ended.code == 1
    assert "    var/local/directory\n    var/local/plain\n" in ended.stderr
    assert "var/local/given" not in ended.stderr


def test_an_interrupt_ends_everything_and_says_130(with_one_id: Person) -> None:
    manifest = write(with_one_id, "sleep.yaml", run_manifest("echo > /begun; exec sleep 1000"))
    child = subprocess.Popen(
        with_one_id.command(manifest), cwd=with_one_id.project, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 60
    while not list(with_one_id.cache.glob("containers-one/storage/overlay/*/diff/begun")):
        assert child.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted" in stderr
    assert with_one_id.processes() == []


def test_without_namespaces_images_without_containers_are_made_and_pushed(
    with_one_id: Person, registry: RunningRegistry, repository: str
) -> None:
    manifest = write(with_one_id, "plain.yaml", PLAIN)
    reference = f"{registry.host}/{repository}:1"
    said = ok(with_one_id(manifest, "--push", reference, "--output", "oci:out", namespaces=False)).splitlines()
    assert said[0].startswith(f"{registry.host}/{repository}@sha256:")
    assert said[1:] == ["oci:out"]


def test_without_namespaces_a_step_says_what_blocks_it(with_one_id: Person) -> None:
    manifest = write(with_one_id, "blocked.yaml", run_manifest("true"))
    ended = with_one_id(manifest, namespaces=False)
    assert ended.code == 1
    assert "user.max_user_namespaces = 0" in ended.stderr
    assert "sysctl -w user.max_user_namespaces=" in ended.stderr
    assert "--cache-from" in ended.stderr


def test_the_doctor_says_what_builds_do(with_ranges: Person, with_one_id: Person) -> None:
    def states(ended: Ended) -> dict[str, tuple[str, str]]:
        return {finding["name"]: (finding["state"], finding["fix"]) for finding in ended.json()}

    before = {path.name for path in with_one_id.cache.iterdir()}
    assert states(with_ranges("doctor", "--json"))["user namespace"] == ("works", "")
    one = states(with_one_id("doctor", "--json"))
    assert one["user namespace"][0] == "degraded"
    assert with_one_id.name in one["user namespace"][1]
    assert one["system call filter"] == ("works", "")
    none = with_one_id("doctor", "--json", namespaces=False)
    assert none.code == 1
    assert states(none)["user namespace"][0] == "blocked"
    assert {path.name for path in with_one_id.cache.iterdir()} == before


def test_the_user_can_delete_everything_in_the_end(with_ranges: Person, with_one_id: Person) -> None:
    for one in (with_ranges, with_one_id):
        ok(one("gc", "--all"))
        words = ["setpriv", "--reuid", one.name, "--regid", one.name, "--clear-groups", "rm", "-r", str(one.cache)]
        subprocess.run(words, check=True)
        assert not one.cache.exists()
