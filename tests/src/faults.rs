//! Every fault of the store on real processes: what the client saw, what the operator saw, and whether
//! anything was lost.
//!
//! A case runs the real server before a real S3 endpoint, under a load of writes and flushes through NBD:
//! some time of good weather, the fault, good weather again; then a drain, and another node with an empty
//! cache reads everything back and compares. A fault of reads comes while that other node reads.
//!
//! Promises: a fault that no request met fails its case, and so does one that the log gives another name where
//! it has one; a case that this machine cannot play says so, and is no success.
//!
//! Deliberately absent: verdicts on time. How long something took is told.

mod case;
mod elsewhere;
mod play;
mod report;
mod trouble;

pub use case::{Case, Elsewhere, How, Outage, Trouble, cases, outages};
pub use play::{CatchUp, Seen, play};
pub use report::{Measured, Outcome, table};
