#!/usr/bin/env bash
# Three hosts, three daemons, one overlay, on this machine: sudo scripts/demo.sh
#
# The hosts are network namespaces on one bridge, 10.4.7.21 to 23; each has a pod that the CNI plugin
# adds by the host's subnet.env. The overlay is 172.7.0.0/16; its store is a directory.
# Nothing outside these namespaces is touched, and everything is removed at the end.
set -Eeuo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "$0")/lib.sh"

NAME=flanneld-demo
DIR=/run/$NAME
HOSTS=(21 22 23)
FILE_MIB=64

usage() {
    cat <<END
Usage: sudo scripts/demo.sh [--keep | --clean] [--binary FILE]

  --keep          leave everything running and say how to look around
  --clean         remove what --keep left, and do nothing else
  --binary FILE   run this flanneld, and the CNI plugin beside it, instead of building them
END
}

host() { echo "$NAME-host$1"; }
pod() { echo "$NAME-pod$1"; }
inside() { ip netns exec "$@"; }

# Ends what runs in our namespaces and removes them: these and nothing else.
clean() {
    # Silences the reports about the jobs that are killed here.
    disown -a 2>/dev/null || true
    local netns pid
    for netns in $(ip netns list | awk -v ours="^$NAME-" '$1 ~ ours { print $1 }'); do
        for pid in $(ip netns pids "$netns"); do
            kill -9 "$pid" 2>/dev/null || true
        done
        ip netns del "$netns"
    done
    rm -rf "$DIR"
}

finished=no
finish() {
    local status=$?
    trap - EXIT INT TERM ERR
    if [[ $finished == no ]]; then
        [[ $status -ne 0 ]] || status=1
        if [[ $status -ne 130 && -d $DIR ]]; then
            tail -n 15 "$DIR"/host*/flanneld.log >&2 2>/dev/null || true
        fi
    fi
    if [[ $finished != kept ]]; then
        clean
        printf '\nEverything is removed.\n'
    fi
    give_back
    exit "$status"
}

# wait_until SECONDS COMMAND…: tries until it succeeds.
wait_until() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@"; do
        [[ $SECONDS -lt $deadline ]] || return 1
        sleep 0.05
    done
}

make_hosts() {
    local number
    ip netns add "$NAME-switch"
    ip -n "$NAME-switch" link add br0 type bridge
    ip -n "$NAME-switch" link set br0 up
    for number in "${HOSTS[@]}"; do
        local netns
        netns=$(host "$number")
        ip netns add "$netns"
        ip -n "$netns" link set lo up
        ip -n "$netns" link add eth0 type veth peer name "h$number" netns "$NAME-switch"
        ip -n "$netns" addr add "10.4.7.$number/24" dev eth0
        ip -n "$netns" link set eth0 up
        ip -n "$NAME-switch" link set "h$number" master br0 up
        inside "$netns" sysctl -qw net.ipv4.ip_forward=1
        mkdir -p "$DIR/host$number"
        printf '  host %s   10.4.7.%s\n' "$number" "$number"
    done
}

start_daemon() {
    local number=$1 dir=$DIR/host$1
    # Not by the function: $! shall be the daemon itself, not a shell around it.
    ip netns exec "$(host "$number")" "$binary" \
        --store-dir "$DIR/store" --public-ip "10.4.7.$number" --iface eth0 \
        --subnet-file "$dir/subnet.env" </dev/null >"$dir/flanneld.log" 2>&1 9>&- &
    echo $! >"$dir/pid"
}

ready_or_dead() {
    grep -q 'flanneld is ready' "$DIR/host$1/flanneld.log" || ! kill -0 "$(<"$DIR/host$1/pid")"
}

wait_ready() {
    wait_until 20 ready_or_dead "$1" 2>/dev/null || die "flanneld on host $1 is not ready after 20 s"
    grep -q 'flanneld is ready' "$DIR/host$1/flanneld.log" ||
        die "flanneld on host $1 ended: its last words are below"
}

stop_daemon() {
    local pid
    pid=$(<"$DIR/host$1/pid")
    kill -TERM "$pid"
    wait "$pid" || die "flanneld on host $1 did not stop cleanly: exit $?"
}

