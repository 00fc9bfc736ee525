# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
set -- "$@" "$program" run --kernel "$kernel" --initrd "$initrd" --cpus 1 --memory "${memory}M" \
    --cmdline "console=ttyS0 $quiet"
[ -z "${disk:-}" ] || set -- "$@" --disk "path=$disk,format=raw,direct=$direct"
[ -z "${tap:-}" ] || set -- "$@" --net "tap=$tap${vhost:+,vhost=$vhost}"
