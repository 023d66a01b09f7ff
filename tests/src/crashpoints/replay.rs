//! Replays a recorded stream through the server that ships, in simulation, and stops time at every
//! answered flush and at moments between to have what a crash would leave judged.
//!
//! A request is sent once all requests are answered that the recorded client had answers to when it
//! sent it; so what was in flight together is in flight together here.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use futures_util::poll;
use glidefs::nbd::wire::{command, flag};
use world::World;
use world::sim::{Crash, Sim, SimWorld};

use super::Plant;
use super::judge::{Bounds, Judge, Moment};
use super::look::{self, connect};
use super::stream::{Ask, Event, Stream};
use crate::nbd_client::{ClientError, NbdClient};
use crate::sim::node::Node;

/// How long before a sampled moment the world goes on by itself, at most.
const SAMPLE_WAIT_US_MAX: u64 = 4_000;
/// How often an answer that is needed is looked for.
const LOOK_EVERY: Duration = Duration::from_micros(20);
/// No healthy server leaves a request unanswered for so long.
const ANSWER_MAX: Duration = Duration::from_secs(600);
const DRAIN_TRIES_MAX: u32 = 100;
/// A request of the command line is cut into pieces that the protocol can say.
const ZERO_BYTES_MAX: u64 = 1 << 30;

/// How a stream is replayed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    pub seed: u64,
    /// Of so many flushes one is a crash point.
    pub flush_every: u64,
    /// About so many crash points between flushes.
    pub between: u64,
    pub plant: Option<Plant>,
}

/// Replays the stream to its end, and has the judge look on the way.
pub(super) fn replay(stream: Rc<Stream>, options: Options, judge: Judge) -> Result<Judge> {
    let played = Sim::simulate(options.seed, look::world(), |sim| async move {
        Box::pin(play(sim, stream, options, judge)).await
    });
    match played {
        Ok((judge, _hash)) => judge,
        Err(stuck) => Err(anyhow!("{} after {} steps", stuck.why, stuck.steps)),
    }
}

async fn play(sim: Sim, stream: Rc<Stream>, options: Options, judge: Judge) -> Result<Judge> {
    let node = look::start(&sim, "a", stream.size_bytes).await?;
    let judge = Rc::new(RefCell::new(judge));
    let (watching, watched) = (sim.clone(), Rc::clone(&judge));
    let all = stream.asks.len();
    let client = sim.call(node.host, move |world| async move {
        let client = connect(&world).await?;
        let replay = Replay {
            sim: watching,
            world,
            client,
            stream,
            options,
            judge: watched,
            state: Rc::default(),
            flushes: Cell::new(0),
        };
        Box::pin(replay.run()).await
    });
    client.await.context("the client is gone")??;
    if !judge.borrow().has_seen_enough() {
        drain(&sim, &node).await?;
    }
    let mut judge = Rc::into_inner(judge)
        .context("nobody looks any more")?
        .into_inner();
    if judge.has_seen_enough() {
        return Ok(judge);
    }
    judge.drained(&Moment {
        bounds: Bounds {
            answered: all,
            flushed: all,
            came: all,
        },
        objects: sim.objects(),
        seed: options.seed,
        what: "after the drain".to_owned(),
    });
    Ok(judge)
}

async fn drain(sim: &Sim, node: &Node) -> Result<()> {
    let mut last = String::new();
    for _ in 0..DRAIN_TRIES_MAX {
        match node.drain().await {
            Ok(_) => return Ok(()),
            Err(error) => last = error.to_string(),
        }
        sim.sleep(Duration::from_secs(1)).await;
    }
    bail!("never drained: {last}")
}

struct Replay {
    sim: Sim,
    world: SimWorld,
    client: NbdClient<SimWorld>,
    stream: Rc<Stream>,
    options: Options,
    judge: Rc<RefCell<Judge>>,
    state: Rc<State>,
    flushes: Cell<u64>,
}

/// What the client knows.
#[derive(Debug, Default)]
struct State {
    answered: RefCell<Vec<bool>>,
    /// The shortest prefix that holds all that was answered, and all that is flushed.
    answered_prefix: Cell<usize>,
    flushed_prefix: Cell<usize>,
    came: Cell<usize>,
    error: RefCell<Option<String>>,
}

type Sent = Pin<Box<dyn Future<Output = Result<(), ClientError>>>>;

