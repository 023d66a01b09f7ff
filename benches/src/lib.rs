//! What the benchmarks share: the cost of a process, and facts about the machine.

pub mod process;
