//! Writes a cpio archive of the kind that the kernel unpacks as its first filesystem. Pure.

/// Regular file, folder, symbolic link, character device, as in a file's mode.
const KIND_FILE: u32 = 0o100_000;
const KIND_FOLDER: u32 = 0o040_000;
const KIND_LINK: u32 = 0o120_000;
const KIND_DEVICE: u32 = 0o020_000;
/// Names and contents begin at multiples of this.
const ALIGNMENT: usize = 4;
const LAST_NAME: &str = "TRAILER!!!";

/// An archive that grows. Folders must be added before what is in them.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

struct Entry<'a> {
    name: &'a str,
    mode: u32,
    /// Major and minor number, of a device.
    device: (u32, u32),
    content: &'a [u8],
}

impl<'a> Entry<'a> {
    fn new(name: &'a str, mode: u32, content: &'a [u8]) -> Self {
        Self {
            name,
            mode,
            device: (0, 0),
            content,
        }
    }
}

impl Archive {
    pub fn folder(&mut self, name: &str) {
        self.add(&Entry::new(name, KIND_FOLDER | 0o755, &[]));
    }

    /// Everything in a guest may be run: root is alone there.
    pub fn file(&mut self, name: &str, content: &[u8]) {
        self.add(&Entry::new(name, KIND_FILE | 0o755, content));
    }

    pub fn link(&mut self, name: &str, target: &str) {
        self.add(&Entry::new(name, KIND_LINK | 0o777, target.as_bytes()));
    }

    pub fn character_device(&mut self, name: &str, major: u32, minor: u32) {
        let device = (major, minor);
        let entry = Entry::new(name, KIND_DEVICE | 0o600, &[]);
        self.add(&Entry { device, ..entry });
    }

    /// The archive, closed.
    pub fn finish(mut self) -> Vec<u8> {
        self.add(&Entry::new(LAST_NAME, 0, &[]));
        self.bytes
    }

    fn add(&mut self, entry: &Entry<'_>) {
        self.entries += 1;
        let content_bytes = u32::try_from(entry.content.len()).expect("a guest's files are small");
        let name_bytes = u32::try_from(entry.name.len() + 1).expect("names are short");
        // Inode, mode, owner, group, links, time, size, device of the file, device that it is, name, checksum.
        let fields = [
            self.entries,
            entry.mode,
            0,
            0,
            1,
            0,
            content_bytes,
            0,
            0,
            entry.device.0,
            entry.device.1,
            name_bytes,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(entry.name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(entry.content);
        self.pad();
    }

    fn pad(&mut self) {
        let length = self.bytes.len().next_multiple_of(ALIGNMENT);
        self.bytes.resize(length, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_a_header_a_name_and_its_content_each_aligned() {
        let mut archive = Archive::default();
        archive.file("init", b"hello");
        let bytes = archive.finish();
        let head = "070701000000010000\
                    81ed00000000000000000000000100000000\
                    00000005000000000000000000000000000000000000000500000000";
        assert_eq!(&bytes[..head.len()], head.as_bytes());
        assert_eq!(&bytes[110..116], b"init\0\0");
        assert_eq!(&bytes[116..124], b"hello\0\0\0");
        assert_eq!(&bytes[124..130], b"070701");
        assert!(bytes.ends_with(b"TRAILER!!!\0\0\0\0") && bytes.len() % ALIGNMENT == 0);
    }

    #[test]
    fn a_device_has_its_numbers() {
        let mut archive = Archive::default();
        archive.character_device("dev/console", 5, 1);
        let bytes = archive.finish();
        assert_eq!(&bytes[6 + 9 * 8..6 + 11 * 8], b"0000000500000001");
    }
}
