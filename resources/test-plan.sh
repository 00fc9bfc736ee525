# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=bash
#
# Reads tests/plan: which test executable runs on which hosts, and which tests may skip there. docs/TESTING.md has the format.

# shellcheck disable=SC2154
plan=$root/tests/plan

plan_lines() { sed -e 's/[[:space:]]*#.*//' -e '/^[[:space:]]*$/d' "$plan" 2>/dev/null; }

# The packages whose tests run on arm64.
plan_packages() { plan_lines | sed -n 's/^packages //p'; }

# Prints "HOST CPUS MEMORY LIMIT WITH" for each host that the executable $1 of package $2 is to run on.
plan_hosts() {
    local word pattern hosts cpus memory limit with found='' host
    while read -r word pattern hosts cpus memory limit with; do
        # shellcheck disable=SC2053
        [[ $2/$1 == $pattern || $1 == $pattern ]] || continue
        case $word in
        only-here) return 0 ;;
        run)
            found=1
            for host in ${hosts//,/ }; do echo "$host ${cpus:-2} ${memory:-4096} ${limit:-600} $with"; done
            ;;
        esac
    done < <(plan_lines)
    [ -n "$found" ] || echo "v3 2 4096 600"
}

# True if the plan expects the test $3 of executable $1 to skip on host $2.
plan_skips() {
    local word pattern hosts name _
    while read -r word pattern hosts name _; do
        [ "$word" = skip ] || continue
        # shellcheck disable=SC2053
        [[ $1 == $pattern && ,$hosts, == *,$2,* && $3 == $name ]] && return 0
    done < <(plan_lines)
    return 1
}
