#!/usr/bin/env bash
# Hosts with a network of their own on this machine, and a Ray cluster of them with a token (root).
#
#   netns_hosts.sh up DIR [COUNT]        start COUNT hosts (3), the first is Ray's head
#   netns_hosts.sh exec DIR HOST CMD...  run a command on host 0, 1, ...; RAY_* are set for it
#   netns_hosts.sh cut DIR HOST          take its link down, as if the cable were pulled
#   netns_hosts.sh mend DIR HOST         and up again
#   netns_hosts.sh down DIR              end what runs on the hosts, and the hosts
#
# A host is a network namespace: its processes reach other hosts by their addresses (10.77.0.1 and
# following) and nothing else; files and processes are the machine's. DIR is a new folder with a
# name of 40 letters at most (Ray's sockets lie in it). CPUS is of a host (1), FAST=1 notices a lost host in 4 s.
set -euo pipefail

usage() {
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" >&2
    exit 2
}
[ $# -ge 2 ] || usage
command=$1
directory=$(realpath -m "$2")
shift 2
name=d$(printf '%s' "$directory" | cksum | cut -d' ' -f1) # of this cluster's namespaces
switch=$name-switch

on() { # on HOST CMD...: in its network, with what Ray asks for
    local host=$1
    shift
    ip netns exec "$name-$host" env -u RAY_AUTH_TOKEN RAY_AUTH_MODE=token \
        RAY_AUTH_TOKEN_PATH="$directory/token" RAY_ADDRESS=10.77.0.1:6379 \
        RAY_USAGE_STATS_ENABLED=0 GLOO_SOCKET_IFNAME=eth0 "$@"
}

begin() {
    local count=${1:-3} host address
    [ ! -e "$directory" ] || { echo "netns_hosts: $directory is there; give a new folder" >&2; exit 2; }
    [ ${#directory} -le 40 ] || # of the 107 that a socket's name may have
        { echo "netns_hosts: $directory is too long for Ray's sockets; give 40 letters at most" >&2; exit 2; }
    [ "$(id -u)" = 0 ] || { echo "netns_hosts: namespaces need root" >&2; exit 2; }
    mkdir -p "$directory" && chmod 700 "$directory"
    (umask 077 && od -An -N32 -tx1 /dev/urandom | tr -d ' \n' >"$directory/token")
    trap end ERR
    ip netns add "$switch"
    ip -n "$switch" link add bridge type bridge
    ip -n "$switch" link set bridge up
    for ((host = 0; host < count; host++)); do
        address=10.77.0.$((host + 1))
        ip netns add "$name-$host"
        ip -n "$name-$host" link set lo up
        ip -n "$switch" link add "port$host" type veth peer name eth0 netns "$name-$host"
        ip -n "$switch" link set "port$host" master bridge up
        ip -n "$name-$host" address add "$address/24" dev eth0
        ip -n "$name-$host" link set eth0 up
        start "$host" "$address" >"$directory/$host.log" 2>&1 ||
            { tail -n 5 "$directory/$host.log" >&2; false; }
    done
    echo "$count hosts; the head is 10.77.0.1:6379"
}

start() { # each with a folder of its own, or Ray would take them for one machine's nodes
    local host=$1 address=$2 words=(--address 10.77.0.1:6379)
    if [ "$host" = 0 ]; then
        words=(--head --port 6379 --include-dashboard false)
        if [ -n "${FAST:-}" ]; then
            words+=(--system-config '{"health_check_initial_delay_ms": 1000,
                "health_check_period_ms": 500, "health_check_timeout_ms": 1000,
                "health_check_failure_threshold": 3}')
        fi
    fi
    on "$host" env -u RAY_ADDRESS ray start "${words[@]}" --node-ip-address "$address" \
        --num-cpus "${CPUS:-1}" --object-store-memory 200000000 --temp-dir "$directory/$host"
}

end() {
    trap - ERR
    local space
    for space in $(ip netns list | cut -d' ' -f1 | grep "^$name-" || true); do
        ip netns pids "$space" | xargs -r kill -9 || true
        ip netns del "$space"
    done
}

case $command in
up) begin "$@" ;;
exec) on "$@" ;;
cut) ip -n "$switch" link set "port$1" down ;;
mend) ip -n "$switch" link set "port$1" up ;;
down)
    end
    rm -rf "$directory"
    ;;
*) usage ;;
esac
