#!/usr/bin/env bash
# A real S3 server for the tests: Ceph's gateway with one monitor and one in-memory store, on
# loopback, as whoever calls it. Debian: apt-get install radosgw ceph-mon ceph-osd
#   s3_server.sh start DIR PORT ACCESS_KEY SECRET_KEY   returns when the gateway answers on PORT
#   s3_server.sh stop DIR
# The monitor listens on PORT+1, the store on PORT+2 to PORT+9. Nothing is kept after stop but logs.
set -euo pipefail

start() {
    dir=$(mkdir -p "$1" && cd "$1" && pwd)
    port=$2
    fsid=$(cat /proc/sys/kernel/random/uuid)
    mkdir "$dir/mon" "$dir/osd" "$dir/rgw" "$dir/run"
    cat >"$dir/ceph.conf" <<CONF
[global]
fsid = $fsid
mon host = [v2:127.0.0.1:$((port + 1))]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth allow insecure global id reclaim = false
run dir = $dir/run
admin socket = $dir/run/\$name.asok
pid file = $dir/run/\$name.pid
log file = $dir/\$name.log
mon cluster log file = $dir/cluster.log
keyring = $dir/keyring
crash dir = $dir/run
ms bind ipv6 = false
ms bind msgr1 = false
ms bind port min = $((port + 2))
ms bind port max = $((port + 9))
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon allow pool size one = true
mon max pg per osd = 1000
mon data avail warn = 1
mon data avail crit = 0
[mon.a]
mon data = $dir/mon
[osd.0]
osd data = $dir/osd
osd objectstore = memstore
memstore device bytes = 4294967296
[client.admin]
rgw data = $dir/rgw
rgw frontends = beast endpoint=127.0.0.1:$port
rgw enable usage log = false
rgw run sync thread = false
rgw dns name = localhost
CONF
    export CEPH_CONF=$dir/ceph.conf
    {
        ceph-authtool --create-keyring "$dir/keyring" --gen-key -n mon. --cap mon 'allow *'
        for name in client.admin osd.0; do
            ceph-authtool "$dir/keyring" --gen-key -n "$name" \
                --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
        done
        monmaptool --create --fsid "$fsid" --addv a "[v2:127.0.0.1:$((port + 1))]" "$dir/monmap"
        ceph-mon -i a --mkfs --monmap "$dir/monmap" --keyring "$dir/keyring"
        ceph-mon -i a
        ceph-osd -i 0 --mkfs
        ceph-osd -i 0
        radosgw-admin user create --uid=test --display-name=test --access-key="$3" --secret-key="$4"
        radosgw -n client.admin
    } >"$dir/start.log" 2>&1
    for _ in $(seq 60); do
        if (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>>"$dir/start.log"; then return; fi
        sleep 1
    done
    echo "the gateway does not answer on port $port; see $dir/*.log" >&2
    return 1
}

stop() {
    for name in client.admin osd.0 mon.a; do
        [ -f "$1/run/$name.pid" ] && kill -9 "$(cat "$1/run/$name.pid")" || true
    done
}

"$@"
