# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
set -- "$@" "$program" run --kernel "$kernel" --initrd "$initrd" --cpus 1 --mem "$memory" \
    --console serial --network mode=none --params "console=ttyS0 $quiet"
