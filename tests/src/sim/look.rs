//! Looks at what clients see: one disk, or all members of a group at one moment, and the judgement of it.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use glidefs::nbd::wire::export;
use world::World;
use world::sim::{Pid, SimWorld};

use super::node::{Node, socket};
use super::stage::{Stage, TRIES_MAX, TRY_PAUSE};
use crate::nbd_client::{ClientError, NbdClient, Options};
use crate::oracle::Judge;

/// The whole content is read in requests of this length.
const READ_BYTES: u32 = 64 * 1024;
/// Longer than anybody waits for anything beside it.
const READER_STAYS: Duration = Duration::from_secs(3600);

/// How a look at the whole content ended.
#[derive(Debug)]
enum Seen {
    Content(Vec<u8>),
    /// The host crashed, or the server was killed.
    Crashed,
}

impl Stage {
    /// Reads the whole content through a client and judges it; the model goes on from what is there.
    /// False if the server or its host died meanwhile.
    pub(super) async fn judge(&self, node: &Node, judge: Judge) -> Result<bool> {
        let Seen::Content(content) = self.look(node, Wanted::ReadWrite).await? else {
            return Ok(false);
        };
        self.judge_content(&content, judge)?;
        Ok(true)
    }

    /// The same where only a reader is let in, or whoever comes.
    pub(super) async fn judge_as_reader(&self, node: &Node, judge: Judge) -> Result<bool> {
        let Seen::Content(content) = self.look(node, Wanted::Anything).await? else {
            return Ok(false);
        };
        self.check_content(&content, judge)?;
        Ok(true)
    }

    pub(super) fn check_content(&self, content: &[u8], judge: Judge) -> Result<()> {
        let verdict = self.model.borrow().check(content, judge);
        verdict
            .map(drop)
            .map_err(|violation| anyhow!("{judge:?}: {violation}"))
    }

    pub(super) fn judge_content(&self, content: &[u8], judge: Judge) -> Result<()> {
        let verdict = self.model.borrow().check(content, judge);
        let survivors = verdict.map_err(|violation| anyhow!("{judge:?}: {violation}"))?;
        self.sim.note(format_args!(
            "{judge:?}: {} writes are there, {} lost",
            survivors.whole_writes(),
            survivors.lost_writes()
        ));
        self.model.borrow_mut().reset_to(&survivors);
        Ok(())
    }

    /// A client that only connects: an export that its log holds opens also while the store is out.
    pub(super) async fn opens(&self, node: &Node) -> Result<()> {
        let asked = self.disks.any_name(&self.sim);
        let call = self.sim.call(node.host, move |world| async move {
            for _ in 0..20 {
                match NbdClient::connect(&world, &socket(), &asked, Options::default()).await {
                    Ok(_) => return Ok(()),
                    Err(ClientError::Refused { text, .. }) => bail!("{text}"),
                    Err(_cut_off) => world.sleep(Duration::from_millis(100)).await,
                }
            }
            Ok(())
        });
        let pid = call.pid();
        let opened = call.await;
        self.sim.kill(pid);
        match opened {
            Some(Err(why)) if node.is_alive() => {
                bail!("a held export does not open during an outage: {why}")
            }
            _ => Ok(()),
        }
    }

    async fn look(&self, node: &Node, wanted: Wanted) -> Result<Seen> {
        let names = self.disks.names().to_vec();
        self.look_at(node, names, wanted).await
    }

    /// A client that connects to a node and stays there until it is killed.
    pub(super) async fn reader(&self, node: &Node, name: &'static str) -> Option<Pid> {
        let opened = Rc::new(Cell::new(false));
        let told = Rc::clone(&opened);
        let call = self.sim.call(node.host, move |world| async move {
            let client = patiently(&world, async || {
                NbdClient::connect(&world, &socket(), name, Options::default()).await
            });
            let client = client.await;
            told.set(client.is_ok());
            world.sleep(READER_STAYS).await;
            drop(client);
        });
        let pid = call.pid();
        for _ in 0..TRIES_MAX {
            if opened.get() {
                return Some(pid);
            }
            self.sim.sleep(TRY_PAUSE).await;
        }
        self.sim.kill(pid);
        None
    }

    /// The content of another export than the one that all is about. None if the server or its host died
    /// meanwhile.
    pub(super) async fn look_at_other(&self, node: &Node, name: &str) -> Result<Option<Vec<u8>>> {
        self.look_at_all(node, vec![name.to_owned()]).await
    }

