"""What a new user gets wrong, and what is said to that: place, fact, hint, and the exit status.

2 says that the command or the YAML must change, 1 that the world must.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from support.needs import lacking, need, need_root
from support.registry import RunningRegistry, free_port

from assembler import cli

MANIFEST = """\
manifest: 1
name: ok
runtime: scratch
args: {version: {default: "1", choices: ["1", "2"]}}
sources: {tree: {path: ./tree}}
layers:
  - copy: {source: tree, to: /opt/}
"""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str


Assemble = Callable[..., Ended]


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory: a manifest, its source, and nothing else of this machine's user."""
    (tmp_path / "work/tree").mkdir(parents=True)
    (tmp_path / "work/tree/file").write_text("x\n")
    (tmp_path / "work/ok.yaml").write_text(MANIFEST)
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("ASSEMBLE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("REGISTRY_AUTH_FILE", str(tmp_path / "none.json"))
    monkeypatch.delenv("ASSEMBLE_DEBUG", raising=False)
    return tmp_path / "work"


@pytest.fixture
def assemble(directory: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Assemble]:
    """The program, in this process, in `directory`."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str) -> Ended:
        code = cli.main(list(words))
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


COMMANDS = [
    ("biuld ok.yaml", "`biuld` is neither a verb nor a manifest", "did you mean `build`?"),
    ("run", "expected TARGET", None),
    ("run --with lxc ok.yaml", "--with: expected one of `podman`, `docker`, `apptainer`, got `lxc`", None),
    ("run none.yaml --print", "no such file", None),
    ("sif ok.yaml", "assemble sif: expected FILE.sif", None),
    ("sif ok.yaml a.sif --compression bz2", "--compression: expected one of `gzip`, `zstd`, `lz4`, `xz`", None),
    ("sif ok.yaml a.sif --arch ../x", "--arch: expected an architecture such as `arm64`", None),
    ("sif ok.yaml a.sif --push a.example/b:1", "expected `oras://REGISTRY/REPOSITORY:TAG`", "apptainer pull"),
    ("sif ok.yaml gone/a.sif", "the directory `gone` does not exist", None),
    ("sif ok.yaml tree", "expected a file, or nothing yet; there is a directory", None),
    ("sif oci:gone a.sif", "oci:gone: expected an OCI image layout", None),
    ("sif oci-archive:gone a.sif", "oci-archive:gone: there is no such readable file", None),
    ("sif A:b a.sif", "`library/A` in `A:b` is no repository name", "a name of the store"),
    ("sif a.example/b a.sif --set x=1", "a.example/b: `--set` is for manifests", None),
    ("ok.yaml --output sif:gone/a", "--output sif:gone/a: the directory `gone` does not exist", None),
    (
        "ok.yaml --output sif:a --platform linux/amd64 --platform linux/arm64",
        "a sif file is for one platform",
        None,
    ),
    ("check ok.yaml", "`assemble check` is not there yet", "inspect IMAGE --files"),
    ("diff a b", "`assemble diff` is not there yet", "inspect IMAGE --json"),
    ("ok", "no manifest `ok`", "did you mean `ok.yaml`?"),
    ("okk.yaml", "okk.yaml: no such file", "did you mean `ok.yaml`?"),
    ("llama-cp", "no manifest `llama-cp`", "did you mean `llama-cpp`?"),
    (".", ".: expected a manifest, got a directory", "`ok.yaml`"),
    ("--offline plan ok.yaml", "expected the verb `plan` first", "`assemble plan …`"),
    ("build", "assemble build: expected MANIFEST", "`assemble build --help`"),
    ("lock", "assemble lock: expected MANIFEST", "`assemble list`"),
    ("inspect", "assemble inspect: expected IMAGE", None),
    ("ok.yaml --bogus", "there is no option `--bogus` here", "`assemble VERB --help`"),
    ("plan ok.yaml --keep", "there is no option `--keep` here", None),
    ("inspect a b", "`b` is one word too many", None),
    ("ok.yaml --push", "--push: expected a value", "`assemble build --help`"),
    ("ok.yaml --jobs none", "--jobs: expected a number from 1 upward, got `none`", None),
    ("ok.yaml --progress loud", "--progress: expected one of `auto`", None),
    ("ok.yaml --compression lzma", "--compression: expected one of `zstd`, `gzip`, `both`, got `lzma`", None),
    ("gc --keep-days -1", "--keep-days: expected a number of days, got `-1`", None),
    ("schema layer", "expected one of `manifest`, `recipe`, got `layer`", None),
    ("ok.yaml --set version", "--set: expected NAME=VALUE, got `version`", None),
    ("ok.yaml --set verson=1", "--set verson=1: no argument `verson`", "did you mean `version`?"),
    ("ok.yaml --set version=3", "--set version=3: expected one of `1`, `2`, got `3`", None),
    ("ok.yaml --source tre=tree", "--source tre=tree: no source `tre`", "did you mean `tree`?"),
    ("ok.yaml --source tree=gone", "--source tree=gone: no such file or directory", None),
    ("ok.yaml --base runtme=scratch", "expected `devel` or `runtime`, got `runtme`", "did you mean `runtime`?"),
    ("ok.yaml --base runtime=oci:gone", "expected an OCI image layout", None),
    ("ok.yaml --base runtime=gone.yaml", "--base runtime=gone.yaml: no such file", None),
    ("ok.yaml --platform arm", "--platform: expected os/architecture", None),
    ("ok.yaml --update gone", "--update: the lock has no entry `gone`", "nothing here is locked"),
    ("ok.yaml --insecure http://a", "--insecure: expected a host", None),
    ("ok.yaml --push https://a.example/b", "--push: `https:` in `https://a.example/b`", "leave the scheme out"),
    ("ok.yaml --push a.example/B:1", "is no repository name", "registry.example.com"),
    (f"ok.yaml --push a.example/b@sha256:{'0' * 64}", "expected a tag to push to, got a digest", None),
    ("ok.yaml ok.yaml --push a.example/b", "`--push` and `--output` want exactly one manifest", None),
    ("ok.yaml --attach tree/file", "--attach: files are attached to an image in a registry", "add `--push REF`"),
    ("ok.yaml --push a.example/b --attach gone", "--attach gone: `gone` cannot be read: no such file", None),
    ("ok.yaml --push a.example/b --attach tree", "`tree` cannot be read: is a directory", None),
    ("ok.yaml --push a.example/b --attach sbom=tree/file", "cannot be read", "`sbom` is no media type such as"),
    (
        "ok.yaml --push a.example/b --attach tree/file",
        "does not tell what is in it",
        "application/spdx+json=tree/",
    ),
    ("ok.yaml --output zip:a", "`oci-archive:PATH`, `sif:PATH` or `sqsh:PATH`, got `zip:a`", None),
    ("ok.yaml --output docker-archive:a", "expected `oci:PATH`", "skopeo copy oci-archive:FILE docker-archive:"),
    ("ok.yaml --output oci:gone/a", "--output oci:gone/a: the directory `gone` does not exist", None),
    ("ok.yaml --output oci:tree", "--output oci:tree: expected an OCI layout", "name another one"),
    ("ok.yaml --output oci:ok.yaml", "expected a directory, or nothing yet; there is a file", None),
    ("ok.yaml --output oci-archive:tree", "expected a file, or nothing yet; there is a directory", None),
    ("inspect oci:gone", "oci:gone: expected an OCI image layout", None),
]


@pytest.mark.parametrize(("command", "said", "hint"), COMMANDS, ids=[command for command, _, _ in COMMANDS])
def test_wrong_commands(assemble: Assemble, command: str, said: str, hint: str | None) -> None:
    ended = assemble(*command.split())
    assert ended.code == 2, ended.err
    assert said in ended.err
    error, _, advice = ended.err.partition("\n\nhint: ")
    assert error.startswith("error: ")
    assert hint is None or hint in advice
    assert ended.out == ""
    assert "Traceback" not in ended.err


MANIFESTS = [
    ("services: {web: {image: x}}\nversion: 3\n", 2, "m.yaml:1:1: expected a manifest, which has `manifest: 1`"),
    ("recipe: 1\nsummary: x\n", 2, "expected a manifest, got a recipe"),
    ("HEAD\tlayers: []\n", 2, "m.yaml:4:1: expected spaces, got a tab"),
    ("HEADname: y\n", 2, "this key stands in line 2 already"),
    ("HEADlayrs: []\n", 2, "m.yaml:4:1: layrs: unknown key `layrs`\n\nhint: did you mean `layers`?"),
    ("HEADsources: {a: {path: gone}}\nlayers: [{copy: {source: a, to: /x}}]\n", 2, "`--source a=PATH` takes"),
    ("HEADsources: {a: {archive: gone.tar}}\nlayers: [{copy: {source: a, to: /x}}]\n", 2, "m.yaml: sources.a"),
    ("HEADsources: {a: {path: tree}}\nlayers: [{copy: {source: a, path: gone, to: /x}}]\n", 2,
     "m.yaml:5:10: `gone` matches nothing in the source"),
    ("HEADlayers: [{files: [{path: /a, content: x}, {path: /a/b, content: x}]}]\n", 2,
     "m.yaml:4:10: `a/b` (from files /a/b) lies below `a`, which is a file"),
    ("HEADlayers: [{files: [{path: /a, from-file: gone}]}]\n", 2, "gone"),
    ("HEADlayers: [{packages: {dnf: [curl]}}]\n", 2, "`dnf` packages cannot be locked"),
    ("HEADlayers: [{copy: {image: 'oci:gone', path: /x, to: /x}}]\n", 2, "gone"),
    ("HEADlayers: [{uses: lama-cpp}]\n", 2, "no recipe `lama-cpp`\n\nhint: did you mean `llama-cpp`?"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "code", "said"), MANIFESTS)
def test_wrong_manifests(assemble: Assemble, directory: Path, text: str, code: int, said: str) -> None:
    path = directory / "m.yaml"
    path.write_text(text.replace("HEAD", "manifest: 1\nname: m\nruntime: scratch\n"))
    ended = assemble("m.yaml", "--progress", "quiet")
    assert ended.code == code, ended.err
    assert said in ended.err
    assert (ended.out, "Traceback" in ended.err) == ("", False)


def test_where_nobody_listens_is_said_at_once(assemble: Assemble, directory: Path) -> None:
    host = f"localhost:{free_port()}"
    (directory / "on.yaml").write_text(f"manifest: 1\nname: on\nruntime: {host}/base:1\n")
    (directory / "of.yaml").write_text(
        "manifest: 1\nname: of\nruntime: scratch\n"
        f"sources: {{a: {{archive: 'http://{host}/a.tar'}}}}\nlayers: [{{copy: {{source: a, to: /x}}}}]\n"
    )
    for words in (["ok.yaml", "--push", f"{host}/x"], ["on.yaml"], ["of.yaml"], ["inspect", f"{host}/x:1"]):
        ended = assemble(*words)
        assert ended.code == 1
        assert "connection refused" in ended.err
        assert "hint: nothing listens there: is it running, and is the port right?" in ended.err


@pytest.mark.registry
def test_a_push_without_login(assemble: Assemble, login_registry: RunningRegistry) -> None:
    ended = assemble("ok.yaml", "--push", f"{login_registry.host}/wrong/x:1")
    assert ended.code == 1
    assert "the registry wants a login, and no credentials are configured for it" in ended.err
    assert f"podman login {login_registry.host}" in ended.err


def test_a_file_where_the_cache_should_be(assemble: Assemble) -> None:
    ended = assemble("ok.yaml", "--cache", "ok.yaml")
    assert ended.code == 1
    assert "ok.yaml: the cache cannot be used: file exists" in ended.err
    assert "ASSEMBLE_CACHE" in ended.err


def test_registries_conf_that_is_no_toml(
    assemble: Assemble, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (directory / "registries.conf").write_text("insecure [")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(directory / "registries.conf"))
    for words in (["ok.yaml", "--push", "a.example/x"], ["inspect", "a.example/x"]):
        ended = assemble(*words)
        assert ended.code == 1
        assert "registries.conf: expected TOML" in ended.err


def test_tools_that_are_not_there_are_named(
    assemble: Assemble, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if any(Path(place, "git").exists() for place in ("/usr/local/sbin", "/usr/sbin", "/sbin")):
        lacking("git lies where administrators' programs do")
    monkeypatch.setenv("PATH", str(directory))
    (directory / "git.yaml").write_text(
        "manifest: 1\nname: g\nruntime: scratch\nsources: {a: {git: 'https://a.example/b', ref: main}}\n"
        "layers: [{copy: {source: a, to: /x}}]\n"
    )
    (directory / "run.yaml").write_text(
        "manifest: 1\nname: r\nruntime: scratch\nlayers: [{run: {command: [/bin/true]}}]\n"
    )
    (directory / "apt.yaml").write_text("manifest: 1\nname: a\nruntime: {bootstrap: {suite: bookworm}}\n")
    for name, program in (("git", "git"), ("run", "buildah"), ("apt", "apt-get")):
        ended = assemble(f"{name}.yaml", "--progress", "quiet")
        assert ended.code == 1
        assert f"`{program}` is not installed" in ended.err
        assert "hint: install" in ended.err


def test_a_damaged_lock_is_renewed_as_the_hint_says(assemble: Assemble, directory: Path) -> None:
    (directory / "ok.lock.yaml").write_text("garbage: [")
    refused = assemble("ok.yaml")
    assert refused.code == 2
    assert "ok.lock.yaml:2:1: expected a value" in refused.err
    assert "`assemble lock --update` writes it anew" in refused.err
    assert assemble("lock", "--update", "ok.yaml").code == 0
    assert assemble("ok.yaml").code == 0


def test_what_pins_nothing_has_no_lock(assemble: Assemble, directory: Path) -> None:
    ended = assemble("lock", "ok.yaml")
    assert (ended.code, ended.out) == (0, "")
    assert "ok: there is nothing to lock" in ended.err
    assert not (directory / "ok.lock.yaml").exists()


def test_an_image_that_the_store_does_not_have(assemble: Assemble) -> None:
    built = assemble("ok.yaml")
    assert built.code == 0
    digest = built.out.strip().rpartition("@")[2]
    assert assemble("inspect", f"ok@{digest}").code == 0
    other = assemble("inspect", f"ok@sha256:{'0' * 64}")
    assert (other.code, other.err) == (2, f"error: ok@sha256:{'0' * 64}: no such image in the store\n")
    assert "expected a digest" in assemble("inspect", "ok@latest").err


def test_a_defect_is_told_like_any_error(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        {}["x"]  # type: ignore[index]
    except KeyError as error:
        caught = error
    short = cli._defect(caught).render()
    assert short.startswith("error: this is a defect of assemble: KeyError: 'x'")
    assert "ASSEMBLE_DEBUG=1" in short
    monkeypatch.setenv("ASSEMBLE_DEBUG", "1")
    assert __file__ in cli._defect(caught).render()


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    need_root()
    path = tmp_path / "small"
    path.mkdir()
    done = subprocess.run(
        [need("mount"), "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(path)], check=False, capture_output=True
    )
    if done.returncode:
        lacking("nothing can be mounted here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disks(assemble: Assemble, directory: Path, small: Path) -> None:
    (directory / "tree/large").write_bytes(os.urandom(3 << 20))
    for words, said in (
        (["--cache", str(small)], f"error: {small}/store: the layer cannot be written: no space left on device"),
        (["--output", f"oci-archive:{small}/a.tar"], f"error: oci-archive:{small}/a.tar: the image cannot be"),
        (["--output", f"oci:{small}/a"], f"error: oci:{small}/a: the image cannot be written: no space left"),
    ):
        ended = assemble("ok.yaml", *words)
        assert ended.code == 1
        assert said in ended.err
        assert not [path for path in small.iterdir() if path.name.startswith((".", "a"))]
