//! What every duty of a node is built on.
//!
//! | what | module |
//! |---|---|
//! | the run, the keys, and the seams to the world | [`context`] |
//! | the loop that drives a duty from block to block | [`drive`] |
//! | the node's own disk | [`local`] |
//! | the records that its database holds, and their versions | [`records`] |
//! | the large files beside it | [`files`] |
//! | values as bytes | [`floats`] |
//! | its record on the chain: bucket, header hash, vote | [`publisher`] |
//! | whether strangers could write into its bucket | [`published`] |
//! | its copy of the run's dataset | [`dataset`] |
//! | the weights that the run starts from, if it starts from any | [`weights`] |
//! | where it finds them | [`origin`] |
//! | patience with buckets and clocks | [`waiting`] |
//! | whether its own access to storage works | [`access`] |
//! | what long computations must know while they run | [`signals`] |
//! | the stream of events that it emits | [`events`] |
//! | why it cannot continue, or cannot continue right now | [`error`] |

pub mod access;
pub mod context;
pub mod dataset;
pub mod drive;
pub mod error;
pub mod events;
pub mod files;
pub mod floats;
pub mod local;
pub mod origin;
pub mod published;
pub mod publisher;
pub mod records;
pub mod signals;
mod theta;
pub mod waiting;
pub mod weights;
