//! The protocol between the nodes that share a volume in the object store, as a model that is explored to its
//! end: every order of steps, every crash, every request that lands late, within stated bounds.
//!
//! `owners` asks whose writes count, `space` what may be deleted, `groups` what is seen of volumes that are cut
//! together, `joins` which object says what a volume is. Each has scenes, which bound what happens, and mistakes:
//! rules of the protocol broken on purpose, which must be found. `check` explores. `segments` is what `space` and
//! `groups` share. `docs/model.md` says which name here is which code.

pub mod check;
pub mod groups;
pub mod joins;
pub mod owners;
mod segments;
pub mod space;
