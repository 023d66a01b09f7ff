//! The machine that QEMU is told to be: its command line. Pure.
//!
//! A stock q35 with two processors, in software (TCG), so that it runs wherever the tests run. It has
//! no network but one address, behind which is a program of the harness: nothing in a guest can reach
//! the host or anything else, and no right is needed to set it up.

use std::path::{Path, PathBuf};

/// The server as the guest sees it; its own address is in `init`.
pub const SERVER: &str = "192.0.2.100";
pub const SERVER_PORT: &str = "10809";
const NETWORK: &str = "192.0.2.0/24";
const MEMORY_MIB: &str = "512";
const PROCESSORS: &str = "2";
/// For so long QEMU's own NBD client lets requests wait for a server that is gone.
const RECONNECT_SECONDS: u32 = 600;

/// A disk of the guest (`/dev/vda`, `/dev/vdb`) whose NBD client is QEMU itself.
#[derive(Clone, Debug)]
pub struct Disk {
    pub socket: PathBuf,
    pub export: String,
}

/// Where the parts of a machine are.
#[derive(Debug)]
pub struct Machine<'a> {
    pub kernel: &'a Path,
    pub initramfs: &'a Path,
    /// Becomes the kernel's console.
    pub console: &'a Path,
    /// A socket that listens; QEMU connects it to the second serial port.
    pub line: &'a Path,
    /// A program, run once for each connection that the guest opens to the server.
    pub dial: &'a Path,
    pub disks: &'a [Disk],
}

impl Machine<'_> {
    pub fn arguments(&self) -> Vec<String> {
        let mut arguments: Vec<String> = ["-nodefaults", "-no-user-config", "-no-reboot"]
            .map(str::to_owned)
            .to_vec();
        let mut add = |name: &str, value: String| arguments.extend([name.to_owned(), value]);
        add("-display", "none".to_owned());
        add("-machine", "q35".to_owned());
        add("-accel", "tcg,thread=multi".to_owned());
        add("-cpu", "max".to_owned());
        add("-smp", PROCESSORS.to_owned());
        add("-m", MEMORY_MIB.to_owned());
        add("-kernel", self.kernel.display().to_string());
        add("-initrd", self.initramfs.display().to_string());
        // A panic ends the machine at once, instead of a guest that says nothing any more.
        add("-append", "console=ttyS0 quiet panic=-1".to_owned());
        add("-serial", format!("file:{}", self.console.display()));
        add(
            "-chardev",
            format!("socket,id=line,path={}", escaped(self.line)),
        );
        add("-serial", "chardev:line".to_owned());
        add(
            "-netdev",
            format!(
                "user,id=network,net={NETWORK},restrict=on,guestfwd=tcp:{SERVER}:{SERVER_PORT}-cmd:{}",
                escaped(self.dial)
            ),
        );
        add(
            "-device",
            "virtio-net-pci,netdev=network,romfile=".to_owned(),
        );
        add("-device", "virtio-rng-pci".to_owned());
        for (number, disk) in self.disks.iter().enumerate() {
            add("-blockdev", disk.blockdev(number));
            add("-device", format!("virtio-blk-pci,drive=disk{number}"));
        }
        arguments
    }
}

impl Disk {
    fn blockdev(&self, number: usize) -> String {
        let document = serde_json::json!({
            "driver": "nbd",
            "node-name": format!("disk{number}"),
            "export": self.export,
            "server": {"type": "unix", "path": self.socket},
            "reconnect-delay": RECONNECT_SECONDS,
            "cache": {"direct": true, "no-flush": false},
            "discard": "unmap",
        });
        document.to_string()
    }
}

/// QEMU's options end at a comma, unless it is doubled.
fn escaped(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_disks_come_through() {
        let disk = Disk {
            socket: "/t/nbd.sock".into(),
            export: "vm".to_owned(),
        };
        let machine = Machine {
            kernel: Path::new("/k"),
            initramfs: Path::new("/i"),
            console: Path::new("/c"),
            line: Path::new("/a,b"),
            dial: Path::new("/d"),
            disks: &[disk],
        };
        let arguments = machine.arguments();
        let value_of = |name: &str| {
            let at = arguments.iter().position(|it| it == name);
            arguments[at.expect("the option is there") + 1].as_str()
        };
        assert_eq!(value_of("-chardev"), "socket,id=line,path=/a,,b");
        assert!(value_of("-netdev").contains("restrict=on"));
        assert!(value_of("-netdev").ends_with("-cmd:/d"));
        let disk: serde_json::Value =
            serde_json::from_str(value_of("-blockdev")).expect("a document");
        assert_eq!(disk["server"]["path"], "/t/nbd.sock");
        assert_eq!(disk["cache"]["no-flush"], false);
    }
}
