//! What is set for the whole process before it holds a secret.

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};

use super::output;

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
    use rustix::process::{dumpable_behavior, getrlimit};

    use super::*;

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
