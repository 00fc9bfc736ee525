# SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
#
# What tests/bench/virtio-on-host has said, as tables. Of several times the fastest and the median.
function sorted(who, what, v,    n, i, j, t) {
    n = split(all[who, what], v, " ")
    for (i = 2; i <= n; i++) {
        t = v[i] + 0
        for (j = i - 1; j >= 1 && v[j] + 0 > t; j--) v[j + 1] = v[j]
        v[j + 1] = t
    }
    return n
}
# A count for each request.
function each(who, key, what,    n) { n = all[who, key " " what]; return n == "" ? "-" : sprintf("%.3f", n / requests[name]) }
BEGIN {
    title["memory"] = "A disk in the host's memory, by its page cache; network by vhost-net"
    title["nvme"] = "An NVMe disk of the host's, past its page cache; network in userspace"
    split("send receive ping", list, " ")
    for (i in list) net[list[i]]
    unit["send"] = unit["receive"] = unit["sequential"] = "MB/s"
}
{ sub(/\r$/, "") }
/^test: / { requests[$2] = $3; bytes[$2] = $4; tests[++count] = $2 }
/^figure: / { all[$2, $3 " " $4 " " $5] = all[$2, $3 " " $4 " " $5] " " $6 }
/^host: Linux/ { host = substr($0, 7) }
/^version: / { version[$2] = substr($0, 11 + length($2)); vmms[++n_vmms] = $2 }
END {
    print "One vCPU, 256 MiB. Host: " host "; emulated" (clock ? ", its time by instructions" : "")
    for (i = 1; i <= n_vmms; i++) print vmms[i] ": " version[vmms[i]]
    split("memory nvme", kinds, " ")
    for (k = 1; k <= 2; k++) {
        print ""; print title[kinds[k]]
        printf "%-12s %-14s %9s %9s %-10s %9s %9s %9s %9s %9s\n", "", "", "fastest", "median", "", "exits", "returns", "notified", "syscalls", "interr."
        for (t = 1; t <= count; t++) {
            name = tests[t]; key = kinds[k] " " name
            for (i = 1; i <= n_vmms; i++) {
                who = vmms[i]; n = sorted(who, key " ns", v)
                if (n == 0 && all[who, key " kvm_exit"] == "") continue
                scale = unit[name] == "MB/s" ? bytes[name] / 1e6 : 1
                # What waits for another machine's disk does not wait by instructions.
                if (clock && kinds[k] == "nvme" && !(name in net)) n = 0
                best = n && v[1] ? requests[name] * scale / v[1] * 1e9 : 0
                mid = n && v[1] ? requests[name] * scale / v[int((n + 1) / 2)] * 1e9 : 0
                printf "%-12s %-14s %9s %9s %-10s %9s %9s %9s %9s %9s\n", i == 1 ? name : "", who, n ? sprintf("%.0f", best) : "-", n ? sprintf("%.0f", mid) : "-", unit[name] ? unit[name] : "requests/s",
                    each(who, key, "kvm_exit"), each(who, key, "kvm_userspace_exit"), each(who, key, "kvm_mmio"), each(who, key, "syscalls"), each(who, key, "interrupts")
            }
        }
    }
    print ""
    print "exits of all kinds, returns to userspace, notifications and other accesses to devices, system calls of the VMM, interrupts: for each request"
    print "(send, receive: for each MB), in one run of their own"
    for (i = 1; i <= n_vmms; i++) {
        n = sorted(vmms[i], "login boot ns", v)
        if (n) printf "%s%s %.1f s fastest, %.1f s median of %d", i == 1 ? "from exec to login: " : "; ", vmms[i], v[1] / 1e9, v[int((n + 1) / 2)] / 1e9, n
    }
    print ""
}
