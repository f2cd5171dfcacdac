"""Directory trees: entries, ignore patterns, content digests, fingerprints and the stat cache."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from assembler.errors import RequestError
from assembler.tree.directory import read_directory, tree_digest, tree_state
from assembler.tree.fingerprint import StatCache, changed_since, fingerprint, survey
from assembler.tree.ignore import Ignore


def _tree(root: Path) -> Path:
    for path, text in {
        "a.txt": "a",
        "src/main.c": "int main(void) { return 0; }",
        "src/deep/er/file": "x" * 1000,
        "a-b/z": "z",
        "build/out.o": "o",
        ".git/HEAD": "ref: refs/heads/main",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
    (root / "run.sh").write_text("#!/bin/sh")
    (root / "run.sh").chmod(0o700)
    (root / "link").symlink_to("src/main.c")
    (root / "empty").mkdir()
    os.link(root / "a.txt", root / "b.txt")
    return root


def _age(root: Path, seconds: float = 60) -> None:
    """Wait for nothing: make the racy window pass by moving what the cache calls now."""
    for path in [root, *root.rglob("*")]:
        if not path.is_symlink():
            os.utime(path, (time.time() - seconds,) * 2)


def test_entries_are_sorted_and_normalised(tmp_path: Path) -> None:
    entries = read_directory(_tree(tmp_path), ignore=["build/"])
    paths = [entry.path for entry in entries]
    assert paths == sorted(paths)
    assert ".git" not in paths
    assert "build" not in paths
    found = {entry.path: entry for entry in entries}
    assert found["empty"].kind == "directory"
    assert found["run.sh"].mode == 0o755
    assert found["a.txt"].mode == 0o644
    assert (found["b.txt"].kind, found["b.txt"].link) == ("hardlink", "a.txt")
    assert (found["link"].kind, found["link"].link) == ("symlink", "src/main.c")
    assert found["src/main.c"].content == tmp_path / "src/main.c"
    assert ".git/HEAD" in {entry.path for entry in read_directory(tmp_path, ignore=["!.git"])}


@pytest.mark.parametrize(
    ("patterns", "path", "is_directory", "ignored"),
    [
        (["*.o"], "a/b.o", False, True),
        (["*.o"], "a/b.oo", False, False),
        (["/b.o"], "a/b.o", False, False),
        (["/a/*.o"], "a/b.o", False, True),
        (["a/*.o"], "x/a/b.o", False, False),
        (["a/*"], "a/b/c", False, False),
        (["**/a/*.o"], "x/y/a/b.o", False, True),
        (["**/a/*.o"], "a/b.o", False, True),
        (["a/**/c"], "a/c", False, True),
        (["a/**/c"], "a/x/y/c", False, True),
        (["a/**"], "a/x/y", False, True),
        (["a/**"], "a", True, False),
        (["build/"], "build", True, True),
        (["build/"], "build", False, False),
        (["*.o", "!keep.o"], "x/keep.o", False, False),
        (["!keep.o", "*.o"], "x/keep.o", False, True),
        (["[a-c]?.txt"], "bx.txt", False, True),
        (["[!a-c]x"], "bx", False, False),
        (["[^a-c]x"], "dx", False, True),
        (["[]]x"], "]x", False, True),
        (["a[b"], "a[b", False, True),
        (["[z-a]"], "m", False, False),
        (["#x", "", "  "], "#x", False, False),
        (["\\#x"], "#x", False, True),
        (["\\!x"], "!x", False, True),
        (["a\\*"], "a*", False, True),
        (["a\\*"], "ab", False, False),
        (["trailing   "], "trailing", False, True),
        ([], ".git", True, True),
        (["!.git"], ".git", True, False),
        (["a b+(c)"], "a b+(c)", False, True),
    ],
)
def test_ignore_patterns(patterns: list[str], path: str, is_directory: bool, ignored: bool) -> None:
    rules = Ignore(patterns)
    name = path.rpartition("/")[2]
    found = rules.candidate(path, name) and rules.ignored(path, name, is_directory)
    assert found is ignored


def test_ignore_agrees_with_git(tmp_path: Path) -> None:
    patterns = ["*.log", "!important.log", "/top", "doc/*.txt", "**/cache/", "x/**/y", "[ab].c", "nested/dir/"]
    paths = ["a.log", "important.log", "top", "s/top", "doc/a.txt", "doc/s/a.txt", "q/cache/f", "x/y", "x/1/2/y"]
    paths += ["a.c", "c.c", "nested/dir/f", "o/nested/dir/f", "s/important.log"]
    for path in paths:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if not (tmp_path / path).exists():
            (tmp_path / path).write_text(path)
    kept = {e.path for e in read_directory(tmp_path, ignore=patterns) if e.kind == "file"}
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / ".git/info/exclude").write_text("\n".join(patterns))
    argv = ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"]
    assert kept == set(subprocess.run(argv, check=True, capture_output=True, text=True).stdout.split())


def test_digest_sees_content_and_nothing_else(tmp_path: Path) -> None:
    first = _tree(tmp_path / "one")
    before = tree_digest(first)
    second = tmp_path / "elsewhere/two"
    previous = os.umask(0o077)
    try:
        shutil.copytree(first, second, symlinks=True)
    finally:
        os.umask(previous)
    (second / "b.txt").unlink()
    os.link(second / "a.txt", second / "b.txt")
    (second / "run.sh").chmod(0o777)
    _age(second)
    assert tree_digest(second, threads=1) == before
    changes: list[Callable[[], object]] = [
        lambda: (second / "a.txt").write_text("b"),
        lambda: (second / "a.txt").rename(second / "c.txt"),
        lambda: (second / "run.sh").chmod(0o644),
        (second / "new").mkdir,
        (second / "link").unlink,
        lambda: (second / "link").symlink_to("a-b/z"),
    ]
    seen = {before}
    for change in changes:
        change()
        digest = tree_digest(second)
        assert digest not in seen
        seen.add(digest)


def test_names_and_contents_do_not_run_together(tmp_path: Path) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "2").mkdir()
    (tmp_path / "1/a\nfile").write_text("")
    (tmp_path / "2/a").write_text("")
    (tmp_path / "2/file").write_text("")
    assert tree_digest(tmp_path / "1") != tree_digest(tmp_path / "2")


def test_cache_trusts_only_what_is_old(tmp_path: Path) -> None:
    root = _tree(tmp_path / "tree")
    cache = StatCache(tmp_path / "cache")
    state = tree_state(root, cache=cache)
    assert not state.settled
    assert cache.known_digest(root, (), state.fingerprint) is None
    assert cache.file_hashes(root, ()) == {}
    time.sleep(2.05)
    state = tree_state(root, cache=cache)
    assert state.settled
    assert cache.known_digest(root, (), state.fingerprint) == state.digest
    hashes = cache.file_hashes(root, ())
    assert "src/main.c" in hashes
    # a wrong record shows that the file is not read again
    hashes["src/main.c"][4] = "0" * 64
    cache.remember(root, (), ".files", {"files": hashes})
    assert tree_digest(root, cache=cache) == state.digest
    (root / "other").write_text("changes the fingerprint")
    assert tree_digest(root, cache=cache) != tree_digest(root)


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"files": 3}', b'{"files": {"a.txt": 1}}', b"\xff" * 9])
def test_damaged_cache_counts_as_empty(tmp_path: Path, damage: bytes) -> None:
    root = _tree(tmp_path / "tree")
    cache = StatCache(tmp_path / "cache")
    cache.directory.mkdir()
    for suffix in (".tree", ".files"):
        cache.path(root, (), suffix).write_bytes(damage)
    assert tree_digest(root, cache=cache) == tree_digest(root)


def test_damaged_digest_in_the_cache_is_not_believed(tmp_path: Path) -> None:
    root = _tree(tmp_path / "tree")
    cache = StatCache(tmp_path / "cache")
    cache.remember(root, (), ".tree", {"fingerprint": fingerprint(root), "digest": "sha256:" + "x" * 64})
    assert tree_digest(root, cache=cache) == tree_digest(root)


def test_unwritable_cache_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    root = _tree(tmp_path / "tree")
    assert tree_digest(root, cache=StatCache(tmp_path / "file/cache")) == tree_digest(root)


def test_change_is_noticed_even_with_the_same_size_and_time(tmp_path: Path) -> None:
    root = _tree(tmp_path)
    before = fingerprint(root)
    assert not changed_since(root, before)
    times = (root / "a-b/z").stat()
    (root / "a-b/z").write_text("y")
    os.utime(root / "a-b/z", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert changed_since(root, before)
    before = fingerprint(root)
    (root / ".git/index").write_text("ignored")
    assert not changed_since(root, before)
    shutil.rmtree(root)
    assert changed_since(root, before)


def test_special_files_and_names_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RequestError, match="`pipe` is a named pipe"):
        survey(tmp_path)
    with pytest.raises(RequestError, match="`pipe` is a named pipe"):
        read_directory(tmp_path)
    assert read_directory(tmp_path, ignore=["pipe"]) == ()
    (tmp_path / "pipe").unlink()
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    with pytest.raises(RequestError, match="`socket` is a socket"):
        tree_digest(tmp_path)
    (tmp_path / "socket").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")).write_text("")
    with pytest.raises(RequestError, match=r"found `caf\\xe9`"):
        tree_digest(tmp_path)


def test_link_target_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.fsdecode(b"caf\xe9"))
    with pytest.raises(RequestError, match=r"target of `link` in UTF-8, found `caf\\xe9`"):
        read_directory(tmp_path)


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="gone: cannot read"):
        read_directory(tmp_path / "gone")


def test_fingerprint_imports_the_standard_library_only() -> None:
    code = (
        "import sys; import assembler.tree.fingerprint; "
        "print([m for m in sys.modules if m.split('.')[0] in "
        "('pydantic', 'yaml', 'requests', 'plumbum', 'zstandard', 'oras')])"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=root)
    assert json.loads(done.stdout.replace("'", '"')) == []
