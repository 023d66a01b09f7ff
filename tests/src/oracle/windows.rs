//! Volumes that are published together, as one disk of which each has a window: what a group is in the eyes of the judge
//! (protocol rule 30).
//!
//! So nothing new is to be judged. A content of all members at one moment is a content of that disk, and a write to one member
//! that was answered before another one's was sent came before it there too.

use std::ops::Range;

use super::Oracle;

/// Where the volumes lie on the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Windows {
    sizes: Vec<u64>,
}

/// A write lies in one page of the disk if it lies in one page of its volume.
const PAGE_BYTES: u64 = 4096;

impl Windows {
    /// One behind the other, of these sizes in bytes.
    pub fn new(sizes: Vec<u64>) -> Self {
        let whole = sizes.iter().all(|size| size.is_multiple_of(PAGE_BYTES));
        assert!(whole, "volumes of {sizes:?} bytes end inside a page");
        Self { sizes }
    }

    /// The model of all of them.
    pub fn oracle(&self, id: u64) -> Oracle {
        Oracle::new(id, self.sizes.iter().sum())
    }

    /// Where a byte of a member is on the disk.
    pub fn at(&self, member: usize, at: u64) -> u64 {
        assert!(at <= self.sizes[member], "{at} is behind the end");
        self.sizes[..member].iter().sum::<u64>() + at
    }

    /// Where a member lies.
    pub fn window(&self, member: usize) -> Range<u64> {
        self.at(member, 0)..self.at(member, self.sizes[member])
    }

    /// The member that a byte of the disk belongs to, and where it is there.
    pub fn place(&self, at: u64) -> (usize, u64) {
        let mut left = at;
        for (member, size) in self.sizes.iter().enumerate() {
            if left < *size {
                return (member, left);
            }
            left -= size;
        }
        panic!("byte {at} is behind the last member");
    }

    /// The content of the disk, where each member has this one.
    pub fn content<'a>(&self, members: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
        let mut whole = Vec::new();
        let mut sizes = self.sizes.iter();
        for member in members {
            let len = u64::try_from(member.len()).expect("a length fits u64");
            assert_eq!(Some(&len), sizes.next(), "the whole content of each member");
            whole.extend_from_slice(member);
        }
        assert_eq!(sizes.next(), None, "the content of every member");
        whole
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oracle::{Judge, Violation, Why};

    const PAGE: usize = 4096;

    #[test]
    fn a_byte_belongs_to_one_member() {
        let windows = Windows::new(vec![4096, 8192]);
        assert_eq!(windows.place(4095), (0, 4095));
        assert_eq!(windows.place(4096), (1, 0));
        assert_eq!(
            (windows.window(0), windows.window(1)),
            (0..4096, 4096..12_288)
        );
        let (member, at) = windows.place(9000);
        assert_eq!(windows.at(member, at), 9000);
    }

    /// A flush of one member keeps what lies there, and what that was written behind.
    #[test]
    fn a_flush_of_one_member_hardens_it_and_what_came_before() {
        let windows = Windows::new(vec![4096, 4096]);
        let mut oracle = windows.oracle(1);
        let (log_no, log) = oracle.submit_write(windows.at(0, 0), 4096);
        oracle.answered(log_no);
        let (data_no, data) = oracle.submit_write(windows.at(1, 0), 4096);
        oracle.answered(data_no);
        let none = vec![0; PAGE];
        let judged = |oracle: &Oracle, log: &[u8], data: &[u8]| {
            let verdict = oracle.check(&windows.content([log, data]), Judge::Power);
            verdict.map(|survivors| survivors.lost_writes())
        };
        let begun = oracle.flush_begin();
        oracle.flush_done_within(begun, &windows.window(0));
        assert_eq!(judged(&oracle, &log, &none), Ok(1));
        let lost = judged(&oracle, &none, &none);
        assert!(matches!(lost, Err(Violation::Lost { missing, .. }) if missing == log_no));
        let begun = oracle.flush_begin();
        oracle.flush_done_within(begun, &windows.window(1));
        let lost = judged(&oracle, &log, &none);
        assert!(matches!(lost, Err(Violation::Lost { missing, .. }) if missing == data_no));
        assert_eq!(judged(&oracle, &log, &data), Ok(0));
    }

    /// Data and log of a database: the log says that the data was written.
    #[test]
    fn a_member_that_is_ahead_of_another_is_found_and_one_alone_does_not_show_it() {
        let windows = Windows::new(vec![4096, 8192]);
        let mut oracle = windows.oracle(1);
        let (data_no, data) = oracle.submit_write(windows.at(0, 0), 4096);
        oracle.answered(data_no);
        let (log_no, log) = oracle.submit_write(windows.at(1, 4096), 4096);
        let none = vec![0; PAGE];
        let second = |log: &[u8]| [&*none, log].concat();
        let judged = |data: &[u8], log: &[u8]| {
            let content = windows.content([data, &*second(log)]);
            oracle.check(&content, Judge::Store)
        };
        judged(&none[..], &none[..]).expect("nothing yet");
        judged(&data[..], &none[..]).expect("the first");
        judged(&data[..], &log[..]).expect("both");
        let torn = judged(&none[..], &log[..]).err();
        let Some(Violation::Lost { missing, why, .. }) = torn else {
            panic!("{torn:?}");
        };
        assert_eq!((missing, why), (data_no, Why::Before(log_no)));
        // Under way at the same time, either may come first.
        let mut oracle = windows.oracle(2);
        let (_, _data) = oracle.submit_write(windows.at(0, 0), 4096);
        let (_, log) = oracle.submit_write(windows.at(1, 4096), 4096);
        let content = windows.content([&*none, &*second(&log)]);
        oracle.check(&content, Judge::Store).expect("no order");
    }
}
