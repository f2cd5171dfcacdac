"""What is compiled in and stacked on: image, layout, nothing, distribution packages, another manifest."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from assembler.manifest.fields import Flag, Model, Name, PackageName, ReferenceText, Text, wrong

_MIRRORS = {
    "debian": ("http://deb.debian.org/debian", "http://deb.debian.org/debian-security"),
    "ubuntu": ("http://archive.ubuntu.com/ubuntu", "http://security.ubuntu.com/ubuntu"),
}
_UBUNTU_PORTS = "http://ports.ubuntu.com/ubuntu-ports"
_ROLLING = frozenset({"sid", "unstable", "experimental"})


class Bootstrap(Model):
    """A root file system made from distribution packages; no registry is needed."""

    distribution: Literal["debian", "ubuntu"] = Field("debian", description="whose packages")
    suite: Name = Field(description="release, such as `bookworm`")
    mirrors: tuple[Text, ...] = Field(
        (),
        description="URLs, or whole `deb …` lines; the distribution's own, with updates and security, when empty",
    )
    components: tuple[Name, ...] = Field(("main",), description="archive components")
    packages: tuple[PackageName, ...] = Field((), description="packages besides the variant's own")
    variant: Name = Field("minbase", description="variant of mmdebstrap")

    def apt_sources(self, architecture: str = "amd64") -> tuple[str, ...]:
        """One-line apt sources: of the mirrors given, else of the distribution with updates and security."""
        components = " ".join(self.components)
        if self.mirrors:
            return tuple(
                mirror if mirror.startswith("deb ") else f"deb {mirror} {self.suite} {components}"
                for mirror in self.mirrors
            )
        main, security = _MIRRORS[self.distribution]
        if self.distribution == "ubuntu" and architecture not in {"amd64", "i386"}:
            main = security = _UBUNTU_PORTS
        lines = [f"deb {main} {self.suite} {components}"]
        if self.suite not in _ROLLING:
            lines.append(f"deb {main} {self.suite}-updates {components}")
            lines.append(f"deb {security} {self.suite}-security {components}")
        return tuple(lines)


class Base(Model):
    """What is compiled in or stacked on: exactly one of the kinds, or a text that stands for one.

    As text: `scratch`, `oci:DIR`, a manifest (a text that ends in `.yaml`), else an image reference.
    """

    reference: ReferenceText | None = Field(None, description="image in a registry")
    oci: Text | None = Field(None, description="OCI layout directory, relative to the manifest")
    scratch: Flag = Field(False, description="`true`: nothing at all")
    bootstrap: Bootstrap | None = Field(None, description="made from distribution packages")
    manifest: Text | None = Field(None, description="another manifest, relative to this one")
    with_: Mapping[str, str] = Field(default_factory=dict, description="arguments of that manifest")

    @model_validator(mode="before")
    @classmethod
    def _text_forms(cls, value: Any) -> Any:
        return base_fields(value) if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_kind(self) -> Base:
        self.exactly_one("reference", "oci", "scratch", "bootstrap", "manifest")
        if self.with_ and not self.manifest:
            raise wrong("`with` belongs to `manifest`", at=("with",))
        return self

    @property
    def kind(self) -> Literal["reference", "oci", "scratch", "bootstrap", "manifest"]:
        """Which of the five it is."""
        if self.reference:
            return "reference"
        if self.oci:
            return "oci"
        if self.bootstrap:
            return "bootstrap"
        return "manifest" if self.manifest else "scratch"

    @property
    def label(self) -> str:
        """What it is called in a line: the reference, `oci:DIR`, the manifest, the release."""
        if self.bootstrap:
            return f"{self.bootstrap.distribution} {self.bootstrap.suite}"
        return self.reference or (f"oci:{self.oci}" if self.oci else self.manifest) or "scratch"


def base_fields(text: str) -> dict[str, Any]:
    """The mapping for which the text form of a base stands."""
    if text == "scratch":
        return {"scratch": True}
    if text.startswith("oci:"):
        return {"oci": text.removeprefix("oci:")}
    if text.endswith((".yaml", ".yml")):
        return {"manifest": text}
    return {"reference": text}
