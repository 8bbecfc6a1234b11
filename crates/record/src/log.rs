//! The event log: one event per line, as JSON, in the order in which the events were received.
//!
//! A log that was cut off in the middle of a line, for example by a kill, is valid up to that line. Reading skips lines
//! that are not events, so that it can also read a node's own log, which has other lines between events.
//!
//! ```
//! use templar_record::event::{Event, NodeEvent};
//! use templar_record::log::{self, Writer};
//!
//! let event = NodeEvent { node: "miner-0".to_owned(), event: Event::Opened { window: 3 } };
//! let mut writer = Writer::new(Vec::new(), 0);
//! writer.write(&event).unwrap();
//! let text = [b"something else\n", &writer.into_inner()[..]].concat();
//! assert_eq!(log::read(&text[..]).map(Result::unwrap).collect::<Vec<_>>(), [event]);
//! ```

use std::io::{self, BufRead, Read, Write};

use crate::event::NodeEvent;

/// Largest log: more than a hundred thousand windows of a small network need.
pub const LOG_BYTES_MAX: u64 = 4 << 30;
/// Longest line that is read: an event names at most 256 miners, with some hundred bytes each.
pub const LINE_BYTES_MAX: u64 = 1 << 20;

/// Why a log cannot be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogError {
    #[error("the event log cannot be written: {0}; check free space and permissions")]
    Write(io::Error),
    #[error("the event log has reached {LOG_BYTES_MAX} bytes and is full: later events will be missing from an export")]
    Full,
    #[error("the event log cannot be read: {0}; check the path and its permissions")]
    Read(io::Error),
    #[error("line {line} of the event log is longer than {LINE_BYTES_MAX} bytes; is this an event log?")]
    LongLine { line: u64 },
}

/// Appends events.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    bytes: u64,
}

impl<W: Write> Writer<W> {
    /// Appends to `out`, which already holds `bytes` bytes.
    pub fn new(out: W, bytes: u64) -> Self {
        Self { out, bytes }
    }

    /// Writes one event. [`read`] sees it whole or not at all.
    pub fn write(&mut self, event: &NodeEvent) -> Result<(), LogError> {
        let mut line = serde_json::to_vec(event).map_err(|error| LogError::Write(error.into()))?;
        line.push(b'\n');
        self.bytes += line.len() as u64;
        if self.bytes > LOG_BYTES_MAX {
            return Err(LogError::Full);
        }
        self.out.write_all(&line).and_then(|()| self.out.flush()).map_err(LogError::Write)
    }

    pub fn into_inner(self) -> W {
        self.out
    }
}

/// Reads the events of a log, in order.
pub fn read(log: impl BufRead) -> impl Iterator<Item = Result<NodeEvent, LogError>> {
    Lines { log, line: 0, is_over: false }
}

struct Lines<R> {
    log: R,
    line: u64,
    is_over: bool,
}

impl<R: BufRead> Lines<R> {
    /// The next line with its line end; `None` at the end of the log.
    fn line(&mut self) -> Result<Option<Vec<u8>>, LogError> {
        let mut line = Vec::new();
        self.line += 1;
        let read = self.log.by_ref().take(LINE_BYTES_MAX + 1).read_until(b'\n', &mut line).map_err(LogError::Read)?;
        match read as u64 {
            0 => Ok(None),
            1..=LINE_BYTES_MAX => Ok(Some(line)),
            _ => Err(LogError::LongLine { line: self.line }),
        }
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = Result<NodeEvent, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.is_over {
            match self.line() {
                Ok(Some(line)) => {
                    if let Ok(event) = serde_json::from_slice(&line) {
                        return Some(Ok(event));
                    }
                }
                Ok(None) => self.is_over = true,
                Err(error) => {
                    self.is_over = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Event;

    fn event(window: u64) -> NodeEvent {
        NodeEvent { node: "miner-0".to_owned(), event: Event::Opened { window } }
    }

    #[test]
    fn a_log_that_was_cut_off_is_valid_up_to_there() {
        let mut writer = Writer::new(Vec::new(), 0);
        (0..3).for_each(|window| writer.write(&event(window)).unwrap());
        let text = writer.into_inner();
        let (whole, cut) = (text.len(), text.len() - 5);
        let read = |bytes: &[u8]| read(bytes).map(Result::unwrap).collect::<Vec<_>>();
        assert_eq!(read(&text[..whole]), [event(0), event(1), event(2)]);
        assert_eq!(read(&text[..cut]), [event(0), event(1)]);
        // A writer that continues a log that was cut off must end the line first.
        let mut writer = Writer::new([&text[..cut], b"\n"].concat(), 0);
        writer.write(&event(9)).unwrap();
        assert_eq!(read(&writer.into_inner()), [event(0), event(1), event(9)]);
    }

    #[test]
    fn a_full_log_and_a_line_without_end_are_refused() {
        let mut writer = Writer::new(Vec::new(), LOG_BYTES_MAX - 10);
        assert!(matches!(writer.write(&event(1)), Err(LogError::Full)));
        assert!(writer.into_inner().is_empty());
        let endless = vec![b'x'; LINE_BYTES_MAX as usize + 1];
        let mut events = read(&endless[..]);
        assert!(matches!(events.next(), Some(Err(LogError::LongLine { line: 1 }))));
        assert!(events.next().is_none());
    }
}
