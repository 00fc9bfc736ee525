# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
set -- "$@" "$program" --kernel "$kernel" --initramfs "$initrd" --cpus boot=1 --memory "size=${memory}M" \
    --serial tty --console off --cmdline "console=ttyAMA0 $quiet"
