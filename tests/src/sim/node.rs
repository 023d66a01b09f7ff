//! A server as one process of a simulated host: shard, NBD server on a unix socket, control.

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Result, bail};
use glidefs::control::{
    AcceptLossDocument, Control, ControlError, ControlErrorKind, DataKeyDocument, DeleteQuery,
    EndGroupQuery, ExportDocument, ForkDocument, ForkGroupDocument, ForkWait, FormGroupDocument,
    GcDocument, GroupDocument, GroupRequest, GroupSnapshotDocument, MakeForkDocument,
    OperationDocument, OperationState, PrepareDocument, PromoteDocument, RenewDataDocument, Reply,
    Request, RestoreDocument, ServerDocument, SnapshotDocument, TakeSnapshotDocument,
};
use glidefs::nbd::{Limits, Server};
use glidefs::shard::{Shard, ShardConfig};
use world::sim::{HostId, Pid, Sim, SimWorld};
use world::sync::watch;
use world::{Address, World};

/// The export that everything is about.
pub(crate) const NAME: &str = "vm";

/// The operator knows what goes.
const ACCEPTED: DeleteQuery = DeleteQuery {
    accept_loss: true,
    purge: false,
    request_id: None,
    volume: None,
};

/// Where every server listens, on its own host.
pub(crate) fn socket() -> Address {
    Address::Unix(PathBuf::from("/run/glidefs.sock"))
}

/// One running server.
#[derive(Debug)]
pub(crate) struct Node {
    sim: Sim,
    pub(crate) host: HostId,
    pub(crate) pid: Pid,
    control: Control,
}

/// How a start ended.
#[derive(Debug)]
pub(crate) enum Started {
    Up(Node),
    /// The host crashed first.
    Crashed,
    /// The server said why it does not start.
    Refused(String),
}

impl Node {
    pub(crate) async fn start(sim: &Sim, host: HostId, config: ShardConfig) -> Started {
        let why: Rc<Cell<Option<String>>> = Rc::default();
        let call = sim.call(host, |world| serve(world, config));
        let pid = call.pid();
        match call.await {
            None => Started::Crashed,
            Some(Err(error)) => {
                why.set(Some(error));
                sim.kill(pid);
                Started::Refused(why.take().unwrap_or_default())
            }
            Some(Ok(control)) => Started::Up(Self {
                sim: sim.clone(),
                host,
                pid,
                control,
            }),
        }
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.sim.is_alive(self.pid)
    }

    /// kill -9 of the server alone.
    pub(crate) fn kill(&self) {
        self.sim.kill(self.pid);
    }

    pub(crate) async fn get(&self) -> Result<ExportDocument, ControlError> {
        self.get_of(NAME).await
    }

    pub(crate) async fn get_of(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let name = name.to_owned();
        let asked = self.control.ask(|reply| Request::Get(name, reply));
        asked.await
    }

    /// One after the other.
    pub(crate) async fn get_all(
        &self,
        names: &[String],
    ) -> Result<Vec<ExportDocument>, ControlError> {
        let mut documents = Vec::new();
        for name in names {
            documents.push(self.get_of(name).await?);
        }
        Ok(documents)
    }

    /// One after the other.
    pub(crate) async fn drain_all(&self, names: &[String]) -> Result<(), ControlError> {
        for name in names {
            self.drain_of(name).await?;
        }
        Ok(())
    }

    pub(crate) async fn drain(&self) -> Result<ExportDocument, ControlError> {
        let asked = self
            .control
            .ask(|reply| Request::Drain(NAME.to_owned(), reply));
        asked.await
    }

    pub(crate) async fn drain_of(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let name = name.to_owned();
        let asked = self.control.ask(|reply| Request::Drain(name, reply));
        asked.await
    }

    pub(crate) async fn take_snapshot(&self, name: &str) -> Result<SnapshotDocument, ControlError> {
        self.take_snapshot_of(NAME, name).await
    }

    pub(crate) async fn take_snapshot_of(
        &self,
        of: &str,
        name: &str,
    ) -> Result<SnapshotDocument, ControlError> {
        let wanted = TakeSnapshotDocument {
            name: Some(name.to_owned()),
            request_id: None,
        };
        let asked = self
            .control
            .ask(|reply| Request::TakeSnapshot(of.to_owned(), wanted, reply));
        asked.await
    }

    /// Gives the volume a new data key, one for each request.
    pub(crate) async fn renew_data(&self, request: &str) -> Result<DataKeyDocument, ControlError> {
        let wanted = RenewDataDocument {
            request_id: Some(request.to_owned()),
            volume: None,
        };
        let asked = self
            .control
            .ask(|reply| Request::RenewData(NAME.to_owned(), wanted, reply));
        asked.await
    }

