// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What is wrong whatever the host is: one line on standard error that says what and what to do, and status 2.
//!
//! The program is started as a user starts it. On a host that is no arm64 its answer to input that is *right* is tested too.

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;
use vmm_sys_util::tempdir::TempDir;

/// A directory of a test's own.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        Self(TempDir::new_with_prefix(std::env::temp_dir().join("doorbell-input-")).unwrap())
    }

    fn file(&self, name: impl AsRef<Path>, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.as_path().join(name);
        fs::write(&path, contents).unwrap();
        path
    }
}

/// The smallest Image whose header is right (Linux's `Documentation/arch/arm64/booting.rst`, section 4).
fn image() -> Vec<u8> {
    let mut image = vec![0; 128];
    image[16..24].copy_from_slice(&0x1_0000_u64.to_le_bytes());
    image[24..32].copy_from_slice(&0xa_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// An archive with one empty file, as `cpio -H newc` writes it.
fn cpio() -> Vec<u8> {
    let mut archive = Vec::new();
    for name in ["init", "TRAILER!!!"] {
        archive.extend_from_slice(b"070701");
        for field in [0, 0o100_755, 0, 0, 1, 0, 0, 0, 0, 0, 0, name.len() + 1, 0] {
            archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        archive.extend_from_slice(name.as_bytes());
        archive.push(0);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// Runs the program; returns status, standard output, standard error.
fn doorbell(args: &[OsString]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_doorbell")).args(args).stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// Checks that `args` are refused: with this status, on one line with all of `words`, and nothing else.
fn refused_with(status: i32, args: &[OsString], words: &[&str]) {
    let (code, stdout, stderr) = doorbell(args);
    assert_eq!(code, Some(status), "{args:?}: {stderr}");
    assert_eq!(stdout, "", "{args:?}");
    let one_line = stderr.starts_with("doorbell: ") && stderr.ends_with('\n') && stderr.lines().count() == 1;
    assert!(one_line, "{args:?} is not answered on one line: {stderr:?}");
    for word in words {
        assert!(stderr.contains(word), "{args:?}: {word:?} is not in {stderr:?}");
    }
}

fn refused(args: &[OsString], words: &[&str]) {
    refused_with(2, args, words);
}

/// A command line: `run` and these words.
fn run<'a>(words: impl IntoIterator<Item = &'a (dyn AsRef<OsStr> + 'a)>) -> Vec<OsString> {
    std::iter::once(OsString::from("run"))
        .chain(words.into_iter().map(|word| word.as_ref().to_owned()))
        .collect()
}

/// `run` with a good kernel and these words.
fn with_kernel(scratch: &Scratch, words: &[&str]) -> Vec<OsString> {
    let kernel = scratch.file("Image", image());
    let mut args = run([&"--kernel" as &dyn AsRef<OsStr>, &kernel]);
    args.extend(words.iter().map(OsString::from));
    args
}

#[test]
fn kernels_that_are_none() {
    let scratch = Scratch::new();
    let header = |at: usize, bytes: &[u8]| {
        let mut file = vec![0; 4096];
        file[at..at + bytes.len()].copy_from_slice(bytes);
        file
    };
    let mut big_endian = image();
    big_endian[24] |= 1;
    // "MZ", and a section that would end beyond the file.
    let mut cut = image();
    cut.resize(4096, 0);
    cut[0..2].copy_from_slice(b"MZ");
    cut[0x3c] = 0x40;
    cut[0x40..0x44].copy_from_slice(b"PE\0\0");
    cut[0x46] = 1;
    cut[0x58 + 16..0x58 + 20].copy_from_slice(&0x10_0000_u32.to_le_bytes());
    let mut x86_elf = header(0, b"\x7fELF");
    x86_elf[18] = 62;
    let packed = gzip(&image().repeat(1000));
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["is empty", "--kernel"]),
        ("short", image()[..40].to_vec(), &["truncated", "--kernel"]),
        ("cut", cut, &["truncated", "4096 bytes of 1048576"]),
        (
            "text",
            b"not a kernel, but long enough to have a header ............................".to_vec(),
            &["no arm64 Image"],
        ),
        ("elf", x86_elf, &["ELF", "x86-64", "arm64 Image"]),
        ("bzImage", header(0x202, b"HdrS"), &["bzImage", "x86"]),
        ("zImage", header(0x24, &[0x18, 0x28, 0x6f, 0x01]), &["32-bit Arm"]),
        ("riscv", header(56, b"RSC\x05"), &["RISC-V"]),
        ("vmlinuz.efi", header(4, b"zimg"), &["EFI"]),
        ("big-endian", big_endian, &["big-endian"]),
        ("cut.gz", packed[..packed.len() / 2].to_vec(), &["damaged or truncated"]),
        ("text.gz", gzip(&[b'x'; 100]), &["no arm64 Image"]),
        ("empty.gz", gzip(b""), &["truncated"]),
        // 1 GiB of zeros in a megabyte would be a way to take the host's memory.
        ("bomb.gz", gzip(&vec![0; 40 << 20]), &["unpacks to more", "32M", "--memory"]),
    ];
    for (name, contents, words) in cases {
        let path = scratch.file(name, contents);
        let args = run([&"--kernel" as &dyn AsRef<OsStr>, &path, &"--memory", &"32M"]);
        refused(&args, words);
        refused(&args, &[name]);
    }
}

#[test]
fn kernels_that_are_not_there_or_no_files() {
    let scratch = Scratch::new();
    for (path, words) in [
        (scratch.0.as_path().join("nowhere"), ["nowhere", "No such file", "--kernel"]),
        (scratch.0.as_path().to_owned(), ["doorbell-input", "no regular file", "--kernel"]),
        (PathBuf::from("/dev/zero"), ["/dev/zero", "no regular file", "--kernel"]),
        (PathBuf::from(""), ["value is required", "--kernel", "--help"]),
    ] {
        refused(&run([&"--kernel" as &dyn AsRef<OsStr>, &path]), &words);
    }
    refused(&run([]), &["no kernel", "--kernel FILE"]);
}

#[test]
fn initrds_that_are_none() {
    let scratch = Scratch::new();
    let archive = cpio();
    let packed = gzip(&archive.repeat(100));
    let mut elf = vec![0; 4096];
    elf[..4].copy_from_slice(b"\x7fELF");
    elf[18] = 183;
    let cases: Vec<(&str, Vec<u8>, &[&str])> = vec![
        ("empty", vec![], &["is empty", "--initrd"]),
        ("text", b"hello".to_vec(), &["neither a cpio archive", "--initrd"]),
        ("kernel", image(), &["is a kernel", "--initrd"]),
        ("elf", elf, &["ELF", "--initrd"]),
        ("cut.cpio", archive[..archive.len() / 2].to_vec(), &["truncated", "--initrd"]),
        ("cut.cpio.gz", packed[..packed.len() - 10].to_vec(), &["damaged or truncated"]),
    ];
    for (name, contents, words) in cases {
        let path = scratch.file(name, contents);
        let mut args = with_kernel(&scratch, &["--initrd"]);
        args.push(path.into());
        refused(&args, words);
        refused(&args, &[name]);
    }
    for (path, words) in
        [("/nowhere/initrd", ["/nowhere/initrd", "No such file"]), ("/", ["/", "no regular file"])]
    {
        refused(&with_kernel(&scratch, &["--initrd", path]), &words);
    }
}

#[test]
fn what_does_not_fit_into_memory() {
    let scratch = Scratch::new();
    let mut large = image();
    large[16..24].copy_from_slice(&(1_u64 << 30).to_le_bytes());
    let mut huge = image();
    huge[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
    for kernel in [large, huge] {
        let kernel = scratch.file("large", kernel);
        let args = run([&"--kernel" as &dyn AsRef<OsStr>, &kernel, &"--memory", &"128M"]);
        refused(&args, &["do not fit in 128M", "--memory"]);
    }
    // A file that says that it is long and takes no room.
    let path = scratch.file("initrd", cpio());
    File::options().write(true).open(&path).unwrap().set_len(1 << 30).unwrap();
    let packed = scratch.file("initrd.gz", gzip(&cpio()));
    File::options().write(true).open(&packed).unwrap().set_len(1 << 30).unwrap();
    for (path, words) in [(path, ["truncated", "--initrd"]), (packed, ["do not fit in 128M", "--memory"])] {
        let mut args = with_kernel(&scratch, &["--memory", "128M", "--initrd"]);
        args.push(path.into());
        refused(&args, &words);
    }
}

#[test]
fn numbers_of_vcpus_that_cannot_be() {
    let scratch = Scratch::new();
    for number in ["0", "513", "4294967295", "4294967296", "-1", "two", "1.5", "", "2 "] {
        refused(&with_kernel(&scratch, &["--cpus", number]), &["cpus", number.trim()]);
    }
    refused(&with_kernel(&scratch, &["--cpus", "0"]), &["1 to 512", "8 with a GICv2"]);
}

#[test]
fn memory_that_cannot_be() {
    let scratch = Scratch::new();
    for (size, words) in [
        ("0", ["too little", "16M"]),
        ("1M", ["1M", "16M"]),
        ("17000001", ["no multiple", "2M"]),
        ("lots", ["'lots'", "512M"]),
        ("", ["''", "512M"]),
        ("1.5G", ["'1.5G'", "whole number"]),
        ("-1", ["'-1'", "whole number"]),
        ("12X", ["'12X'", "512M"]),
        ("99999999999999999999", ["99999999999999999999", "512M"]),
        ("16384P", ["16384P", "64 bits"]),
    ] {
        refused(&with_kernel(&scratch, &["--memory", size]), &words);
        refused(&with_kernel(&scratch, &["--memory", size]), &["--memory"]);
    }
    for size in ["3M", "0", "1000", "many"] {
        refused(&with_kernel(&scratch, &["--hugepages", size]), &["2M"]);
    }
    refused(
        &with_kernel(&scratch, &["--hugepages", "1G", "--memory", "512M"]),
        &["no multiple of 1G", "--memory"],
    );
}

#[test]
fn command_lines_that_no_kernel_takes() {
    let scratch = Scratch::new();
    refused(&with_kernel(&scratch, &["--cmdline", &"x".repeat(2048)]), &["2048 bytes", "2047", "--cmdline"]);
    refused(&with_kernel(&scratch, &["--cmdline", "naïve"]), &["ASCII", "--cmdline"]);
}

#[test]
fn options_that_do_not_exist_bring_a_suggestion() {
    let scratch = Scratch::new();
    for (words, suggestion) in [
        (vec!["--kernle", "x"], "--kernel"),
        (vec!["--memroy", "1G"], "--memory"),
        (vec!["--dump-dtb", "x"], "--dump-fdt"),
        (vec!["--gic", "v4"], "v2, v3"),
        (vec!["--msi", "gicv2m"], "v2m"),
        (vec!["--on-reset", "halt"], "restart"),
        (vec!["--backing", "file"], "memfd"),
        (vec!["--log", "loud"], "info"),
        (vec!["--cpus"], "--cpus"),
        (vec!["--cpus", "1", "--cpus", "2"], "--cpus"),
        (vec!["stray"], "stray"),
    ] {
        refused(&with_kernel(&scratch, &words), &[suggestion, "--help"]);
    }
    refused(&["rnu".into()], &["'rnu'", "'run'", "--help"]);
    refused(&["vfio".into(), "lsit".into()], &["'list'", "doorbell vfio --help"]);
    refused(&[], &["run", "--help"]);
    refused(&[OsString::from("")], &["--help"]);
}

#[test]
fn configuration_files_that_are_wrong_name_file_and_line() {
    let scratch = Scratch::new();
    for (text, words) in [
        ("kernel = \"a\"\nkernle = \"b\"\n", ["machine.toml:2:", "kernle"]),
        ("\n\ncpus = \"four\"\n", ["machine.toml:3:", "four"]),
        ("# none\ncpus = -1\n", ["machine.toml:2:", "-1"]),
        ("cpus = 1.5\n", ["machine.toml:1:", "1.5"]),
        ("memory = \"lots\"\n", ["machine.toml:1:", "lots"]),
        ("memory = -5\n", ["machine.toml:1:", "negative"]),
        ("kernel = 5\n", ["machine.toml:1:", "5"]),
        ("prefault = \"yes\"\n", ["machine.toml:1:", "yes"]),
        ("gic = \"v4\"\n", ["machine.toml:1:", "v4"]),
        ("msi = []\n", ["machine.toml:1:", "--help"]),
        ("kernel = \n", ["machine.toml:1:", "--help"]),
        ("kernel = \"a\"\nkernel = \"b\"\n", ["machine.toml:2:", "duplicate"]),
        ("[machine]\ncpus = 1\n", ["machine.toml:1:", "machine"]),
        ("on_reset = \"exit\"\n", ["machine.toml:1:", "on-reset"]),
    ] {
        let file = scratch.file("machine.toml", text);
        let args = run([&"--config" as &dyn AsRef<OsStr>, &file]);
        refused(&args, &words);
    }
    for (text, words) in [
        ("cpus = 2\n", ["no kernel", "--kernel"]),
        ("kernel = \"nowhere\"\n", ["nowhere", "No such file"]),
        ("kernel = \"Image\"\ncpus = 0\n", ["0 vCPUs", "--cpus"]),
    ] {
        let file = scratch.file("machine.toml", text);
        refused(&run([&"--config" as &dyn AsRef<OsStr>, &file]), &words);
    }
    let binary = scratch.file("binary", [0xff, 0xfe, 0, 1]);
    refused(&run([&"--config" as &dyn AsRef<OsStr>, &binary]), &["binary", "--config"]);
    refused(&run([&"--config" as &dyn AsRef<OsStr>, &scratch.0.as_path()]), &["directory", "--config"]);
    refused(
        &run([&"--config", &"/nowhere.toml"] as [&dyn AsRef<OsStr>; 2]),
        &["/nowhere.toml", "No such file"],
    );
}

#[test]
fn names_with_line_breaks_and_bytes_that_are_no_text_stay_on_one_line() {
    let scratch = Scratch::new();
    let strange = OsStr::from_bytes(b"a\nb\x1b[31m\xff");
    refused(&run([&"--kernel" as &dyn AsRef<OsStr>, &scratch.0.as_path().join(strange)]), &["No such file"]);
    refused(&run([&"--config" as &dyn AsRef<OsStr>, &scratch.0.as_path().join(strange)]), &["No such file"]);
    refused(&run([&strange as &dyn AsRef<OsStr>]), &["--help"]);
    refused(&run([&"--cpus" as &dyn AsRef<OsStr>, &strange]), &["UTF-8", "--help"]);
    refused(&run([&"--memory" as &dyn AsRef<OsStr>, &OsStr::new("1\n2")]), &["--memory"]);
}

#[test]
fn nothing_is_written_for_a_run_that_is_refused() {
    let scratch = Scratch::new();
    let tree = scratch.0.as_path().join("tree.dtb");
    let mut args = with_kernel(&scratch, &["--cpus", "0", "--dump-fdt"]);
    args.push(tree.clone().into());
    refused(&args, &["--cpus"]);
    assert!(!tree.exists());
}

#[test]
fn help_and_version_are_no_errors() {
    for (args, word) in [
        (vec!["--help"], "Exit status"),
        (vec!["run", "--help"], "Ctrl-a x"),
        (vec!["--version"], "doorbell 0."),
    ] {
        let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
        let (code, stdout, stderr) = doorbell(&args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.contains(word), "{args:?}: {stdout}");
    }
}

#[test]
fn a_host_of_another_architecture_says_so() {
    if cfg!(target_arch = "aarch64") {
        println!("SKIP a_host_of_another_architecture_says_so: this host is arm64");
        return;
    }
    let scratch = Scratch::new();
    refused_with(3, &with_kernel(&scratch, &[]), &[std::env::consts::ARCH, "arm64", "make run"]);
    // The largest that is allowed comes as far as that, too.
    let cmdline = "x".repeat(2047);
    let args = with_kernel(&scratch, &["--cpus", "512", "--memory", "1P", "--cmdline", &cmdline]);
    refused_with(3, &args, &[std::env::consts::ARCH]);
}
