#!/bin/sh
# PROGRAM STATISTICS COMMAND…: runs a command while sccache's server is up, and leaves in the directory STATISTICS what
# the server counted. With STATISTICS/settings, lines NAME=VALUE, its storage is a remote one; where that cannot be had,
# STATISTICS/trouble says why, and the server keeps its objects on disk.
program=$1 statistics=$2
shift 2
settings=$statistics/settings

start() (
    if [ "$1" = remote ]; then
        while IFS= read -r line; do export "$line"; done <"$settings"
    fi
    exec "$program" --start-server
)

if [ -x "$program" ]; then
    if ! { [ -r "$settings" ] && start remote >"$statistics/trouble" 2>&1 && rm "$statistics/trouble"; }; then
        start disk >/dev/null 2>&1
    fi
fi
"$@"
status=$?
if [ -x "$program" ]; then
    "$program" --show-stats --stats-format=json >"$statistics/sccache-$$.json" 2>/dev/null
    "$program" --stop-server >/dev/null 2>&1
fi
exit $status
