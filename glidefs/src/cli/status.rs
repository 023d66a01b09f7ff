//! "Is it safe to stop?": by text, by JSON, by exit code.

use std::process::ExitCode;
use std::time::Duration;

use serde::Serialize;

use super::client::{Client, Said, block_on};
use super::text::{bytes_text, duration_text, table};
use super::{Failure, Remote, output};
use crate::control::{ExportDocument, ServerDocument};

/// The answer.
#[derive(Clone, Debug, PartialEq, Serialize)]
struct Answer {
    /// The store holds everything that was answered to clients.
    safe: bool,
    dirty_bytes: u64,
    oldest_dirty_age_ms: u64,
    /// Why the log stopped, if it did.
    stopped: Option<String>,
    exports: usize,
    /// Those that hold what the store does not have.
    dirty_exports: Vec<Dirty>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct Dirty {
    name: String,
    role: String,
    dirty_bytes: u64,
    dirty_age_ms: u64,
    clients: u32,
}

/// What programs read when there is no answer.
#[derive(Debug, Serialize)]
struct NoAnswer<'a> {
    safe: Option<bool>,
    error: &'a str,
}

pub(super) fn run(remote: &Remote, as_json: bool) -> Result<ExitCode, Failure> {
    let asked = Client::new(remote).and_then(|client| block_on(ask(&client)));
    let answer = match asked {
        Ok(answer) => answer,
        Err(failure) => {
            // An unsafe "no" must mean data; not being told anything is 2, whatever the reason.
            let failure = Failure::unusable(failure.message);
            if as_json {
                output::json(&NoAnswer {
                    safe: None,
                    error: &failure.message,
                });
            }
            return Err(failure);
        }
    };
    if as_json {
        output::json(&answer);
    } else {
        output::line(answer.text());
    }
    Ok(if answer.safe {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(1)
    })
}

async fn ask(client: &Client<'_>) -> Result<Answer, Failure> {
    let server: Said<ServerDocument> = client.look("/api/server").await?;
    let exports: Said<Vec<ExportDocument>> = client.look("/api/exports").await?;
    Ok(judge(&server.or_refused()?, exports.or_refused()?))
}

/// Safe means: no export holds anything that the store does not, and neither does the log as a
/// whole (which counts what is kept of exports that are closed or were lost to another owner).
fn judge(server: &ServerDocument, exports: Vec<ExportDocument>) -> Answer {
    let count = exports.len();
    let mut dirty: Vec<Dirty> = exports
        .into_iter()
        .filter(|export| export.dirty_bytes > 0)
        .map(|export| Dirty {
            name: export.name,
            role: export.role,
            dirty_bytes: export.dirty_bytes,
            dirty_age_ms: export.dirty_age_ms,
            clients: export.clients,
        })
        .collect();
    dirty.sort_by(|left, right| {
        let oldest_first = right.dirty_age_ms.cmp(&left.dirty_age_ms);
        oldest_first.then_with(|| left.name.cmp(&right.name))
    });
    let listed: u64 = dirty.iter().map(|export| export.dirty_bytes).sum();
    let dirty_bytes = server.dirty_bytes.max(listed);
    Answer {
        safe: dirty_bytes == 0,
        dirty_bytes,
        oldest_dirty_age_ms: dirty.first().map_or(0, |export| export.dirty_age_ms),
        stopped: server.stopped.clone(),
        exports: count,
        dirty_exports: dirty,
    }
}

impl Answer {
    fn text(&self) -> String {
        let mut text = if self.safe {
            format!(
                "Safe to stop: the store holds everything (exports: {}).",
                self.exports
            )
        } else {
            format!(
                "NOT safe to stop: {} are not in the store yet.",
                bytes_text(self.dirty_bytes)
            )
        };
        if let Some(why) = &self.stopped {
            text.push_str(&format!("\nThe cache log has stopped: {why}"));
        }
        if !self.dirty_exports.is_empty() {
            let rows: Vec<_> = self
                .dirty_exports
                .iter()
                .map(|export| {
                    [
                        export.name.clone(),
                        bytes_text(export.dirty_bytes),
                        duration_text(Duration::from_millis(export.dirty_age_ms)),
                        export.role.clone(),
                        export.clients.to_string(),
                    ]
                })
                .collect();
            text.push_str("\n\n");
            text.push_str(&table(
                ["EXPORT", "DIRTY", "OLDEST", "ROLE", "CLIENTS"],
                &rows,
            ));
        }
        if !self.safe {
            text.push_str(
                "\n\nSIGTERM drains everything before the server exits. A server that is killed \
                 keeps these writes in its cache folder: do not delete it.",
            );
            let lasting = |role: &str| matches!(role, "fenced" | "vanished" | "damaged");
            if self.dirty_exports.iter().any(|it| lasting(&it.role)) {
                text.push_str(
                    "\nWhat is fenced, vanished or damaged cannot be drained: its writes stay in the \
                     cache folder until you accept their loss (`DELETE /api/exports/NAME` says how).",
                );
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::IoDocument;

    fn export(name: &str, dirty_bytes: u64, dirty_age_ms: u64) -> ExportDocument {
        ExportDocument {
            name: name.into(),
            volume: "1f".repeat(16),
            size_bytes: 1 << 30,
            role: "read-write".into(),
            epoch: 1,
            owner: String::new(),
            parent: None,
            group: None,
            published: true,
            clients: 1,
            dirty_bytes,
            dirty_age_ms,
            published_seq: 0,
            published_at: String::new(),
            last_seq: 0,
            stored_bytes: 0,
            dead_bytes: 0,
            damage: None,
            warm: None,
            io: IoDocument::default(),
        }
    }

    fn server(dirty_bytes: u64) -> ServerDocument {
        ServerDocument {
            version: String::new(),
            cache_id: String::new(),
            cache_bytes: 0,
            cache_used_bytes: 0,
            dirty_bytes,
            exports: 0,
            clients: 0,
            stopped: None,
        }
    }

    #[test]
    fn safe_only_if_nothing_is_dirty_anywhere() {
        let clean = judge(&server(0), vec![export("a", 0, 0)]);
        assert!(clean.safe);
        assert!(clean.text().starts_with("Safe to stop"));
        assert!(judge(&server(0), Vec::new()).safe);
        assert!(!judge(&server(0), vec![export("a", 512, 5)]).safe);
        let salvage = judge(&server(4096), vec![export("a", 0, 0)]);
        assert!(!salvage.safe, "the log holds what no export lists");
    }

    #[test]
    fn what_can_never_be_drained_is_said() {
        let mut fenced = export("a", 512, 5);
        assert!(
            !judge(&server(0), vec![fenced.clone()])
                .text()
                .contains("cannot be drained")
        );
        fenced.role = "fenced".into();
        assert!(
            judge(&server(0), vec![fenced])
                .text()
                .contains("cannot be drained")
        );
    }

    #[test]
    fn dirty_exports_are_listed_oldest_first() {
        let answer = judge(
            &server(0),
            vec![export("young", 4096, 10), export("old", 8192, 3_400)],
        );
        assert_eq!(answer.oldest_dirty_age_ms, 3_400);
        let text = answer.text();
        assert!(text.contains("NOT safe to stop: 12 KiB"));
        let old = text.find("old ").expect("listed");
        assert!(old < text.find("young").expect("listed"));
        assert!(text.contains("3.4 s"));
    }

    #[test]
    fn a_stopped_log_is_told() {
        let mut server = server(0);
        server.stopped = Some("fsync failed".into());
        assert!(judge(&server, Vec::new()).text().contains("fsync failed"));
    }
}
