# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
# -nodefaults and the rest take away what the comparison does not need: a display, a network card, a monitor.
set -- "$@" $program -M virt,gic-version=host -accel kvm -cpu host -smp 1 -m "$memory" \
    -nodefaults -no-user-config -nic none -display none -serial stdio -no-reboot \
    -kernel "$kernel" -initrd "$initrd" -append "console=ttyAMA0 $quiet"
# io_uring where that is possible, as Doorbell has it; a thread of its own for the disk if asked for.
if [ -n "${disk:-}" ]; then
    [ "$direct" = on ] && cache=none || cache=writeback
    [ -z "${iothread:-}" ] || set -- "$@" -object iothread,id=io
    set -- "$@" -drive "file=$disk,if=none,id=disk,format=raw,cache=$cache,aio=io_uring,discard=unmap" \
        -device "virtio-blk-pci,drive=disk,num-queues=1,disable-legacy=on${iothread:+,iothread=io}"
fi
if [ -n "${tap:-}" ]; then
    [ "${vhost:-auto}" = off ] && of_kernel=off || of_kernel=on
    set -- "$@" -netdev "tap,id=net,ifname=$tap,script=no,downscript=no,vhost=$of_kernel" -device virtio-net-pci,netdev=net,disable-legacy=on,romfile=
fi
