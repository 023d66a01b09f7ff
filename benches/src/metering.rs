//! What counting a request costs on the data path: `cargo run --release -p glidefs-benches --bin
//! glidefs-bench-metering`. Prints nanoseconds for each part; the empty loop is the control.

use std::hint::black_box;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use glidefs::meter::Histogram;
use tokio::runtime::Builder;
use world::World;
use world::linux::{LinuxConfig, LinuxWorld};

const ROUNDS: u32 = 20_000_000;

#[expect(clippy::print_stdout, reason = "the table is the result")]
fn main() -> Result<()> {
    let edge = Builder::new_current_thread().build()?;
    let config = LinuxConfig::new(edge.handle().clone(), 1);
    let rows = world::linux::run(config, |world| async move { measure(&world) });
    for (what, each_ns) in rows.context("io_uring is needed")?? {
        println!("{each_ns:>8.1} ns  {what}");
    }
    Ok(())
}

fn measure(world: &LinuxWorld) -> Result<[(&'static str, f64); 4]> {
    let histogram = Histogram::default();
    let each = |step: &dyn Fn(u32)| {
        let begin = world.now();
        (0..ROUNDS).for_each(step);
        (world.now() - begin).as_secs_f64() * 1e9 / f64::from(ROUNDS)
    };
    let rows = [
        (
            "control: a call that does nothing",
            each(&|round| _ = black_box(round)),
        ),
        (
            "record a latency",
            each(&|round| {
                histogram.record(black_box(Duration::from_nanos(u64::from(round) * 100)));
            }),
        ),
        ("read the clock", each(&|_| _ = black_box(world.now()))),
        (
            "one request: read the clock twice, record",
            each(&|_| {
                let started = black_box(world.now());
                histogram.record(world.now() - started);
            }),
        ),
    ];
    let counted = histogram.latency().count();
    ensure!(counted == 2 * u64::from(ROUNDS), "{counted} were counted");
    Ok(rows)
}
