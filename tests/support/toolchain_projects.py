"""Small projects for real compilers, and the manifests that have them compiled in bases of the library."""

from __future__ import annotations

ADD = """\
#include <{runtime}>
__global__ void add(const float *a, float *b, int n) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) b[i] += a[i] * FACTOR;
}}
extern "C" int add_on_device(const float *a, float *b, int n) {{
    add<<<(n + 255) / 256, 256>>>(a, b, n);
    return {kind}GetLastError();
}}
"""
COUNT = """\
#include <cstdio>
#include <cuda_runtime.h>
#include "scale.h"
extern "C" int add_on_device(const float *, float *, int);
int main() {
    int count = -1;
    int error = cudaGetDeviceCount(&count);
    std::printf("error %d, %p\\n", error, (void *)add_on_device);
}
"""
CUDA = """\
manifest: 1
name: kernels
devel: bases/cuda-devel.yaml
runtime: bases/cuda-runtime.yaml
accelerator: {cuda: [sm_80, sm_90a+ptx]}
sources: {kernels: {path: ./kernels}}
compile:
  library:
    toolchain: nvcc
    source: kernels
    nvcc: {sources: [add.cu, count.cu], output: lib/libkernels.so, include: [include], definitions: {FACTOR: "3"}}
    artifacts: {library: "lib/*.so"}
  program:
    toolchain: nvcc
    source: kernels
    nvcc:
      sources: "*.cu"
      output: count
      kind: program
      runtime: shared
      include: [include]
      definitions: {FACTOR: "3"}
    artifacts: {program: count}
layers:
  - copy: {artifact: library.library, to: /usr/local/lib/}
  - copy: {artifact: program.program, to: /usr/local/bin/}
image: {cmd: [/usr/local/bin/count]}
"""
HIP = """\
manifest: 1
name: hip
devel: bases/rocm-devel.yaml
runtime: scratch
accelerator: {rocm: [gfx90a]}
sources: {kernels: {path: ./kernels}}
compile:
  kernels:
    toolchain: hipcc
    source: kernels
    hipcc: {sources: "*.hip", output: libkernels.so, definitions: {FACTOR: "3"}}
    artifacts: {library: libkernels.so}
layers:
  - copy: {artifact: kernels.library, to: /usr/local/lib/}
"""
RUST = """\
manifest: 1
name: greet
devel: bases/rust-devel.yaml
runtime: bases/debian-runtime.yaml
sources: {greet: {path: ./greet}}
compile:
  greet:
    toolchain: cargo
    source: greet
    cargo: {bins: greet}
    artifacts: {program: target/release/greet}
layers:
  - packages: {apt: [libgcc-s1]}
  - copy: {artifact: greet.program, to: /usr/local/bin/}
image: {cmd: [/usr/local/bin/greet]}
"""
CARGO = {
    "Cargo.toml": '[workspace]\nmembers = ["words"]\n'
    '[package]\nname = "greet"\nversion = "0.1.0"\nedition = "2021"\n'
    '[dependencies]\nitoa = "=1.0.15"\nwords = { path = "words" }\n[build-dependencies]\ncfg-if = "=1.0.0"\n',
    "Cargo.lock": """\
version = 3

[[package]]
name = "cfg-if"
version = "1.0.0"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "baf1de4339761588bc0619e3cbc0120ee582ebb74b53b4efbf79117bd2da40fd"

[[package]]
name = "greet"
version = "0.1.0"
dependencies = [
 "cfg-if",
 "itoa",
 "words",
]

[[package]]
name = "itoa"
version = "1.0.15"
source = "registry+https://github.com/rust-lang/crates.io-index"
checksum = "4a5f13b858c8d314ee3e8f639011f7ccefe71f97f96e50151fb991f267928e2c"

[[package]]
name = "words"
version = "0.1.0"
""",
    "build.rs": 'fn main() { cfg_if::cfg_if! { if #[cfg(unix)] { println!("cargo:rustc-env=ON=unix"); } } }\n',
    "src/main.rs": "fn main() { let mut number = itoa::Buffer::new();\n"
    'println!("{} {} {}", words::GREETING, number.format(42), env!("ON")); }\n',
    "words/Cargo.toml": '[package]\nname = "words"\nversion = "0.1.0"\nedition = "2021"\n',
    "words/src/lib.rs": 'pub const GREETING: &str = "hello";\n',
}
OTHERS = """\
manifest: 1
name: others
devel: bases/debian-devel.yaml
runtime: bases/debian-runtime.yaml
sources: {fastsum: {path: ./fastsum}, hello: {path: ./hello}}
compile:
  wheel:
    toolchain: wheel
    source: fastsum
    packages: {apt: &PACKAGES}
    wheel: {imports: fastsum}
    artifacts: {wheels: "wheelhouse/*.whl"}
  meson:
    toolchain: meson
    source: hello
    packages: {apt: &PACKAGES}
    meson: {prefix: /opt/hello}
    artifacts: {programs: bin/hello, libraries: "lib/*.so*"}
  autotools:
    toolchain: autotools
    source: hello
    packages: {apt: &PACKAGES}
    autotools: {autoreconf: true, prefix: /opt/hello}
    artifacts: {program: bin/hello}
layers:
  - copy: {artifact: wheel.wheels, to: /wheels/}
  - copy: {artifact: meson.programs, to: /opt/hello/bin/}
  - copy: {artifact: meson.libraries, to: /opt/hello/lib/}
  - copy: {artifact: autotools.program, to: /opt/hello/bin/static}
image: {cmd: [sh, -c, "/opt/hello/bin/hello && /opt/hello/bin/static"]}
""".replace(
    "&PACKAGES",
    "[python3-dev, python3-pip, python3-setuptools, python3-wheel, meson, gcc, g++, libc6-dev, autoconf,"
    " automake, make, ccache]",
)
GGML = """\
manifest: 1
name: ggml
devel: bases/debian-devel.yaml
runtime: bases/debian-runtime.yaml
sources: {llama: {sdist: llama-cpp-python==0.3.36, subdirectory: vendor/llama.cpp}}
compile:
  ggml:
    toolchain: cmake
    source: llama
    packages: {apt: [cmake, ninja-build, g++, ccache]}
    jobs-memory: 1g
    cmake: {targets: [ggml], definitions: {GGML_NATIVE: "OFF", LLAMA_BUILD_TESTS: "OFF", LLAMA_BUILD_UI: "OFF"}}
    artifacts: {libraries: "bin/*.so*"}
layers:
  - packages: {apt: [libgomp1, libstdc++6]}
  - copy: {artifact: ggml.libraries, to: /app/}
image:
  env: {LD_PRELOAD: /app/libggml.so, LD_BIND_NOW: "1"}
  cmd: [sh, -c, "grep -o 'libggml[a-z-]*[.]so' /proc/self/maps | sort -u"]
"""
GREENLET = """\
manifest: 1
name: greenlet
devel: bases/debian-devel.yaml
runtime: {manifest: bases/debian-python.yaml, with: {suite: bookworm}}
sources: {greenlet: {sdist: greenlet==3.2.4}}
compile:
  greenlet:
    toolchain: wheel
    source: greenlet
    packages: {apt: [python3-dev, python3-pip, python3-setuptools, python3-wheel, g++, libc6-dev, ccache]}
    wheel: {imports: greenlet}
    artifacts: {wheels: "wheelhouse/*.whl"}
layers:
  - wheels: {artifact: greenlet.wheels}
image:
  cmd: [/opt/venv/bin/python, -c, "import greenlet; print(greenlet.greenlet(lambda: 6 * 7).switch())"]
"""
FILES = {
    "cuda.yaml": CUDA,
    "ggml.yaml": GGML,
    "greenlet.yaml": GREENLET,
    "hip.yaml": HIP,
    "rust.yaml": RUST,
    "others.yaml": OTHERS,
    "kernels/add.cu": ADD.format(runtime="cuda_runtime.h", kind="cuda"),
    "kernels/count.cu": COUNT,
    "kernels/include/scale.h": "#pragma once\n",
    "kernels/add.hip": ADD.format(runtime="hip/hip_runtime.h", kind="hip"),
    **{f"greet/{name}": text for name, text in CARGO.items()},
    "fastsum/pyproject.toml": '[build-system]\nrequires = ["setuptools"]\n'
    'build-backend = "setuptools.build_meta"\n[project]\nname = "fastsum"\nversion = "1.0"\n',
    "fastsum/setup.py": "from setuptools import Extension, setup\n"
    'setup(ext_modules=[Extension("fastsum", ["fastsum.cpp"])])\n',
    "fastsum/fastsum.cpp": """\
#include <Python.h>
#include <numeric>
#include <vector>
static PyObject *total(PyObject *, PyObject *arguments) {
    long last;
    if (!PyArg_ParseTuple(arguments, "l", &last)) return nullptr;
    std::vector<long> values(last);
    std::iota(values.begin(), values.end(), 1);
    return PyLong_FromLong(std::accumulate(values.begin(), values.end(), 0L));
}
static PyMethodDef methods[] = {{"total", total, METH_VARARGS, nullptr}, {nullptr, nullptr, 0, nullptr}};
static PyModuleDef module = {PyModuleDef_HEAD_INIT, "fastsum", nullptr, -1, methods};
PyMODINIT_FUNC PyInit_fastsum() { return PyModule_Create(&module); }
""",
    "hello/meson.build": "project('hello', 'c')\n"
    "greeting = shared_library('greeting', 'greeting.c', install: true, version: '1.0')\n"
    "executable('hello', 'hello.c', link_with: greeting, install: true, install_rpath: '$ORIGIN/../lib')\n",
    "hello/greeting.c": 'const char *greeting(void) { return "hello"; }\n',
    "hello/hello.c": "#include <stdio.h>\nconst char *greeting(void);\n"
    "int main(void) { puts(greeting()); return 0; }\n",
    "hello/configure.ac": "AC_INIT([hello], [1.0])\nAM_INIT_AUTOMAKE([foreign])\nAC_PROG_CC\n"
    "AC_CONFIG_FILES([Makefile])\nAC_OUTPUT\n",
    "hello/Makefile.am": "bin_PROGRAMS = hello\nhello_SOURCES = hello.c greeting.c\n",
}
