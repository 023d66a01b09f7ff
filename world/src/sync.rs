//! Waiting for each other: plain data structures of tokio that need no runtime.
//!
//! They work under any executor, also across threads, and their wake-up order is first come, first
//! served, so a simulation stays deterministic. Named here once, so that nobody else needs tokio.

pub use tokio::sync::mpsc::{Receiver, Sender, channel};
pub use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, SemaphorePermit, oneshot, watch};
