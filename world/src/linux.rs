//! The world on Linux. To come.
