//! Which modules a guest loads, and in which order. Pure.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};

/// What the kernel says of its modules.
#[derive(Debug)]
pub struct Modules<'a> {
    /// Path by name, with the paths of all that it needs, the deepest last.
    loadable: BTreeMap<String, (&'a str, Vec<&'a str>)>,
    built_in: Vec<String>,
}

impl<'a> Modules<'a> {
    /// From the text of `modules.dep` and of `modules.builtin`.
    pub fn new(dependencies: &'a str, built_in: &str) -> Self {
        let lines = dependencies.lines().filter_map(|it| it.split_once(':'));
        let loadable = lines
            .map(|(path, needs)| (name_of(path), (path, needs.split_whitespace().collect())))
            .collect();
        Self {
            loadable,
            built_in: built_in.lines().map(name_of).collect(),
        }
    }

    /// Paths of the wanted modules and of all that they need, each once, in an order in which they load.
    pub fn load_order(&self, wanted: &[&str]) -> Result<Vec<&'a str>> {
        let mut order = Vec::new();
        for &name in wanted {
            let Some((path, needs)) = self.loadable.get(name) else {
                let is_there = self.built_in.iter().any(|it| it == name);
                ensure!(is_there, "the guest's kernel has no module {name}");
                continue;
            };
            for path in needs.iter().rev().chain([path]) {
                if !order.contains(path) {
                    order.push(path);
                }
            }
        }
        Ok(order)
    }
}

/// The kernel takes `-` and `_` for the same in names, and files have either.
fn name_of(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.trim_end_matches(".ko").replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEPENDENCIES: &str = "kernel/net/failover.ko:\n\
        kernel/net/net_failover.ko: kernel/net/failover.ko\n\
        kernel/net/virtio_net.ko: kernel/net/net_failover.ko kernel/net/failover.ko\n\
        kernel/hw/virtio-rng.ko:\n";

    #[test]
    fn what_a_module_needs_comes_before_it_and_once() {
        let modules = Modules::new(DEPENDENCIES, "kernel/fs/ext4/ext4.ko\n");
        let order = modules.load_order(&["virtio_net", "ext4", "virtio_rng", "failover"]);
        let expected = [
            "kernel/net/failover.ko",
            "kernel/net/net_failover.ko",
            "kernel/net/virtio_net.ko",
            "kernel/hw/virtio-rng.ko",
        ];
        assert_eq!(order.expect("all are known"), expected);
    }

    #[test]
    fn a_module_that_is_nowhere_is_named() {
        let error = Modules::new(DEPENDENCIES, "").load_order(&["ext4"]);
        assert!(error.is_err_and(|error| error.to_string().contains("ext4")));
    }
}
