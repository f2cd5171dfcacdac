"""Patches: part of a source's identity, applied once and in order, and nowhere but in the source."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

import pytest
from support.needs import need

from assembler.build.sources import fetch_source, lock_source, source_digest
from assembler.errors import InvalidManifestError, ManifestError
from assembler.manifest.library import load
from assembler.manifest.models import Source
from assembler.oci.layout import Store
from assembler.tree.archive import SOURCE_TIME

CHANGE = """\
--- a/hello.c
+++ b/hello.c
@@ -1 +1 @@
-hello
+{text}
"""
NEW = """\
diff --git a/run.sh b/run.sh
new file mode 100755
--- /dev/null
+++ b/run.sh
@@ -0,0 +1 @@
+#!/bin/sh
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where a manifest could be: an archive and patches, inside somebody's repository."""
    need("git")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/hello.c").write_text("hello\n")
    (tmp_path / "src/other.c").write_text("other\n")
    with tarfile.open(tmp_path / "src.tar", "w") as tar:
        tar.add(tmp_path / "src", "src-1.0")
    (tmp_path / "one.patch").write_text(CHANGE.format(text="changed"))
    (tmp_path / "two.patch").write_text(CHANGE.format(text="again").replace("-hello", "-changed"))
    (tmp_path / "new.patch").write_text(NEW)
    return tmp_path


def fetched(directory: Path, *patches: str) -> tuple[Path, str]:
    """The tree of the source with these patches, and its digest."""
    source = Source(archive="src.tar", patches=patches)
    cache, store = directory / "cache", Store(directory / "cache/store").create()
    answer = lock_source(source, directory, cache=cache, store=store)
    checkout = fetch_source(source, answer, directory, store=store, cache=cache)
    assert checkout.digest == source_digest(source, answer, directory)
    return checkout.path, str(checkout.digest)


def test_patches_are_applied_in_order(directory: Path) -> None:
    tree, digest = fetched(directory, "one.patch", "two.patch", "new.patch")
    assert (tree / "hello.c").read_text() == "again\n"
    assert (tree / "run.sh").stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mtime for path in [tree, *tree.rglob("*")]} == {SOURCE_TIME}
    plain, other = fetched(directory)
    assert (plain / "hello.c").read_text() == "hello\n"
    assert len({digest, other, fetched(directory, "one.patch")[1]}) == 3


def test_a_patch_that_changes_is_another_source(directory: Path) -> None:
    _, before = fetched(directory, "one.patch")
    (directory / "one.patch").write_text(CHANGE.format(text="otherwise"))
    tree, after = fetched(directory, "one.patch")
    assert before != after
    assert (tree / "hello.c").read_text() == "otherwise\n"


def test_a_patch_that_does_not_apply_is_named(directory: Path) -> None:
    with pytest.raises(ManifestError) as caught:
        fetched(directory, "one.patch", "one.patch")
    assert caught.value.place == "one.patch"
    assert caught.value.fact == "the patch does not apply"
    assert any("hello.c:1" in line for line in caught.value.detail)
    assert not [path for path in (directory / "cache/sources").iterdir() if path.is_dir()], "nothing half done"


@pytest.mark.parametrize("path", ["../escaped", "/tmp/escaped-by-a-patch"])
def test_a_patch_stays_in_the_source(directory: Path, path: str) -> None:
    (directory / "evil.patch").write_text(NEW.replace("b/run.sh", f"b/{path}").replace("a/run.sh", f"a/{path}"))
    with pytest.raises(ManifestError):
        fetched(directory, "evil.patch")
    assert not list(directory.rglob("escaped*"))


def test_a_patch_that_is_missing_is_found_out_when_the_manifest_is_read(directory: Path) -> None:
    manifest = directory / "m.yaml"
    source = "  s: {archive: src.tar, patches: [one.patch, uno.patch]}\n"
    text = f"manifest: 1\nname: m\nruntime: scratch\nsources:\n{source}"
    manifest.write_text(text)
    with pytest.raises(InvalidManifestError, match=r"no file `uno\.patch`"):
        load(manifest)
    manifest.write_text(text.replace(", uno.patch", ""))
    assert directory / "one.patch" in load(manifest).files
