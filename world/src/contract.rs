//! One suite per seam, that every implementation must pass: the Linux half and the simulated one.
//!
//! A suite panics where the contract is broken. Each needs a clean place (a folder, an address, a
//! store without objects) and no faults: what a fault may do to a seam is the simulator's business.
//! No suite decides by how long something takes.

mod basics;
mod disk;
mod net;
mod store;

pub use basics::{chance, clock, tasks};
pub use disk::disk;
pub use net::net;
pub use store::{Losers, store};
