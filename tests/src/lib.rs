//! What the tests that span crates stand on: `oracle` is the model disk that judges contents.

pub mod oracle;
