#!/bin/bash
# restart.sh COMMAND...: runs a training command again for as long as its exit code says that this may help (LAUNCH.md).
#
# It waits RESTART_PAUSE seconds (15) between two starts, twice as long after each start that got no further, at most 16 times as
# long, and gives up after RESTART_LIMIT (8) of those in a row. A start got further when it saved a step that none before it saved.
# SIGTERM to this script goes to the command. The exit code is that of the last start.
limit=${RESTART_LIMIT:-8} pause=${RESTART_PAUSE:-15}
LUMINA_PROGRESS_FILE=$(mktemp) || exit 2
export LUMINA_PROGRESS_FILE
trap 'rm -f "$LUMINA_PROGRESS_FILE"' EXIT
stopping= child= without_progress=0
trap 'stopping=1; [ -n "$child" ] && kill -TERM "$child" 2> /dev/null' TERM
trap 'stopping=1' INT

wait_for() {
    # A signal ends wait, not the process that is waited for.
    while wait "$1"; code=$?; kill -0 "$1" 2> /dev/null; do :; done
}

while true; do
    before=$(cat "$LUMINA_PROGRESS_FILE")
    "$@" & child=$!
    wait_for "$child"
    child=
    case $code in
        75 | 134 | 135 | 137 | 139) ;;   # a restart may help; aborted; SIGBUS, by a disk; killed; SIGSEGV
        *) exit "$code" ;;
    esac
    [ -n "$stopping" ] && exit "$code"
    if [ "$(cat "$LUMINA_PROGRESS_FILE")" = "$before" ]; then
        without_progress=$((without_progress + 1))
    else
        without_progress=0
    fi
    if [ "$without_progress" -ge "$limit" ]; then
        echo "restart.sh: $limit starts in a row saved nothing new, the last ended with exit code $code; see the lines before it," \
            "mend what they name, and start again" >&2
        exit "$code"
    fi
    doublings=$((without_progress < 4 ? without_progress : 4))
    seconds=$((pause << doublings))
    echo "restart.sh: exit code $code; starting again in $seconds s" >&2
    sleep "$seconds" & child=$!
    wait_for "$child"
    child=
    [ -n "$stopping" ] && exit 143
done
