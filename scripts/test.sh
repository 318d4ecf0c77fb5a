#!/usr/bin/env bash
# Runs all tests: sudo scripts/test.sh [ARGUMENTS FOR cargo test]
#
# Installs what the tests drive (etcd, iproute2 and so on) where it is missing. All traffic stays
# inside network namespaces that the tests make and remove.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

need_root "$@"
install_build_tools
install_missing ip:iproute2 tc:iproute2 ethtool:ethtool ping:iputils-ping iperf3:iperf3 \
    tcpdump:tcpdump etcd:etcd-server etcdctl:etcd-client sysctl:procps \
    iptables:iptables nft:nftables /usr/lib/cni/bridge:containernetworking-plugins \
    dockerd:docker.io busybox:busybox-static qemu-system-x86_64:qemu-system-x86
install_missing debootstrap:debootstrap systemd-nspawn:systemd-container \
    dpkg-shlibdeps:dpkg-dev zsh:zsh fish:fish
# Newer Debians have the client in a package of its own.
install_missing docker:docker-cli
# A module has no command to look for.
/usr/bin/python3 -c 'import prometheus_client' 2>/dev/null || install_missing :python3-prometheus-client
find_cargo
cd "$ROOT"

log=$(mktemp)
finish() {
    rm -f "$log"
    give_back
}
trap finish EXIT

run() { "$@" 2>&1 </dev/null | tee -a "$log"; }

if command -v shellcheck >/dev/null; then
    step "shellcheck"
    shellcheck -x scripts/*.sh .ci/run tests/support/cni/recorder tests/support/old_kernel/init
else
    printf 'SKIPPED shellcheck: it is not installed\n' | tee -a "$log"
fi

if [[ $# -eq 0 ]]; then
    install_cargo_deny
    step "The dependencies: licenses, versions, sources, known holes"
    run cargo deny --locked check --hide-inclusion-graph licenses bans sources
    # The list of known holes is fetched from another place than the crates.
    if timeout 120 cargo deny fetch db >/dev/null 2>&1 </dev/null; then
        run cargo deny --locked check advisories
    else
        printf 'SKIPPED cargo deny check advisories: needs github.com/RustSec/advisory-db\n' |
            tee -a "$log"
    fi

    step "Every bench, once"
    run cargo test --locked --benches
fi

if [[ $# -eq 0 ]]; then
    install_cargo_deb
fi

step "Tests"
run cargo test --locked --no-fail-fast "$@"

if [[ $# -eq 0 ]]; then
    install_missing c++:g++
    step "Static binaries"
    run scripts/static.sh dev
    run target/static/flanneld --version

    run scripts/fuzz.sh
fi

# One line for people and for CI, over all test programs.
printf '\n'
awk '/^test result:/ { passed += $4; failed += $6 } /SKIPPED / { skipped++ }
    END { printf "%d passed, %d failed, %d skipped\n", passed, failed, skipped }' "$log"
