#!/usr/bin/env bash
# Builds binaries that need no library of the system: scripts/static.sh [PROFILE]
#
# They are target/static/flanneld and target/static/flannel, for this machine's architecture, and
# run on every Linux. The profile is release if not given.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

profile=${1:-release}
target=$(uname -m)-unknown-linux-musl

install_build_tools
# ring, which does TLS, has C and assembler in it.
install_missing musl-gcc:musl-tools
find_cargo
cd "$ROOT"
sysroot=$(rustc --print sysroot)
if [[ ! -d $sysroot/lib/rustlib/$target ]]; then
    command -v rustup >/dev/null ||
        die "the toolchain has no standard library for $target and there is no rustup to get it"
    step "Getting Rust's standard library for $target"
    rustup target add "$target"
fi

cargo build --locked --bins --target "$target" --profile "$profile" </dev/null
case $profile in
    dev) folder=target/$target/debug ;;
    *) folder=target/$target/$profile ;;
esac
mkdir -p target/static
for binary in flanneld flannel; do
    install -s "$folder/$binary" "target/static/$binary"
    # Says so of static programs, position independent or not.
    ! ldd "target/static/$binary" >/dev/null 2>&1 ||
        ldd "target/static/$binary" 2>&1 | grep -q 'statically linked' ||
        die "target/static/$binary is not static"
done
good "target/static/flanneld and target/static/flannel"
