"""The layer kinds: what one entry of `layers` may be."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from assembler.manifest.bases import Base
from assembler.manifest.fields import (
    AbsolutePath,
    Argv,
    Environment,
    Flag,
    Identity,
    InsidePath,
    Mode,
    Model,
    Name,
    Text,
    wrong,
)
from assembler.manifest.python import Wheels
from assembler.manifest.steps import Network, Packages


class Copy(Model):
    """Files from a compile step, a source or another image."""

    artifact: Text | None = Field(None, description="`step.artifact` of a compile step in the same file")
    source: Text | None = Field(None, description="name of a source in the same file")
    image: Base | None = Field(
        None, description="image reference, `oci:DIR`, or another manifest; relative to the file that says it"
    )
    path: InsidePath | None = Field(
        None, description="what of the source or image; may be a pattern; all when absent"
    )
    to: AbsolutePath = Field(description="where to; with a trailing slash into that directory")
    mode: Mode | None = Field(None, description="octal mode of the files; as they are when absent")
    user: Identity = Field(0, description="numeric user id")
    group: Identity = Field(0, description="numeric group id")

    @model_validator(mode="after")
    def _one_origin(self) -> Copy:
        self.exactly_one("artifact", "source", "image")
        if self.artifact and self.path:
            raise wrong("`path` belongs to `source` and `image`", at=("path",))
        if self.image and not self.path:
            raise wrong("`image` needs `path`: what is copied out of it")
        if self.image and self.image.scratch:
            raise wrong("there is nothing in `scratch` to copy", at=("image",))
        return self


class FileEntry(Model):
    """One file, symlink or directory, said in the manifest itself."""

    path: AbsolutePath = Field(description="where it stands in the image")
    content: str | None = Field(None, description="text of the file")
    from_file: Text | None = Field(None, description="file to take, relative to the file that says it")
    link: Text | None = Field(None, description="target of a symbolic link")
    directory: Flag = Field(False, description="`true`: an empty directory")
    mode: Mode | None = Field(None, description="octal mode; 0644, or 0755 for a directory, when absent")
    user: Identity = Field(0, description="numeric user id")
    group: Identity = Field(0, description="numeric group id")

    @model_validator(mode="after")
    def _one_kind(self) -> FileEntry:
        if self.content == "" and not (self.from_file or self.link or self.directory):
            return self  # an empty file
        self.exactly_one("content", "from_file", "link", "directory")
        if self.link and self.mode is not None:
            raise wrong("a symbolic link has no mode", at=("mode",))
        return self


class Run(Model):
    """A command in the runtime base; what it changes in the file system becomes the layer."""

    command: Argv = Field(description="list of arguments; no shell reads them")
    env: Environment = Field(default_factory=dict, description="environment of the command alone")
    network: Network = Field("none", description="`host` lets it reach the network; then nobody can repeat it")

    @model_validator(mode="after")
    def _a_command(self) -> Run:
        if not self.command or not self.command[0]:
            raise wrong("expected a command", at=("command",))
        return self


_LAYER_KINDS = ("packages", "wheels", "copy_", "files", "run", "uses")


class LayerEntry(Model):
    """One entry of `layers`: exactly one kind."""

    packages: Packages | None = Field(None, description="distribution packages, installed in the runtime base")
    wheels: Wheels | None = Field(None, description="Python packages")
    copy_: Copy | None = Field(None, description="files of a compile step, a source or an image")
    files: tuple[FileEntry, ...] = Field((), description="files, links and directories written here")
    run: Run | None = Field(None, description="a command in the runtime base")
    uses: Name | None = Field(None, description="name of a recipe")
    with_: Mapping[str, str] = Field(default_factory=dict, description="inputs of that recipe")

    @model_validator(mode="after")
    def _one_kind(self) -> LayerEntry:
        self.exactly_one(*_LAYER_KINDS)
        if self.with_ and not self.uses:
            raise wrong("`with` belongs to `uses`", at=("with",))
        if self.packages is not None and not self.packages:
            raise wrong("expected at least one package", at=("packages",))
        return self

    @property
    def kind(self) -> Literal["packages", "wheels", "copy", "files", "run", "uses"]:
        """Which of the six it is."""
        if self.packages:
            return "packages"
        if self.wheels:
            return "wheels"
        if self.copy_:
            return "copy"
        if self.files:
            return "files"
        return "run" if self.run else "uses"
