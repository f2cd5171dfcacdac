"""Mirrors, rewriting and blocking: which registry is asked, by us and by skopeo under the same registries.conf."""

from __future__ import annotations

import io
import socket
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.front import BASIC, running_front
from support.images import image_of
from support.registry import ELSEWHERE, RunningRegistry, free_port, output_of

from assembler.errors import NodeError, RegistryError
from assembler.oci import media_types
from assembler.oci.descriptor import Descriptor
from assembler.oci.digest import Digest
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry import sessions
from assembler.registry.client import Client
from assembler.registry.mirrors import Mirrors
from assembler.registry.push import push
from assembler.registry.refusal import RefusedError
from assembler.registry.retry import RetryPolicy
from assembler.registry.settings import Located, Settings, read_settings

pytestmark = pytest.mark.registry

NAME = "example.test/team"  # nobody is there


@dataclass(frozen=True)
class Place:
    """A user's home with a registries.conf, for us and for other tools."""

    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "XDG_RUNTIME_DIR": str(self.home / "run")}

    def settings(self, conf: str) -> Settings:
        """Write the file and read it."""
        path = self.home / ".config/containers/registries.conf"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(conf)
        return read_settings(self.environment, etc=self.home / "etc")

    def client(self, conf: str, attempts: int = 3) -> Client:
        """A client that follows it."""
        return Client(self.settings(conf), RetryPolicy(attempts=attempts, sleep=lambda _seconds: None))

    def skopeo(self, reference: Reference) -> Digest | None:
        """The digest of the manifest that skopeo finds, or None."""
        environment = {"HOME": str(self.home), "XDG_CONFIG_HOME": "", "XDG_RUNTIME_DIR": str(self.home / "run")}
        try:
            raw = output_of(["skopeo", "inspect", "--raw", f"docker://{reference}"], environment)
        except AssertionError:
            return None
        return Digest.of(raw.encode())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """A home of the test's own."""
    return Place(tmp_path / "home")


@pytest.fixture
def digest(
    client: Client, registry: RunningRegistry, other_registry: RunningRegistry, store: Store, repository: str
) -> Digest:
    """An image in both registries: in the first as `…/home/app:1`, in the second as `…/copy/app:1`."""
    image = image_of(store, {"file": repository.encode()})
    push(client, image, store, [other_registry.reference(f"{repository}/copy/app:1")])
    return push(client, image, store, [registry.reference(f"{repository}/home/app:1")]).digest


def _conf(home: str, *mirrors: str, prefix: str = NAME, more: str = "") -> str:
    """A table with a location and mirrors, each `LOCATION` or `LOCATION MODE`."""
    text = f'[[registry]]\nprefix = "{prefix}"\nlocation = "{home}"\ninsecure = true\n{more}\n'
    for mirror in mirrors:
        location, _, mode = mirror.partition(" ")
        text += f'[[registry.mirror]]\nlocation = "{location}"\ninsecure = true\n'
        text += f'pull-from-mirror = "{mode}"\n' if mode else ""
    return text


def _manifests(registry: RunningRegistry, mark: int) -> list[int]:
    """The statuses of the manifest requests since then."""
    return [asked.status for asked in registry.asked(mark) if "/manifests/" in asked.path]


BLOCKED = "blocked = true"
CASES = {
    "mirror": (["{copy}"], "", "tag", [], [200]),
    "mirror that is down": (["{nobody}/x"], "", "tag", [200], []),
    "mirror without it": (["{other}/nothing"], "", "tag", [200], [404]),
    "two mirrors": (["{nobody}/x", "{copy}"], "", "tag", [], [200]),
    "digest-only, by tag": (["{copy} digest-only"], "", "tag", [200], []),
    "digest-only, by digest": (["{copy} digest-only"], "", "digest", [], [200]),
    "mirror-by-digest-only, by tag": (["{copy}"], "mirror-by-digest-only = true", "tag", [200], []),
    "mirror-by-digest-only, by digest": (["{copy}"], "mirror-by-digest-only = true", "digest", [], [200]),
    "tag-only, by tag": (["{copy} tag-only"], "", "tag", [], [200]),
    "tag-only, by digest": (["{copy} tag-only"], "", "digest", [200], []),
    "rewritten": ([], "", "tag", [200], []),
    "blocked with a mirror": (["{copy}"], BLOCKED, "tag", [], [200]),
}


