#!/bin/sh
# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# Runs the jobs of a share one after the other: SHARE/jobs/NAME/run, with a limit in seconds in NAME/limit. Leaves the
# output in NAME/log, the exit code in NAME/rc, the seconds in NAME/seconds, and in SHARE/beat a sign of life each second. The same on an
# emulated and a native host.
share=$1

if [ "${2:-}" = interactive ]; then
    for job in "$share"/jobs/*; do
        DOORBELL_TMP=$(mktemp -d /tmp/doorbell-job.XXXXXX)
        export DOORBELL_TMP
        sh "$job/run"
        echo $? >"$job/rc"
        rm -rf "$DOORBELL_TMP"
    done
    exit
fi

group='' timer=''
DOORBELL_TMP=''
# Whatever a job started dies with it; and with us.
end_job() {
    [ -z "$group" ] || kill -9 -- "-$group" 2>/dev/null
    [ -z "$timer" ] || kill "$timer" 2>/dev/null
    [ -z "$DOORBELL_TMP" ] || rm -rf "$DOORBELL_TMP"
}
trap 'end_job; exit 130' INT TERM HUP

# What the threads of the session $1 wait for: the only thing to go by when a job has stood still.
waiting() {
    echo "--- hung; its threads, and where they are in the kernel ---"
    for task in /proc/[0-9]*/task/[0-9]*; do
        # After the name, which may have blanks: state, parent, process group, session.
        # shellcheck disable=SC2046
        set -- "$1" $(sed 's/.*) //' "$task/stat" 2>/dev/null)
        [ "${5:-}" = "$1" ] || continue
        echo "$(cat "$task/comm") $2: $(cat "$task/wchan") $(sed 's/.* //' "$task/stack" 2>/dev/null | tr '\n' ' ')"
    done
}

for job in "$share"/jobs/*; do
    limit=$(cat "$job/limit")
    read -r before _ </proc/uptime
    # A directory of its own on a fast file system, gone when the job is.
    DOORBELL_TMP=$(mktemp -d /tmp/doorbell-job.XXXXXX)
    export DOORBELL_TMP
    # A session of its own, so that everything it starts can be found and ended by one number.
    setsid sh "$job/run" </dev/null >"$job/log" 2>&1 &
    group=$!
    # The timer sleeps in short steps because killing it must not leave a long sleep behind.
    (
        n=0
        while [ $n -lt "$limit" ]; do
            echo $n 2>/dev/null >"$share/beat"
            sleep 1
            n=$((n + 1))
        done
        : >"$job/hung"
        waiting "$group" >>"$job/log"
        kill -9 -- "-$group"
    ) >/dev/null 2>&1 &
    timer=$!
    wait "$group" 2>/dev/null
    rc=$?
    end_job
    group='' timer=''
    [ ! -f "$job/hung" ] || rc=124
    read -r after _ </proc/uptime
    echo "$before $after" | awk '{ printf "%.1f\n", $2 - $1 }' >"$job/seconds"
    echo $rc >"$job/rc.new"
    mv "$job/rc.new" "$job/rc"
done
