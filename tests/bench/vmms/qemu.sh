# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
# -nodefaults and the rest take away what the comparison does not need: a display, a network card, a monitor.
set -- "$@" $program -M virt,gic-version=host -accel kvm -cpu host -smp 1 -m "$memory" \
    -nodefaults -no-user-config -nic none -display none -serial stdio -no-reboot \
    -kernel "$kernel" -initrd "$initrd" -append "console=ttyAMA0 $quiet"
