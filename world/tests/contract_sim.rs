//! The contract of every seam, in simulation: the same suites as on Linux, each under many seeds.

use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;

use world::sim::{Sim, SimConfig, SimWorld};
use world::{Address, contract};

const SEEDS: u64 = 4;

/// Runs a suite as a process of a host, once for each seed, twice for the same trace.
fn each_seed<F>(suite: impl Fn(SimWorld) -> F)
where
    F: Future<Output = ()> + 'static,
{
    for seed in 0..SEEDS {
        let hash = || {
            let scenario = |sim: Sim| {
                let host = sim.host("only");
                sim.call(host, &suite)
            };
            match Sim::simulate(seed, SimConfig::default(), scenario) {
                Ok((Some(()), hash)) => hash,
                Ok((None, _)) => panic!("seed {seed}: the host went down by itself"),
                Err(stuck) => panic!("{stuck}"),
            }
        };
        assert_eq!(hash(), hash(), "seed {seed} has two traces");
    }
}

#[test]
fn clock() {
    each_seed(contract::clock);
}

#[test]
fn chance() {
    each_seed(contract::chance);
}

#[test]
fn tasks() {
    each_seed(contract::tasks);
}

#[test]
fn disk() {
    each_seed(|world| async move { contract::disk(world, Path::new("/data")).await });
}

#[test]
fn net_over_a_unix_socket() {
    let address = Address::Unix("/run/socket".into());
    each_seed(|world| {
        let address = address.clone();
        async move { contract::net(world, &address).await }
    });
}

#[test]
fn net_over_tcp() {
    for ip in ["127.0.0.1", "::1", "10.0.0.1"] {
        let ip = ip.parse().expect("an address");
        let address = Address::Tcp(SocketAddr::new(ip, 0));
        each_seed(|world| {
            let address = address.clone();
            async move { contract::net(world, &address).await }
        });
    }
}

#[test]
fn store() {
    each_seed(|world| contract::store(world.store(), contract::Losers::Know));
}
