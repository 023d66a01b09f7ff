//! The simulated world. To come.
