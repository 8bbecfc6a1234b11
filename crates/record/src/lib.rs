//! What nodes report about themselves, and the run report that it adds up to.
//!
//! Every node emits one stream of typed [`event::Event`]s. A reader, live or from a log of JSON lines, folds it with
//! [`recorder::Recorder`] into the [`report::Report`] of a run. Nothing here opens a file or depends on a device.
//!
//! | what | module |
//! |---|---|
//! | what happened | [`event`] |
//! | how a window ended for a node | [`outcome`] |
//! | what failed, and what that means | [`trouble`] |
//! | what a validator measured about a miner | [`judgement`] |
//! | what an engine reports about its training | [`engine`] |
//! | events as lines of a file | [`log`] |
//! | the fold | [`recorder`] |
//! | the document of a run | [`report`] |
//!
//! ```
//! use templar_record::event::{Event, NodeEvent};
//! use templar_record::recorder::Recorder;
//!
//! let line = r#"{"node":"miner-0","event":"opened","window":3}"#;
//! let event: NodeEvent = serde_json::from_str(line).unwrap();
//! assert_eq!(event.event, Event::Opened { window: 3 });
//! Recorder::new(vec![]).record(&event);
//! ```

pub mod engine;
pub mod event;
pub mod judgement;
pub mod log;
pub mod outcome;
pub mod recorder;
pub mod report;
pub mod trouble;
