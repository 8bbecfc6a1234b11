//! A worker's process: lines in and out, with a limit on each wait and each line, and the end of its log.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::worker::error::WorkerError;
use crate::worker::message::{Failure, LINE_BYTES_MAX, Reply, Request};

/// Bytes of the worker's log that an error carries.
const LOG_BYTES_MAX: usize = 1500;
/// How long to wait until a process that has ended, or the end of its log, is noticed.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How long a worker may take to end when it is asked to.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(5);
/// How long killed processes may take to disappear, which includes giving back a GPU's memory.
const KILL_WAIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(10);

/// How a worker is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Launch {
    pub(super) python: PathBuf,
    pub(super) ranks: u16,
    pub(super) environment: Vec<(String, String)>,
}

impl Launch {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.python);
        if self.ranks > 1 {
            command.args(["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]);
            command.arg(format!("--nproc-per-node={}", self.ranks));
        }
        command.args(["-m", "templar_torch"]).envs(self.environment.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C in a terminal is for the node, which ends its worker itself, with everything that the worker started.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        command
    }
}

/// What the reading thread found.
enum Line {
    Text(Vec<u8>),
    TooLong,
}

/// A running worker. Dropping it kills it, with every process that it started.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    input: ChildStdin,
    lines: Receiver<Line>,
    log: Arc<Mutex<Vec<u8>>>,
    log_reader: thread::JoinHandle<()>,
}

impl Process {
    pub(super) fn start(launch: &Launch) -> Result<Self, WorkerError> {
        let mut command = launch.command();
        let refuse = |error: std::io::Error| WorkerError::Start {
            command: launch.python.display().to_string(),
            why: error.to_string(),
        };
        let mut child = command.spawn().map_err(refuse)?;
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(input), Some(output), Some(errors)) = pipes else { unreachable!("all three are pipes") };
        // A worker speaks only when asked, so that at most one line is ever unread.
        let (sender, lines) = sync_channel(4);
        let log = Arc::new(Mutex::new(Vec::new()));
        thread::spawn(move || read_lines(output, &sender));
        let log_reader = thread::spawn({
            let log = log.clone();
            move || keep_log_tail(errors, &log)
        });
        Ok(Self { child, input, lines, log, log_reader })
    }

    pub(super) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends one message. It is short and the worker waits for it, so it fits the pipe.
    pub(super) fn send(&mut self, phase: &'static str, request: &Request<'_>) -> Result<(), WorkerError> {
        match self.lines.try_recv() {
            Err(TryRecvError::Empty) => {}
            Err(TryRecvError::Disconnected) => return Err(self.died(phase)),
            Ok(_) => {
                return Err(WorkerError::Protocol { phase, why: "it sent a message without being asked".to_owned() });
            }
        }
        let mut line = serde_json::to_vec(request).expect("numbers and texts only");
        line.push(b'\n');
        if line.len() > LINE_BYTES_MAX {
            let why = format!("the node's own message has {} bytes", line.len());
            return Err(WorkerError::Protocol { phase, why });
        }
        self.input.write_all(&line).and_then(|()| self.input.flush()).map_err(|_| self.died(phase))
    }

    /// The next message. An internal failure is an error.
    pub(super) fn receive(&mut self, phase: &'static str, limit: Duration) -> Result<Reply, WorkerError> {
        let line = match self.lines.recv_timeout(limit) {
            Ok(Line::Text(line)) => line,
            Ok(Line::TooLong) => return Err(WorkerError::LineTooLong { phase, limit_bytes: LINE_BYTES_MAX }),
            Err(RecvTimeoutError::Disconnected) => return Err(self.died(phase)),
            Err(RecvTimeoutError::Timeout) => {
                let (limit_s, stderr) = (limit.as_secs(), self.log_tail());
                return Err(WorkerError::TimedOut { phase, limit_s, stderr });
            }
        };
        match serde_json::from_slice(&line) {
            Ok(Reply::Failed(Failure::Internal { why })) => {
                let why = why.chars().take(LOG_BYTES_MAX).collect();
                // It ends now; what it still writes into its log is worth a moment's wait.
                self.wait(EXIT_WAIT);
                Err(WorkerError::Failed { phase, why, stderr: self.log_tail() })
            }
            Ok(reply) => Ok(reply),
            Err(error) => {
                let start: String = String::from_utf8_lossy(&line).chars().take(80).collect();
                Err(WorkerError::Protocol { phase, why: format!("{:?} is not a message: {error}", start.trim_end()) })
            }
        }
    }

    /// Asks it to end, and ends it if it does not.
    pub(super) fn end(mut self) {
        if self.send("end", &Request::Shutdown).is_ok() {
            self.wait(SHUTDOWN_WAIT);
        }
    }

    fn died(&mut self, phase: &'static str) -> WorkerError {
        let status = self.wait(EXIT_WAIT).map_or("it closed its output".to_owned(), |status| status.to_string());
        self.wait_for_log(EXIT_WAIT);
        WorkerError::Died { phase, status, stderr: self.log_tail() }
    }

    /// Waits until no process has the log open any more, but not longer than `limit`.
    fn wait_for_log(&self, limit: Duration) {
        let started = Instant::now();
        while !self.log_reader.is_finished() && started.elapsed() < limit {
            thread::sleep(POLL);
        }
    }

    fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let started = Instant::now();
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if started.elapsed() < limit => thread::sleep(POLL),
                _ => return None,
            }
        }
    }

    fn log_tail(&self) -> String {
        let log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&log).trim().to_owned()
    }
}

impl Drop for Process {
    /// Returns when all processes of the worker are gone, so that the next one finds their memory free.
    fn drop(&mut self) {
        // This also ends what a worker that has ended left behind. No other group can have its number yet: systems hand
        // out all other numbers first.
        #[cfg(unix)]
        let _ = rustix::process::kill_process_group(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::KILL,
        );
        let _ = self.child.kill();
        let _ = self.child.wait();
        // torchrun gives every rank a group of its own; ranks end with it. All of them hold the log.
        self.wait_for_log(KILL_WAIT);
    }
}

/// Passes on lines until the end, an error, or a line that is too long.
fn read_lines(output: impl Read, lines: &SyncSender<Line>) {
    let mut output = BufReader::new(output);
    loop {
        let mut line = Vec::new();
        match output.by_ref().take(LINE_BYTES_MAX as u64 + 1).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(length) if length > LINE_BYTES_MAX => {
                let _ = lines.send(Line::TooLong);
                return;
            }
            Ok(_) => {
                if lines.send(Line::Text(line)).is_err() {
                    return;
                }
            }
        }
    }
}

/// Reads the log to its end, so that the worker never waits for it, and keeps its last bytes.
fn keep_log_tail(mut log: impl Read, last: &Mutex<Vec<u8>>) {
    let mut block = [0; 4096];
    while let Ok(length @ 1..) = log.read(&mut block) {
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend(&block[..length]);
        let excess = last.len().saturating_sub(LOG_BYTES_MAX);
        last.drain(..excess);
    }
}