    pub(crate) async fn restore(&self, snapshot: &str) -> Result<ExportDocument, ControlError> {
        let wanted = RestoreDocument {
            snapshot: snapshot.to_owned(),
            ..RestoreDocument::default()
        };
        let asked = self
            .control
            .ask(|reply| Request::Restore(NAME.to_owned(), wanted, reply));
        asked.await
    }

    /// Of the volume, or of a snapshot of it. Answered when the store has it.
    pub(crate) async fn fork_surely(
        &self,
        snapshot: Option<String>,
        name: &str,
    ) -> Result<ForkDocument, ControlError> {
        self.fork_with(snapshot, name, Some(ForkWait::Published))
            .await
    }

    /// Of the volume. Answered as soon as it may be.
    pub(crate) async fn fork(&self, name: &str) -> Result<ForkDocument, ControlError> {
        self.fork_with(None, name, Some(ForkWait::Local)).await
    }

    async fn fork_with(
        &self,
        snapshot: Option<String>,
        name: &str,
        wait: Option<ForkWait>,
    ) -> Result<ForkDocument, ControlError> {
        let wanted = MakeForkDocument {
            name: name.to_owned(),
            snapshot,
            wait,
            ..MakeForkDocument::default()
        };
        let asked = self
            .control
            .ask(|reply| Request::Fork(NAME.to_owned(), wanted, reply));
        asked.await
    }

    /// Gives space back, and waits until that is done.
    pub(crate) async fn gc(&self) -> Result<OperationDocument> {
        self.gc_of(NAME, false).await
    }

    /// The same of another export, which is made flat first, perhaps.
    pub(crate) async fn gc_of(&self, name: &str, flatten: bool) -> Result<OperationDocument> {
        let wanted = GcDocument {
            export: Some(name.to_owned()),
            flatten,
            ..GcDocument::default()
        };
        let asked = self.control.ask(|reply| Request::Gc(wanted, reply));
        let operation = asked.await?;
        self.ended(operation).await
    }

    /// Takes a volume, whoever has it.
    pub(crate) async fn seize(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let epoch = self.get_of(name).await?.epoch;
        self.force(name, epoch).await
    }

    async fn force(&self, name: &str, epoch: u64) -> Result<ExportDocument, ControlError> {
        let how = PromoteDocument {
            force: true,
            expected_epoch: Some(epoch),
            ..PromoteDocument::default()
        };
        let name = name.to_owned();
        let asked = self.control.ask(|reply| Request::Promote(name, how, reply));
        asked.await
    }

    /// Deletes a volume for good, and waits until that is done.
    pub(crate) async fn purge(&self, name: &str) -> Result<OperationDocument, ControlError> {
        let how = DeleteQuery {
            purge: true,
            ..ACCEPTED
        };
        let name = name.to_owned();
        let asked = self.control.ask(|reply| Request::Purge(name, how, reply));
        let operation = asked.await?;
        let ended = self.ended(operation).await;
        ended.map_err(|error| ControlError::new(ControlErrorKind::Unavailable, error.to_string()))
    }

    async fn ended(&self, mut operation: OperationDocument) -> Result<OperationDocument> {
        while operation.state == OperationState::Running {
            self.sim.sleep(Duration::from_millis(20)).await;
            let id = operation.id.clone();
            let asked = self.control.ask(|reply| Request::Operation(id, reply));
            operation = asked.await?;
        }
        match operation.error {
            None => Ok(operation),
            Some(error) => bail!("{}: {error}", operation.kind),
        }
    }

    async fn ask_group<T>(
        &self,
        request: impl FnOnce(Reply<T>) -> GroupRequest,
    ) -> Result<T, ControlError> {
        let asked = self.control.ask(|reply| Request::Group(request(reply)));
        asked.await
    }

    /// Makes a group of exports, whoever on this node has them open, and waits until that is done.
    pub(crate) async fn form_group(&self, wanted: FormGroupDocument) -> Result<OperationDocument> {
        let asked = self.ask_group(|reply| GroupRequest::Form(wanted, reply));
        let operation = asked.await?;
        self.ended(operation).await
    }

    /// Makes exports of its members that are in no group, and waits until that is done.
    pub(crate) async fn end_group(&self, group: &str) -> Result<OperationDocument> {
        let (group, how) = (group.to_owned(), EndGroupQuery::default());
        let asked = self.ask_group(|reply| GroupRequest::End(group, how, reply));
        let operation = asked.await?;
        self.ended(operation).await
    }

