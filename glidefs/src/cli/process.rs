//! What is set for the whole process before it holds a secret, and before anything can take time.

use std::ffi::OsString;
use std::io;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use tokio::runtime::Builder;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output;

/// What a server hears of SIGHUP, from its first moment on.
#[derive(Debug)]
pub struct Hangups(Option<Signal>);

impl Hangups {
    /// From here on SIGHUP ends no process whose arguments ask for a server; one that comes before the server can
    /// answer is answered then. Every other command still ends with its terminal. To be called first of all: until then
    /// the kernel's own answer holds, which is the end.
    pub fn of(arguments: &[OsString]) -> Self {
        let is_server = arguments.get(1).is_some_and(|word| word == "run");
        // What fails here fails again where the server takes it over, and is said there.
        Self(is_server.then(hear).and_then(Result::ok))
    }

    /// Nothing if it was not heard until now.
    pub(crate) fn into_signal(self) -> Option<Signal> {
        self.0
    }
}

/// The runtime, which has no thread, is the way to a handler without unsafe code of ours. The handler outlives it, and
/// what it noted is told by the next one.
fn hear() -> io::Result<Signal> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let _inside = runtime.enter();
    signal(SignalKind::hangup())
}

/// No core dumps: they would put keys on a disk. The limit alone does not hold where the kernel pipes
/// dumps into a program; not being dumpable does, and keeps other processes of this user out as well.
pub(super) fn protect() {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    let hidden = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    if let Err(error) = limited.and(hidden) {
        output::notice(format!(
            "Warning: cannot switch core dumps off ({error}): one would hold keys. Set \
             LimitCORE=0 for this service."
        ));
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Signal as Sent, dumpable_behavior, getpid, getrlimit, kill_process};

    use super::*;

    fn of(words: &[&str]) -> Hangups {
        let words: Vec<OsString> = words.iter().map(OsString::from).collect();
        Hangups::of(&words)
    }

    #[test]
    fn a_server_outlives_sighup_before_it_has_a_runtime_and_hears_of_it_in_one() {
        let hangups = of(&["glidefs", "run", "-c", "a.toml"]).into_signal();
        let mut hangups = hangups.expect("a handler");
        kill_process(getpid(), Sent::HUP).expect("this process runs");
        let runtime = Builder::new_current_thread().enable_io().build();
        let heard = runtime.expect("a runtime").block_on(hangups.recv());
        assert_eq!(heard, Some(()));
    }

    #[test]
    fn other_commands_end_with_their_terminal() {
        for words in [&["glidefs"] as &[_], &["glidefs", "top"], &["run", "top"]] {
            assert!(of(words).into_signal().is_none(), "{words:?}");
        }
    }

    #[test]
    fn a_protected_process_has_no_core_and_cannot_be_looked_into() {
        protect();
        assert_eq!(
            dumpable_behavior().ok(),
            Some(DumpableBehavior::NotDumpable)
        );
        let limit = getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
    }
}
