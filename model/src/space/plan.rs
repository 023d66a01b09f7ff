//! What is decided, from values alone: the rules that the code repeats.

use super::state::{Collector, FORKS, Node, Pin, Root};

/// Their cuts, as bits.
pub(super) fn snapshots(root: &Root) -> u16 {
    let snapshots = root.snapshots.iter().flatten();
    snapshots.fold(0, |held, snapshot| held | 1 << snapshot.cut)
}

/// What a listing of the pins says before any child is read. `root` was published before: its garbage may go,
/// and its snapshots hold, also one that is dropped before the round is over, for somebody may have forked it.
pub(super) fn listed(root: &Root, pins: &[Option<Pin>; FORKS]) -> Collector {
    let garbage = root.garbage;
    let mut held = snapshots(root);
    for pin in pins.iter().flatten() {
        if let Pin::Cut(cut) = pin {
            held |= 1 << cut;
        }
    }
    Collector::Listed {
        garbage,
        to_read: pins.map(|pin| pin == Some(Pin::ByChild)),
        held,
        is_blocked: false,
    }
}

/// Whether the node may sweep objects of the root's epoch.
pub(super) fn sweeps_own(node: &Node, number: usize, root: &Root) -> bool {
    let same = node.view.is_some_and(|view| view.epoch == root.epoch);
    node.holds && !node.is_unproved && same && usize::from(root.owner) == number
}
