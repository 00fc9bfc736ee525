# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# What every script under resources/ shares: where things are, how to say something, and how the cache is filled.
# The cache is only ever filled by renaming a finished directory into place, so an interrupted run leaves nothing broken.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${DOORBELL_CACHE:-${XDG_CACHE_HOME:-${HOME:?}/.cache}/doorbell}
machine=$(uname -m)
# shellcheck disable=SC2034
target=aarch64-unknown-linux-gnu
# What a kernel that cannot go on says on its console.
# shellcheck disable=SC2034
kernel_died='Internal error|Kernel panic|BUG: |Unable to handle'

say() { printf '==> %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Run a command (or function) so that a signal to this script ends it as well. A shell that runs it in the foreground
# would not look at the signal before the command is done.
child=''
child() {
    local rc=0
    "$@" <&0 &
    child=$!
    wait "$child" || rc=$?
    child=''
    return "$rc"
}
end_child() {
    [ -z "$child" ] || kill "$child" 2>/dev/null || true
    [ -z "$child" ] || wait "$child" 2>/dev/null || true
}
trap 'end_child; exit 130' INT TERM HUP

# Hold the cache's lock NAME until this script ends; say so when that means waiting.
lock() {
    mkdir -p "$cache/locks" || die "cannot write the cache directory $cache (set DOORBELL_CACHE)"
    exec 9>"$cache/locks/$1"
    flock -n 9 || { say "waiting for another run that prepares: $1"; flock 9; }
}

# A scratch directory inside the cache (same file system, so that rename works), removed when the script ends.
scratch() {
    mkdir -p "$cache/tmp"
    scratch=$(mktemp -d "$cache/tmp/XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    trap 'end_child; exit 130' INT TERM HUP
}

# Move the finished scratch directory $1 to its place $2.
settle() {
    mkdir -p "$(dirname "$2")"
    rm -rf "$2"
    mv -T "$1" "$2"
}

# Run a long command with its output in a log; print a sign of life every ten seconds; show the log's tail on failure.
# usage: slowly LOG 'what it does' 'command that prints the progress' CMD...
slowly() {
    local log=$1 what=$2 progress=$3 start=$SECONDS rc=0 n=0
    shift 3
    say "$what ..."
    "$@" >"$log" 2>&1 </dev/null 9>&- &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        sleep 0.5
        n=$((n + 1))
        if [ $((n % 20)) = 0 ]; then
            printf '    %s: %ds %s\n' "$what" $((SECONDS - start)) "$(LOG=$log eval "$progress" 2>/dev/null)" >&2
        fi
    done
    wait "$child" || rc=$?
    child=''
    if [ "$rc" != 0 ]; then
        tail -n 30 "$log" >&2
        die "$what: failed (status $rc)"
    fi
    say "$what: done in $((SECONDS - start)) s"
}

# True where KVM can be had without emulation.
native() { [ "$machine" = aarch64 ] && [ -r /dev/kvm ] && [ -w /dev/kvm ]; }

# Download the arm64 package $1 and unpack it into the directory $2; nothing gets installed.
unpack_arm64() {
    local dir=$2.deb name=$1
    [ "$machine" = aarch64 ] || name=$1:arm64
    rm -rf "$dir"
    mkdir -p "$dir" "$2"
    "$root/resources/packages" arm64-lists
    # A package list that is older than the archive names files which are gone: refresh it once.
    if ! (cd "$dir" && apt-get -q download "$name") >"$dir/log" 2>&1; then
        "$root/resources/packages" refresh || { cat "$dir/log" >&2; die "cannot download the Debian package $name"; }
        (cd "$dir" && apt-get -q download "$name") >"$dir/log" 2>&1 ||
            { cat "$dir/log" >&2; die "cannot download the Debian package $name"; }
    fi
    dpkg -x "$dir"/*.deb "$2"
    dpkg-deb -f "$dir"/*.deb Version >"$2/version"
    rm -rf "$dir"
}

# Where this machine gets Debian from; where that is not in apt's sources, because it is another system, whence debootstrap would get it.
mirror() {
    local sources
    sources=$(cat /etc/apt/sources.list.d/*.sources /etc/apt/sources.list 2>/dev/null || true)
    if [[ $sources =~ https?://[^[:space:]]+/debian/?[[:space:]] ]]; then
        echo "${BASH_REMATCH[0]%%[[:space:]]*}"
    else
        sed -n 's/^DEF_MIRROR="\(.*\)"$/\1/p' "$(command -v debootstrap)" 2>/dev/null | grep . ||
            die "apt's sources name no mirror of Debian, and debootstrap is not there to say one"
    fi
}

# Have apt see Debian's suite $1 and nothing else for the rest of this script, and of that $2, deb or deb-src; $3 is an option of the source, such as
# arch=arm64. Its lists lie in the scratch directory, and this machine's own sources stay as they are.
only_suite() {
    local dir=$scratch/apt from
    from=$(mirror) || exit
    mkdir -p "$dir"/{lists/partial,cache/archives/partial}
    echo "$2 [${3:+$3 }signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $from $1 main" >"$dir/sources.list"
    cat >"$dir/apt.conf" <<CONF
Dir::Etc::sourcelist "$dir/sources.list";
Dir::Etc::sourceparts "-";
Dir::State::lists "$dir/lists";
Dir::Cache "$dir/cache";
APT::Sandbox::User "root";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
CONF
    export APT_CONFIG=$dir/apt.conf
    apt-get -q update >"$scratch/log" 2>&1 || { tail -n 5 "$scratch/log" >&2; die "cannot read Debian's package list of $1"; }
}
