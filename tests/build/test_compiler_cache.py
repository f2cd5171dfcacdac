"""Compiler caches: what they are told, and what their counts mean. That they work is seen in test_compile.py."""

from __future__ import annotations

import json

from assembler.build.compiler_cache import ccache_hits, launchers, remote_settings, sccache_hits


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
