#!/usr/bin/env bash
# Measures flanneld beside kernel VXLAN and others: sudo scripts/bench.sh [--quick] [OPTIONS]
#
# Installs what it needs, builds, and hands over to bench.py, which has the options
# (scripts/bench.sh --help). All traffic stays inside network namespaces that are removed at the end.
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

bench=$ROOT/scripts/bench.py
binary_given=no traffic_given=no plugin_given=no pods=no
for argument in "$@"; do
    case $argument in
        -h | --help) exec python3 "$bench" --help ;;
        --flanneld | --flanneld=*) binary_given=yes ;;
        --traffic | --traffic=*) traffic_given=yes ;;
        --plugin | --plugin=*) plugin_given=yes ;;
        --pods) pods=yes ;;
    esac
done

need_root "$@"
install_missing ip:iproute2 bridge:iproute2 ethtool:ethtool sysctl:procps ping:iputils-ping \
    python3:python3
[[ $pods == no ]] || install_missing /usr/lib/cni/bridge:containernetworking-plugins
case " $* " in *[=\ ]flanneld=*) install_missing etcd:etcd-server etcdctl:etcd-client ;; esac
case " $* " in *[=\ ]wireguard-go\ *) install_missing wireguard-go:wireguard-go wg:wireguard-tools ;; esac
case " $* " in *[=\ ]nebula\ *) install_missing nebula-cert:nebula ;; esac
[[ -c /dev/net/tun ]] || die "there is no /dev/net/tun: load the module: modprobe tun"

built=()
targets=()
if [[ $traffic_given == no ]]; then
    targets+=(--example traffic)
    built+=(--traffic "$ROOT/target/release/examples/traffic")
fi
if [[ $binary_given == no ]]; then
    targets+=(--bin flanneld)
    built+=(--flanneld "ours=$ROOT/target/release/flanneld")
fi
if [[ $pods == yes && $plugin_given == no ]]; then
    targets+=(--bin flannel)
    built+=(--plugin "$ROOT/target/release/flannel")
fi
if [[ ${#targets[@]} -gt 0 ]]; then
    trap give_back EXIT
    install_build_tools
    find_cargo
    step "Building"
    (cd "$ROOT" && cargo build --release --locked "${targets[@]}") || die "the build failed"
    give_back
fi
# Not built in this process: an interrupt shall reach bench.py alone, which cleans up.
exec python3 -B "$bench" "${built[@]}" "$@"
