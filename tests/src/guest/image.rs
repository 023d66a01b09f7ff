//! What a guest boots: the kernel that `scripts/guest-kernel` fetched, and a first filesystem with the
//! machine's own tools in it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::archive::Archive;
use super::modules::Modules;
use crate::site::text;
use crate::tool;

const INIT: &str = include_str!("init");
/// So that whatever a guest mounts has a place.
const FOLDERS: [&str; 11] = [
    "bin", "dev", "etc", "mnt", "modules", "proc", "root", "run", "sys", "tmp", "tools",
];
/// How a program that is no script begins.
const ELF: &[u8] = b"\x7fELF";
/// The shell and all that is small.
const BUSYBOX: &str = "busybox";
/// Every guest has these: its network, and chance.
const MODULES: [&str; 3] = ["virtio_pci", "virtio_net", "virtio_rng"];

/// A kernel and its modules, unpacked.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// The one in the target folder of this build; none, with a word, if it has not been fetched. Also
    /// in CI: whether a mirror has the package is not ours to say.
    #[expect(clippy::print_stderr, reason = "a skipped test says so")]
    pub fn fetched() -> Result<Option<Self>> {
        let own = std::env::current_exe()?;
        let folders = own.ancestors().skip(1).map(|it| it.join("guest-kernel"));
        let found = folders.into_iter().find(|it| it.join("vmlinuz").is_file());
        if found.is_none() {
            eprintln!("skipped: scripts/guest-kernel has not fetched a kernel");
        }
        Ok(found.map(|folder| Self { folder }))
    }

    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }
}

/// What is in a guest's first filesystem besides its shell.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Modules to load, besides those that every guest has; what they need comes by itself.
    pub modules: Vec<&'static str>,
    /// Programs of this machine, by name or path, with the libraries that they are linked to.
    pub tools: Vec<PathBuf>,
}

impl Contents {
    /// The first filesystem, as an archive.
    pub fn pack(&self, kernel: &Kernel) -> Result<Vec<u8>> {
        let mut archive = Archive::default();
        for folder in FOLDERS {
            archive.folder(folder);
        }
        archive.character_device("dev/console", 5, 1);
        archive.file("init", INIT.as_bytes());
        self.pack_modules(kernel, &mut archive)?;
        self.pack_tools(&mut archive)?;
        Ok(archive.finish())
    }

    fn pack_modules(&self, kernel: &Kernel, archive: &mut Archive) -> Result<()> {
        let folder = kernel.modules();
        let dependencies = read_text(&folder.join("modules.dep"))?;
        let built_in = read_text(&folder.join("modules.builtin"))?;
        let wanted = [&MODULES, self.modules.as_slice()].concat();
        let mut order = String::new();
        for path in Modules::new(&dependencies, &built_in).load_order(&wanted)? {
            let name = path.rsplit('/').next().unwrap_or(path);
            archive.file(&format!("modules/{name}"), &read(&folder.join(path))?);
            order.push_str(name);
            order.push('\n');
        }
        archive.file("modules/order", order.as_bytes());
        Ok(())
    }

    fn pack_tools(&self, archive: &mut Archive) -> Result<()> {
        let mut libraries = BTreeMap::new();
        let shell = PathBuf::from(BUSYBOX);
        for tool in self.tools.iter().chain([&shell]) {
            let name = tool.file_name().and_then(|name| name.to_str());
            let name = name.with_context(|| format!("{} has no name", tool.display()))?;
            let path = tool::path_of(text(tool));
            let path = path.with_context(|| format!("{} is not installed", tool.display()))?;
            let folder = if name == BUSYBOX { "bin" } else { "tools" };
            archive.file(&format!("{folder}/{name}"), &program(&path)?);
            for library in libraries_of(&path)? {
                let content = read(Path::new(&library))?;
                libraries.insert(library, content);
            }
        }
        let mut folders: BTreeSet<&str> = BTreeSet::new();
        for library in libraries.keys() {
            let inside = library.trim_start_matches('/');
            folders.extend(inside.match_indices('/').map(|(at, _)| &inside[..at]));
        }
        // Sorted, a folder comes before what is in it.
        for folder in folders {
            archive.folder(folder);
        }
        for (library, content) in &libraries {
            archive.file(library.trim_start_matches('/'), content);
        }
        Ok(())
    }
}

/// A program without what only a debugger reads, which is most of a build of ours: a guest has it in memory.
fn program(path: &Path) -> Result<Vec<u8>> {
    let content = read(path)?;
    if !content.starts_with(ELF) {
        return Ok(content);
    }
    let stripped = tempfile::NamedTempFile::new()?;
    tool::run("strip", &["-o", text(stripped.path()), text(path)])?;
    read(stripped.path())
}

/// What the loader would load; nothing for a program that needs no loader.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let listed = tool::output("ldd", &[text(program)])?;
    Ok(libraries_in(&String::from_utf8_lossy(&listed.stdout)))
}

fn libraries_in(listed: &str) -> Vec<String> {
    let words = listed.split_whitespace();
    let paths = words.filter(|word| word.starts_with('/') && !word.ends_with(':'));
    paths.map(str::to_owned).collect()
}

#[expect(
    clippy::disallowed_methods,
    reason = "tools and modules are files of the machine"
)]
fn read(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).with_context(|| format!("reading {}", path.display()))
}

fn read_text(path: &Path) -> Result<String> {
    String::from_utf8(read(path)?).with_context(|| format!("{} is no text", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_what_the_loader_names_by_path() {
        let listed = "\tlinux-vdso.so.1 (0x00007f37)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f37)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f37)\n";
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries_in(listed), expected);
        assert!(libraries_in("\tnot a dynamic executable\n").is_empty());
    }
}
