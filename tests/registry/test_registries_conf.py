"""registries.conf as files: which count, how they are laid over each other, what is wrong in them, short names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Program
from support.images import image_of
from support.registry import RunningRegistry

from assembler.errors import NodeError, RequestError
from assembler.oci.layout import Store
from assembler.oci.reference import Reference
from assembler.registry.client import Client
from assembler.registry.push import push
from assembler.registry.registries_conf import RegistriesConf, mentions, read_registries
from assembler.registry.settings import read_settings
from assembler.registry.short_names import full_name, is_short, recorded_aliases


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """A stand-in for /etc."""
    return tmp_path / "etc"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Somebody without configuration."""
    return {"HOME": str(tmp_path / "home")}


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _table(prefix: str, location: str) -> str:
    return f'[[registry]]\nprefix = "{prefix}"\nlocation = "{location}"\n'


def _locations(conf: RegistriesConf) -> dict[str, str | None]:
    return {prefix: table.location for prefix, table in conf.tables.items()}


def test_drop_ins_are_laid_over_the_main_file_table_by_table(etc: Path, environment: dict[str, str]) -> None:
    home = Path(environment["HOME"])
    _write(
        etc / "containers/registries.conf",
        'unqualified-search-registries = ["one.test", "two.test"]\nshort-name-mode = "enforcing"\n'
        '[aliases]\n"a" = "x.test/a"\n"b" = "x.test/b"\n' + _table("p", "main.test") + _table("q", "main.test"),
    )
    _write(etc / "containers/registries.conf.d/20.conf", _table("q", "twenty.test") + _table("r", "twenty.test"))
    _write(etc / "containers/registries.conf.d/10.conf", _table("q", "ten.test"))
    _write(etc / "containers/registries.conf.d/30.txt", "no configuration")
    users = 'unqualified-search-registries = ["mine.test/"]\ncredential-helpers = ["secretservice"]\n'
    last = _write(
        home / ".config/containers/registries.conf.d/x.conf",
        users + '[aliases]\n"a" = ""\n' + _table("r", "user.test"),
    )
    conf = read_registries(environment, etc)
    assert _locations(conf) == {"p": "main.test", "q": "twenty.test", "r": "user.test"}
    assert (conf.search, conf.search_file, conf.short_name_mode) == (("mine.test",), last, "enforcing")
    assert {name: alias.name for name, alias in conf.aliases.items()} == {"a": "", "b": "x.test/b"}
    assert read_settings(environment, etc=etc).credential_helpers == ("secretservice",)


def test_a_users_own_main_file_replaces_the_systems_and_its_drop_ins(
    etc: Path, environment: dict[str, str]
) -> None:
    _write(etc / "containers/registries.conf", _table("p", "system.test"))
    _write(etc / "containers/registries.conf.d/x.conf", _table("q", "system.test"))
    named = _write(etc / "named.conf", _table("p", "named.test"))
    _write(Path(environment["HOME"], ".config/containers/registries.conf"), _table("r", "user.test"))
    assert _locations(read_registries(environment, etc)) == {"r": "user.test"}
    environment["CONTAINERS_REGISTRIES_CONF"] = str(named)
    assert _locations(read_registries(environment, etc)) == {"p": "named.test", "q": "system.test"}


def test_of_one_file_the_first_table_of_a_prefix_counts(etc: Path, environment: dict[str, str]) -> None:
    _write(etc / "containers/registries.conf", _table("p", "one.test") + _table("p", "two.test"))
    assert _locations(read_registries(environment, etc)) == {"p": "one.test"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("insecure [", "expected TOML"),
        ("[registry]\nlocation = 'a.test'", "`registry`: expected `[[registry]]` tables"),
        ("[[registry]]\ninsecure = true", "`registry 1`: expected `location` or `prefix`, got `neither`"),
        ("[[registry]]\nlocation = 'https://a.test'", "`registry 1: location`: expected HOST[:PORT]"),
        ("[[registry]]\nlocation = 'a.test'\ninsecure = 'yes'", "`registry 1: insecure`: expected true or false"),
        ("[[registry]]\nlocation = 'a.test'\npull-from-mirror = 'all'", "it in a `[[registry.mirror]]` table"),
        ("[[registry]]\nprefix = '*.a.test/b'", "`registry 1: prefix`: expected `*.` and a domain alone"),
        (
            "[[registry]]\nlocation = 'a'\n[[registry]]\nlocation = 'b'\n[[registry.mirror]]\ninsecure = true",
            "`registry 2, mirror 1`: expected `location`",
        ),
        (
            "[[registry]]\nlocation = 'a'\n[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'often'",
            "expected `all` or `digest-only` or `tag-only`, got `often`",
        ),
        (
            "[[registry]]\nlocation = 'a'\nmirror-by-digest-only = true\n"
            "[[registry.mirror]]\nlocation = 'b'\npull-from-mirror = 'all'",
            "expected either this or the registry's `mirror-by-digest-only`",
        ),
        ("unqualified-search-registries = 'docker.io'", "expected an array of strings"),
        ("short-name-mode = 'ask'", "expected `enforcing` or `permissive` or `disabled`"),
        ("[aliases]\na = 'x.test/a:1'", "`aliases: a`: expected REGISTRY/REPOSITORY without tag or digest"),
        ("[aliases]\na = 'b'", "expected REGISTRY/REPOSITORY"),
        ("aliases = 3", "`aliases`: expected a table"),
        ("[registries.search]\nregistries = ['docker.io']", "got version 1"),
    ],
)
def test_what_is_wrong_names_file_and_key(etc: Path, environment: dict[str, str], text: str, said: str) -> None:
    path = _write(etc / "containers/registries.conf.d/x.conf", text)
    with pytest.raises(NodeError) as failed:
        read_registries(environment, etc)
    assert said in failed.value.fact
    assert failed.value.place == str(path)


