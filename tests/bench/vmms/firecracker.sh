# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
# shellcheck shell=sh disable=SC2154
# Firecracker takes its machine from a file.
config=$work/firecracker-${initrd##*/}.json
cat >"$config" <<JSON
{ "boot-source": { "kernel_image_path": "$kernel", "initrd_path": "$initrd", "boot_args": "console=ttyS0 $quiet" },
  "drives": [], "machine-config": { "vcpu_count": 1, "mem_size_mib": $memory } }
JSON
set -- "$@" "$program" --no-api --config-file "$config"
