"""The shared cache, end to end, between nodes that have nothing in common but a registry."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e.test_files_and_copies import digest_of, settle, write_project
from support.cli import Ended, Program
from support.registry import HTPASSWD, RunningRegistry, output_of, running_registry

from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import ImageManifest
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.results import ARTIFACT_TYPE, DOCUMENT, find_result, result_manifest
from assembler.registry.tags import list_tags

pytestmark = pytest.mark.registry


class Room:
    """Nodes, each with a checkout and a store of its own, and a cache."""

    def __init__(self, root: Path, registry: RunningRegistry, name: str) -> None:
        self.root = root
        self.registry = registry
        self.name = name
        self.cache = f"{registry.host}/{name}/cache"

    def node(self, name: str) -> tuple[Program, Path]:
        """A node that has nothing: its program and its manifest."""
        return Program(self.root / name / "cache"), write_project(self.root / name / "project")

    def target(self, name: str) -> str:
        """Where to push."""
        return f"{self.registry.host}/{self.name}/{name}:1"

    def warm(self) -> str:
        """Fill the cache; the digest of the image."""
        program, manifest = self.node("warm")
        return digest_of(program.ok(manifest, "--push", self.target("warm"), "--cache-to", self.cache))

    @property
    def repository(self) -> Reference:
        """The cache."""
        return Reference.parse(self.cache)

    def tags(self) -> list[str]:
        """The keys that the cache has results of."""
        return list(list_tags(Client(), self.repository))


@pytest.fixture
def room(tmp_path: Path, registry: RunningRegistry, request: pytest.FixtureRequest) -> Room:
    return Room(tmp_path, registry, f"shared{abs(hash(request.node.name)) % 10**8}")


def outcomes(ended: Ended) -> dict[str, str]:
    """What became of each step of a run with `--progress json`."""
    lines = [json.loads(line) for line in ended.stderr.splitlines()]
    return {line["name"]: line["outcome"] for line in lines if line["event"] == "step_finished"}


def image_key(room: Room) -> str:
    """The key of the image in the cache."""
    found = (find_result(Client(), room.repository, key) for key in room.tags())
    return next(result.key for result in found if result and result.kind == "image")


def test_a_cold_node_moves_nothing_but_documents(room: Room) -> None:
    digest = room.warm()
    program, manifest = room.node("cold")
    settle(manifest.parent)
    mark = room.registry.mark()
    ended = program(manifest, "--push", room.target("cold"), "--cache-from", room.cache, "--json")
    (result,) = ended.json()
    assert (result["digest"], result["built"], result["shared_cache"]) == (
        digest,
        False,
        {"found": 1, "written": 0},
    )
    asked = room.registry.asked(mark)
    fetched = [one for one in asked if one.method == "GET" and "/blobs/" in one.path]
    assert len(fetched) == 2, "the image's manifest and config"
    assert sum(one.sent_bytes for one in asked) < 20_000
    mounted = [one for one in asked if "mount=" in one.path]
    assert [one.status for one in mounted] == [201] * 3
    layers = json.loads(output_of(["skopeo", "inspect", "--tls-verify=false", f"docker://{room.target('cold')}"]))
    assert len(layers["Layers"]) == 3
    assert "nothing to do" in program(manifest, "--push", room.target("cold"), "--cache-from", room.cache).stderr


def test_what_changed_is_made_and_the_rest_is_taken(room: Room) -> None:
    room.warm()
    program, manifest = room.node("cold")
    (manifest.parent / "tree/b/deep/f5").write_text("changed\n")
    planned = program("plan", manifest, "--cache-from", room.cache, "--json").json()[0]
    places = {step["name"]: step["where"] for step in planned["steps"]}
    assert places["copy tree/a to /opt/a/"] == "cache"
    assert places["copy tree/b to /opt/b/"] is None
    ended = program(
        manifest, "--push", room.target("changed"), "--cache-from", room.cache, "--cache-to", room.cache,
        "--progress", "json",
    )  # fmt: skip
    made = outcomes(ended)
    assert made["copy tree/a to /opt/a/"] == "cached"
    assert made["copy tree/b to /opt/b/"] == "built"
    alone = room.node("alone")
    (alone[1].parent / "tree/b/deep/f5").write_text("changed\n")
    assert digest_of(alone[0].ok(alone[1])) == digest_of(ended.stdout.strip())
    third = room.node("third")
    (third[1].parent / "tree/b/deep/f5").write_text("changed\n")
    (result,) = third[0](third[1], "--cache-from", room.cache, "--json").json()
    assert (result["built"], result["shared_cache"]["found"]) == (False, 1)


def test_an_output_on_disk_is_whole(room: Room) -> None:
    room.warm()
    for name, options in (("cold", ["--cache-from", room.cache]), ("alone", [])):
        program, manifest = room.node(name)
        program.ok(manifest, *options, "--output", f"oci:{room.root / name}/out")
    assert blobs(room.root / "cold/out") == blobs(room.root / "alone/out")


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}


def test_reading_needs_no_right_to_write(room: Room) -> None:
    room.warm()
    program, manifest = room.node("cold")
    mark = room.registry.mark()
    program.ok(manifest, env={"ASSEMBLE_CACHE_FROM": room.cache})
    asked = [one for one in room.registry.asked(mark) if f"/{room.name}/cache/" in one.path]
    assert {one.method for one in asked} == {"GET"}


def lie_about_key(room: Room, key: str) -> None:
    """The result of another step stands under this key."""
    other = next(one for one in room.tags() if one != key)
    put(room, key, Client().get_manifest(room.repository.tagged(other)).data)


def lie_about_files(room: Room, key: str) -> None:
    """Another image, whole and sound, but of other files, claims to be the one of this key."""
    program, manifest = room.node("liar")
    (manifest.parent / "tree/b/deep/f5").write_text("evil\n")
    program.ok(manifest, "--push", room.target("evil"), "--cache-to", room.cache)
    results = (find_result(Client(), room.repository, other) for other in room.tags() if other != key)
    evil = next(result for result in results if result and result.kind == "image")
    put(room, key, result_manifest(key, evil.record, evil.blobs, evil.created))


def lie_about_documents(room: Room, key: str) -> None:
    """The image is some text."""
    result = find_result(Client(), room.repository, key)
    assert result
    text = b"no manifest"
    descriptor = Descriptor(media_type=DOCUMENT, digest=Digest.of(text), size=len(text))
    import io

    Client().upload(room.repository, descriptor, lambda: io.BytesIO(text))
    record = {"manifest": str(descriptor.digest), "manifest_descriptor": descriptor.to_json()}
    put(room, key, result_manifest(key, record, [descriptor], result.created))


def lie_about_everything(room: Room, key: str) -> None:
    """Some other artifact."""
    sound = ImageManifest.from_bytes(Client().get_manifest(room.repository.tagged(key)).data)
    put(room, key, ImageManifest(config=sound.config, layers=sound.layers, artifact_type=ARTIFACT_TYPE).to_bytes())


def put(room: Room, key: str, data: bytes) -> None:
    Client().put_manifest(room.repository.tagged(key), media_types.MANIFEST, data)


def lie_about_kind(room: Room, key: str) -> None:
    """Under the image's key is a layer."""
    results = (find_result(Client(), room.repository, other) for other in room.tags() if other != key)
    layer = next(result for result in results if result and result.kind == "layer")
    put(room, key, result_manifest(key, layer.record, layer.blobs, layer.created))


