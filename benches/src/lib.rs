//! What the benchmarks share: the cost of a process, and the conditions of a measurement.

pub mod conditions;
pub mod process;
