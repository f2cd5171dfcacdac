"""The options of each toolchain, as the user says them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from assembler.manifest.fields import (
    AbsolutePath,
    Argv,
    Flag,
    InsidePath,
    Model,
    Patterns,
    RelativePath,
    Requirement,
    Text,
    wrong,
)


def no_option(text: str) -> str:
    """A word that no program reads as an option, or as several words."""
    # `git fetch URL REF` would read a leading dash as an option.
    if not text or text.startswith("-") or any(character.isspace() for character in text):
        raise wrong("expected a value that neither is empty nor begins with `-` nor has spaces")
    return text


Word = Annotated[str, AfterValidator(no_option)]
Words = Annotated[
    tuple[Word, ...],
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) else value,
        json_schema_input_type=tuple[Word, ...] | Word,
    ),
]
"""One word or a list of them."""

Definitions = Mapping[Word, str]


def _pinned(text: str) -> str:
    name, found, version = text.partition("==")
    if not found or not name.strip() or not version.strip() or set(",;*@ ") & set(text):
        raise wrong("expected a pinned requirement such as `setuptools==80.9.0`")
    return text


Pinned = Annotated[Requirement, AfterValidator(_pinned)]


class CMakeOptions(Model):
    """Configure, build and perhaps install with CMake."""

    source_directory: RelativePath = Field(".", description="directory of CMakeLists.txt in the source")
    generator: Text = Field("Ninja", description="CMake generator")
    build_type: Text = Field("Release", description="CMAKE_BUILD_TYPE")
    definitions: Definitions = Field(default_factory=dict, description="-D definitions")
    targets: tuple[Word, ...] = Field((), description="targets to build; all when empty")
    install: Flag = Field(False, description="run the install step; artifacts are then found below `prefix`")
    prefix: AbsolutePath = Field("/usr/local", description="CMAKE_INSTALL_PREFIX")
    components: tuple[Word, ...] = Field((), description="install only these components")


class ScriptOptions(Model):
    """The last resort: commands, each an argv list, run in the source directory."""

    commands: tuple[Argv, ...] = Field(description="commands; each is a list of arguments, no shell reads them")

    @model_validator(mode="after")
    def _something_to_do(self) -> ScriptOptions:
        if not self.commands:
            raise wrong("expected at least one command", at=("commands",))
        if not all(self.commands):
            raise wrong("expected a list of lists of arguments, got an empty command", at=("commands",))
        return self


class CargoOptions(Model):
    """`cargo build`. Dependencies are compiled on their own and kept; artifacts are `target/PROFILE/NAME`."""

    source_directory: RelativePath = Field(".", description="directory of Cargo.toml in the source")
    package: Words = Field((), description="package, or packages, of the workspace; the default ones when empty")
    bins: Words = Field((), description="only these programs; all targets of the packages when empty")
    features: Words = Field((), description="features to switch on")
    default_features: Flag = Field(True, description="`false`: without the default features")
    all_features: Flag = Field(False, description="`true`: with all features")
    profile: Word = Field("release", description="profile; `release`, `dev` or one of Cargo.toml")
    target: Word | None = Field(None, description="target triple; artifacts are then in `target/TRIPLE/PROFILE`")
    locked: Flag = Field(True, description="`false`: Cargo.lock may be missing or out of date")

    @model_validator(mode="after")
    def _features_agree(self) -> CargoOptions:
        if self.all_features and (self.features or not self.default_features):
            raise wrong("`all-features` leaves nothing to choose", at=("all_features",))
        return self


class KernelOptions(Model):
    """What nvcc and hipcc have in common: sources become one shared library or program."""

    sources: Patterns = Field(description="files to compile, relative to the source; patterns are possible")
    output: RelativePath = Field(description="the file that is made, below the build directory")
    kind: Literal["library", "program"] = Field("library", description="a shared library or a program")
    include: tuple[InsidePath, ...] = Field(
        (), description="directories with headers; relative ones are in the source"
    )
    library_directories: tuple[AbsolutePath, ...] = Field((), description="directories with libraries")
    libraries: Words = Field((), description="libraries to link with, such as `cublas`")
    definitions: Definitions = Field(default_factory=dict, description="-D definitions; empty for a bare one")
    standard: Word = Field("c++17", description="C++ standard")
    optimize: Literal["0", "1", "2", "3"] = Field("3", description="level of optimization")
    relocatable: Flag = Field(False, description="`true`: device code that is linked across files")
    options: tuple[Text, ...] = Field((), description="further options of the compiler")
    link_options: tuple[Text, ...] = Field((), description="further options for linking")

    @model_validator(mode="after")
    def _something_to_compile(self) -> KernelOptions:
        if not self.sources:
            raise wrong("expected at least one source", at=("sources",))
        return self


class NvccOptions(KernelOptions):
    """CUDA sources become one shared library or program, for the architectures of `accelerator: {cuda: …}`."""

    runtime: Literal["static", "shared", "none"] = Field(
        "static", description="how the CUDA runtime is linked; `shared` needs libcudart in the image"
    )


class HipccOptions(KernelOptions):
    """HIP sources become one shared library or program, for the architectures of `accelerator: {rocm: …}`."""


class AutotoolsOptions(Model):
    """`configure`, `make` and `make install`, in a copy of the source."""

    source_directory: RelativePath = Field(".", description="directory of `configure` in the source")
    prepare: tuple[Argv, ...] = Field(
        (), description="commands that make `configure`, such as `[./autogen.sh]`; lists of arguments"
    )
    autoreconf: Flag = Field(False, description="`true`: make `configure` with `autoreconf --force --install`")
    configure: tuple[Text, ...] = Field((), description="arguments of configure, such as `--enable-mt`")
    targets: tuple[Word, ...] = Field((), description="targets of make; its first one when empty")
    install: Flag = Field(True, description="`false`: artifacts are found in the build directory")
    prefix: AbsolutePath = Field("/usr/local", description="`--prefix`; artifacts are found below it")

    @model_validator(mode="after")
    def _commands(self) -> AutotoolsOptions:
        if not all(self.prepare):
            raise wrong("expected a list of lists of arguments, got an empty command", at=("prepare",))
        return self


class MesonOptions(Model):
    """`meson setup`, `compile` and `install`. Wraps are not downloaded."""

    source_directory: RelativePath = Field(".", description="directory of meson.build in the source")
    build_type: Word = Field("release", description="`--buildtype`")
    options: Definitions = Field(default_factory=dict, description="-D options")
    targets: tuple[Word, ...] = Field((), description="targets to build; all when empty")
    install: Flag = Field(True, description="`false`: artifacts are found in the build directory")
    prefix: AbsolutePath = Field("/usr/local", description="`--prefix`; artifacts are found below it")
    tags: Words = Field((), description="install only what has these tags, such as `runtime`")


class WheelOptions(Model):
    """A PEP 517 build with pip, in a copy of the source; artifacts are `wheelhouse/*.whl`.

    Without isolation, what the build needs comes from the devel base, the step's packages, and `requires`.
    """

    source_directory: RelativePath = Field(".", description="directory of pyproject.toml or setup.py")
    python: Word = Field("python3", description="interpreter in the devel base")
    isolation: Flag = Field(
        False, description="`true`: pip fetches what pyproject.toml asks for; needs `network: host`"
    )
    prepare: tuple[Argv, ...] = Field(
        (), description="commands before the build, in the copy of the source; lists of arguments"
    )
    requires: tuple[Pinned, ...] = Field(
        (), description="pinned requirements of the build, fetched from the index before it"
    )
    config_settings: Mapping[Text, str] = Field(default_factory=dict, description="settings for the build backend")
    imports: Words = Field((), description="modules of the wheel that must import in the devel base")

    @model_validator(mode="after")
    def _one_way(self) -> WheelOptions:
        if not all(self.prepare):
            raise wrong("expected a list of lists of arguments, got an empty command", at=("prepare",))
        if self.isolation and self.requires:
            raise wrong("`requires` is for a build without `isolation`", at=("requires",))
        return self