    /// The same of several, one behind the other, while a client has a connection to each.
    pub(super) async fn look_at_all(
        &self,
        node: &Node,
        names: Vec<String>,
    ) -> Result<Option<Vec<u8>>> {
        let seen = self.look_at(node, names, Wanted::Anything).await;
        Ok(match seen? {
            Seen::Content(content) => Some(content),
            Seen::Crashed => None,
        })
    }

    async fn look_at(&self, node: &Node, names: Vec<String>, wanted: Wanted) -> Result<Seen> {
        let size = self.settings.volume_bytes;
        let call = self
            .sim
            .call(node.host, move |world| read_all(world, names, size, wanted));
        let pid = call.pid();
        let content = call.await;
        self.sim.kill(pid);
        match content {
            None => Ok(Seen::Crashed),
            Some(Ok(content)) => Ok(Seen::Content(content)),
            Some(Err(_)) if !node.is_alive() => Ok(Seen::Crashed),
            Some(Err(error)) => Err(error),
        }
    }
}

/// What a client must get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wanted {
    ReadWrite,
    Anything,
}

/// Connects to each, and reads them all, with the patience of an operator. Members of a group are let go of together, so
/// that one view of them is shown to the end.
async fn read_all(
    world: SimWorld,
    names: Vec<String>,
    size: u64,
    wanted: Wanted,
) -> Result<Vec<u8>> {
    let mut clients = Vec::new();
    for name in in_any_order(&world, &names) {
        let client = connect(&world, &name, wanted)
            .await
            .context("cannot connect")?;
        if client.size_bytes() != size {
            bail!("the export has {} bytes", client.size_bytes());
        }
        if names.len() > 1 && wanted == Wanted::Anything {
            // Its owner goes on meanwhile.
            let pause = u64::from(drawn(&world));
            world.sleep(Duration::from_millis(pause)).await;
        }
        clients.push((name, client));
    }
    let mut content = Vec::new();
    for name in &names {
        let mut all = clients.iter();
        let client = all.find(|(of, _)| of == name).map(|(_, client)| client);
        let client = client.context("each is connected")?;
        let part = read_range(&world, client, 0, size).await;
        content.extend(part.context("cannot read it all")?);
    }
    Ok(content)
}

/// With the patience of an operator.
pub(super) async fn connect(
    world: &SimWorld,
    name: &str,
    wanted: Wanted,
) -> Result<NbdClient<SimWorld>, ClientError> {
    let client = patiently(world, async || {
        let client = NbdClient::connect(world, &socket(), name, Options::default()).await?;
        if wanted == Wanted::ReadWrite && client.export().flags & export::READ_ONLY != 0 {
            let (kind, text) = (0, "the export is read-only".to_owned());
            return Err(ClientError::Refused { kind, text });
        }
        Ok(client)
    });
    client.await
}

/// Which member is opened first must not matter. A single one costs no draw.
fn in_any_order(world: &SimWorld, names: &[String]) -> Vec<String> {
    let mut names = names.to_vec();
    if names.len() > 1 {
        let first = usize::from(drawn(world)) % names.len();
        names.rotate_left(first);
    }
    names
}

fn drawn(world: &SimWorld) -> u8 {
    let mut byte = [0];
    world.fill_random(&mut byte);
    byte[0]
}

/// In parts, and patiently.
pub(super) async fn read_range(
    world: &SimWorld,
    client: &NbdClient<SimWorld>,
    at: u64,
    len: u64,
) -> Result<Vec<u8>, ClientError> {
    let mut content = Vec::new();
    for from in (at..at + len).step_by(usize::try_from(READ_BYTES).expect("small")) {
        let part = u64::from(READ_BYTES).min(at + len - from);
        let part = u32::try_from(part).expect("small");
        content.extend(patiently(world, || client.read(from, part)).await?);
    }
    Ok(content)
}

/// Tries again while the server says that it cannot now.
async fn patiently<T>(
    world: &SimWorld,
    act: impl AsyncFn() -> Result<T, ClientError>,
) -> Result<T, ClientError> {
    let mut tries = 0;
    loop {
        match act().await {
            Err(ClientError::Refused { .. } | ClientError::Failed { .. }) if tries < TRIES_MAX => {
                tries += 1;
                world.sleep(TRY_PAUSE).await;
            }
            other => return other,
        }
    }
}
