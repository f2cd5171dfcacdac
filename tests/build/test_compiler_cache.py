"""Compiler caches: what they are told, and what their counts mean. That they work is seen in test_compile.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from assembler.build.compiler_cache import (
    CompilerCache,
    ccache_hits,
    compiler_cache,
    launchers,
    remote_settings,
    sccache_hits,
)
from assembler.build.toolchains import Way


def ccache(environment: Mapping[str, str], *, way: Way, path: str = "/usr/bin") -> CompilerCache:
    """That of a container with ccache and gcc, whose PATH is this."""
    return compiler_cache(
        "ccache",
        frozenset(("ccache", "gcc")),
        lambda name: (f"/usr/bin/{name}", path),
        environment,
        way=way,
        cuda=False,
        cache=Path("/nowhere"),
        network=False,
        step="demo",
    )


def test_ccache_goes_before_every_compiler_unless_the_manifest_says_otherwise() -> None:
    environment = ccache({"CMAKE_CUDA_COMPILER_LAUNCHER": ""}, way="launcher").environment
    told = {name: value for name, value in environment.items() if name.endswith("_COMPILER_LAUNCHER")}
    assert told == {
        "CMAKE_C_COMPILER_LAUNCHER": "ccache",
        "CMAKE_CXX_COMPILER_LAUNCHER": "ccache",
        "CMAKE_CUDA_COMPILER_LAUNCHER": "",
        "CMAKE_HIP_COMPILER_LAUNCHER": "ccache",
        "CMAKE_OBJC_COMPILER_LAUNCHER": "ccache",
        "CMAKE_OBJCXX_COMPILER_LAUNCHER": "ccache",
    }
    assert environment["CCACHE_DIR"] == "/cache/ccache"
    assert environment["CCACHE_COMPILERCHECK"] == "content", "times of a compiler differ between equal images"


def test_a_script_finds_ccache_on_its_path() -> None:
    found = ccache({"A": "b"}, way="path", path="/opt/bin:/usr/bin")
    assert found.environment["PATH"] == "/cache/compilers:/opt/bin:/usr/bin"
    assert found.environment["A"] == "b"
    assert "CMAKE_C_COMPILER_LAUNCHER" not in found.environment, "ccache must not start ccache"
    assert found.environment["CMAKE_CUDA_COMPILER_LAUNCHER"] == "ccache"
    assert found.links == {"gcc": "/usr/bin/ccache"}


def test_cmake_is_told_for_every_language() -> None:
    found = launchers("ccache")
    assert found["CMAKE_CXX_COMPILER_LAUNCHER"] == found["CMAKE_CUDA_COMPILER_LAUNCHER"] == "ccache"
    assert set(launchers("/x/sccache", ["HIP"]).items()) == {("CMAKE_HIP_COMPILER_LAUNCHER", "/x/sccache")}


def test_what_cmake_tries_out_does_not_count() -> None:
    log = (
        "# /usr/share/cmake-3.25/Modules/CMakeCCompilerABI.c\ncache_miss\n"
        "# /build/CMakeFiles/CMakeScratch/TryCompile-x/src.c\npreprocessed_cache_hit\n"
        "# /src/a.c\ncache_miss\ndirect_cache_miss\n"
        "# /build/CMakeFiles/a.dir/cmake_pch.hxx.cxx\ndirect_cache_hit\nlocal_storage_hit\n"
        "# b.c\npreprocessed_cache_hit\n"
    )
    assert ccache_hits(log) == (2, 1)
    assert ccache_hits("") == (0, 0)


def test_counts_of_sccache() -> None:
    stats = {
        "cache_hits": {"counts": {"C/C++": 3, "Rust": 2}},
        "cache_misses": {"counts": {"CUDA": 4}},
        "requests_not_cacheable": 5,
        "non_cacheable_compilations": 1,
    }
    assert sccache_hits(json.dumps({"stats": stats})) == (5, 4, 6)
    for damaged in ("", "{}", "[]", '{"stats": {"cache_hits": 3}}', '{"stats": null}'):
        assert sccache_hits(damaged) == (0, 0, 0)


def test_settings_of_a_remote_storage_and_nothing_else() -> None:
    environment = {
        "SCCACHE_BUCKET": "objects",
        "SCCACHE_S3_USE_SSL": "on",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_MANY_LINES": "a\nb",
        "SCCACHE_DIR": "/elsewhere",
        "SCCACHE_SERVER_PORT": "1",
        "HOME": "/root",
    }
    assert set(remote_settings(environment)) == {"SCCACHE_BUCKET", "SCCACHE_S3_USE_SSL", "AWS_SECRET_ACCESS_KEY"}
    assert remote_settings({"AWS_SECRET_ACCESS_KEY": "secret", "SCCACHE_BUCKET": ""}) == {}
