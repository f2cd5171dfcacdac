"""Harvest: what patterns stand for, links, hard links, and the tar that comes of it."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from support.elves import executable, library

from assembler.build.binaries import binaries, check_search_paths
from assembler.build.harvest import Harvest, bundle_entries, find, write_bundle
from assembler.errors import AssembleError, StepError, UntrustedInputError
from assembler.oci.layout import Store
from assembler.tree.entry import Slice

FORBIDDEN = ("/build", "/src", "/tmp")


def tree(root: Path, files: Mapping[str, str]) -> Path:
    """A directory with these files; a content `-> TARGET` is a link, one of `/` a directory."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content == "/":
            path.mkdir()
        elif content.startswith("-> "):
            path.symlink_to(content.removeprefix("-> "))
        else:
            path.write_text(content)
    return root


@pytest.fixture
def build(tmp_path: Path) -> Path:
    return tree(
        tmp_path / "build",
        {
            "bin/server": "server",
            "bin/cli": "cli",
            "lib/libggml.so": "-> libggml.so.1",
            "lib/libggml.so.1": "-> libggml.so.1.2",
            "lib/libggml.so.1.2": "library",
            "lib/plugins/cuda/libcuda-plugin.so": "plugin",
            "lib/plugins/readme.txt": "text",
            "lib64": "-> lib",
            "share/empty": "/",
            "share/data/model.json": "{}",
        },
    )


def names(harvest: Harvest, artifact: str = "a") -> list[str]:
    return [item.path for item in harvest[artifact]]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["bin/server"], ["server"]),
        (["/bin/server"], ["server"]),
        (["bin"], ["cli", "server"]),
        (["bin/"], ["cli", "server"]),
        (["bin/*"], ["cli", "server"]),
        (["bin/s*", "bin/[abc]li", "bin/c?i"], ["cli", "server"]),
        (["lib/*.so*"], ["libggml.so", "libggml.so.1", "libggml.so.1.2"]),
        (["*/server"], ["server"]),
        (["**/*.so"], ["lib/libggml.so", "lib/plugins/cuda/libcuda-plugin.so"]),
        (["lib/**/*.so"], ["libggml.so", "plugins/cuda/libcuda-plugin.so"]),
        (["lib/plugins/**"], ["cuda", "cuda/libcuda-plugin.so", "readme.txt"]),
        (["lib/plug*"], ["plugins", "plugins/cuda", "plugins/cuda/libcuda-plugin.so", "plugins/readme.txt"]),
        (["share"], ["data", "data/model.json", "empty"]),
        (["share/*/model.json"], ["model.json"]),
        (["bin/server", "share/data"], ["model.json", "server"]),
        (["lib64/plugins"], ["cuda", "cuda/libcuda-plugin.so", "readme.txt"]),
        (["lib64/plugins/*.txt"], ["readme.txt"]),
        (["lib64/libggml.so.1.2"], ["libggml.so.1.2"]),
        (["lib64/**/*.txt"], ["plugins/readme.txt"]),
    ],
)
def test_what_a_pattern_stands_for(build: Path, patterns: list[str], expected: list[str]) -> None:
    if "**/*.so" in patterns or "lib/**/*.so" in patterns:
        (build / "lib/libggml.so").unlink()  # alone it leads out of the artifact; see below
        (build / "lib/libggml.so").write_text("library")
    assert names(find(build, {"a": patterns}, "step")) == expected


def test_the_whole_directory(build: Path) -> None:
    found = names(find(build, {"a": ["."]}, "step"))
    assert {"bin/server", "lib64", "share/empty", "lib/libggml.so"} <= set(found)
    assert found == sorted(found)


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("bin/sever", "hint: did you mean `bin/server`?"),
        ("server", "hint: did you mean `bin/server`?"),
        ("lib/*.json", "hint: did you mean `share/data/model.json`?"),
        ("share/empty", None),
        ("nothing/like/it", None),
        ("**/*.whl", None),
    ],
)
def test_a_pattern_that_matches_nothing_is_named(build: Path, pattern: str, hint: str | None) -> None:
    with pytest.raises(StepError) as caught:
        find(build, {"programs": ["bin/cli", pattern]}, "llama.server")
    expected = f"error: llama.server: artifact programs: `{pattern}` matches nothing in the build directory"
    assert caught.value.render() == (f"{expected}\n\n{hint}" if hint else expected)


def test_where_nothing_was_found_is_said(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="`x` matches nothing in what was installed"):
        find(tmp_path / "not-there", {"a": ["x"]}, "step", called="what was installed")


def test_two_files_cannot_have_one_name(build: Path) -> None:
    tree(build, {"other/server": "another"})
    with pytest.raises(StepError) as caught:
        find(build, {"a": ["bin/server", "other/server"]}, "step")
    assert caught.value.render() == (
        "error: step: artifact a: both `bin/server` and `other/server` would be `server`\n\n"
        "hint: make two artifacts of them"
    )
    assert names(find(build, {"a": ["bin/server", "bin/*"]}, "step")) == ["cli", "server"], "the same file twice"