@pytest.mark.parametrize(
    "lie", [lie_about_key, lie_about_files, lie_about_documents, lie_about_everything, lie_about_kind]
)
def test_a_result_that_lies_costs_a_warning(room: Room, lie: Callable[[Room, str], None]) -> None:
    digest = room.warm()
    lie(room, image_key(room))
    program, manifest = room.node("cold")
    ended = program(manifest, "--push", room.target("cold"), "--cache-from", room.cache)
    assert (ended.code, digest_of(ended.stdout.strip())) == (0, digest)
    assert "warning" in ended.stderr


@pytest.mark.parametrize("what", ["push", "output"])
def test_a_blob_that_the_cache_has_lost_is_made_here(room: Room, what: str) -> None:
    digest = room.warm()
    result = find_result(Client(), room.repository, image_key(room))
    assert result
    layers = [blob for blob in result.blobs if blob.media_type != DOCUMENT]
    room.registry.blob_path(layers[1].digest).unlink()
    program, manifest = room.node("cold")
    where = ["--push", room.target("cold")] if what == "push" else ["--output", f"oci:{room.root}/out"]
    ended = program(manifest, *where, "--cache-from", room.cache, "--json")
    assert ended.code == 0, ended.stderr
    assert ended.json()[0]["digest"] == digest
    assert "is not read in this run" in ended.stderr
    if what == "push":
        output_of(
            ["skopeo", "copy", "--src-tls-verify=false", f"docker://{room.target('cold')}", f"dir:{room.root}/d"]
        )


