"""A manifest and its recipe, as a user would write them."""

from __future__ import annotations

from pathlib import Path

MANIFEST = """\
manifest: 1
name: tgi
summary: Text generation
args:
  cuda: {default: "12.4.1", help: CUDA toolkit of both bases}
  version: "3.3.6"
platforms: [linux/amd64]
accelerator: {cuda: [sm_80, sm_86, sm_90+ptx]}
devel:   docker.io/nvidia/cuda:${cuda}-devel-ubuntu22.04
runtime: docker.io/nvidia/cuda:${cuda}-base-ubuntu22.04
layers:
  - packages: {apt: [python3.11, libssl3, ca-certificates]}
  - wheels:  {requirements: [torch==2.7.0, flash-attn==2.8.3], into: /opt/venv, python: "3.11"}
  - uses: text-generation-launcher
    with: {version: "${version}"}
image:
  env: {HF_HOME: /data, PATH: "/opt/venv/bin:${PATH}"}
  entrypoint: [/usr/local/bin/text-generation-launcher]
  cmd: [--json-output]
  ports: [80]
run: {gpus: all, shm-size: 1g}
checks: {smoke: [[text-generation-launcher, --version]]}
"""

RECIPE = """\
recipe: 1
summary: launcher and router
inputs:
  version: {help: upstream tag without the v}
sources:
  tgi: {git: https://github.com/huggingface/text-generation-inference, ref: "v${version}"}
compile:
  launcher:
    toolchain: script
    source: tgi
    packages: {apt: [pkg-config, libssl-dev]}
    script: {commands: [[cargo, build, --release]]}
    artifacts: {bin: target/release/text-generation-launcher}
layers:
  - copy: {artifact: launcher.bin, to: /usr/local/bin/}
env: {PATH: "/opt/tgi/bin:${PATH}"}
"""


def write_files(root: Path, files: dict[str, str]) -> Path:
    """Write `files` below `root` and return the first one's path."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root / next(iter(files))
