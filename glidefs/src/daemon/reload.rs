//! SIGHUP, with which service managers and people ask for a reload. Nothing is taken over while the server runs: it looks
//! at the configuration as a start would find it now, says which settings a start would change, and goes on.
//!
//! Promises: it never ends the server, however early it comes (the handler is older than the configuration), and changes
//! nothing. Signals that come during a look are one more look.
//! Deliberately absent: settings that change under way. A restart serves on from the same cache and costs clients a
//! reconnect, so the machinery for two kinds of settings would buy little. What must not wait for one, keys of the store
//! in files, is read again by itself.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::Signal;
use world::sync::watch;

use super::notify::Supervisor;
use crate::cli::{Failure, load_quietly};
use crate::config::{Config, Environment};

/// How long a look may take: files may be on a mount that hangs.
const LOOK_MAX: Duration = Duration::from_secs(10);
/// What a reload does here, in every line about one.
const NOTHING_IS_RELOADED: &str = "a running server takes over renewed keys of the store from the files that hold them, by itself, \
     and nothing else; every other setting needs a restart, which drains to the store, keeps the cache, and lets clients connect again";

/// What the server runs with, and where that came from.
#[derive(Debug)]
pub(super) struct Reload {
    running: Config,
    named: Option<PathBuf>,
    environment: Environment,
}

/// What a look found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Same,
    /// The keys that a start would take other values for.
    Changed(Vec<&'static str>),
    /// No start would succeed: why.
    Unusable(String),
}

impl Reload {
    /// `named`: the file that was named at the start, if one was.
    pub(super) fn new(running: Config, named: Option<PathBuf>, environment: Environment) -> Self {
        Self {
            running,
            named,
            environment,
        }
    }

    /// Answers signals for as long as the process lives. To be begun once `supervisor` knows that it is ready.
    pub(super) async fn answer(
        self,
        mut hangups: Signal,
        supervisor: Supervisor,
        stopping: watch::Receiver<bool>,
    ) {
        let reload = Arc::new(self);
        while hangups.recv().await.is_some() {
            // Whoever waits for the end must not hear that it is ready again.
            if !*stopping.borrow() {
                supervisor.reloading();
            }
            reload.say(&look(&reload).await);
            if !*stopping.borrow() {
                supervisor.ready();
            }
        }
    }

    fn compare(&self) -> Found {
        found(
            &self.running,
            load_quietly(self.named.as_deref(), &self.environment),
        )
    }

    fn say(&self, found: &Found) {
        let config = &self.running.origin;
        match found {
            Found::Same => {
                tracing::info!(%config, "SIGHUP: the configuration is the one that this server runs with; {NOTHING_IS_RELOADED}");
            }
            Found::Changed(keys) => {
                let changed = keys.join(", ");
                tracing::info!(%config, %changed, "SIGHUP: these settings are others in the configuration now, and need a restart; {NOTHING_IS_RELOADED}");
            }
            Found::Unusable(error) => {
                tracing::warn!(%config, %error, "SIGHUP: no start would succeed with the configuration as it is now; the server goes on with the one that it has: correct it, and look again with `glidefs check`");
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "edge: the answer to a signal must not wait for a mount that hangs"
)]
async fn look(reload: &Arc<Reload>) -> Found {
    let reload = Arc::clone(reload);
    let looking = tokio::task::spawn_blocking(move || reload.compare());
    match tokio::time::timeout(LOOK_MAX, looking).await {
        Ok(Ok(found)) => found,
        Ok(Err(error)) => Found::Unusable(format!("it was not read to the end: {error}")),
        Err(_) => Found::Unusable(format!(
            "reading it, and the files that it names, took more than {} s",
            LOOK_MAX.as_secs()
        )),
    }
}

fn found(running: &Config, now: Result<Config, Failure>) -> Found {
    match now {
        Ok(now) => match running.changed_keys(&now) {
            changed if changed.is_empty() => Found::Same,
            changed => Found::Changed(changed),
        },
        // One line, as everything in a log.
        Err(failure) => Found::Unusable(failure.to_string().replace('\n', "; ")),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn what_a_start_would_change_is_found_and_what_it_would_not_is_not() {
        let running = Config::embedded(Path::new("/home/a"), &Environment::default());
        assert_eq!(found(&running, Ok(running.clone())), Found::Same);
        let mut other = running.clone();
        other.nbd.shared = true;
        other.cache.dir = "/elsewhere".into();
        // Where it came from, and what was noticed, are no settings.
        other.origin = "glidefs.toml".to_owned();
        other.notes = vec!["a thought".to_owned()];
        let keys = vec!["cache.dir", "servers.nbd.shared"];
        assert_eq!(found(&running, Ok(other)), Found::Changed(keys));
        let failure = Failure::unusable("wrong configuration\na.toml:3: `b`\na.toml:4: `c`");
        let said = "wrong configuration; a.toml:3: `b`; a.toml:4: `c`".to_owned();
        assert_eq!(found(&running, Err(failure)), Found::Unusable(said));
    }
}