# value NUMBER KEY: one variable of a host's subnet.env
value() { sed -n "s/^$2=//p" "$DIR/host$1/subnet.env"; }

# by_cni ADD|DEL NUMBER
by_cni() {
    "$ROOT/scripts/pod.sh" "$1" "${binary%/*}/flannel" "$(host "$2")" "$(pod "$2")" "$DIR/host$2"
}

pod_address() { cat "$DIR/host$1/pod"; }

add_pod() {
    local number=$1
    ip netns add "$(pod "$number")"
    ip -n "$(pod "$number")" link set lo up
    by_cni ADD "$number" >"$DIR/host$number/pod" || die "the CNI plugin did not add pod $number"
    printf '  pod %s   %s\n' "$number" "$(pod_address "$number")"
}

delete_pod() {
    by_cni DEL "$1" || die "the CNI plugin did not delete pod $1"
    ip netns del "$(pod "$1")"
}

show_leases() {
    local number
    printf '  %-18s %-12s %s\n' lease 'public IP' host
    for number in "${HOSTS[@]}"; do
        local subnet key holder
        subnet=$(value "$number" FLANNEL_SUBNET)
        key=${subnet%.*}.0-${subnet#*/}
        holder=$(sed -n 's/.*"PublicIP":"\([^"]*\)".*/\1/p' "$DIR/store/subnets/$key") ||
            die "there is no lease $key in $DIR/store/subnets"
        [[ $holder == "10.4.7.$number" ]] || die "the lease $key belongs to '$holder', not to host $number"
        printf '  %-18s %-12s %s\n' "$key" "$holder" "host $number"
    done
}

reachable() { inside "$(pod "$1")" ping -n -q -c 1 -W 1 "$(pod_address "$2")" >/dev/null; }

ping_matrix() {
    local from to answer
    printf '  %-10s' 'ms from'
    printf '%12s' "${HOSTS[@]/#/to pod }"
    printf '\n'
    for from in "${HOSTS[@]}"; do
        printf '  %-10s' "pod $from"
        for to in "${HOSTS[@]}"; do
            wait_until 10 reachable "$from" "$to" || die "pod $from does not reach pod $to"
            # Until ten answers came: without -w, ping does not wait long for the last one, which is
            # late on a busy machine.
            answer=$(inside "$(pod "$from")" ping -n -q -i 0.02 -c 10 -w 10 "$(pod_address "$to")") ||
                die "pings from pod $from to pod $to are lost"
            printf '%12s' "$(sed -n 's|.*= [^/]*/\([^/]*\)/.*|\1|p' <<<"$answer")"
        done
        printf '\n'
    done
}

listens() { inside "$1" ss -Hltn "sport = :$2" | grep -q LISTEN; }

throughput() {
    local server result
    server=$(pod 22)
    inside "$server" iperf3 -s -1 </dev/null >/dev/null 2>&1 9>&- &
    wait_until 10 listens "$server" 5201 || die "the iperf3 server in pod 22 does not start"
    result=$(inside "$(pod 21)" iperf3 -c "$(pod_address 22)" -t 3 -f g) || die "iperf3 failed: $result"
    awk '/receiver/ { print "  TCP, one stream, pod 21 to pod 22: " $7 " " $8 }' <<<"$result"
}

send_file() {
    local server sent received
    server=$(pod 23)
    head -c "${FILE_MIB}M" /dev/urandom >"$DIR/file"
    sent=$(sha256sum <"$DIR/file")
    inside "$server" socat -u TCP-LISTEN:9000 STDOUT 9>&- </dev/null |
        sha256sum >"$DIR/received.sha256" 9>&- &
    local receiver=$!
    wait_until 10 listens "$server" 9000 || die "the receiver in pod 23 does not start"
    inside "$(pod 21)" timeout 60 socat -u "FILE:$DIR/file" "TCP:$(pod_address 23):9000" ||
        die "the file could not be sent from pod 21 to pod 23"
    wait "$receiver"
    received=$(<"$DIR/received.sha256")
    rm "$DIR/file"
    printf '  sent from pod 21      sha256 %.32s…\n' "$sent"
    printf '  received in pod 23    sha256 %.32s…\n' "$received"
    [[ $sent == "$received" ]] || die "the file was damaged on its way"
}

look_around() {
    cat <<END
Everything keeps running. To look around (as root):

  ip netns exec $(pod 21) ping $(pod_address 22)
  ip netns exec $(host 21) ip addr show flannel0
  ip netns exec $(host 21) ip route
  ls $DIR/store/subnets
  cat $DIR/host21/subnet.env
  tail -f $DIR/host21/flanneld.log

To remove it:  sudo scripts/demo.sh --clean
END
}

keep=no clean_only=no binary=
arguments=("$@")
while [[ $# -gt 0 ]]; do
    case $1 in
        --keep) keep=yes ;;
        --clean) clean_only=yes ;;
        --binary)
            [[ -x ${2:-} ]] || die "--binary wants an executable file, not '${2:-}'"
            binary=$(realpath "$2")
            shift
            ;;
        -h | --help)
            usage
            exit 0
            ;;
        *)
            usage >&2
            die "unknown argument: $1"
            ;;
    esac
    shift
