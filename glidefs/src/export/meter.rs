//! What is counted of each export, by name: it goes on when the export is closed and opened again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::control::{IoDocument, LatenciesDocument};
use crate::meter::Histogram;

/// Exports that are remembered. At the bound those that are not open are forgotten: their counts
/// begin anew when they come back, as after a restart.
const EXPORTS_MAX: usize = 4096;

/// Counts of one export since the server started.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    pub(crate) io: Cell<IoDocument>,
    pub(crate) read: Histogram,
    pub(crate) write: Histogram,
    pub(crate) flush: Histogram,
    pub(crate) zero: Histogram,
    /// From the beginning of a sync to its publish, waits and repetitions included.
    pub(crate) sync: Histogram,
}

impl Meter {
    pub(crate) fn latencies(&self) -> LatenciesDocument {
        LatenciesDocument {
            read: self.read.latency(),
            write: self.write.latency(),
            flush: self.flush.latency(),
            zero: self.zero.latency(),
            sync: self.sync.latency(),
        }
    }
}

/// The meters of all exports of a shard.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    by_name: RefCell<BTreeMap<String, Rc<Meter>>>,
}

impl Meters {
    /// The meter of a name, the same for as long as somebody holds it.
    pub(crate) fn of(&self, name: &str) -> Rc<Meter> {
        let mut by_name = self.by_name.borrow_mut();
        if let Some(meter) = by_name.get(name) {
            return Rc::clone(meter);
        }
        if by_name.len() >= EXPORTS_MAX {
            by_name.retain(|_name, meter| Rc::strong_count(meter) > 1);
        }
        let meter = Rc::<Meter>::default();
        by_name.insert(name.to_owned(), Rc::clone(&meter));
        meter
    }

    /// What was counted of a name; none if it was never open.
    pub(crate) fn known(&self, name: &str) -> Option<Rc<Meter>> {
        self.by_name.borrow().get(name).map(Rc::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_keeps_its_meter_and_only_closed_ones_are_forgotten() {
        let meters = Meters::default();
        let open = meters.of("open");
        open.io.set(IoDocument {
            reads: 7,
            ..IoDocument::default()
        });
        for number in 0..EXPORTS_MAX * 2 {
            drop(meters.of(&format!("vm-{number}")));
        }
        assert_eq!(meters.of("open").io.get().reads, 7);
        assert!(meters.by_name.borrow().len() <= EXPORTS_MAX);
        assert!(meters.known("vm-0").is_none() && meters.known("open").is_some());
    }
}
