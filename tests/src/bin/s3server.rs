//! The S3 endpoint of the tests as a process: `s3server FOLDER [PORT]`.
//!
//! Prints one line of JSON once it serves: endpoint, bucket and keys.

#![expect(clippy::print_stdout, reason = "its line on stdout is its interface")]

use std::io::Write;
use std::path::PathBuf;

use anyhow::Result;
use clap::Parser;
use glidefs_tests::s3;

/// Serves a folder as an S3 bucket on the loopback.
#[derive(Debug, Parser)]
struct Arguments {
    folder: PathBuf,
    /// 0: any free port.
    #[arg(default_value_t = 0)]
    port: u16,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let server = s3::S3Server::start(&arguments.folder, arguments.port)?;
    let line = serde_json::json!({
        "endpoint": server.url(),
        "bucket": s3::BUCKET,
        "region": s3::REGION,
        "access_key_id": s3::ACCESS_KEY,
        "secret_access_key": s3::SECRET_KEY,
    });
    println!("{line}");
    std::io::stdout().flush()?;
    server.join();
    Ok(())
}
