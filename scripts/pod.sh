#!/usr/bin/env bash
# Calls the CNI plugin for a pod, as a container runtime does:
#
#   scripts/pod.sh ADD|DEL PLUGIN HOST POD DIR
#
# PLUGIN is our `flannel`, HOST and POD are network namespaces, DIR is the host's directory: it holds
# subnet.env and takes all files of the plugins. ADD prints the pod's address.
set -euo pipefail

command=$1 plugin=$2 host=$3 pod=$4 dir=$5

# Without ipMasq, pods see each other's own addresses.
config=$(
    cat <<END
{
  "name": "cbr0",
  "cniVersion": "1.0.0",
  "type": "flannel",
  "subnetFile": "$dir/subnet.env",
  "dataDir": "$dir/cni",
  "ipam": { "dataDir": "$dir/ipam" },
  "delegate": { "isDefaultGateway": true, "ipMasq": false }
}
END
)
# Where Debian has the plugins bridge and host-local.
answer=$(ip netns exec "$host" env CNI_COMMAND="$command" CNI_CONTAINERID="$pod" \
    CNI_NETNS="/run/netns/$pod" CNI_IFNAME=eth0 CNI_PATH=/usr/lib/cni \
    "$plugin" <<<"$config" 2>>"$dir/cni.log") || {
    printf '%s %s: %s\n' "$command" "$pod" "${answer//$'\n'/ }" >&2
    exit 1
}
if [[ $command == ADD ]]; then
    ip -n "$pod" -4 -oneline addr show dev eth0 | sed 's|.* inet \([0-9.]*\)/.*|\1|'
fi
