# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
set -- "$@" "$program" boot --kernel "$kernel" --initramfs "$initrd" --cpu count=1 --memory "size=${memory}M" \
    --cmdline "console=ttyAMA0 $quiet"
