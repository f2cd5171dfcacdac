"""What `--help` says of the verbs."""

from __future__ import annotations

from typing import Final

VERBS: Final = {
    "build": "assemble images: lock, plan, compile, pack, stack, verify, publish (the default verb)",
    "plan": "show what would be done: steps, keys, what is cached, what must be fetched",
    "lock": "resolve tags, versions and packages, and write the lock beside the manifest",
    "sif": "make a SIF of an image, for Apptainer, as an ordinary user",
    "inspect": "show an image's layers, sizes, origins, settings and files",
    "run": "run an image with the GPUs, memory and devices that it wants: podman, docker or apptainer",
    "list": "list the manifests and recipes of the library",
    "doctor": "show what this host can and cannot do, what blocks it, and the ways round",
    "gc": "free what no image and no recent build needs",
    "schema": "print the JSON Schema of manifests or recipes, for editors",
}
LATER: Final = {
    "check": "`assemble inspect IMAGE --files` shows what is in an image",
    "diff": "`assemble inspect IMAGE --json`, for each of two images, gives values that can be compared",
}
"""Verbs that a later version will have, and what to do until then."""

EXAMPLES: Final = """\
examples:
  assemble llama-cpp                      a manifest of the library
  assemble my.yaml --push registry.example.com/my:1
  assemble my.yaml --output oci-archive:my.tar
  assemble plan my.yaml --json

`assemble VERB --help` tells all options of a verb.
"""
USAGE: Final = {
    "build": "assemble [build] MANIFEST… [options]",
    "plan": "assemble plan MANIFEST… [options]",
    "lock": "assemble lock MANIFEST… [--update [NAME]] [options]",
    "sif": "assemble sif IMAGE FILE.sif [options]",
    "inspect": "assemble inspect IMAGE [options]",
    "run": "assemble run [options] TARGET [COMMAND…]",
}
DETAILS: Final = {
    "build": """\
Assemble each MANIFEST into an image in the store; push it, or write it
elsewhere, where that is asked for. What is done already is not done again.
stdout has a line for each place where an image is now.
""",
    "plan": """\
Show the steps of each MANIFEST, their keys, and which of them are cached.
Nothing is compiled, packed or pushed; of the lock, what is cheap to find out
is found out and written. With --push, the registry is asked what it has.
Exit status: 0 nothing to do, 10 work to do.
""",
    "lock": """\
Write NAME.lock.yaml beside each MANIFEST: the digest behind each tag, the
commit behind each git reference, the hash of each archive, version and hash
of each package. What is locked stays, unless --update says otherwise.
""",
    "sif": """\
Make a SIF of IMAGE: a manifest, a name in the store, a registry reference,
oci:DIR[:TAG] or oci-archive:FILE[:TAG]. No root, no user namespace and no
Apptainer is needed, and nothing is unpacked. Equal images give equal files.
""",
    "inspect": """\
Show an image: its layers with size and origin, its settings, and with --files
what is in our own layers. IMAGE is a name in the store, oci:DIR[:TAG], or a
registry reference.
""",
    "run": """\
Run an image as it wants to be run. TARGET is a manifest, whose image is
assembled first, or a registry reference, oci:DIR, or FILE.sif. What a manifest
says in `run:` is done; of what any other image says, what gives no rights.
The command replaces the image's own; put `--` before it if it has options.
""",
    "list": "List the manifests and recipes that come with assemble.",
    "doctor": """\
Try what builds do on this host, and say what works, what does not, which one
setting blocks it, and the ways round. Nothing is left behind.
Exit status: 0 nothing is blocked, 1 something is.
""",
    "gc": """\
Free what no image of the store and no recent build needs: layers, packages,
sources, containers, logs. Never what a running assemble needs. What went is
made or fetched again when it is needed.
""",
    "schema": """\
Print the JSON Schema of manifests or recipes. An editor that is given it
completes and checks fields.
""",
}
