"""apt in containers of a real base: what it would install, installing exactly that, and its words in ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from support.debian import DebianBase, debian_base, shared_directory
from support.needs import need

from assembler.build import apt
from assembler.build.debs import Package, fetch
from assembler.build.difference import difference
from assembler.errors import AssembleError, LockError, StepError, VerifyError
from assembler.events import ignore
from assembler.oci.layout import Store
from assembler.pack.tarball import pack
from assembler.tree.entry import Entry

pytestmark = pytest.mark.tools


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DebianBase]:
    need("mmdebstrap", "buildah")
    with debian_base(shared_directory(tmp_path_factory.getbasetemp())) as made:
        yield made


def installed_layers(
    base: DebianBase, store: Store, packages: tuple[Package, ...], names: list[str]
) -> tuple[set[str], dict[str, Entry], str]:
    """Install in two containers: the diff IDs of both, the entries, and the packages that count as manual."""
    paths = fetch(packages, base.store, ignore)
    digests = set()
    for _ in range(2):
        with base.container() as container, base.container() as below:
            apt.install(container, packages, paths, names, scratch=base.directory)
            manual = container.run(["apt-mark", "showmanual"]).stdout
            with below.mounted() as lower, container.mounted() as upper:
                entries = difference(lower, upper, container.upper_directory(upper))
                digests.add(str(pack(entries, store).layer.diff_id))
    return digests, {entry.path: entry for entry in entries}, manual


def test_a_library_makes_the_same_layer_everywhere(base: DebianBase, store: Store) -> None:
    names = ["libgomp1", "ca-certificates"]
    with base.container() as container:
        packages = apt.resolve(container, names)
    assert [package.name for package in packages] == ["libgomp1"]
    assert packages[0].snapshot.startswith("debian/")
    digests, entries, manual = installed_layers(base, store, packages, names)
    assert len(digests) == 1
    assert (
        "usr/lib/x86_64-linux-gnu/libgomp.so.1" in entries or "usr/lib/aarch64-linux-gnu/libgomp.so.1" in entries
    )
    assert "etc/ld.so.cache" in entries
    assert not [
        path
        for path in entries
        if path.startswith(("run", "usr/sbin", "var/log", "var/cache", "var/lib/apt/lists"))
    ]
    assert "libgomp1" in manual.split()


def test_python_makes_the_same_layer_everywhere(base: DebianBase, store: Store) -> None:
    with base.container() as container:
        packages = apt.resolve(container, ["python3-minimal"])
    assert {"python3-minimal", "python3.11-minimal", "libexpat1"} <= {package.name for package in packages}
    digests, entries, manual = installed_layers(base, store, packages, ["python3-minimal"])
    assert len(digests) == 1
    assert [path for path in entries if path.endswith(".pyc")]
    assert "python3-minimal" in manual.split()
    assert "libexpat1" not in manual.split()


def test_lists_are_kept_for_the_next_call(base: DebianBase, tmp_path: Path) -> None:
    with base.container() as container:
        first = apt.resolve(container, ["libgomp1"], lists=tmp_path / "lists")
        assert list((tmp_path / "lists").glob("*_Packages*"))
        assert apt.resolve(container, [first[0].label], lists=tmp_path / "lists") == first


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("libgmop1", ("apt knows no package `libgmop1`", "`libgomp1`")),
        ("libgomp.", ("apt knows no package `libgomp.`",)),
        ("mail-transport-agent", ("virtual package", "`exim4-daemon-light`")),
        ("libgomp1=0.1", ("no archive offers version `0.1`", "`libgomp1=12")),
        ("libgomp1:s390x", ("architecture `s390x`",)),
    ],
)
def test_wishes_that_cannot_be_met(
    base: DebianBase, shared_lists: Path, name: str, words: tuple[str, ...]
) -> None:
    with base.container() as container, pytest.raises(LockError) as caught:
        apt.resolve(container, [name], lists=shared_lists)
    for word in words:
        assert word in caught.value.render()


def test_packages_that_do_not_go_together(base: DebianBase, shared_lists: Path) -> None:
    with base.container() as container, pytest.raises(StepError) as caught:
        apt.resolve(container, ["exim4-daemon-light", "postfix"], lists=shared_lists)
    assert "Conflicts" in caught.value.render()


@pytest.fixture(scope="module")
def shared_lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("apt") / "lists"


def test_what_is_not_the_locked_version_is_refused(base: DebianBase, shared_lists: Path) -> None:
    with base.container() as container:
        (package,) = apt.resolve(container, ["libgomp1"], lists=shared_lists)
        paths = fetch([package], base.store, ignore)
        other = replace(package, version="99")
        with pytest.raises(VerifyError, match="locked versions"):
            apt.install(container, [other], {other: paths[package]}, ["libgomp1"])


def test_a_missing_dependency_is_not_fetched(base: DebianBase, shared_lists: Path) -> None:
    with base.container() as container:
        packages = apt.resolve(container, ["python3-minimal"], lists=shared_lists)
        alone = [package for package in packages if package.name == "python3-minimal"]
        with pytest.raises(AssembleError) as caught:
            apt.install(container, alone, fetch(alone, base.store, ignore), ["python3-minimal"])
    assert "python3.11-minimal" in caught.value.render()
