//! What a way of training on several machines costs in loss at equal tokens: data parallel, DiLoCo, MuLoCo, SparseLoCo
//! and ours, each at its own best rates.
//!
//! A bar for methods must not measure the lag of sparse ones: what a peer leaves out sits in its error feedback for
//! about one window per share of the coordinates that move. So peers · k / chunk is a quarter here, as in a run of
//! twenty peers, and there are hundreds of windows. Rates are looked for with one seed, axis by axis, and the best is
//! run with all seeds.
//!
//! | step | module |
//! |---|---|
//! | a way to train | [`Arm`] |
//! | ways of one kind, and where their rates are looked for | [`Family`] |
//! | one run | [`Settings::run`] |
//! | all runs, kept in a file from which an interrupted campaign goes on | [`Campaign`], [`Done`] |
//! | tables and curves | [`rows`] |

mod arm;
mod campaign;
mod done;
mod family;
mod report;
mod run;

pub use arm::{Arm, Denser, Exchange, Inner, Outer, Sparse};
pub use campaign::{Campaign, CampaignError, Progress};
pub use done::{Cell, Done, Figures, Outcome};
pub use family::{Axis, Family, Search, families};
pub use report::{Row, curves, rows};
pub use run::Settings;