def test_a_cache_that_is_not_there_costs_a_warning(room: Room) -> None:
    program, manifest = room.node("cold")
    nowhere = "127.0.0.1:1/team/cache"
    ended = program(manifest, "--cache-from", nowhere, "--cache-to", nowhere)
    assert ended.code == 0
    assert ended.stderr.count("warning: the cache 127.0.0.1:1/team/cache is not") == 1
    assert "connection refused" in ended.stderr


def test_a_cache_that_we_may_not_write_costs_a_warning(room: Room, locked: RunningRegistry) -> None:
    program, manifest = room.node("cold")
    ended = program(manifest, "--cache-to", f"{locked.host}/team/cache", env={"HOME": str(room.root)})
    assert ended.code == 0
    assert "is not written in this run" in ended.stderr
    assert "podman login" in ended.stderr


@pytest.fixture
def locked(tmp_path: Path) -> Iterator[RunningRegistry]:
    with running_registry(tmp_path / "locked", htpasswd=HTPASSWD) as registry:
        yield registry


def test_many_write_at_once(room: Room) -> None:
    nodes = [room.node(f"n{number}") for number in range(3)]
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "assembler", manifest, "--cache-to", room.cache, "--cache-from", room.cache],
            env=program.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for program, manifest in nodes
    ]
    ends = [child.communicate() for child in children]
    assert [child.returncode for child in children] == [0, 0, 0], ends
    assert len({digest_of(out.strip()) for out, _ in ends}) == 1
    assert not any("warning" in errors for _, errors in ends), ends
    assert len(room.tags()) == 4, "three layers and the image"


@pytest.mark.parametrize("option", ["--cache-from", "--cache-to"])
@pytest.mark.parametrize("text", ["registry.example.com/team/cache:1", "registry.example.com/Team"])
def test_a_cache_is_a_repository(room: Room, option: str, text: str) -> None:
    program, manifest = room.node("cold")
    ended = program(manifest, option, text)
    assert (ended.code, option in ended.stderr) == (2, True)


def test_a_cache_is_freed_by_age(room: Room) -> None:
    room.warm()
    Client().put_manifest(room.repository.tagged("mine"), media_types.MANIFEST, Client().get_manifest(
        room.repository.tagged(image_key(room))
    ).data)  # fmt: skip
    program, manifest = room.node("cold")
    assert program.ok("gc", "--shared", room.cache) == f"{room.cache}: freed 0 results, 4 are kept"
    assert "would free 4 results" in program.ok("gc", "--shared", room.cache, "--all", "--dry-run")
    assert len(room.tags()) == 5
    assert program.ok("gc", "--shared", room.cache, "--all") == f"{room.cache}: freed 4 results, 0 are kept"
    (result,) = program(manifest, "--cache-from", room.cache, "--json").json()
    assert (result["built"], result["shared_cache"]["found"]) == (True, 0)
