// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The Debian package, as its user meets it: installed on a Debian, looked at, used, removed.

#![cfg(target_arch = "aarch64")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::env;
use std::fs;
use std::path::Path;

use doorbell_tests::guest::{Finished, Host, Scratch, command};
use doorbell_tests::{host_or_skip, skip};

/// Goes into a Debian with the host's devices, in a mount namespace that goes with it, and installs the package there. What `inside` does then ends with its removal.
/// `/tmp` is empty there but for a kernel and two initial RAM disks.
fn installed(host: &Host, disk: &str, package: &str, inside: &str) -> Finished {
    let scratch = Scratch::new();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    let root = root.display();
    let copy = |from: &Path, to: &str| format!("cp {} {root}/tmp/{to}", from.display());
    let files = [
        copy(&host.kernel, "Image"),
        copy(&host.initrd, "initrd"),
        copy(&host.bench_initrd, "bench"),
        copy(Path::new(package), "doorbell.deb"),
    ];
    let script = format!(
        r#"set -e
        mount -t ext4 {disk} {root}
        for place in dev proc sys; do mount -o rbind /$place {root}/$place; done
        for place in tmp run; do mount -t tmpfs tmpfs {root}/$place; done
        {files}
        cat >{root}/tmp/inside <<'INSIDE'
        export PATH=/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
        everything() {{ find / -xdev -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' | sort; }}
        everything >/tmp/before
        dpkg -i /tmp/doorbell.deb || exit 90
        {inside}
        dpkg -r doorbell || exit 91
        everything >/tmp/after
        diff /tmp/before /tmp/after && echo left=nothing
INSIDE
        exec chroot {root} /bin/bash /tmp/inside"#,
        files = files.join("\n"),
    );
    command(&["unshare", "-m", "/bin/sh", "-c", &script], None)
}

/// The disk and the package. Their host is `resources/host/with/package`.
fn debian() -> Option<(String, String)> {
    Some((env::var("DOORBELL_DEBIAN_DISK").ok()?, env::var("DOORBELL_DEB").ok()?))
}

#[test]
fn it_installs_runs_a_guest_as_its_unit_would_and_leaves_nothing() {
    let host = host_or_skip!();
    let Some((disk, package)) = debian() else { skip!("there is no package here, or no Debian for it") };
    let end = installed(
        &host,
        &disk,
        &package,
        r#"
        echo changed=$(dpkg --verify doorbell | wc -l)
        doorbell doctor >/tmp/doctor; echo doctor=$?
        echo version=$(doorbell --version)
        unit=/usr/lib/systemd/system/doorbell@.service
        systemd-analyze verify --man=no $unit 2>&1; echo verify=$?
        echo completion=$(bash -c '. /usr/share/bash-completion/completions/doorbell; complete -p doorbell')
        echo pages=$(dpkg -L doorbell | grep -c '/man1/doorbell.*\.1\.gz$')
        echo page=$(zcat /usr/share/man/man1/doorbell-run.1.gz | grep -c '^.SH')
        echo licences=$(zcat /usr/share/doc/doorbell/licences.gz | grep -c '^kvm-ioctls-')
        printf '%s\n' 'kernel = "/tmp/Image"' 'initrd = "/tmp/initrd"' 'memory = "128M"' \
            'cmdline = "console=ttyS0 quiet doorbell.do=poweroff"' >/etc/doorbell/one.toml
        start=$(sed -n 's/^ExecStart=//p' $unit | sed 's/%i/one/')
        $start </dev/null; echo unit=$?
        doorbell run --kernel /tmp/Image --initrd /tmp/bench --memory 128M --cmdline quiet </dev/null; echo bench=$?
        rm /etc/doorbell/one.toml
        "#,
    );
    end.assert_status(0);
    assert_eq!(end.value("changed"), "0", "{end}");
    assert_eq!(end.value("doctor"), "0", "{end}");
    assert!(end.value("version").starts_with("doorbell "), "{end}");
    assert_eq!(end.value("verify"), "0", "{end}");
    assert!(end.value("completion").contains("_doorbell"), "{end}");
    assert!(end.value("pages").parse::<u32>().unwrap() >= 3, "{end}");
    assert!(end.value("page").parse::<u32>().unwrap() >= 4, "{end}");
    assert_ne!(end.value("licences"), "0", "{end}");
    assert!(end.text().contains("doorbell-guest: ready"), "{end}");
    assert_eq!((end.value("unit").as_str(), end.value("bench").as_str()), ("0", "0"), "{end}");
    assert_eq!(end.value("left"), "nothing", "{end}");
}
