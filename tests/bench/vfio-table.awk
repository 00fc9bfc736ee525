# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What tests/bench/vfio-on-host has said, as a table. Of several figures the median.
function median(who, key) { return one(who, key, 0.5) }
function least(who, key) { return one(who, key, 0) }
function one(who, key, part,    n, i, j, t, v) {
    n = split(all[who, key], v, " ")
    if (n == 0) return ""
    for (i = 2; i <= n; i++) {
        t = v[i] + 0
        for (j = i - 1; j >= 1 && v[j] + 0 > t; j--) v[j + 1] = v[j]
        v[j + 1] = t
    }
    return v[part == 0 ? 1 : int((n + 1) * part)] + 0
}
{ sub(/\r$/, "") }
/^figure: / { all[$2, $3] = all[$2, $3] " " $4 }
/^host: Linux/ { host = substr($0, 7) }
/^version: / { version[$2] = substr($0, 11 + length($2)) }
END {
    print "4 KiB direct reads of an NVMe disk at depth 1, 8000 at a time; medians. Host: " host "; emulated" (clock ? ", its time by instructions" : "")
    print version["doorbell"] "; " version["qemu"]; print ""
    printf "%-10s %8s %8s %8s %10s %12s %14s %12s %14s\n", "", "fastest", "reads/s", "MB/s", "of native", "all exits", "to userspace", "ioctls", "to probe, s"
    native = median("native", "seconds")
    split("native doorbell qemu", names, " ")
    for (i = 1; i <= 3; i++) {
        who = names[i]; s = median(who, "seconds")
        if (s == "" || s == 0) { print who, "not measured"; continue }
        printf "%-10s %8.0f %8.0f %8.2f %10.2f", who, 8000 / least(who, "seconds"), 8000 / s, 8000 * 4096 / s / 1e6, native / s
        if (who != "native")
            printf " %12d %14d %12s %14.2f", median(who, "kvm_exit"), median(who, "kvm_userspace_exit"), median(who, "ioctls-1"), median(who, "probed")
        print ""
    }
    print ""
    printf "exits: 24,000 reads, boot and power-off included. ioctls: 8000 reads; without any: doorbell %s, qemu %s\n", median("doorbell", "ioctls-0"), median("qemu", "ioctls-0")
    printf "mapping the guest's memory for DMA, ms (traced):"
    for (size = 256; size <= 2048; size *= 2) printf "  %d MiB %.1f", size, 1000 * median("doorbell", "map-" size)
    print ""
}