# links


def test_links_stay_links(build: Path, store: Store) -> None:
    bundle = write_bundle(find(build, {"lib": ["lib/*.so*"]}, "step"), store)
    entries = {entry.path: (entry.kind, entry.link) for entry in bundle_entries(store, bundle.digest, "lib")}
    assert entries == {
        "libggml.so": ("symlink", "libggml.so.1"),
        "libggml.so.1": ("symlink", "libggml.so.1.2"),
        "libggml.so.1.2": ("file", ""),
    }


@pytest.mark.parametrize(
    ("files", "patterns"),
    [
        ({"a/x": "1", "a/b": "-> .", "a/l": "-> b/b/x"}, ["a"]),  # by way of another link
        ({"lib/x.so": "1", "lib64": "-> lib", "l": "-> lib64/x.so"}, ["."]),
        ({"d/x": "1", "d/self": "-> ../d/x"}, ["."]),
        ({"d/x": "1", "d/whole": "-> ."}, ["d"]),
    ],
)
def test_links_inside_an_artifact(tmp_path: Path, files: dict[str, str], patterns: list[str]) -> None:
    find(tree(tmp_path / "build", files), {"a": patterns}, "step")


@pytest.mark.parametrize(
    ("files", "pattern", "fact", "hint"),
    [
        ({"a/l": "-> /etc/passwd"}, "a", "the link `l` is absolute: `/etc/passwd`", "relative"),
        ({"a/l": "-> ../../x"}, "a", "the link `l` leads out of the artifact, to `../../x`", None),
        ({"a/l": "-> ../b/x", "b/x": "1"}, "a", "the link `l` leads out", "add `b/x` to the artifact"),
        ({"a/l": "-> d/../x", "a/d": "-> .", "x": "1"}, "a", "the link `l` leads out", None),
        ({"a/l.so": "-> l.so.1", "a/l.so.1": "1"}, "a/l.so", "the link `l.so` leads out", "add `a/l.so.1`"),
        ({"a/l": "-> l"}, "a", "the link `l` leads out", None),
        ({"a/l": "-> gone"}, "a", "the link `l` leads out", None),
    ],
)
def test_a_link_that_leads_out_is_refused(
    tmp_path: Path, files: dict[str, str], pattern: str, fact: str, hint: str | None
) -> None:
    with pytest.raises(StepError) as caught:
        find(tree(tmp_path / "build", files), {"a": [pattern]}, "step")
    assert fact in caught.value.fact
    assert hint is None or hint in str(caught.value.hint)


def test_nothing_is_read_through_a_link_to_outside(tmp_path: Path) -> None:
    tree(tmp_path, {"secret/key": "private", "build/out": f"-> {tmp_path / 'secret'}", "build/up": "-> ../secret"})
    for pattern in ("out/key", "out/*", "up/key", "up", "**/key", "up/*"):
        with pytest.raises(AssembleError) as caught:
            find(tmp_path / "build", {"a": [pattern]}, "step")
        assert "private" not in caught.value.render()


def test_a_file_that_became_a_link_is_not_followed(build: Path, store: Store, tmp_path: Path) -> None:
    harvest = find(build, {"a": ["bin/server"]}, "step")
    (build / "bin/server").unlink()
    (build / "bin/server").symlink_to("/etc/passwd")
    with pytest.raises(OSError, match="symbolic"):
        write_bundle(harvest, store)
    assert not list((store.root / "blobs/sha256").iterdir())


def test_pipes_and_names_that_are_no_text_are_refused(tmp_path: Path) -> None:
    tree(tmp_path / "build", {"x": "1"})
    os.mkfifo(tmp_path / "build/pipe")
    with pytest.raises(StepError, match="`pipe` is neither a file nor a directory nor a link"):
        find(tmp_path / "build", {"a": ["*"]}, "step")
    (tmp_path / "build/pipe").unlink()
    Path(os.fsdecode(os.fsencode(tmp_path / "build") + b"/\xff")).write_bytes(b"")
    with pytest.raises(UntrustedInputError, match="UTF-8"):
        find(tmp_path / "build", {"a": ["*"]}, "step")


def test_whiteouts_cannot_be_smuggled_in(tmp_path: Path) -> None:
    with pytest.raises(UntrustedInputError, match=r"\.wh\.passwd"):
        find(tree(tmp_path / "build", {"etc/.wh.passwd": ""}), {"a": ["etc"]}, "step")


# the tar


