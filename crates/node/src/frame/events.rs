//! The stream of events that a node emits.

use std::sync::{Arc, Mutex, PoisonError};

use templar_record::event::{Event, FaultCount, NodeEvent};
use tokio::sync::mpsc;

/// The sending end of a bounded stream of events.
#[derive(Clone, Debug)]
pub struct Events {
    node: String,
    sender: mpsc::Sender<NodeEvent>,
    faults: Arc<Mutex<Vec<FaultCount>>>,
}

impl Events {
    pub fn new(node: impl Into<String>, sender: mpsc::Sender<NodeEvent>) -> Self {
        Self { node: node.into(), sender, faults: Arc::default() }
    }

    /// Waits if the reader is behind; there may be no reader. Faults in the event are counted.
    pub async fn emit(&self, event: Event) {
        let totals = (!event.causes().is_empty()).then(|| {
            let mut totals = self.faults.lock().unwrap_or_else(PoisonError::into_inner);
            event.count_faults(&mut totals);
            totals.clone()
        });
        self.send(event).await;
        if let Some(totals) = totals {
            self.send(Event::Faults { totals }).await;
        }
    }

    async fn send(&self, event: Event) {
        tracing::debug!(node = self.node, ?event);
        let _ = self.sender.send(NodeEvent { node: self.node.clone(), event }).await;
    }
}
