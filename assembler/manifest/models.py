"""Manifest and recipe: the shapes of the two YAML files that people write.

Field descriptions are the reference documentation and go into the JSON Schema. All defaults are portable: no
value here depends on the machine that reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from assembler.manifest.bases import Base, Bootstrap, base_fields
from assembler.manifest.fields import (
    AbsolutePath,
    Argv,
    CudaArchitecture,
    Duration,
    Environment,
    FormatVersion,
    Model,
    Name,
    PlatformText,
    Port,
    RocmArchitecture,
    Size,
    Text,
    Whole,
    duration_nanoseconds,
    size_bytes,
    wrong,
)
from assembler.manifest.layers import Copy, FileEntry, LayerEntry, Run
from assembler.manifest.python import Wheels
from assembler.manifest.steps import CMakeOptions, CompileStep, Packages, ScriptOptions, Source

__all__ = [
    "Accelerator",
    "Base",
    "Bootstrap",
    "CMakeOptions",
    "Checks",
    "CompileStep",
    "Copy",
    "FileEntry",
    "Healthcheck",
    "ImageSettings",
    "Input",
    "LayerEntry",
    "Manifest",
    "Packages",
    "Recipe",
    "Run",
    "RunHints",
    "ScriptOptions",
    "Source",
    "Wheels",
    "base_fields",
]


class Input(Model):
    """An argument of a manifest or an input of a recipe. Without default it must be given."""

    default: str | None = Field(None, description="value when nobody gives one")
    help: str = Field("", description="what it means, for people")
    choices: tuple[str, ...] = Field((), description="the only values that are allowed")

    @model_validator(mode="before")
    @classmethod
    def _short_forms(cls, value: Any) -> Any:
        if value is None:
            return {}
        return {"default": value} if isinstance(value, str) else value


def _test_command(value: Any) -> Any:
    return ["CMD-SHELL", value] if isinstance(value, str) else value


class Healthcheck(Model):
    """How a runtime finds out whether the container is well."""

    test: Annotated[Argv, BeforeValidator(_test_command, json_schema_input_type=Argv | str)] = Field(
        description="list of arguments, or a text for the shell; `[NONE]` switches the base's check off"
    )
    interval: Duration | None = Field(None, description="time between two checks, such as `30s`")
    timeout: Duration | None = Field(None, description="time after which a check has failed")
    start_period: Duration | None = Field(None, description="time to start in which failures do not count")
    retries: Whole | None = Field(None, description="failures in a row that make it unhealthy")

    @model_validator(mode="after")
    def _a_command(self) -> Healthcheck:
        if not self.test:
            raise wrong("expected a command", at=("test",))
        return self

    def to_json(self) -> dict[str, object]:
        """The `Healthcheck` object of an image config: durations in nanoseconds, `Test` with its first word."""
        words = list(self.test)
        value: dict[str, object] = {"Test": words if words[0] in {"CMD", "CMD-SHELL", "NONE"} else ["CMD", *words]}
        for key, text in (
            ("Interval", self.interval),
            ("Timeout", self.timeout),
            ("StartPeriod", self.start_period),
        ):
            if text is not None:
                value[key] = duration_nanoseconds(text)
        if self.retries is not None:
            value["Retries"] = self.retries
        return value

    @property
    def interval_nanoseconds(self) -> int | None:
        """`interval` in the unit of the image config."""
        return None if self.interval is None else duration_nanoseconds(self.interval)

    @property
    def timeout_nanoseconds(self) -> int | None:
        """`timeout` in the unit of the image config."""
        return None if self.timeout is None else duration_nanoseconds(self.timeout)

    @property
    def start_period_nanoseconds(self) -> int | None:
        """`start-period` in the unit of the image config."""
        return None if self.start_period is None else duration_nanoseconds(self.start_period)


class ImageSettings(Model):
    """What the image config says; whatever is absent stays as the base has it."""

    env: Environment = Field(
        default_factory=dict,
        description="environment; `${NAME}` is the value that NAME has below, in recipes or base",
    )
    entrypoint: Argv | None = Field(None, description="list of arguments; `[]` takes the base's away")
    cmd: Argv | None = Field(None, description="list of arguments; `[]` takes the base's away")
    user: Text | None = Field(None, description="user, or user:group, names or numbers")
    workdir: AbsolutePath | None = Field(None, description="working directory")
    ports: tuple[Port, ...] = Field((), description="ports such as `80` or `80/udp`")
    volumes: tuple[AbsolutePath, ...] = Field((), description="directories that hold data")
    labels: Mapping[Text, str] = Field(default_factory=dict, description="labels")
    stop_signal: Text | None = Field(None, description="signal such as `SIGTERM`")
    healthcheck: Healthcheck | None = Field(None, description="how a runtime finds out whether it is well")


class RunHints(Model):
    """How the image wants to be run; the names are podman's options. For `assemble run` and for SIF."""

    gpus: Text | None = Field(None, description="`all`, `none`, a number, or a list of devices")
    shm_size: Size | None = Field(None, description="size of /dev/shm, such as `1g`")
    ipc: Text | None = Field(None, description="IPC namespace, such as `host`")
    network: Text | None = Field(None, description="network, such as `host`")
    device: tuple[AbsolutePath, ...] = Field((), description="device nodes, such as `/dev/infiniband`")
    volume: tuple[Text, ...] = Field((), description="mounts, `HOST:CONTAINER[:OPTIONS]`")
    group_add: tuple[Text, ...] = Field((), description="further groups, such as `video`")
    cap_add: tuple[Text, ...] = Field((), description="capabilities, such as `SYS_PTRACE`")
    security_opt: tuple[Text, ...] = Field((), description="security options, such as `seccomp=unconfined`")
    ulimit: tuple[Text, ...] = Field((), description="limits, such as `memlock=-1`")

    @property
    def shm_size_bytes(self) -> int | None:
        """Size of /dev/shm in bytes."""
        return None if self.shm_size is None else size_bytes(self.shm_size)