def test_an_empty_file_of_version_1_says_nothing(etc: Path, environment: dict[str, str]) -> None:
    _write(etc / "containers/registries.conf", "[registries.search]\nregistries = []\n")
    assert read_registries(environment, etc) == RegistriesConf(search_file=None)


def test_whether_a_file_mentions_a_registry_is_seen_in_its_text(etc: Path, environment: dict[str, str]) -> None:
    quay, hub = Reference.parse("quay.io/a/b:1"), Reference.parse("index.docker.io/a/b")
    path = _write(etc / "containers/registries.conf", '# location = "quay.io"\n[aliases]\na = "quay.io/a"\n')
    assert not mentions(environment, quay, etc)
    path.write_text('[[registry]]\n  location = "quay.io/a"\n')
    assert mentions(environment, quay, etc)
    assert not mentions(environment, hub, etc)
    path.write_text('[[registry]]\nprefix = "docker.io"\n')
    assert mentions(environment, hub, etc)
    path.write_text('[[registry]]\nprefix = "*.io"\n')
    assert mentions(environment, quay, etc)


def test_short_names_are_those_without_a_registry() -> None:
    assert [text for text in ("a", "a/b:1", "a@sha256:0", "a.b/c", "a:1/b", "localhost/a") if is_short(text)] == [
        "a",
        "a/b:1",
        "a@sha256:0",
    ]


def test_what_a_short_name_means(etc: Path, environment: dict[str, str], tmp_path: Path) -> None:
    def means(text: str) -> str:
        return full_name(text, environment, etc=etc)

    digest = "sha256:" + "0" * 64
    assert means("ubuntu:24.04") == "docker.io/library/ubuntu:24.04"
    conf = _write(etc / "containers/registries.conf", 'unqualified-search-registries = ["reg.test:5000"]\n')
    assert means(f"team/app:1@{digest}") == f"reg.test:5000/team/app:1@{digest}"
    assert means("quay.io/team/app") == "quay.io/team/app"
    conf.write_text('unqualified-search-registries = ["docker.io"]\n[aliases]\n"team/app" = "quay.io/x/app"\n')
    assert means("ubuntu") == "docker.io/library/ubuntu"
    assert means(f"team/app@{digest}") == f"quay.io/x/app@{digest}"
    conf.write_text('unqualified-search-registries = ["a.test", "b.test"]\n[aliases]\n"app" = "quay.io/x/app"\n')
    assert means("app:2") == "quay.io/x/app:2"
    with pytest.raises(RequestError, match=r"`a\.test/ubuntu`, `b\.test/ubuntu`") as failed:
        means("ubuntu:24.04")
    assert f"write the full name; {conf}" in (failed.value.hint or "")
    with pytest.raises(ValueError, match="is no"):
        means("Not:A:Name")


def test_what_podman_has_recorded_wins(etc: Path, environment: dict[str, str]) -> None:
    _write(etc / "containers/registries.conf", '[aliases]\n"app" = "quay.io/x/app"\n')
    assert recorded_aliases(environment, 0) == Path("/var/cache/containers/short-name-aliases.conf")
    recorded = recorded_aliases(environment, 1000)
    assert recorded == Path(environment["HOME"], ".cache/containers/short-name-aliases.conf")
    _write(recorded, '[aliases]\n"app" = "ghcr.io/y/app"\n')
    assert full_name("app", environment, etc=etc, recorded=recorded) == "ghcr.io/y/app"


@pytest.mark.registry
def test_a_short_name_on_the_command_line_is_this_hosts_and_in_a_manifest_everybodys(
    registry: RunningRegistry, client: Client, store: Store, repository: str, tmp_path: Path
) -> None:
    digest = push(client, image_of(store, {"f": b"f"}), store, [registry.reference(f"{repository}/app:1")]).digest
    home = tmp_path / "home"
    _write(
        home / ".config/containers/registries.conf",
        f'unqualified-search-registries = ["{registry.host}"]\n'
        '[[registry]]\nlocation = "docker.io"\nblocked = true\n',
    )
    program, env = Program(tmp_path / "cache"), {"HOME": str(home), "XDG_CONFIG_HOME": ""}
    name = f"{repository}/app:1"
    assert json.loads(program.ok("inspect", name, "--json", env=env))["digest"] == digest
    manifest = _write(tmp_path / "m.yaml", f"manifest: 1\nname: m\nruntime: {name}\nlayers: []\n")
    ended = program("lock", manifest, env=env)
    assert f"docker.io/{name}: the registry is blocked: `docker.io`" in ended.stderr
    assert ended.code == 1
    ended = program("plan", manifest, "--base", f"runtime={name}", env=env)
    assert ended.code == 10, ended.stderr
    assert f"{registry.host}/{name}" in ended.stdout
