# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2034
# QEMU with a thread of its own for the disk, as its manual advises for speed; without `iothread` the main thread serves it.
iothread=1
# shellcheck disable=SC1091,SC2154
. "$bench/vmms/qemu.sh"
iothread=