class Accelerator(Model):
    """GPU architectures that everything is compiled for."""

    cuda: tuple[CudaArchitecture, ...] = Field((), description="such as `sm_90`; `sm_90+ptx` adds portable code")
    rocm: tuple[RocmArchitecture, ...] = Field((), description="such as `gfx90a`")

    @property
    def vendor(self) -> Literal["nvidia", "amd"]:
        """Whose GPUs an image is for that is compiled so."""
        return "nvidia" if self.cuda else "amd"

    @model_validator(mode="after")
    def _any(self) -> Accelerator:
        if not (self.cuda or self.rocm):
            raise wrong("expected at least one architecture in `cuda` or `rocm`")
        return self


class Checks(Model):
    """What is tried on the finished image."""

    smoke: tuple[Argv, ...] = Field((), description="commands that must succeed in the image; lists of arguments")

    @model_validator(mode="after")
    def _commands(self) -> Checks:
        if not all(self.smoke):
            raise wrong("expected a list of lists of arguments, got an empty command", at=("smoke",))
        return self


class Manifest(Model):
    """An image: what is compiled where, which layers are stacked on what, and how it runs."""

    manifest: FormatVersion = Field(description="version of this format")
    name: Name = Field(description="name of the image")
    summary: str = Field("", description="one line on what it is")
    args: Mapping[Name, Input] = Field(
        default_factory=dict, description="arguments; `--set NAME=VALUE` changes one"
    )
    platforms: tuple[PlatformText, ...] = Field(
        ("linux/amd64",), description="platforms; several give an image index. Never taken from the host"
    )
    accelerator: Accelerator | None = Field(None, description="GPU architectures that everything is compiled for")
    devel: Base | None = Field(None, description="base of the containers in which compile steps run")
    runtime: Base = Field(description="base that the layers are stacked on")
    sources: Mapping[Name, Source] = Field(default_factory=dict, description="inputs of compile steps and copies")
    compile: Mapping[Name, CompileStep] = Field(default_factory=dict, description="compile steps")
    layers: tuple[LayerEntry, ...] = Field((), description="layers, bottom to top")
    image: ImageSettings = Field(default_factory=ImageSettings, description="what the image config says")
    run: RunHints = Field(default_factory=RunHints, description="how the image wants to be run")
    checks: Checks = Field(default_factory=Checks, description="what is tried on the finished image")
    compression: Literal["zstd", "gzip", "both"] = Field("zstd", description="compression of our own layers")
    epoch: Whole = Field(
        0,
        description="seconds since 1970 that every file and the image are stamped with; "
        "`SOURCE_DATE_EPOCH` of the environment counts where this is not given",
    )

    @model_validator(mode="after")
    def _some_platform(self) -> Manifest:
        if not self.platforms:
            raise wrong("expected at least one platform", at=("platforms",))
        twice = next((each for each in self.platforms if self.platforms.count(each) > 1), None)
        if twice:
            raise wrong(f"expected each platform once, got `{twice}` twice", at=("platforms",))
        return self


class Recipe(Model):
    """A component: how it is obtained or compiled, and what of it ships."""

    recipe: FormatVersion = Field(description="version of this format")
    summary: Text = Field(description="one line on what it is")
    inputs: Mapping[Name, Input] = Field(default_factory=dict, description="inputs; `with:` of `uses` gives them")
    sources: Mapping[Name, Source] = Field(default_factory=dict, description="inputs of compile steps and copies")
    compile: Mapping[Name, CompileStep] = Field(default_factory=dict, description="compile steps")
    layers: tuple[LayerEntry, ...] = Field((), description="layers, bottom to top")
    env: Environment = Field(default_factory=dict, description="what it adds to the image's environment")
