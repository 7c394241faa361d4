#!/usr/bin/env bash
# A real PostgreSQL for the tests, on loopback; it asks for the password. Debian: apt-get install postgresql
#   postgres_server.sh start DIR PORT USER PASSWORD   returns when it answers; makes a database `pills`
#   postgres_server.sh stop DIR
# It does not run as root: for root it runs as the user postgres of the package, to whom DIR is given.
set -euo pipefail

as_server() {
    if [ "$(id -u)" = 0 ]; then
        setpriv --reuid=postgres --regid=postgres --clear-groups -- "$@"
    else
        "$@"
    fi
}

start() {
    bin=$(find /usr/lib/postgresql -name initdb -printf '%h\n' | sort -V | tail -1)
    mkdir -p "$1"
    cd "$1"
    echo "$bin" >bin
    echo "$4" >password
    if [ "$(id -u)" = 0 ]; then chown -R postgres .; fi
    {
        as_server "$bin/initdb" --pgdata=data --username="$3" --auth=scram-sha-256 \
            --pwfile=password --encoding=UTF8 --locale=C --no-sync
        as_server "$bin/pg_ctl" --pgdata=data --wait --timeout=60 --log=server.log \
            --options="-h 127.0.0.1 -p $2 -k $1 -c fsync=off" start
        PGPASSWORD=$4 as_server "$bin/createdb" --host=127.0.0.1 --port="$2" --username="$3" pills
    } >start.log 2>&1 </dev/null
}

stop() {
    cd "$1"
    as_server "$(cat bin)/pg_ctl" --pgdata=data --mode=immediate stop >stop.log 2>&1
}

"$@"
