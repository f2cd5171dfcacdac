# Sourced by the other scripts, never run: installs what they need on Debian 12 or 13 and Ubuntu 24.04.
#
# As root, missing packages are installed with apt-get; anyone else is told which. Python packages go into .venv.
# With CI set, a missing tool is a failure. The caller has changed into the repository.
# shellcheck shell=bash
export PATH="$PATH:/usr/local/sbin:/usr/sbin:/sbin" LC_ALL=C.UTF-8

# A command, and the package that has it.
required=(git:git)
tools=(
  buildah:buildah               # containers of compile steps
  crun:crun                     # a runtime for podman
  docker-registry:docker-registry  # a registry on loopback
  fuse-overlayfs:fuse-overlayfs # storage of users without overlay
  gcc:gcc                       # ELF files to read
  gpg:gpg                       # mmdebstrap looks up signing keys with it
  mmdebstrap:mmdebstrap         # bases that need no registry
  mksquashfs:squashfs-tools     # SIF, where there is no tar2sqfs
  newuidmap:uidmap              # subordinate ids
  openssl:openssl               # certificates for registries of tests
  pigz:pigz                     # what dockerd unpacks gzip with
  podman:podman                 # runs what was assembled
  redis-server:redis-server     # one of the places where sccache keeps objects
  runc:runc                     # the runtime that podman uses here: crun refuses hosts with mixed cgroups
  siftool:siftool               # Sylabs' own reader of SIF
  skopeo:skopeo                 # a second opinion on images
  tar2sqfs:squashfs-tools-ng    # SIF; sqfs2tar reads it back
  umoci:umoci                   # another one
  xz:xz-utils
  zstd:zstd
)

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }

packages_of_missing() {
  local pair
  for pair in "$@"; do
    command -v "${pair%%:*}" >/dev/null || printf '%s\n' "${pair#*:}"
  done
}

# The first Python that is new enough and can make an environment.
find_python() {
  local candidate
  for candidate in python3 python3.13 python3.12 python3.11; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      command -v "$candidate"
      return
    fi
  done
}

install_packages() {
  say "installing $*"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

set_up_system() {
  local -a missing
  mapfile -t missing < <(
    packages_of_missing "${required[@]}" "${tools[@]}"
    [[ -n $(find_python) ]] || command -v uv >/dev/null || printf '%s\n' python3 python3-venv
    [[ -e /etc/ssl/certs/ca-certificates.crt ]] || echo ca-certificates
    # mmdebstrap on Ubuntu does not know Debian's keys.
    [[ -e /usr/share/keyrings/debian-archive-keyring.gpg ]] || echo debian-archive-keyring
  )
  (( ${#missing[@]} )) || return 0
  if (( EUID == 0 )) && command -v apt-get >/dev/null; then
    install_packages "${missing[@]}"
  else
    say "missing packages: ${missing[*]}"
    say "as root: apt-get install ${missing[*]}"
    [[ -z ${CI:-} ]] || exit 1
  fi
  if [[ -n $(packages_of_missing "${required[@]}") ]]; then
    say "cannot do without: $(packages_of_missing "${required[@]}" | tr '\n' ' ')"
    exit 1
  fi
}

# .venv, made anew when pyproject.toml, or the directory it was made in, is another.
set_up_python() {
  local stamp python
  stamp="$PWD $(sha256sum <pyproject.toml)"
  if [[ -x .venv/bin/python && $(cat .venv/stamp 2>/dev/null) == "$stamp" ]] && .venv/bin/python -c ''; then
    return
  fi
  say "installing Python packages into .venv"
  rm -rf .venv
  python=$(find_python)
  if [[ -n $python ]]; then
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -e '.[test]'
  elif command -v uv >/dev/null; then
    uv venv --quiet --python '>=3.11' .venv
    uv pip install --quiet --python .venv/bin/python -e '.[test]'
  else
    say "expected Python 3.11 or newer with its venv module, or uv"
    exit 1
  fi
  printf '%s\n' "$stamp" >.venv/stamp
}
