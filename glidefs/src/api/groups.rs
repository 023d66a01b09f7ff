//! `/api/groups`: exports whose order among each other is kept. Each group is named by its id, or by its name.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use serde::Deserialize;

use super::{Answer, Api, Body, Name, parse, parse_or_default};
use crate::control::{
    EndGroupQuery, GroupDocument, GroupRequest, GroupSnapshotDocument, OperationDocument, Request,
};

/// What may stand behind the `?` of a list of groups.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    /// The page of the ids behind this one.
    #[serde(default)]
    after: String,
}

pub(super) async fn list(
    State(api): State<Api>,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Answer<Vec<GroupDocument>> {
    let Query(query) = query?;
    let request = |reply| Request::Group(GroupRequest::List(query.after, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn get_one(State(api): State<Api>, which: Name) -> Answer<GroupDocument> {
    let Path(which) = which?;
    let request = |reply| Request::Group(GroupRequest::Get(which, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn form(State(api): State<Api>, body: Body) -> Answer<OperationDocument> {
    let example = "{\"name\": \"db\", \"members\": [\"db-log\", \"db-data\"]}";
    let wanted = parse(&body?, example)?;
    let request = |reply| Request::Group(GroupRequest::Form(wanted, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn end(
    State(api): State<Api>,
    which: Name,
    query: Result<Query<EndGroupQuery>, QueryRejection>,
) -> Answer<OperationDocument> {
    let (Path(which), Query(how)) = (which?, query?);
    let request = |reply| Request::Group(GroupRequest::End(which, how, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn fork(State(api): State<Api>, which: Name, body: Body) -> Answer<GroupDocument> {
    let Path(which) = which?;
    let example =
        "{\"name\": \"db2\", \"members\": {\"db-log\": \"db2-log\", \"db-data\": \"db2-data\"}}";
    let wanted = parse(&body?, example)?;
    let request = |reply| Request::Group(GroupRequest::Fork(which, wanted, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn list_snapshots(
    State(api): State<Api>,
    which: Name,
) -> Answer<Vec<GroupSnapshotDocument>> {
    let Path(which) = which?;
    let request = |reply| Request::Group(GroupRequest::Snapshots(which, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn take_snapshot(
    State(api): State<Api>,
    which: Name,
    body: Body,
) -> Answer<GroupSnapshotDocument> {
    let Path(which) = which?;
    let wanted = parse_or_default(&body?, "{\"name\": \"before-upgrade\"}")?;
    let request = |reply| Request::Group(GroupRequest::TakeSnapshot(which, wanted, reply));
    Ok(Json(api.control.ask(request).await?))
}

pub(super) async fn restore(
    State(api): State<Api>,
    which: Name,
    body: Body,
) -> Answer<OperationDocument> {
    let Path(which) = which?;
    let wanted = parse(&body?, "{\"snapshot\": \"before-upgrade\"}")?;
    let request = |reply| Request::Group(GroupRequest::Restore(which, wanted, reply));
    Ok(Json(api.control.ask(request).await?))
}
