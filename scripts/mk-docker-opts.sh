#!/bin/sh
# Writes options for Docker's daemon from flannel's subnet.env, as flannel's own script does:
# same flags, same output, byte for byte.

flannel_env=/run/flannel/subnet.env
docker_env=/run/docker_opts.env
combined_key=DOCKER_OPTS
individual=false
combined=false
with_ip_masq=true

usage() {
    cat >&2 <<END
$0 [-f FLANNEL-ENV-FILE] [-d DOCKER-ENV-FILE] [-i] [-c] [-m] [-k COMBINED-KEY]

Writes options for Docker's daemon from flannel's subnet.env.
    -f FILE  read this file; /run/flannel/subnet.env if not given
    -d FILE  write this file; /run/docker_opts.env if not given
    -i       one variable per option, such as DOCKER_OPT_MTU
    -c       all options in one variable; without -i and -c: both
    -m       leave --ip-masq out
    -k KEY   name of the variable with all options; DOCKER_OPTS if not given
END
    exit 1
}

fail() {
    printf '%s: %s\n' "$0" "$*" >&2
    exit 1
}

while getopts f:d:icmk:h flag; do
    case $flag in
        f) flannel_env=$OPTARG ;;
        d) docker_env=$OPTARG ;;
        i) individual=true ;;
        c) combined=true ;;
        m) with_ip_masq=false ;;
        k) combined_key=$OPTARG ;;
        *) usage ;;
    esac
done
case $combined_key in
    '' | [0-9]* | *[!A-Za-z0-9_]*)
        fail "-k $combined_key: a variable's name has letters, digits and _, and no digit first"
        ;;
esac
if [ $individual = false ] && [ $combined = false ]; then
    individual=true
    combined=true
fi

# Without the file, the variables may come from the environment.
if [ -f "$flannel_env" ]; then
    # The shell would search PATH for a name without a slash.
    case $flannel_env in
        */*) ;;
        *) flannel_env=./$flannel_env ;;
    esac
    # shellcheck source=/dev/null
    . "$flannel_env"
fi

# The names of these matter: all variables that start with DOCKER_OPT_ are collected below.
if [ -n "${FLANNEL_SUBNET:-}" ]; then
    export DOCKER_OPT_BIP="--bip=$FLANNEL_SUBNET"
fi
if [ -n "${FLANNEL_MTU:-}" ]; then
    export DOCKER_OPT_MTU="--mtu=$FLANNEL_MTU"
fi
if [ $with_ip_masq = true ]; then
    # One of both masquerades.
    case ${FLANNEL_IPMASQ:-} in
        '') ;;
        true) export DOCKER_OPT_IPMASQ=--ip-masq=false ;;
        false) export DOCKER_OPT_IPMASQ=--ip-masq=true ;;
        *) fail "FLANNEL_IPMASQ=$FLANNEL_IPMASQ: write true or false" ;;
    esac
fi

printf '' >"$docker_env" || fail "cannot write $docker_env: choose another file by -d"
eval "all=\${$combined_key:-}"
if [ -n "$all" ]; then
    all="$all "
fi
for name in $(set | sed -n 's/^\(DOCKER_OPT_[A-Za-z0-9_]*\)=.*/\1/p' | LC_ALL=C sort -u); do
    # A line of another variable's value may look like one of these.
    eval "[ -n \"\${$name+set}\" ]" || continue
    value=
    eval "value=\$$name"
    if [ $individual = true ]; then
        printf '%s="%s"\n' "$name" "$value" >>"$docker_env"
    fi
    all="$all $value"
done
if [ $combined = true ]; then
    printf '%s="%s"\n' "$combined_key" "$all" >>"$docker_env"
fi

# Docker would take a subnet that is elsewhere: this host's is never reached over a gateway.
if [ -n "${FLANNEL_SUBNET:-}" ] && command -v ip >/dev/null; then
    address=${FLANNEL_SUBNET%/*}
    last=${address##*.}
    subnet=${address%.*}.$((last - 1))/${FLANNEL_SUBNET#*/}
    route=$(ip route show | grep "^$subnet .*via")
    if [ -n "$route" ]; then
        fail "this host's subnet is routed elsewhere already: remove the route \"$route\""
    fi
fi
