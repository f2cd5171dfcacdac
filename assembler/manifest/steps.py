"""What happens in a devel container, as the user says it: sources, compile steps, packages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from assembler.manifest.fields import (
    Environment,
    Flag,
    Model,
    Name,
    PackageName,
    Patterns,
    RelativePath,
    Size,
    Text,
    Whole,
    size_bytes,
    wrong,
)
from assembler.manifest.toolchains import (
    AutotoolsOptions,
    CargoOptions,
    CMakeOptions,
    HipccOptions,
    MesonOptions,
    NvccOptions,
    ScriptOptions,
    WheelOptions,
    Word,
)

__all__ = [
    "CMakeOptions",
    "CompileStep",
    "CompilerCacheKind",
    "Network",
    "Packages",
    "ScriptOptions",
    "Source",
    "Word",
]

Network = Literal["none", "host"]
CompilerCacheKind = Literal["ccache", "sccache", "none"]


def _sha256(text: str) -> str:
    digits = text.removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digits):
        raise wrong("expected the 64 hexadecimal digits of a SHA-256")
    return digits


def _pinned(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.+!_-]*", text):
        raise wrong("expected `name==version`")
    return text


class Source(Model):
    """A named input: exactly one of git, archive, sdist, path."""

    git: Word | None = Field(None, description="URL of a git repository; `ref` says which commit")
    ref: Word | None = Field(None, description="tag, branch or commit; the lock remembers the commit")
    submodules: Flag = Field(False, description="`true`: with all submodules of the git repository")
    archive: Word | None = Field(None, description="URL or path of a tar or zip archive")
    sha256: Annotated[str, AfterValidator(_sha256)] | None = Field(
        None, description="SHA-256 of the archive; without it the lock remembers the one first seen"
    )
    sdist: Annotated[str, AfterValidator(_pinned)] | None = Field(
        None, description="source distribution of a Python index, `name==version`"
    )
    path: Text | None = Field(None, description="directory, relative to the file that says it")
    strip: Whole | None = Field(
        None,
        description="leading directories of the archive to drop; without it a single top directory is dropped",
    )
    subdirectory: RelativePath | None = Field(None, description="the part of the source that is used")
    ignore: tuple[Text, ...] = Field((), description="patterns, as in .gitignore, of files that do not count")
    patches: tuple[Text, ...] = Field(
        (),
        description="patches to apply in order, relative to the file that says it; their own paths, below `a/` and"
        " `b/`, are relative to the root of the source",
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Source:
        self.exactly_one("git", "archive", "sdist", "path")
        if self.git and not self.ref:
            raise wrong("`git` needs `ref`: a tag, branch or commit")
        if self.ref and not self.git:
            raise wrong("`ref` belongs to `git`", at=("ref",))
        if self.submodules and not self.git:
            raise wrong("`submodules` belongs to `git`", at=("submodules",))
        if self.sha256 and not self.archive:
            raise wrong("`sha256` belongs to `archive`", at=("sha256",))
        if self.strip is not None and not (self.archive or self.sdist):
            raise wrong("`strip` belongs to `archive` and `sdist`", at=("strip",))
        if self.patches and self.path:
            raise wrong("`patches` does not belong to `path`: change the files themselves", at=("patches",))
        return self

    @property
    def kind(self) -> Literal["git", "archive", "sdist", "path"]:
        """Which of the four it is."""
        if self.git:
            return "git"
        if self.archive:
            return "archive"
        return "sdist" if self.sdist else "path"


class Packages(Model):
    """Distribution packages by package manager; the base has one of them."""

    apt: tuple[PackageName, ...] = Field((), description="Debian and Ubuntu packages")
    dnf: tuple[PackageName, ...] = Field((), description="Fedora, Rocky and Red Hat packages; not yet")
    apk: tuple[PackageName, ...] = Field((), description="Alpine packages; not yet")

    @model_validator(mode="after")
    def _only_what_can_be_locked(self) -> Packages:
        for name in ("dnf", "apk"):
            if getattr(self, name):
                raise wrong(
                    f"`{name}` packages cannot be locked and installed yet",
                    at=(name,),
                    hint="take a Debian or Ubuntu base and `apt`, or an image that has them",
                )
        return self

    def __bool__(self) -> bool:
        return bool(self.apt)


_TOOLCHAINS = ("cmake", "cargo", "nvcc", "hipcc", "autotools", "meson", "wheel", "script")
_WITH_DEFAULTS = frozenset(("cmake", "cargo", "autotools", "meson", "wheel"))


class CompileStep(Model):
    """One run in the devel container."""

    toolchain: Literal["cmake", "cargo", "nvcc", "hipcc", "autotools", "meson", "wheel", "script"] = Field(
        description="what drives the build"
    )
    source: Text = Field(description="name of the source that is compiled")
    packages: Packages = Field(default_factory=Packages, description="packages that only this step needs")
    env: Environment = Field(default_factory=dict, description="environment of the step")
    network: Network = Field(
        "none", description="`host` lets the step reach the network; then nobody can repeat it"
    )
    secrets: tuple[Name, ...] = Field(
        (), description="secrets, given by `--secret NAME=FILE`, that commands find as `/run/secrets/NAME`"
    )
    ssh: Flag = Field(False, description="`true`: commands may use the ssh agent of whoever runs this")
    strip: Flag = Field(True, description="strip debug information from what is harvested")
    compiler_cache: CompilerCacheKind = Field(
        "ccache",
        description="what keeps compiled objects for later runs: `ccache` where the devel base has it, or"
        " `sccache`, of the devel base or this host, with its own settings for S3, Redis and the like",
    )
    jobs_memory: Size | None = Field(None, description="memory that one compile job needs, such as `2g`")
    cmake: CMakeOptions | None = Field(None, description="options of the cmake toolchain")
    cargo: CargoOptions | None = Field(None, description="options of the cargo toolchain")
    nvcc: NvccOptions | None = Field(None, description="options of the nvcc toolchain")
    hipcc: HipccOptions | None = Field(None, description="options of the hipcc toolchain")
    autotools: AutotoolsOptions | None = Field(None, description="options of the autotools toolchain")
    meson: MesonOptions | None = Field(None, description="options of the meson toolchain")
    wheel: WheelOptions | None = Field(None, description="options of the wheel toolchain")
    script: ScriptOptions | None = Field(None, description="options of the script toolchain")
    architectures: Literal["exact", "at-least", "any"] = Field(
        "exact",
        description="how GPU code in what was built must agree with `accelerator`; `at-least` allows others"
        " beside, such as those of linked libraries, `any` checks nothing",
    )
    artifacts: Mapping[Name, Patterns] = Field(description="what is harvested: name → file, tree or pattern")

    @model_validator(mode="before")
    @classmethod
    def _default_options(cls, value: Any) -> Any:
        # `toolchain: cmake` alone is complete: every option has a default.
        name = value.get("toolchain") if isinstance(value, Mapping) else None
        if name in _WITH_DEFAULTS and value.get(name) is None:
            return {**value, str(name): {}}
        return value

    @model_validator(mode="after")
    def _options_of_the_toolchain(self) -> CompileStep:
        for name in _TOOLCHAINS:
            options = getattr(self, name)
            if name == self.toolchain and options is None:
                raise wrong(f"the toolchain `{name}` needs `{name}`")
            if name != self.toolchain and options is not None:
                raise wrong(f"`{name}` does not belong to the toolchain `{self.toolchain}`", at=(name,))
        if self.wheel and self.wheel.isolation and self.network != "host":
            raise wrong("a build with `isolation` fetches what it needs: it needs `network: host`")
        if not self.artifacts:
            raise wrong("expected at least one artifact", at=("artifacts",))
        for name, patterns in self.artifacts.items():
            if not patterns:
                raise wrong("expected at least one pattern", at=("artifacts", name))
        return self

    @property
    def jobs_memory_bytes(self) -> int | None:
        """Memory of one job, in bytes."""
        return size_bytes(self.jobs_memory) if self.jobs_memory else None
