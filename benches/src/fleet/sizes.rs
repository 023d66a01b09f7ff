//! One export that grows online to 16 TiB, and trims of terabytes: `glidefs_tests::sizes` plays it, on two servers before
//! a store in this process, which no trim waits for.

use std::path::Path;

use anyhow::Result;
use glidefs_tests::bucket::Place;
use glidefs_tests::s3::S3Server;
use glidefs_tests::sizes::{Found, Plan, play};

use crate::{Arguments, progress};

pub(crate) fn measure(folder: &Path, arguments: &Arguments) -> Result<Found> {
    let plan = if arguments.quick {
        Plan::GLANCE
    } else {
        Plan {
            rounds: arguments.trim_rounds,
            ..Plan::WHOLE
        }
    };
    progress("sizes: growing to 16 TiB, and trimming it");
    let store = S3Server::start(&folder.join("store"), 0)?;
    let place = Place {
        folder,
        endpoint: &store.url(),
        prefix: "sizes",
    };
    play(&place, &plan)
}
