"""Bases that cannot be had or cannot be one: what the command says to whoever named it, and the exit status."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support.front import running_front
from support.images import AMD64, ARM64, image_of
from support.registry import RunningRegistry
from support.static_registry import StaticRegistry, static_registry

from assembler import cli
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.image import ImageIndex
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.push import push, push_index

pytestmark = pytest.mark.registry
OTHER = "`platforms` of the manifest, or `--platform`, says what is wanted; else take another base"


class Ended(NamedTuple):
    """How a command ended, without its progress."""

    code: int
    fact: str
    hint: str


Assemble = Callable[..., Ended]


@pytest.fixture
def on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Assemble]:
    """`assemble` a manifest whose runtime base, or with `copied` an image that it copies of, is this one."""
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    for name, value in (("ASSEMBLE_CACHE", "cache"), ("HOME", "home"), ("REGISTRY_AUTH_FILE", "auth.json")):
        monkeypatch.setenv(name, str(tmp_path / value))

    def run(base: object, *words: str, copied: bool = False) -> Ended:
        runtime = "scratch" if copied else str(base)
        layer = f"copy: {{image: {base}, path: /, to: /opt/}}" if copied else "files: [{path: /a, content: x}]"
        Path("on.yaml").write_text(f"manifest: 1\nname: on\nruntime: {runtime}\nlayers: [{layer}]\n")
        code = cli.main(["on.yaml", "--progress", "quiet", *words])
        text, _, hint = capsys.readouterr().err.strip().partition("\n\nhint: ")
        return Ended(code, text.removeprefix("error: "), hint)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def image(client: Client, registry: RunningRegistry, store: Store, repository: str) -> Reference:
    """A good image, `REPOSITORY:good`."""
    tag = registry.reference(f"{repository}:good")
    push(client, image_of(store, {"a": repository.encode()}), store, [tag])
    return tag


def put(client: Client, tag: Reference, value: Any, media_type: str = media_types.MANIFEST) -> Reference:
    """Store a changed document under a tag."""
    client.put_manifest(tag, media_type, json.dumps(value).encode())
    return tag


# not there, or not for us


def test_no_such_repository(on: Assemble, registry: RunningRegistry, repository: str) -> None:
    base = registry.reference(f"{repository}:1")
    said = f"the registry has no repository `{repository}`, or nothing in it has a tag (404 MANIFEST_UNKNOWN)"
    assert on(base) == (1, f"{base}: {said}", "look at its name")


def test_no_such_tag(on: Assemble, image: Reference) -> None:
    meant = on(image.tagged("goood"))
    said = "the repository has no image with the tag `goood` (404 MANIFEST_UNKNOWN)"
    assert meant == (1, f"{image.name}:goood: {said}", f"did you mean `{image}`?")
    assert on(image.tagged("v7")).hint == "its tags: `good`"
    assert on(image.name).fact.startswith(f"{image.name}: the repository has no image with the tag `latest`")


def test_no_such_digest(on: Assemble, image: Reference) -> None:
    ended = on(image.at(Digest.of(b"no")))
    assert ended.fact.endswith("the repository has no image with this digest (404 MANIFEST_UNKNOWN)")
    assert ended.hint == "its tags: `good`"


def test_nobody_is_logged_in(on: Assemble, login_registry: RunningRegistry, repository: str) -> None:
    ended = on(login_registry.reference(f"{repository}:1"))
    assert ended.code == 1
    assert ended.fact.endswith("the registry wants a login, and no credentials are configured for it")
    assert ended.hint.startswith(f"log in: `podman login {login_registry.host}`")
    assert ended.hint.endswith("some registries answer so, too, where there is no such repository")


def test_the_password_is_wrong(on: Assemble, login_registry: RunningRegistry, repository: str) -> None:
    Path("auth.json").write_text(json.dumps({"auths": {login_registry.host: {"auth": "cm9ib3Q6d3Jvbmc="}}}))
    ended = on(login_registry.reference(f"{repository}:1"))
    assert ended.fact.endswith("the registry does not accept the credentials")
    assert f"`podman login {login_registry.host}`" in ended.hint


def test_the_account_may_not(on: Assemble, registry: RunningRegistry) -> None:
    with running_front(registry.host) as front:
        front.fail = lambda _method, _path: (403, {})
        ended = on(f"{front.host}/private/base:1")
    assert (ended.code, "answered 403 FAILED: on purpose" in ended.fact) == (1, True)
    assert ended.hint.startswith(
        f"the account may not do this: ask for the right to `{front.host}/private/base:1`"
    )


# there, and no base


def test_another_platform(on: Assemble, image: Reference) -> None:
    ended = on(image, "--platform", "linux/arm64")
    assert ended == (2, f"{image}: expected an image for `linux/arm64`, got `linux/amd64`", OTHER)


def test_an_index_without_the_platform(
    on: Assemble, client: Client, registry: RunningRegistry, store: Store, repository: str
) -> None:
    tag = registry.reference(f"{repository}:1")
    push_index(client, [image_of(store, {"a": b"a"}, platform=each) for each in (AMD64, ARM64)], store, [tag])
    ended = on(tag, "--platform", "linux/s390x")
    fact = f"{tag}: expected an image for `linux/s390x`, the index offers `linux/amd64`, `linux/arm64`"
    assert ended == (2, fact, OTHER)


def test_an_index_that_names_no_platform_and_one_in_another(
    on: Assemble, client: Client, image: Reference
) -> None:
    entry = client.head_manifest(image)
    assert entry
    index = json.loads(ImageIndex(manifests=(entry,)).to_bytes())
    bare = put(client, image.tagged("bare"), index, media_types.INDEX)
    ended = on(bare)
    assert ended.fact == f"{bare}: expected an image for `linux/amd64`, no entry of the index names a platform"
    assert ended.hint == "name the image itself, by its own tag or digest"
    inner = client.head_manifest(bare)
    assert inner
    described = Descriptor(media_type=inner.media_type, digest=inner.digest, size=inner.size, platform=AMD64)
    outer = json.loads(ImageIndex(manifests=(described,)).to_bytes())
    ended = on(put(client, image.tagged("outer"), outer, media_types.INDEX))
    assert (ended.code, ended.fact) == (1, f"{image.name}:outer: expected an image, got an index in an index")
    assert f"docker://{image.name}@{inner.digest}`" in ended.hint


def test_a_chart(on: Assemble, client: Client, image: Reference) -> None:
    value = json.loads(client.get_manifest(image).data)
    value["config"]["mediaType"] = "application/vnd.cncf.helm.config.v1+json"
    ended = on(put(client, image.tagged("chart"), value))
    assert (ended.code, ended.hint) == (2, "charts, signatures and models can be no base")
    assert "its config is of type `application/vnd.cncf.helm.config.v1+json`" in ended.fact


def test_a_config_with_another_number_of_layers(
    on: Assemble, client: Client, image: Reference, store: Store
) -> None:
    value = json.loads(client.get_manifest(image).data)
    value["layers"] *= 2
    ended = on(put(client, image.tagged("lies"), value))
    assert (ended.code, ended.fact) == (
        1,
        f"{image.name}:lies: the config lists 1 diff IDs, the manifest 2 layers",
    )
    assert ended.hint == "no tool can run it: have it built and pushed anew"


# what no honest registry says


@pytest.fixture
def liar() -> Iterator[StaticRegistry]:
    """A registry that has `x:1`, which a test fills."""
    with static_registry() as running:
        yield running


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "expected an image manifest: Expecting value"),
        (b"<html>hello</html>", "expected an image manifest: Expecting value"),
        (b"[]", "expected an image manifest object"),
        (b"{}", "image manifest: expected an image manifest of schema version 2"),
        (b'{"schemaVersion":2,"config":3}', "image manifest: expected a descriptor object"),
        (b"\xff\xfe", "expected an image manifest: "),
        (b"[" * 100_000, "expected an image manifest: "),
    ],
)
def test_a_manifest_that_is_none(on: Assemble, liar: StaticRegistry, data: bytes, said: str) -> None:
    liar.answers["x/manifests/1"] = (media_types.MANIFEST, data)
    ended = on(f"{liar.host}/x:1")
    assert ended.code == 1
    assert ended.fact.startswith(f"{liar.host}/x:1: {said}")
    assert ended.hint.startswith("the image is broken, or there is something else")


def test_an_image_of_schema_1(on: Assemble, liar: StaticRegistry) -> None:
    data = json.dumps({"schemaVersion": 1, "name": "x", "tag": "1", "fsLayers": [], "history": []}).encode()
    liar.answers["x/manifests/1"] = (media_types.DOCKER_SCHEMA_1[1], data)
    ended = on(f"{liar.host}/x:1")
    assert ended.fact == f"{liar.host}/x:1: expected schema version 2, this is a Docker schema 1 image"
    assert (ended.code, "skopeo copy --format oci" in ended.hint) == (2, True)


def served(liar: StaticRegistry, store: Store) -> dict[str, str]:
    """Have the registry serve a good image as `x:1`; gives the paths of its config and its layer."""
    image = image_of(store, {"a": b"content"})
    manifest, config = image.manifest()
    layer = image.layers[0].descriptor.digest
    paths = {"config": f"x/blobs/{manifest.config.digest}", "layer": f"x/blobs/{layer}"}
    liar.answers |= {
        "x/manifests/1": (manifest.media_type, manifest.to_bytes()),
        f"x/manifests/{Digest.of(manifest.to_bytes())}": (manifest.media_type, manifest.to_bytes()),
        paths["config"]: ("application/octet-stream", config),
        paths["layer"]: ("application/octet-stream", store.read(layer)),
    }
    return paths


@pytest.mark.parametrize("what", ["config", "layer"])
def test_bytes_that_are_not_those_of_the_digest(
    on: Assemble, liar: StaticRegistry, store: Store, what: str
) -> None:
    path = served(liar, store)[what]
    good = liar.answers[path][1]
    for data, said in (
        (bytes(len(good)), "the bytes give sha256:"),
        (good + b"more", f"expected {len(good)} bytes, the registry announces {len(good) + 4}"),
        (good[:-1], f"expected {len(good)} bytes, the registry announces {len(good) - 1}"),
    ):
        liar.answers[path] = ("application/octet-stream", data)
        ended = on(f"{liar.host}/x:1", copied=what == "layer")
        assert (ended.code, said in ended.fact) == (1, True), ended
        assert path.rpartition("/")[2] in ended.fact
        assert "x" in ended.fact
    liar.answers[path] = ("application/octet-stream", good)
    assert on(f"{liar.host}/x:1", copied=what == "layer").code == 0


@pytest.mark.parametrize("compression", ["gzip", "zstd", "none"])
def test_a_layer_that_is_not_the_tar_that_the_config_promises(
    on: Assemble, client: Client, registry: RunningRegistry, store: Store, repository: str, compression: str
) -> None:
    image = image_of(store, {"a": b"content"}, compression=compression)
    wrong = Digest.of(b"something else")
    lying = replace(image, config=replace(image.config, diff_ids=(wrong,)))
    tag = registry.reference(f"{repository}:1")
    push(client, lying, store, [tag])
    assert on(tag).code == 0, "nothing of it was read"
    ended = on(tag, copied=True)
    assert ended.code == 1
    assert f"the config promises a tar with the diff ID {wrong}, the layer has " in ended.fact
    assert str(image.config.diff_ids[0]) in ended.fact
    assert ended.hint == "no tool can run it: have it built and pushed anew"


def test_a_manifest_whose_bytes_are_another(on: Assemble, liar: StaticRegistry, store: Store) -> None:
    served(liar, store)
    digest = Digest.of(b"x")
    liar.answers[f"x/manifests/{digest}"] = liar.answers["x/manifests/1"]
    ended = on(f"{liar.host}/x@{digest}")
    assert (ended.code, f"expected {digest}, the bytes give sha256:" in ended.fact) == (1, True)
