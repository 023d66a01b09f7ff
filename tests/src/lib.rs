//! What the tests that span crates stand on.
//!
//! `s3` is a real S3 endpoint, `server` the real binary as a process, `blocking_client` a small NBD
//! client, `http` what asks the API, `openmetrics` what reads its metrics, `guest` a Linux kernel that
//! uses the disk; `pages` and `history` judge what is read back, `kill` puts them together, `moves` has two nodes, `databases` a
//! group on two nodes.
//! `overwrites` and `sizes` have large volumes and a `bucket` that is listed; `space` is what is said of it, `marks` where.
//! `names` may stop to resolve under one server alone. `corrupt` attacks everything that a volume has in the
//! store, `crashpoints` records real work and judges what crashes would leave of it. For simulation: `nbd_client` speaks over any world, `memory_exports` answers
//! without a cache, `oracle` is the model disk that judges contents. The tests themselves are in
//! `tests/`.

pub mod blocking_client;
pub mod bucket;
pub mod corrupt;
pub mod crashpoints;
pub mod databases;
pub mod endpoint;
pub mod faults;
pub mod guest;
pub mod history;
pub mod http;
pub mod kill;
pub mod load;
pub mod marks;
pub mod memory_exports;
pub mod moves;
pub mod names;
pub mod nbd_client;
pub mod openmetrics;
pub mod oracle;
pub mod overwrites;
pub mod pages;
pub mod s3;
pub mod server;
pub mod sim;
pub mod site;
pub mod sizes;
pub mod space;
pub mod tool;
