//! What a scenario does to whole disks, and what crashes do.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Shared;
use crate::sim::faults::{DiskFaults, FileState, Pages};
use crate::sim::{Chance, Crash, HostId, Pid, Sim};

/// All files of a disk, as a copying program saw them.
#[derive(Clone, Default)]
pub struct DiskImage {
    files: BTreeMap<PathBuf, (Pages, u64)>,
}

impl fmt::Debug for DiskImage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let lengths = self.files.iter().map(|(path, (_, len))| (path, len));
        f.debug_map().entries(lengths).finish()
    }
}

/// What the scenario does to disks.
impl Sim {
    pub fn disk_faults(&self, host: HostId) -> DiskFaults {
        self.with_host(host, |host| host.disk.faults)
    }

    pub fn set_disk_faults(&self, host: HostId, faults: DiskFaults) {
        self.with_host(host, |host| host.disk.faults = faults);
    }

    pub fn set_disk_bytes_max(&self, host: HostId, bytes_max: u64) {
        self.with_host(host, |host| host.disk.bytes_max = bytes_max);
    }

    /// The files of a host and their lengths.
    pub fn files(&self, host: HostId) -> Vec<(PathBuf, u64)> {
        self.with_host(host, |host| {
            let files = host.disk.files.iter();
            files
                .map(|(path, file)| (path.clone(), file.borrow().len()))
                .collect()
        })
    }

    /// Bytes of a file as its kernel sees them, zeros behind its end.
    pub fn read_file(&self, host: HostId, path: &Path, at: u64, out: &mut [u8]) {
        self.file(host, path).borrow().read(at, out);
    }

    /// Flips a bit of a file, at rest.
    pub fn flip_bit(&self, host: HostId, path: &Path, at: u64, bit: u8) {
        assert!(bit < 8, "a byte has no bit {bit}");
        self.note(format_args!(
            "flips bit {bit} of byte {at} of {}",
            path.display()
        ));
        self.file(host, path).borrow_mut().flip(at, bit);
    }

    fn file(&self, host: HostId, path: &Path) -> Shared {
        let file = self.with_host(host, |host| host.disk.files.get(path).map(Rc::clone));
        file.unwrap_or_else(|| panic!("{} has no file {}", self.host_name(host), path.display()))
    }

    /// All files of a host, as a copying program sees them.
    pub fn save_disk(&self, host: HostId) -> DiskImage {
        let files = self.with_host(host, |host| {
            let files = host.disk.files.iter();
            files
                .map(|(path, file)| (path.clone(), file.borrow().content()))
                .collect()
        });
        DiskImage { files }
    }

    /// All files of a host as a crash at this very moment would leave them. The host knows nothing of
    /// it: what the fault model leaves open is drawn from a chance of its own.
    pub fn disk_after(&self, host: HostId, how: Crash, seed: u64) -> DiskImage {
        let mut chance = Chance::seeded(seed);
        let copies: Vec<(PathBuf, FileState)> = self.with_host(host, |host| {
            let files = host.disk.files.iter();
            files
                .map(|(path, file)| (path.clone(), file.borrow().clone()))
                .collect()
        });
        let mut files = BTreeMap::new();
        for (path, mut file) in copies {
            let survived = match how {
                Crash::Power => file.power_cut(&mut chance),
                Crash::Process => {
                    file.all_died(&mut chance);
                    true
                }
            };
            if survived {
                files.insert(path, file.content());
            }
        }
        DiskImage { files }
    }

    /// Replaces all files of a host, on which nothing may be open.
    pub fn restore_disk(&self, host: HostId, image: &DiskImage) {
        self.trace_line(
            &self.host_name(host),
            format_args!("gets the disk {image:?}"),
        );
        let old = self.with_host(host, |host| {
            assert!(
                !host.disk.is_open(),
                "a file is open on {}: crash the host first",
                host.name
            );
            let settled = image.files.iter().map(|(path, (content, len))| {
                let file = FileState::settled(content.clone(), *len);
                (path.clone(), Rc::new(RefCell::new(file)))
            });
            std::mem::replace(&mut host.disk.files, settled.collect())
        });
        drop(old);
    }

    /// Puts a copy of one host's disk in place of another's.
    pub fn copy_disk(&self, from: HostId, to: HostId) {
        self.restore_disk(to, &self.save_disk(from));
    }

    /// Deletes all files of a host.
    pub fn wipe_disk(&self, host: HostId) {
        self.restore_disk(host, &DiskImage::default());
    }

    pub(in crate::sim) fn disk_process_died(&self, host: HostId, pid: Pid) {
        for file in self.all_files(host) {
            self.chance(|chance| file.borrow_mut().process_died(pid.0, chance));
        }
    }

    pub(in crate::sim) fn disk_power_cut(&self, host: HostId) {
        let paths: Vec<PathBuf> = self.files(host).into_iter().map(|(path, _)| path).collect();
        for path in paths {
            let file = self.file(host, &path);
            let survived = self.chance(|chance| file.borrow_mut().power_cut(chance));
            if !survived {
                self.trace_line(
                    &self.host_name(host),
                    format_args!("loses {}", path.display()),
                );
                self.with_host(host, |host| host.disk.files.remove(&path));
            }
        }
    }

    fn all_files(&self, host: HostId) -> Vec<Shared> {
        self.with_host(host, |host| {
            host.disk.files.values().map(Rc::clone).collect()
        })
    }
}
