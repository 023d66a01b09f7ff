//! A server of the simulated world, held by the test that drives it: the real shard on a simulated disk, store and
//! clock. What a test asks of it stands in its own file, as methods of its own.

use std::rc::Rc;

use blockcache::CacheConfig;
use glidefs::control::{Control, ControlError, Reply, Request};
use glidefs::device::{ConnectError, Exports};
use glidefs::export::connection::Connection;
use glidefs::shard::{Shard, ShardConfig, ShardError};
use glidefs::volume::{BucketConfig, Compression, KeyringCost};
use world::sim::{HostId, Sim, SimConfig, SimWorld};
use world::{Peer, World};

pub(crate) const PAGE: u64 = 4096;
/// The client that most tests have.
pub(crate) const VM: Peer = Peer::Process { pid: 7, uid: 0 };

pub(crate) type Device = Rc<Connection<SimWorld>>;

/// One running server.
pub(crate) struct Node {
    pub(crate) sim: Sim,
    pub(crate) world: SimWorld,
    pub(crate) shard: Rc<Shard<SimWorld>>,
    pub(crate) control: Control,
}

/// `host` is its name, for people; a volume that is not there is made, of so many bytes.
pub(crate) fn config(host: &str, password: Option<&str>, volume_bytes: u64) -> ShardConfig {
    let bucket = BucketConfig {
        password: password.map(str::to_owned),
        cost: KeyringCost::LEAST,
        ..BucketConfig::new(Compression::Lz4)
    };
    let mut config = ShardConfig::new(CacheConfig::new("/cache", 256 << 20), bucket, host);
    config.exports.create_bytes = Some(volume_bytes);
    config
}

impl Node {
    /// Starts a process. Of one that does not open its shard nothing is left.
    pub(crate) async fn open(
        sim: &Sim,
        host: HostId,
        config: ShardConfig,
    ) -> Result<Self, ShardError> {
        let world = sim.process(host);
        let opened = Box::pin(Shard::open(world.clone(), world.store(), config)).await;
        let shard = match opened {
            Ok(shard) => Rc::new(shard),
            Err(error) => {
                sim.kill(world.pid());
                return Err(error);
            }
        };
        let (control, requests) = Control::new();
        let serving = Rc::clone(&shard);
        world.spawn(async move { serving.serve_control(requests).await });
        Ok(Self {
            sim: sim.clone(),
            world,
            shard,
            control,
        })
    }

    pub(crate) async fn connect_as(&self, name: &str, peer: &Peer) -> Result<Device, ConnectError> {
        self.shard.exports().connect(name, peer).await
    }

    /// What an operator asks of the export of this name.
    pub(crate) async fn ask<T>(
        &self,
        name: &str,
        request: impl FnOnce(String, Reply<T>) -> Request,
    ) -> Result<T, ControlError> {
        let name = name.to_owned();
        self.control.ask(|reply| request(name, reply)).await
    }

    pub(crate) fn kill(self) {
        self.sim.kill(self.world.pid());
    }
}

/// Runs a scenario to its end; one that is stuck fails the test.
pub(crate) fn simulate<T: 'static, F: Future<Output = T> + 'static>(
    seed: u64,
    scenario: impl FnOnce(Sim) -> F,
) -> T {
    let run = Sim::simulate(seed, SimConfig::default(), scenario);
    run.unwrap_or_else(|stuck| panic!("{stuck}")).0
}
