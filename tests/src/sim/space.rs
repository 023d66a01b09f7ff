//! Space over time: one node, pages overwritten at random for hours of simulated time, and what the store holds for
//! each byte that is live. The code that decides is the one that ships, at a scale that fits memory.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use blockcache::CacheConfig;
use glidefs::shard::ShardConfig;
use glidefs::volume::{BucketConfig, Compression, KeyringCost, Tidy};
use world::World;
use world::sim::{Sim, SimConfig, SimWorld};

use super::node::{NAME, Node, Started, socket};
use crate::nbd_client::{NbdClient, Options};
use crate::space::SpacePoint;

const PAGE: u64 = 4096;

/// What is written, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct SpaceRun {
    pub pages: u64,
    pub writes_per_second: u64,
    pub hours: u64,
    pub seed: u64,
}

impl SpaceRun {
    /// A point for each ten minutes, the first after all pages were written once.
    pub fn perform(self) -> Result<Vec<SpacePoint>> {
        let config = SimConfig {
            steps_max: u64::MAX,
            time_max: Duration::from_secs(3600 * (self.hours + 24)),
            ..SimConfig::default()
        };
        let ended = Sim::simulate(self.seed, config, move |sim| async move {
            Box::pin(self.play(sim)).await
        });
        let (points, _trace) = ended.map_err(|stuck| anyhow!("{}", stuck.why))?;
        points
    }

    async fn play(self, sim: Sim) -> Result<Vec<SpacePoint>> {
        let host = sim.host("a");
        let node = match Node::start(&sim, host, self.config()).await {
            Started::Up(node) => node,
            Started::Crashed | Started::Refused(_) => return Err(anyhow!("no start")),
        };
        let points: Rc<RefCell<Vec<SpacePoint>>> = Rc::default();
        let mut written = 0;
        let fill = sim.call(host, move |world| write(world, Pattern::All(self.pages)));
        fill.await.context("no crash was asked for")??;
        written += self.pages * PAGE;
        for tens in 0..=self.hours * 6 {
            if tens > 0 {
                let writes = self.writes_per_second * 600;
                let pattern = Pattern::Random {
                    pages: self.pages,
                    writes,
                    each: Duration::from_secs(1) / u32::try_from(self.writes_per_second)?,
                };
                let work = sim.call(host, move |world| write(world, pattern));
                work.await.context("no crash was asked for")??;
                written += writes * PAGE;
            } else {
                sim.sleep(Duration::from_secs(60)).await;
            }
            let io = node.get().await?.io;
            let objects = sim.objects();
            let own = objects.iter().filter(|(key, _)| key.starts_with("nbd/"));
            points.borrow_mut().push(SpacePoint {
                seconds: tens * 600,
                stored_bytes: own.map(|(_, body)| body.len() as u64).sum(),
                live_bytes: self.pages * PAGE,
                sent_bytes: io.uploaded_bytes + io.repacked_bytes,
                written_bytes: written,
                collected_objects: io.collected_objects,
            });
        }
        Ok(points.take())
    }

    fn config(self) -> ShardConfig {
        let bytes = self.pages * PAGE;
        let mut cache = CacheConfig::new("/cache", 2 * bytes);
        cache.volume_dirty_bytes_max = bytes / 2;
        cache.dirty_bytes_max = cache.dirty_bytes_max.max(bytes / 2);
        let bucket = BucketConfig {
            cost: KeyringCost::LEAST,
            ..BucketConfig::new(Compression::None)
        };
        let mut config = ShardConfig::new(cache, bucket, "a".to_owned());
        config.exports.create_bytes = Some(bytes);
        // A volume of 20 GiB has a hundred times the pages; so have its segments, and so has what is worth a pass.
        let usual = Tidy::default();
        config.exports.sync.delay = Duration::from_secs(2);
        config.exports.sync.tidy = Tidy {
            waste_bytes: usual.waste_bytes / 64,
            dead_bytes: usual.dead_bytes / 64,
            upper_entries: usual.upper_entries / 64,
            dead_objects: usual.dead_objects,
            ..usual
        };
        config
    }
}

#[derive(Clone, Copy, Debug)]
enum Pattern {
    All(u64),
    Random {
        pages: u64,
        writes: u64,
        each: Duration,
    },
}

/// Pages that do not compress.
async fn write(world: SimWorld, pattern: Pattern) -> Result<()> {
    let client = NbdClient::connect(&world, &socket(), NAME, Options::default()).await?;
    let page = |count: u64| {
        let mut bytes = vec![0; usize::try_from(count * PAGE).expect("small")];
        world.fill_random(&mut bytes);
        bytes
    };
    match pattern {
        Pattern::All(pages) => {
            for at in (0..pages).step_by(32) {
                client.write(at * PAGE, page(32.min(pages - at))).await?;
            }
        }
        Pattern::Random {
            pages,
            writes,
            each,
        } => {
            let mut due = world.now();
            for _ in 0..writes {
                let mut draw = [0; 8];
                world.fill_random(&mut draw);
                let at = u64::from_le_bytes(draw) % pages;
                client.write(at * PAGE, page(1)).await?;
                due = due + each;
                world.sleep_until(due).await;
            }
        }
    }
    client.disconnect().await;
    Ok(())
}
