//! Networks on a virtual clock. A seed that shows a failure once shows it always.

pub mod scenario;
