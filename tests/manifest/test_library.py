"""Loading: expansion, recipes, scopes, the search for them, overrides, bases that are manifests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.manifests import MANIFEST, RECIPE, write_files

from assembler.errors import InvalidManifestError, RequestError
from assembler.manifest.library import DEPTH_LIMIT, find_manifest, load
from assembler.manifest.loaded import LoadedManifest
from assembler.manifest.models import Base, Source
from assembler.manifest.search import find_recipe, manifest_names, recipe_directories, recipe_names, shipped

_HEAD = "manifest: 1\nname: x\nruntime: scratch\n"
_UCX = (
    "recipe: 1\nsummary: ucx\ninputs: {version: '1.18'}\nsources: {ucx: {path: src}}\n"
    "layers:\n  - copy: {source: ucx, to: '/opt/ucx-${version}/'}\n"
    "env: {LD_LIBRARY_PATH: '/opt/ucx-${version}/lib:${LD_LIBRARY_PATH}'}\n"
)


def _tgi(root: Path) -> Path:
    return write_files(root, {"manifests/tgi.yaml": MANIFEST, "layers/text-generation-launcher.yaml": RECIPE})


def _load(root: Path, layers: str, recipes: Mapping[str, str], head: str = _HEAD) -> LoadedManifest:
    files = {f"layers/{name}.yaml": text for name, text in recipes.items()}
    return load(write_files(root, {"manifests/m.yaml": f"{head}layers:\n{layers}", **files}))


def _messages(caught: pytest.ExceptionInfo[InvalidManifestError]) -> list[str]:
    return [str(error) for error in caught.value.errors]


def test_the_whole_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _tgi(tmp_path)
    monkeypatch.chdir(tmp_path)
    loaded = load(path)
    assert loaded.args == {"cuda": "12.4.1", "version": "3.3.6"}
    assert loaded.manifest.runtime.reference == "docker.io/nvidia/cuda:12.4.1-base-ubuntu22.04"
    assert [(layer.scope.name, layer.entry.kind, layer.place) for layer in loaded.layers] == [
        ("", "packages", "manifests/tgi.yaml:12:5"),
        ("", "wheels", "manifests/tgi.yaml:13:5"),
        ("text-generation-launcher", "copy", "layers/text-generation-launcher.yaml:15:5"),
    ]
    scope = loaded.layers[-1].scope
    assert scope.recipe == "text-generation-launcher"
    assert scope.directory == tmp_path / "layers"
    assert scope.sources["tgi"].ref == "v3.3.6"
    assert [each.name for each in loaded.scopes] == ["", "text-generation-launcher"]
    assert loaded.manifest.image.env == {"PATH": "/opt/venv/bin:/opt/tgi/bin:${PATH}", "HF_HOME": "/data"}
    assert loaded.files == (path, tmp_path / "layers/text-generation-launcher.yaml")
    assert not loaded.overrides


def test_nothing_changes_between_two_loads(tmp_path: Path) -> None:
    assert load(_tgi(tmp_path)) == load(_tgi(tmp_path))


class TestArguments:
    """`--set` and defaults."""

    def test_set(self, tmp_path: Path) -> None:
        loaded = load(_tgi(tmp_path), sets={"cuda": "12.6.3"})
        assert loaded.manifest.devel == Base(reference="docker.io/nvidia/cuda:12.6.3-devel-ubuntu22.04")
        assert loaded.overrides

    def test_default_uses_what_stands_above(self, tmp_path: Path) -> None:
        head = "manifest: 1\nname: x\nruntime: scratch\nargs: {a: '1', b: '${a}.2', c: {default: '${b}.3'}}\n"
        loaded = load(write_files(tmp_path, {"m.yaml": head + "summary: ${c}\n"}))
        assert loaded.manifest.summary == "1.2.3"

    def test_unknown_and_unfit(self, tmp_path: Path) -> None:
        path = write_files(tmp_path, {"m.yaml": _HEAD + "args: {gpu: {default: cuda, choices: [cuda, rocm]}}\n"})
        with pytest.raises(InvalidManifestError) as caught:
            load(path, sets={"gpus": "1", "gpu": "rocn"})
        assert _messages(caught) == [
            "--set gpu=rocn: expected one of `cuda`, `rocm`, got `rocn`",
            "--set gpus=1: no argument `gpus`",
        ]
        assert [error.hint for error in caught.value.errors] == ["did you mean `rocm`?", "did you mean `gpu`?"]


class TestRecipes:
    """`uses`: scopes, sharing, nesting, cycles."""

    def test_same_inputs_share_a_scope_and_ship_once(self, tmp_path: Path) -> None:
        loaded = _load(tmp_path, "  - uses: ucx\n  - {uses: ucx, with: {version: '1.18'}}\n", {"ucx": _UCX})
        assert [scope.name for scope in loaded.scopes] == ["", "ucx"]
        assert len(loaded.layers) == 1

    def test_other_inputs_are_another_scope(self, tmp_path: Path) -> None:
        loaded = _load(tmp_path, "  - uses: ucx\n  - {uses: ucx, with: {version: '2'}}\n", {"ucx": _UCX})
        assert [layer.scope.name for layer in loaded.layers] == ["ucx", "ucx-2"]
        assert loaded.manifest.image.env == {
            "LD_LIBRARY_PATH": "/opt/ucx-2/lib:/opt/ucx-1.18/lib:${LD_LIBRARY_PATH}"
        }

    def test_a_scope_name_is_never_taken_twice(self, tmp_path: Path) -> None:
        layers = "  - uses: ucx\n  - uses: ucx-2\n  - {uses: ucx, with: {version: '2'}}\n"
        loaded = _load(tmp_path, layers, {"ucx": _UCX, "ucx-2": _UCX})
        assert [layer.scope.name for layer in loaded.layers] == ["ucx", "ucx-2", "ucx-3"]
        assert [layer.scope.recipe for layer in loaded.layers] == ["ucx", "ucx-2", "ucx"]

    def test_recipes_use_recipes(self, tmp_path: Path) -> None:
        nixl = (
            "recipe: 1\nsummary: n\ninputs: {ucx: '3'}\nlayers:\n  - {uses: ucx, with: {version: '${ucx}'}}\n"
            "  - run: {command: [ldconfig]}\n"
        )
        loaded = _load(tmp_path, "  - {uses: nixl, with: {ucx: '4'}}\n", {"nixl": nixl, "ucx": _UCX})
        assert [(layer.scope.name, layer.entry.kind) for layer in loaded.layers] == [
            ("ucx", "copy"),
            ("nixl", "run"),
        ]
        copy = loaded.layers[0].entry.copy_
        assert copy is not None and copy.to == "/opt/ucx-4/"

    def test_a_long_chain_ends(self, tmp_path: Path) -> None:
        recipes = {
            f"r{n}": f"recipe: 1\nsummary: x\nlayers: [{{uses: r{n + 1}}}]\n" for n in range(DEPTH_LIMIT + 5)
        }
        with pytest.raises(InvalidManifestError, match="within each other, got more"):
            _load(tmp_path, "  - uses: r0\n", recipes)

    def test_growth_is_bounded(self, tmp_path: Path) -> None:
        recipes = {
            f"r{n}": "recipe: 1\nsummary: x\ninputs: {v: ''}\nlayers:\n"
            f"  - {{uses: r{n + 1}, with: {{v: '${{v}}a'}}}}\n  - {{uses: r{n + 1}, with: {{v: '${{v}}b'}}}}\n"
            for n in range(20)
        }
        with pytest.raises(InvalidManifestError, match="expected at most 500 recipes"):
            _load(tmp_path, "  - uses: r0\n", recipes)


class TestSearch:
    """First hit wins: beside the manifest, beside its directory, given directories, the shipped library."""

    def test_order(self, tmp_path: Path) -> None:
        places = ["project/manifests/layers", "project/layers", "extra"]
        path = write_files(tmp_path, {"project/manifests/m.yaml": _HEAD + "layers: [{uses: own}]\n"})
        for place in reversed(places):
            write_files(tmp_path, {f"{place}/own.yaml": f"recipe: 1\nsummary: {place}\nlayers: []\n"})
            loaded = load(path, library=[tmp_path / "extra"])
            assert loaded.scopes[1].directory == tmp_path / place

    def test_the_shipped_library_comes_last(self, tmp_path: Path) -> None:
        directories = recipe_directories(tmp_path / "m.yaml", [tmp_path / "extra"])
        assert directories[:3] == (tmp_path / "layers", tmp_path.parent / "layers", tmp_path / "extra")
        assert directories[3:] == ((shipped("layers"),) if shipped("layers") else ())

    def test_names(self, tmp_path: Path) -> None:
        write_files(tmp_path, {"a/ucx.yaml": "", "b/ucx.yaml": "", "b/nixl.yaml": ""})
        directories = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
        assert recipe_names(directories) == ["nixl", "ucx"]
        assert find_recipe("ucx", directories) == tmp_path / "a/ucx.yaml"
        assert find_recipe("nccl", directories) is None

    def test_find_manifest(self, tmp_path: Path) -> None:
        path = _tgi(tmp_path)
        assert find_manifest(str(path)) == path
        with pytest.raises(RequestError, match="expected a manifest, got a directory"):
            find_manifest(str(path.parent))
        with pytest.raises(RequestError) as caught:
            find_manifest(str(path.with_name("tg.yaml")))
        assert caught.value.hint == f"did you mean `{path}`?"
        with pytest.raises(
            RequestError, match="no manifest `no-such-manifest`, neither as a file nor in the library"
        ):
            find_manifest("no-such-manifest")
        for name in manifest_names():
            assert find_manifest(name).is_file()


class TestOverrides:
    """`--source` and `--base`."""

    def test_a_directory_for_a_source(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = _tgi(tmp_path)
        write_files(tmp_path, {"checkout/Cargo.toml": ""})
        monkeypatch.chdir(tmp_path)
        for name in ("tgi", "text-generation-launcher.tgi"):
            loaded = load(path, sources={name: "checkout"})
            expected = Source(path=str(tmp_path / "checkout"))
            assert loaded.scopes[1].sources == {"tgi": expected}
            assert loaded.layers[-1].scope.sources == {"tgi": expected}
            assert loaded.overrides

    def test_an_archive_for_a_source(self, tmp_path: Path) -> None:
        path = _tgi(tmp_path)
        archive = write_files(tmp_path, {"tgi.tar.gz": ""})
        loaded = load(path, sources={"tgi": str(archive)})
        assert loaded.scopes[1].sources == {"tgi": Source(archive=str(archive))}

    def test_all_instances_of_a_recipe(self, tmp_path: Path) -> None:
        path = write_files(
            tmp_path,
            {
                "manifests/m.yaml": _HEAD + "layers:\n  - uses: ucx\n  - {uses: ucx, with: {version: '2'}}\n",
                "layers/ucx.yaml": _UCX,
            },
        )
        loaded = load(path, sources={"ucx": str(tmp_path)})
        assert {scope.sources["ucx"].path for scope in loaded.scopes[1:]} == {str(tmp_path)}
        loaded = load(path, sources={"ucx-2.ucx": str(tmp_path)})
        assert [scope.sources["ucx"].path for scope in loaded.scopes[1:]] == ["src", str(tmp_path)]

    def test_mistakes(self, tmp_path: Path) -> None:
        path = _tgi(tmp_path)
        other = write_files(tmp_path, {"x.txt": ""})
        with pytest.raises(InvalidManifestError) as caught:
            load(path, sources={"tgj": ".", "tgi": "/no/such", "text-generation-launcher.tgi": str(other)})
        assert _messages(caught) == [
            "--source tgj=.: no source `tgj`",
            "--source tgi=/no/such: no such file or directory",
            f"--source text-generation-launcher.tgi={other}: "
            "expected a directory or an archive (tar, zip), got another file",
        ]
        assert caught.value.errors[0].hint == "sources: `text-generation-launcher.tgi`"

    def test_the_manifest_s_own_source_comes_first(self, tmp_path: Path) -> None:
        path = write_files(
            tmp_path,
            {
                "manifests/m.yaml": _HEAD + "sources: {ucx: {path: a}}\nlayers: [{uses: ucx}]\n",
                "layers/ucx.yaml": _UCX,
            },
        )
        loaded = load(path, sources={"ucx": str(tmp_path)})
        assert [scope.sources["ucx"].path for scope in loaded.scopes] == [str(tmp_path), "src"]

    def test_ambiguous(self, tmp_path: Path) -> None:
        recipes = {"layers/a.yaml": _UCX, "layers/b.yaml": _UCX}
        path = write_files(tmp_path, {"manifests/m.yaml": _HEAD + "layers: [{uses: a}, {uses: b}]\n", **recipes})
        with pytest.raises(InvalidManifestError) as caught:
            load(path, sources={"ucx": str(tmp_path)})
        assert _messages(caught) == [f"--source ucx={tmp_path}: expected one source, got `a.ucx`, `b.ucx`"]

    def test_bases(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = _tgi(tmp_path)
        write_files(tmp_path, {"here/base.yaml": _HEAD})
        monkeypatch.chdir(tmp_path / "here")
        loaded = load(path, bases={"devel": "base.yaml", "runtime": "oci:layout"})
        assert loaded.manifest.devel == Base(manifest=str(tmp_path / "here/base.yaml"))
        assert loaded.manifest.runtime == Base(oci=str(tmp_path / "here/layout"))
        assert loaded.bases == {"devel": tmp_path / "here/base.yaml"}
        assert tmp_path / "here/base.yaml" in loaded.files

    def test_base_mistakes(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidManifestError) as caught:
            load(_tgi(tmp_path), bases={"dev": "a", "runtime": "No:Such", "devel": "none.yaml"})
        assert _messages(caught) == [
            "--base dev=a: expected `devel` or `runtime`, got `dev`",
            "--base runtime=No:Such: `library/No` in `No:Such` is no repository name (lower case, digits, `._-/`)",
            "--base devel=none.yaml: no such file",
        ]

    def test_a_base_replaces_a_missing_devel(self, tmp_path: Path) -> None:
        path = write_files(
            tmp_path,
            {
                "m.yaml": _HEAD + "sources: {s: {path: .}}\ncompile:\n"
                "  c: {toolchain: cmake, source: s, artifacts: {a: b}}\n"
            },
        )
        assert load(path, bases={"devel": "debian:12"}).manifest.devel == Base(reference="debian:12")


class TestBases:
    """Bases that are manifests are checked too."""

    def test_path_and_arguments(self, tmp_path: Path) -> None:
        path = write_files(
            tmp_path,
            {
                "m.yaml": "manifest: 1\nname: x\nruntime: {manifest: bases/b.yaml, with: {s: bookworm}}\n",
                "bases/b.yaml": "manifest: 1\nname: b\nargs: {s: }\nruntime: {bootstrap: {suite: '${s}'}}\n",
            },
        )
        loaded = load(path)
        assert loaded.bases == {"runtime": tmp_path / "bases/b.yaml"}
        assert loaded.files == (path, tmp_path / "bases/b.yaml")

    def test_their_errors_are_reported_after_ours(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        write_files(
            tmp_path,
            {
                "m.yaml": "manifest: 1\nname: x\nruntime: b.yaml\nepoch: a\n",
                "b.yaml": "manifest: 1\nname: b\nruntime: c.yaml\n",
                "c.yaml": "manifest: 1\nname: c\nruntime: b.yaml\n",
            },
        )
        with pytest.raises(InvalidManifestError) as caught:
            load(Path("m.yaml"))
        assert _messages(caught) == [
            "m.yaml:4:8: epoch: expected a whole number, 0 or more, got `a`",
            "c.yaml:3:10: runtime: the manifest stands on itself: b.yaml → c.yaml → b.yaml",
        ]

    def test_a_long_chain_ends(self, tmp_path: Path) -> None:
        files = {f"m{n}.yaml": f"manifest: 1\nname: x\nruntime: m{n + 1}.yaml\n" for n in range(DEPTH_LIMIT + 5)}
        with pytest.raises(InvalidManifestError, match="manifests on each other, got more"):
            load(write_files(tmp_path, files))


def test_files_beside_a_recipe_are_part_of_what_was_read(tmp_path: Path) -> None:
    recipe = "recipe: 1\nsummary: x\nlayers:\n  - files: [{path: /a, from-file: a.sh}]\n"
    write_files(tmp_path, {"layers/a.sh": "x"})
    loaded = _load(tmp_path, "  - uses: r\n", {"r": recipe})
    assert tmp_path / "layers/a.sh" in loaded.files


def test_a_manifest_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidManifestError, match=r"^m.yaml: no such file or directory$"):
        load(Path("m.yaml"))


def test_image_environment_keeps_the_base_s_variables(tmp_path: Path) -> None:
    env = "{PATH: '/a-${v}:${PATH}', RAW: '$${PATH}', W: '${w}'}"
    text = f"{_HEAD}args: {{v: '1', w: '$${{X}}'}}\nimage:\n  env: {env}\n  cmd: ['$${{PATH}}']\n"
    image = load(write_files(tmp_path, {"m.yaml": text})).manifest.image
    assert image.env == {"PATH": "/a-1:${PATH}", "RAW": "$${PATH}", "W": "$${X}"}
    assert image.cmd == ("${PATH}",)
