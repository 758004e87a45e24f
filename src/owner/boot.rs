//! Which start of the machine this is: by its name a power cut is told from the death of a process. L3.
//!
//! | system | the name is |
//! |---|---|
//! | Linux | `/proc/sys/kernel/random/boot_id`, random(4) |
//! | macOS | `kern.bootsessionuuid` of sysctl(8) |
//! | FreeBSD | `kern.boot_id`, bytes that are asked for in hexadecimal; before FreeBSD 13 as the next |
//! | the other BSDs | `kern.boottime`: who sets the clock changes it, too, and the next death is no job's fault |
//! | Windows and all others | not to be had: a power cut counts as a death of the process |
//!
//! The system call needs `unsafe` code; the command that comes with each of these systems does not. It is run once for each opening.
//! Windows tells when it was started, by a PowerShell that takes a second, and only as precisely as its clock goes: turned down.

use std::process::{Command, Stdio};

/// How long a name is at most: what the header of the owner file has room for.
pub(super) const NAME_BYTES_MAX: usize = 64;

/// What is run for the name, until one answers. By full path: who starts a service may leave `sbin` out.
const COMMANDS: &[[&str; 3]] = if cfg!(target_os = "macos") {
    &[["/usr/sbin/sysctl", "-n", "kern.bootsessionuuid"]]
} else if cfg!(target_os = "freebsd") {
    &[
        ["/sbin/sysctl", "-nx", "kern.boot_id"],
        ["/sbin/sysctl", "-n", "kern.boottime"],
    ]
} else if cfg!(any(
    target_os = "dragonfly",
    target_os = "netbsd",
    target_os = "openbsd"
)) {
    &[["/sbin/sysctl", "-n", "kern.boottime"]]
} else {
    &[]
};

/// A name for the time since the machine was started; empty where the system does not tell.
pub(super) fn id() -> String {
    let read = std::fs::read("/proc/sys/kernel/random/boot_id").ok();
    read.and_then(|read| name_in(&read))
        .or_else(|| COMMANDS.iter().find_map(printed_by))
        .unwrap_or_default()
}

/// None if it cannot be run, fails or prints nothing that is a name.
fn printed_by(command: &[&str; 3]) -> Option<String> {
    let [program, option, name] = command;
    let output = Command::new(program)
        .args([option, name])
        // Two of the BSDs print a date, which must be the same whoever asks.
        .env_clear()
        .envs([("LC_ALL", "C"), ("TZ", "UTC0")])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output();
    match output {
        Ok(output) if output.status.success() => name_in(&output.stdout),
        Ok(_) => None,
        Err(error) => {
            log::debug!("{program}: a power cut counts as a crash: {error}");
            None
        }
    }
}

/// `{ sec = 1700000000, usec = 0 } Tue Nov 14 22:13:20 2023` is named by what is in the braces, everything else by all of it.
fn name_in(printed: &[u8]) -> Option<String> {
    let printed = std::str::from_utf8(printed).ok()?.trim();
    let name = printed.find('}').map_or(printed, |end| &printed[..=end]);
    let is_name = !name.is_empty() && name.len() <= NAME_BYTES_MAX && !name.contains('\0');
    is_name.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_system_prints_is_a_name_that_fits() {
        let uuid = "c1c5f5e4-6f0e-4c6a-9f4e-7b0f3a2d1e00";
        let upper = "4D3C2B1A-0F9E-4D8C-B7A6-958473625140";
        let hex = "Format: Length:16 Dump:0x4c8609698ad1a11cdc00cf6eb7d954e1";
        let braces = "{ sec = 1700000000, usec = 123456 }";
        let dated = format!("{braces} Tue Nov 14 22:13:20 2023");
        let date = "Tue Nov 14 22:13:20 2023";
        for (system, printed, name) in [
            ("Linux", uuid, uuid),
            ("macOS", upper, upper),
            ("FreeBSD", hex, hex),
            ("FreeBSD 12, DragonFly", &dated, braces),
            ("NetBSD, OpenBSD", date, date),
        ] {
            let line = format!("{printed}\n");
            assert_eq!(name_in(line.as_bytes()).as_deref(), Some(name), "{system}");
        }
    }

    #[test]
    fn what_is_no_name_is_none() {
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for printed in ["", "\n", " \t\n", &long, "a\0b"] {
            assert_eq!(name_in(printed.as_bytes()), None, "{printed:?}");
        }
        assert_eq!(name_in(b"\xff\xfe"), None);
    }

    #[cfg(unix)]
    #[test]
    fn a_command_that_cannot_be_asked_names_nothing() {
        let echo = ["/bin/echo", "this", "boot"];
        assert_eq!(printed_by(&echo).as_deref(), Some("this boot"));
        assert_eq!(printed_by(&["/bin/sh", "-c", "echo it; exit 1"]), None);
        assert_eq!(printed_by(&["/bin/sh", "-c", "exit 0"]), None);
        assert_eq!(printed_by(&["/nowhere/sysctl", "-n", "name"]), None);
    }

    #[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
    #[test]
    fn a_start_of_the_machine_has_one_name() {
        assert_ne!(id(), "");
        assert_eq!(id(), id());
    }
}
