//! All volumes of the prefix, a page at a time: those that this node holds, and those that are only in
//! the store. For people: it costs a LIST and a GET for each of the latter.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use world::World;

use super::answer::{Answer, unavailable};
use crate::control::ExportDocument;
use crate::export::document::of_parts;
use crate::export::registry::Registry;
use crate::race::join_all;
use crate::volume::Bucket;

/// Volumes in one answer. Who wants more asks again, from the last name on.
const PAGE_MAX: usize = 200;
/// Roots that are read at a time.
const READS_MAX: usize = 16;

/// The volumes behind the name `after`, in the order of their keys; purged ones among them, as `deleted`, so that a
/// page costs no more where there are many. `here` is what this node holds.
pub(super) async fn list_stored<W: World>(
    registry: &Registry<W>,
    here: Vec<ExportDocument>,
    after: &str,
) -> Answer<Vec<ExportDocument>> {
    let failed = |error| unavailable(format!("the store cannot be asked: {error}"));
    let bucket = registry.site().shelf.bucket().await.map_err(failed)?;
    let stored = Box::pin(bucket.names_after(after, PAGE_MAX)).await;
    let stored = stored.map_err(failed)?.into_iter();
    let stored = stored.map(|found| found.name.to_string()).collect();
    let page = page(here, stored, after);
    let absent = page.iter().filter(|(_, known)| known.is_none());
    let names: Vec<String> = absent.map(|(name, _)| name.clone()).collect();
    let mut read = read_all(&bucket, &names).await;
    let known = |(name, known): (String, Option<_>)| known.or_else(|| read.remove(&name));
    Ok(page.into_iter().filter_map(known).collect())
}

type Row = (String, Option<ExportDocument>);

/// The first names behind `after`, with what is known of them here. Both lists are complete up to
/// the last name of the page, because each is up to its own.
fn page(here: Vec<ExportDocument>, stored: Vec<String>, after: &str) -> Vec<Row> {
    // As keys sort, which are names with a slash behind: `a-b/` before `a/`.
    let key = |name: &str| format!("{name}/");
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    for name in stored {
        rows.insert(key(&name), (name, None));
    }
    for export in here {
        rows.insert(key(&export.name), (export.name.clone(), Some(export)));
    }
    let from = if after.is_empty() {
        String::new()
    } else {
        key(after)
    };
    let rows = rows.into_iter().filter(|(key, _)| *key > from);
    rows.map(|(_, row)| row).take(PAGE_MAX).collect()
}

/// What the roots say, by name. One that cannot be read does not hide the others.
async fn read_all<W: World>(
    bucket: &Bucket<W>,
    names: &[String],
) -> BTreeMap<String, ExportDocument> {
    let next = Cell::new(0);
    let found = RefCell::new(BTreeMap::new());
    let worker = || async {
        while let Some(name) = names.get(next.replace(next.get() + 1)) {
            let document = match Box::pin(bucket.root(name)).await {
                Ok(Some(root)) => of_parts(name, None, Some(&root)),
                Ok(None) => unreadable(name),
                Err(error) => {
                    tracing::warn!(export = name, %error, "listed without its root, which cannot be read");
                    unreadable(name)
                }
            };
            found.borrow_mut().insert(name.clone(), document);
        }
    };
    let workers = READS_MAX.min(names.len());
    join_all((0..workers).map(|_| worker()).collect()).await;
    found.into_inner()
}

fn unreadable(name: &str) -> ExportDocument {
    let mut document = of_parts(name, None, None);
    "unreadable".clone_into(&mut document.role);
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_meet_every_name_once_in_the_order_of_keys() {
        let here = || vec![of_parts("m-here", None, None), of_parts("a", None, None)];
        let mut all: Vec<String> = (0..PAGE_MAX * 2).map(|n| format!("vm.{n:04}")).collect();
        all.extend(["a", "a-b", "a.b", "vm"].map(str::to_owned));
        all.sort_by_key(|name| format!("{name}/"));
        let (mut met, mut after) = (Vec::new(), String::new());
        loop {
            // What the store says: its first names behind the one asked for.
            let from = format!("{after}/");
            let behind = all
                .iter()
                .filter(|n| after.is_empty() || format!("{n}/") > from);
            let stored = behind.take(PAGE_MAX).cloned().collect();
            let page = page(here(), stored, &after);
            let Some((last, _)) = page.last() else {
                break;
            };
            after.clone_from(last);
            met.extend(
                page.into_iter()
                    .map(|(name, known)| (name, known.is_some())),
            );
        }
        let known: Vec<&str> = met.iter().filter(|m| m.1).map(|m| m.0.as_str()).collect();
        assert_eq!(known, ["a", "m-here"]);
        let names: Vec<String> = met.into_iter().map(|m| m.0).collect();
        all.push("m-here".to_owned());
        all.sort_by_key(|name| format!("{name}/"));
        assert_eq!(names, all);
    }
}