def test_hard_links_are_kept_and_cost_nothing(tmp_path: Path, store: Store) -> None:
    build = tree(tmp_path / "build", {"bin/git": "x" * 100_000, "lib/y": "y"})
    for name in ("bin/git-log", "bin/git-add"):
        (build / name).hardlink_to(build / "bin/git")
    bundle = write_bundle(find(build, {"a": ["bin"], "b": ["bin/git-log"]}, "step"), store)
    entries = bundle_entries(store, bundle.digest, "a")
    assert [(entry.path, entry.kind, entry.link) for entry in entries] == [
        ("git", "file", ""),
        ("git-add", "hardlink", "git"),
        ("git-log", "hardlink", "git"),
    ]
    (alone,) = bundle_entries(store, bundle.digest, "b")
    assert (alone.path, alone.kind, alone.size) == ("git-log", "file", 100_000), "artifacts stand for themselves"
    assert bundle.size < 250_000


def test_the_tar_says_nothing_of_the_place_or_the_time(tmp_path: Path, store: Store) -> None:
    files = {"bin/a": "1", "bin/sub/b": "2", "bin/c": "-> a"}
    digests = set()
    for place, mask in (("one", 0o022), ("two/deeper", 0o077)):
        before = os.umask(mask)
        try:
            build = tree(tmp_path / place, dict(sorted(files.items(), reverse=mask == 0o077)))
            (build / "bin/a").chmod(0o700)
            os.utime(build / "bin/a", (mask, mask))
        finally:
            os.umask(before)
        digests.add(write_bundle(find(build, {"a": ["bin"]}, "step"), store).digest)
    (digest,) = digests
    with tarfile.open(store.blob_path(digest)) as tar:
        members = {member.name: member for member in tar}
    assert {name: oct(member.mode) for name, member in members.items()} == {
        "a/a": "0o755",
        "a/c": "0o777",
        "a/sub": "0o755",
        "a/sub/b": "0o644",
    }
    assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in members.values()} == {(0, 0, "", "", 0)}


def test_contents_are_slices_of_the_bundle(build: Path, store: Store) -> None:
    bundle = write_bundle(find(build, {"data": ["share"], "bin": ["bin/server"]}, "step"), store)
    assert bundle.files == 2
    (entry,) = bundle_entries(store, bundle.digest, "bin")
    assert isinstance(entry.content, Slice)
    with entry.content.path.open("rb") as file:
        file.seek(entry.content.offset)
        assert file.read(entry.content.size) == b"server"
    with pytest.raises(StepError, match="no artifact `nothing`"):
        bundle_entries(store, bundle.digest, "nothing")
    with pytest.raises(StepError, match="no artifact `bi`"):
        bundle_entries(store, bundle.digest, "bi")


# where libraries are looked for


def test_relative_search_paths_are_good(tmp_path: Path) -> None:
    library(tmp_path / "lib/libgreeting.so", "greeting", "-Wl,-soname,libgreeting.so")
    executable(
        tmp_path / "bin/program",
        f"-L{tmp_path}/lib",
        "-lgreeting",
        "-Wl,-rpath,$ORIGIN/../lib:${ORIGIN}:/usr/local/cuda/lib64:/buildings",
        calls=["greeting"],
    )
    tree(tmp_path, {"bin/script": "#!/bin/sh\n"})
    found = binaries(find(tmp_path, {"a": ["bin"], "b": ["bin/program", "lib"]}, "step"))
    assert [one.label for one in found] == ["a: program", "b: libgreeting.so"]
    check_search_paths(found, "step", FORBIDDEN)


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("-rpath,/build/lib", "RUNPATH `/build/lib` names `/build/lib`, which is only there while it is built"),
        ("-rpath,$ORIGIN:/src", "RUNPATH `$ORIGIN:/src` names `/src`, which is only there while it is built"),
        (
            "-rpath,/tmp/x,--disable-new-dtags",
            "RPATH `/tmp/x` names `/tmp/x`, which is only there while it is built",
        ),
        ("-rpath,$ORIGIN:", "RUNPATH `$ORIGIN:` has an empty entry: the current directory"),
        ("-rpath,lib", "RUNPATH `lib` names `lib`, which depends on the current directory"),
        (
            "-rpath,$ORIGINAL/x",
            "RUNPATH `$ORIGINAL/x` names `$ORIGINAL/x`, which depends on the current directory",
        ),
    ],
)
def test_other_search_paths_are_named(tmp_path: Path, option: str, problem: str) -> None:
    library(tmp_path / "libx.so", "x", f"-Wl,{option}")
    found = binaries(find(tmp_path, {"lib": ["libx.so"]}, "step"))
    with pytest.raises(StepError) as caught:
        check_search_paths(found, "step", FORBIDDEN)
    assert caught.value.detail == (f"lib: libx.so: {problem}",)
    assert "$ORIGIN" in str(caught.value.hint)


def test_a_library_that_was_linked_by_its_path_is_named(tmp_path: Path) -> None:
    library(tmp_path / "libno-soname.so", "greeting")
    executable(tmp_path / "program", "./libno-soname.so", calls=["greeting"])
    with pytest.raises(StepError) as caught:
        check_search_paths(binaries(find(tmp_path, {"a": ["program"]}, "step")), "step", FORBIDDEN)
    assert "`./libno-soname.so`" in caught.value.detail[0]
