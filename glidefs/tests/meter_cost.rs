//! What counting costs on the data path. A measurement, run by hand:
//! `cargo test --release -p glidefs --test meter_cost -- --ignored --nocapture`.

use std::hint::black_box;
use std::time::Duration;

use glidefs::meter::Histogram;
use tokio::runtime::Builder;
use world::World;
use world::linux::LinuxConfig;

const ROUNDS: u32 = 10_000_000;

#[test]
#[ignore = "a measurement: run it by hand, in a release build"]
fn what_counting_one_request_costs() {
    let edge = Builder::new_current_thread().build().expect("a runtime");
    let config = LinuxConfig::new(edge.handle().clone(), 1);
    let measured = world::linux::run(config, |world| async move {
        let histogram = Histogram::default();
        let begin = world.now();
        for round in 0..ROUNDS {
            histogram.record(black_box(Duration::from_nanos(u64::from(round) * 100)));
        }
        let recording = world.now() - begin;
        let begin = world.now();
        for _ in 0..ROUNDS {
            black_box(world.now());
        }
        let clock = world.now() - begin;
        let begin = world.now();
        for _ in 0..ROUNDS {
            let started = black_box(world.now());
            histogram.record(world.now() - started);
        }
        let request = world.now() - begin;
        assert_eq!(histogram.latency().count(), 2 * u64::from(ROUNDS));
        let each = |all: Duration| all.as_nanos() / u128::from(ROUNDS);
        (each(recording), each(clock), each(request))
    });
    let (recording, clock, request) = measured.expect("a ring");
    eprintln!("ns: record {recording}, read the clock {clock}, both reads and record {request}");
}
