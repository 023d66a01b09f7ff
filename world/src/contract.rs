//! One suite per seam, for every implementation. To come.