done

need_root "${arguments[@]}"
install_missing ip:iproute2 ss:iproute2 sysctl:procps ping:iputils-ping iperf3:iperf3 socat:socat \
    flock:util-linux /usr/lib/cni/bridge:containernetworking-plugins
exec 9>/run/lock/$NAME
flock -n 9 || die "another demo is running: wait for it, or end it with Ctrl-C"
if [[ $clean_only == yes ]]; then
    clean
    echo "Everything is removed."
    exit 0
fi
trap give_back EXIT
if [[ -z $binary ]]; then
    install_build_tools
    find_cargo
    step "Building flanneld"
    (cd "$ROOT" && cargo build --release --locked 9>&-) || die "the build failed"
    binary=$ROOT/target/release/flanneld
fi
[[ -x ${binary%/*}/flannel ]] || die "there is no CNI plugin flannel beside $binary"
[[ -c /dev/net/tun ]] || die "there is no /dev/net/tun: load the module: modprobe tun"

trap finish EXIT
trap 'exit 130' INT TERM
trap 'printf "%s: line %s failed: %s\n" "${0##*/}" "$LINENO" "$BASH_COMMAND" >&2' ERR
clean
began=$SECONDS

step "Three hosts on one network"
mkdir -p "$DIR/store"
make_hosts

step "The store: $DIR/store/config"
echo '{"Network":"172.7.0.0/16","Backend":{"Type":"udp"}}' | tee "$DIR/store/config" | sed 's/^/  /'

step "Three daemons"
# As an operator would who wants this host to keep the subnet it has in the tutorial.
cat >"$DIR/host21/subnet.env" <<END
FLANNEL_NETWORK=172.7.0.0/16
FLANNEL_SUBNET=172.7.21.1/24
FLANNEL_MTU=1472
FLANNEL_IPMASQ=false
END
# First alone, so that nobody draws its subnet before it asks.
start_daemon 21
wait_ready 21
[[ $(value 21 FLANNEL_SUBNET) == 172.7.21.1/24 ]] ||
    die "host 21 asked for 172.7.21.1/24 and got $(value 21 FLANNEL_SUBNET)"
start_daemon 22
start_daemon 23
wait_ready 22
wait_ready 23
show_leases
echo "  host 21 found 172.7.21.1/24 in its subnet.env and got it again"

step "A pod on each host, added by the CNI plugin"
for number in "${HOSTS[@]}"; do add_pod "$number"; done

step "Pinging pod to pod"
ping_matrix

step "Throughput"
throughput

step "A file of $FILE_MIB MiB through the overlay"
send_file

if [[ $keep == no ]]; then
    step "Deleting the pods, stopping the daemons"
    for number in "${HOSTS[@]}"; do delete_pod "$number"; done
    for number in "${HOSTS[@]}"; do stop_daemon "$number"; done
    finished=yes
fi
printf '\n'
good "The overlay works ($((SECONDS - began)) s)."
if [[ $keep == yes ]]; then
    finished=kept
    printf '\n'
    look_around
fi