@pytest.mark.tools
@pytest.mark.parametrize("case", CASES)
def test_the_same_registries_are_asked_as_by_skopeo(
    place: Place,
    registry: RunningRegistry,
    other_registry: RunningRegistry,
    digest: Digest,
    repository: str,
    case: str,
) -> None:
    mirrors, more, by, home_answers, other_answers = CASES[case]
    names = {"copy": f"{other_registry.host}/{repository}/copy", "other": other_registry.host}
    names["nobody"] = f"127.0.0.1:{free_port()}"
    home = f"{registry.host}/{repository}/home"
    client = place.client(_conf(home, *(mirror.format(**names) for mirror in mirrors), more=more))
    reference = Reference.parse(f"{NAME}/app:1")
    reference = reference.at(digest) if by == "digest" else reference
    marks = registry.mark(), other_registry.mark()
    assert client.get_manifest(reference).digest == digest
    assert (_manifests(registry, marks[0]), _manifests(other_registry, marks[1])) == (home_answers, other_answers)
    marks = registry.mark(), other_registry.mark()
    assert place.skopeo(reference) == digest
    assert (_manifests(registry, marks[0]), _manifests(other_registry, marks[1])) == (home_answers, other_answers)


@pytest.mark.tools
def test_the_longest_prefix_wins_and_a_domain_may_be_meant_whole(
    place: Place, registry: RunningRegistry, other_registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    home, copy = f"{registry.host}/{repository}/home", f"{other_registry.host}/{repository}/copy"
    wide = _conf("127.0.0.1:1/no", prefix="*.example.test")
    client = place.client(
        wide + _conf("127.0.0.1:1/no", prefix="a.example.test") + _conf(home, prefix="a.example.test/x/y")
    )
    near = Reference.parse("a.example.test/x/y/app:1")
    assert client.get_manifest(near).digest == digest
    assert place.skopeo(near) == digest
    client = place.client(_conf(copy, prefix="*.example.test") + _conf("127.0.0.1:1/no"))
    anywhere = Reference.parse("b.c.example.test/app:1")
    assert client.get_manifest(anywhere).digest == digest
    assert place.skopeo(anywhere) == digest


@pytest.mark.tools
def test_a_blocked_registry_is_refused_with_the_file_that_blocks_it(
    place: Place, registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    host = f"{registry.host}/{repository}"
    client = place.client(f'[[registry]]\nlocation = "{host}"\ninsecure = true\nblocked = true\n')
    reference = registry.reference(f"{repository}/home/app:1")
    mark = registry.mark()
    for ask in (client.get_manifest, client.head_manifest, client.check_push):
        with pytest.raises(NodeError, match="is blocked") as refused:
            ask(reference)
        assert str(place.home / ".config/containers/registries.conf") in refused.value.fact
    assert place.skopeo(reference) is None
    assert registry.asked(mark) == []


def test_blobs_come_from_the_mirror_under_the_users_name(
    place: Place, registry: RunningRegistry, other_registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    copy = f"{other_registry.host}/{repository}/copy"
    client = place.client(_conf(f"{registry.host}/{repository}/home", f"{copy} digest-only"))
    reference = Reference.parse(f"{NAME}/app").at(digest)
    config = _config_of(client, reference)
    mark = registry.mark()
    assert Digest.of(client.get_blob(reference, config)) == config.digest
    with client.open_blob(Reference.parse(f"{NAME}/app:1"), config) as stream:
        assert Digest.of(stream.read()) == config.digest
    assert registry.asked(mark) == []


def _config_of(client: Client, reference: Reference) -> Descriptor:
    from assembler.oci.image import ImageManifest

    return ImageManifest.from_bytes(client.get_manifest(reference).data).config


def test_when_nobody_has_it_the_error_is_the_registrys_and_tells_of_the_mirrors(
    place: Place, registry: RunningRegistry, other_registry: RunningRegistry, repository: str
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    home = f"{registry.host}/{repository}"
    client = place.client(_conf(home, f"{nobody}/x", f"{other_registry.host}/y"))
    with pytest.raises(RefusedError, match="404") as failed:
        client.get_manifest(Reference.parse(f"{NAME}/app:1"))
    assert failed.value.place == f"{NAME}/app:1 (at {home}/app)"
    assert [line.partition(": ")[0] for line in failed.value.detail] == [
        f"mirror {nobody}/x/app",
        f"mirror {other_registry.host}/y/app",
    ]
    assert "connection refused" in failed.value.detail[0]
    assert "404" in failed.value.detail[1]


def test_a_mirror_with_other_bytes_is_passed_over(
    place: Place, registry: RunningRegistry, other_registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    copy = f"{other_registry.host}/{repository}/copy"
    client = place.client(_conf(f"{registry.host}/{repository}/home", copy))
    reference = Reference.parse(f"{NAME}/app:1")
    config = _config_of(client, reference)
    other_registry.blob_path(config.digest).write_bytes(b"x" * config.size)
    assert Digest.of(client.get_blob(reference, config)) == config.digest


def test_a_mirror_that_fails_is_asked_twice_and_then_left_alone(
    place: Place, registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    with running_front(registry.host) as mirror:
        mirror.fail = lambda _method, _path: (503, {"Retry-After": "3600"})
        waits: list[float] = []
        home = f"{registry.host}/{repository}/home"
        client = Client(
            place.settings(_conf(home, f"{mirror.host}/{repository}/home")), RetryPolicy(sleep=waits.append)
        )
        for _ in range(3):
            assert client.get_manifest(Reference.parse(f"{NAME}/app:1")).digest == digest
        assert len(mirror.seen) == 2
        assert waits == [2.0]


def test_a_mirror_that_hangs_is_not_waited_for_long(
    place: Place, registry: RunningRegistry, digest: Digest, repository: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "MIRROR_SECONDS", (0.2, 0.2))
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        mirror = f"{ELSEWHERE}:{hanging.getsockname()[1]}"
        conf = _conf(f"{registry.host}/{repository}/home") + f'[[registry.mirror]]\nlocation = "{mirror}"\n'
        started = time.monotonic()
        assert place.client(conf).get_manifest(Reference.parse(f"{NAME}/app:1")).digest == digest
        assert time.monotonic() - started < 10  # two tries; the registry itself would be given minutes


def test_a_silent_mirror_gets_another_chance_later() -> None:
    now = 0.0
    mirrors = Mirrors(lambda: now)
    settings = Settings()
    mirror, home = (settings.home(Reference.parse(f"{host}/x:1")) for host in ("m.test", "h.test"))
    asked: list[str] = []

    def ask(place: Located) -> str:
        asked.append(place.registry)
        if place is mirror:
            raise RegistryError("nobody", place=str(place))
        return "answer"

    for now in (0.0, 299.0, 301.0):  # noqa: B007  (the clock)
        assert mirrors.first([mirror], lambda: home, ask) == "answer"
    assert asked == ["m.test", "h.test", "h.test", "m.test", "h.test"]


def test_a_mirror_gets_its_own_credentials_and_never_the_registrys(
    place: Place, registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    with running_front(registry.host) as mirror, running_front(registry.host) as home:
        mirror.login = home.login = True
        settings = place.settings(_conf(f"{home.host}/{repository}/nothing", f"{mirror.host}/{repository}/home"))
        auth = place.home / "run/containers/auth.json"
        auth.parent.mkdir(parents=True)
        auth.write_text(
            f'{{"auths": {{"{NAME}": {{"auth": "bm86bm8="}}, "{mirror.host}": {{"auth": "{BASIC}"}}}}}}'
        )
        assert Client(settings).get_manifest(Reference.parse(f"{NAME}/app:1")).digest == digest
        assert mirror.logins == [[f"repository:{repository}/home/app:pull"]]
        assert home.seen == []


def test_a_push_goes_to_the_location_and_never_to_a_mirror(
    place: Place, registry: RunningRegistry, other_registry: RunningRegistry, store: Store, repository: str
) -> None:
    client = place.client(_conf(f"{registry.host}/{repository}", f"{other_registry.host}/{repository}"))
    target = Reference.parse(f"{NAME}/app:1")
    mark = other_registry.mark()
    result = push(client, image_of(store, {"file": repository.encode()}), store, [target])
    assert result.references == (target.at(result.digest),)
    assert push(client, image_of(store, {"file": repository.encode()}), store, [target]).unchanged == (target,)
    assert other_registry.asked(mark) == []
    found = Client(Settings()).head_manifest(registry.reference(f"{repository}/app:1"))
    assert found is not None
    assert found.digest == result.digest


@pytest.fixture
def data(repository: str) -> bytes:
    """The bytes of a blob of the test's own."""
    return repository.encode() * 100


def test_blobs_are_mounted_between_names_that_lead_to_one_registry(
    place: Place, registry: RunningRegistry, other_registry: RunningRegistry, repository: str, data: bytes
) -> None:
    elsewhere = _conf(f"{other_registry.host}/{repository}", prefix=f"{registry.host}/{repository}/away")
    client = place.client(_conf(f"{registry.host}/{repository}/hub") + elsewhere)
    blob = Descriptor(media_type=media_types.LAYER, digest=Digest.of(data), size=len(data))
    base, target = Reference.parse(f"{NAME}/base:1"), registry.reference(f"{repository}/mine:1")
    away = registry.reference(f"{repository}/away/base:1")
    client.upload(base, blob, lambda: io.BytesIO(data))
    assert client.neighbours(target, [base, None, away, target, base]) == (f"{repository}/hub/base",)
    mark = registry.mark()
    assert client.mount(target, f"{repository}/hub/base", blob.digest).mounted
    assert [asked.status for asked in registry.asked(mark)] == [201]


def test_a_base_in_a_blocked_registry_is_no_neighbour(place: Place, registry: RunningRegistry) -> None:
    client = place.client(_conf(f"{registry.host}/x", f"{registry.host}/y", more=BLOCKED))
    assert client.neighbours(registry.reference("z:1"), [Reference.parse(f"{NAME}/base:1")]) == ()


def test_a_location_that_makes_no_reference_names_the_file(place: Place) -> None:
    client = place.client('[[registry]]\nprefix = "example.test"\nlocation = "Nowhere/Über"\n')
    with pytest.raises(NodeError, match=r"registries\.conf: `example\.test`: the location"):
        client.get_manifest(Reference.parse("example.test/app:1"))


def test_an_http_mirror_that_is_not_called_insecure_is_not_spoken_to(
    place: Place, registry: RunningRegistry, digest: Digest, repository: str
) -> None:
    away = registry.host.replace("127.0.0.1", ELSEWHERE)
    conf = (
        _conf(f"{registry.host}/{repository}/home")
        + f'[[registry.mirror]]\nlocation = "{away}/{repository}/home"\n'
    )
    mark = registry.mark()
    reference = Reference.parse(f"{NAME}/app:1")
    assert place.client(conf).get_manifest(reference).digest == digest
    assert len(_manifests(registry, mark)) == 1
    insecure = conf + "insecure = true\n"
    assert [mirror.endpoint.security for mirror in place.settings(insecure).mirrors(reference)] == ["insecure"]
    with pytest.raises(RefusedError, match="404") as failed:
        place.client(insecure).get_manifest(Reference.parse(f"{NAME}/none:1"))
    assert "404" in failed.value.detail[0]
