//! Networks on a virtual clock. A seed that shows a failure shows it again.

pub mod scenario;
