#!/usr/bin/env bash
# Runs the data path's tests, real traffic included, under a sanitizer:
# sudo scripts/sanitize.sh address|thread|memcheck
#
# address and thread are the compiler's, which instruments all crates but the standard library;
# their builds are kept in target/sanitize. memcheck is valgrind's and also sees memory that was
# never written. docs/reliability.md says when each was run last, and what came of it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

sanitizer=${1:-}
need_root "$@"
install_build_tools
install_missing ip:iproute2 ethtool:ethtool ping:iputils-ping iperf3:iperf3 sysctl:procps
find_cargo
cd "$ROOT"
trap give_back EXIT

host=$(rustc -vV | sed -n 's/^host: //p')
target=()
case $sanitizer in
address)
    export RUSTFLAGS='-Zsanitizer=address'
    ;;
thread)
    # The standard library is not instrumented: TSan cannot see the fence by which Arc's last owner
    # frees what others have read. Whoever frees too early is found by address.
    export RUSTFLAGS='-Zsanitizer=thread -Cunsafe-allow-abi-mismatch=sanitizer'
    export TSAN_OPTIONS="suppressions=$ROOT/scripts/tsan-suppressions"
    export PROPTEST_CASES=${PROPTEST_CASES:-32}
    ;;
memcheck)
    install_missing valgrind:valgrind
    runner=${host//-/_}
    export "CARGO_TARGET_${runner^^}_RUNNER=valgrind --quiet --error-exitcode=9"
    # Thirty times slower than without.
    export PROPTEST_CASES=${PROPTEST_CASES:-4}
    export FLANNELD_DIFFERENTIAL_SUPERPACKETS=${FLANNELD_DIFFERENTIAL_SUPERPACKETS:-100}
    ;;
*)
    die "which sanitizer? $0 address|thread|memcheck"
    ;;
esac
if [[ $sanitizer != memcheck ]]; then
    # The flags of the sanitizers are unstable, the toolchain is stable. With a target named, what
    # runs while it is built is not instrumented.
    export RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR=target/sanitize/$sanitizer
    target=(--target "$host")
fi

step "Unit tests of the data path"
cargo test --locked "${target[@]}" --lib -- dataplane
step "Shared state, the kernel beside us"
cargo test --locked "${target[@]}" --test shared_state --test differential -- --nocapture
if [[ $sanitizer != memcheck ]]; then
    step "Two data paths under traffic"
    cargo test --locked "${target[@]}" --test allocations
fi
good "Nothing found by $sanitizer"