    pub(crate) async fn fork_group(
        &self,
        group: &str,
        wanted: ForkGroupDocument,
    ) -> Result<GroupDocument, ControlError> {
        let group = group.to_owned();
        let asked = self.ask_group(|reply| GroupRequest::Fork(group, wanted, reply));
        asked.await
    }

    pub(crate) async fn take_snapshot_of_group(
        &self,
        group: &str,
        name: &str,
    ) -> Result<GroupSnapshotDocument, ControlError> {
        let wanted = TakeSnapshotDocument {
            name: Some(name.to_owned()),
            request_id: None,
        };
        let group = group.to_owned();
        let asked = self.ask_group(|reply| GroupRequest::TakeSnapshot(group, wanted, reply));
        asked.await
    }

    /// Makes all members what they were, and waits until that is done.
    pub(crate) async fn restore_group(
        &self,
        group: &str,
        wanted: RestoreDocument,
    ) -> Result<OperationDocument> {
        let group = group.to_owned();
        let asked = self.ask_group(|reply| GroupRequest::Restore(group, wanted, reply));
        let operation = asked.await?;
        self.ended(operation).await
    }

    pub(crate) async fn delete_snapshot(
        &self,
        name: &str,
    ) -> Result<SnapshotDocument, ControlError> {
        let asked = self
            .control
            .ask(|reply| Request::DeleteSnapshot(NAME.to_owned(), name.to_owned(), reply));
        asked.await
    }

    pub(crate) async fn delete(&self) -> Result<ExportDocument, ControlError> {
        self.delete_of(NAME).await
    }

    pub(crate) async fn delete_of(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let name = name.to_owned();
        let asked = self
            .control
            .ask(|reply| Request::Delete(name, ACCEPTED, reply));
        asked.await
    }

    pub(crate) async fn accept_loss(&self, kept_seq: u64) -> Result<ExportDocument, ControlError> {
        self.accept_loss_of(NAME, kept_seq).await
    }

    pub(crate) async fn accept_loss_of(
        &self,
        name: &str,
        kept_seq: u64,
    ) -> Result<ExportDocument, ControlError> {
        let (name, wanted) = (name.to_owned(), AcceptLossDocument { kept_seq });
        let asked = self
            .control
            .ask(|reply| Request::AcceptLoss(name, wanted, reply));
        asked.await
    }

    pub(crate) async fn server(&self) -> Result<ServerDocument> {
        match self.control.ask(Request::Server).await {
            Ok(document) => Ok(document),
            Err(error) => bail!("the server does not tell its numbers: {error}"),
        }
    }

    /// Makes it the other end of a live migration, or has that move on.
    pub(crate) async fn prepare(&self) -> Result<ExportDocument, ControlError> {
        let wanted = PrepareDocument::default();
        let asked = self
            .control
            .ask(|reply| Request::Prepare(NAME.to_owned(), wanted, reply));
        asked.await
    }

    /// Drained, detached and closed here, without a loss.
    pub(crate) async fn give_up(&self) -> Result<ExportDocument, ControlError> {
        self.give_up_of(NAME).await
    }

    pub(crate) async fn give_up_of(&self, name: &str) -> Result<ExportDocument, ControlError> {
        let (name, how) = (name.to_owned(), DeleteQuery::default());
        let asked = self.control.ask(|reply| Request::Delete(name, how, reply));
        asked.await
    }

    pub(crate) async fn promote_as(
        &self,
        how: PromoteDocument,
    ) -> Result<ExportDocument, ControlError> {
        let asked = self
            .control
            .ask(|reply| Request::Promote(NAME.to_owned(), how, reply));
        asked.await
    }
}

/// Opens the shard, the listener and the control, and leaves them to their tasks.
async fn serve(world: SimWorld, config: ShardConfig) -> Result<Control, String> {
    let store = world.store();
    let shard = Box::pin(Shard::open(world.clone(), store, config)).await;
    let shard = Rc::new(shard.map_err(|error| error.to_string())?);
    let listener = world.listen(&socket()).await;
    let listener = listener.map_err(|error| format!("cannot listen: {error}"))?;
    let (stop, stopped) = watch::channel(false);
    let server = Server::new(world.clone(), shard.exports(), Limits::default(), stopped);
    world.spawn(async move {
        server.serve(listener).await;
        drop(stop);
    });
    let (control, requests) = Control::new();
    world.spawn(async move { shard.serve_control(requests).await });
    Ok(control)
}