impl Replay {
    async fn run(&self) -> Result<()> {
        let asks = self.stream.asks.len();
        *self.state.answered.borrow_mut() = vec![false; asks];
        let events = u64::try_from(self.stream.events.len()).expect("a count");
        let one_in = (events / self.options.between.max(1)).max(1);
        for &event in &self.stream.events {
            if self.options.between > 0 && self.sim.chance(|chance| chance.one_in(one_in)) {
                let wait = self.sim.chance(|chance| chance.below(SAMPLE_WAIT_US_MAX));
                self.world.sleep(Duration::from_micros(wait)).await;
                self.point(&format!("between flushes, at {event:?}"));
            }
            match event {
                Event::Came(number) => self.send(number).await?,
                Event::Answered(number) => {
                    self.wait_for(number).await?;
                    if self.stream.asks[number] == Ask::Flush {
                        self.flushed(number);
                    }
                }
            }
            if self.judge.borrow().has_seen_enough() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn flushed(&self, number: usize) {
        self.flushes.set(self.flushes.get() + 1);
        if self.flushes.get().is_multiple_of(self.options.flush_every) {
            self.point(&format!("at the answer to flush {number}"));
        }
    }

    /// Has it judged what a crash at this moment would leave.
    fn point(&self, what: &str) {
        let seed = self.sim.chance(|chance| chance.bits());
        let moment = Moment {
            bounds: Bounds {
                answered: self.state.answered_prefix.get(),
                flushed: self.state.flushed_prefix.get(),
                came: self.state.came.get(),
            },
            objects: self.sim.objects(),
            seed,
            what: what.to_owned(),
        };
        let host = self.sim.host("a");
        let mut judge = self.judge.borrow_mut();
        for how in [Crash::Power, Crash::Process] {
            judge.ssd(how, self.sim.disk_after(host, how, seed), &moment);
        }
        judge.store(&moment);
    }

    /// Hands a request to the connection, after all that came before it.
    async fn send(&self, number: usize) -> Result<()> {
        let ask = &self.stream.asks[number];
        let covers = self.state.answered_prefix.get();
        let done = {
            let state = Rc::clone(&self.state);
            let durable = match ask {
                Ask::Flush => covers,
                Ask::Write { fua: true, .. } | Ask::Zero { fua: true, .. } => number + 1,
                Ask::Write { .. } | Ask::Zero { .. } => 0,
            };
            move |outcome| state.done(number, durable, outcome)
        };
        self.state.came.set(number + 1);
        if self.is_planted(number) {
            done(Ok(()));
            return Ok(());
        }
        let mut sent = self.sent(ask);
        match poll!(sent.as_mut()) {
            Poll::Ready(outcome) => done(outcome),
            Poll::Pending => self.world.spawn(async move { done(sent.await) }),
        }
        Ok(())
    }

    /// The client is told of success, and the server has never heard of it.
    fn is_planted(&self, number: usize) -> bool {
        match self.options.plant {
            Some(Plant::LostWrite) => {
                let writes = self.stream.asks[..number].iter();
                let is_write = |ask: &&Ask| matches!(ask, Ask::Write { .. });
                let middle = self.stream.asks.len() / 2;
                is_write(&&self.stream.asks[number])
                    && number >= middle
                    && writes.skip(middle).filter(is_write).count() == 0
            }
            Some(Plant::LostFlush) => self.stream.asks[number] == Ask::Flush,
            None => false,
        }
    }

    fn sent(&self, ask: &Ask) -> Sent {
        let client = self.client.clone();
        match ask.clone() {
            Ask::Write { at, data, fua } => Box::pin(async move {
                match fua {
                    true => client.write_fua(at, data).await,
                    false => client.write(at, data).await,
                }
            }),
            Ask::Zero { at, len, fua } => Box::pin(async move {
                assert!(len <= ZERO_BYTES_MAX, "a length as it came over NBD");
                let len = u32::try_from(len).expect("asserted above");
                let flags = if fua { flag::FUA } else { 0 };
                let zeroed = client.ask(command::WRITE_ZEROES, flags, at, len).await;
                zeroed.map(drop)
            }),
            Ask::Flush => Box::pin(async move { client.flush().await }),
        }
    }

    async fn wait_for(&self, number: usize) -> Result<()> {
        let end = self.sim.now() + ANSWER_MAX;
        while !self.state.answered.borrow()[number] {
            if let Some(error) = self.state.error.take() {
                bail!("{error}");
            }
            if self.sim.now() > end {
                bail!("request {number} is not answered within {ANSWER_MAX:?}");
            }
            self.world.sleep(LOOK_EVERY).await;
        }
        Ok(())
    }
}

impl State {
    fn done(&self, number: usize, durable: usize, outcome: Result<(), ClientError>) {
        match outcome {
            Ok(()) => {
                self.answered.borrow_mut()[number] = true;
                let answered = self.answered_prefix.get().max(number + 1);
                self.answered_prefix.set(answered);
                let flushed = self.flushed_prefix.get().max(durable);
                self.flushed_prefix.set(flushed);
            }
            Err(error) => {
                let text = format!("request {number} failed: {error}");
                self.error.borrow_mut().get_or_insert(text);
            }
        }
    }
}
