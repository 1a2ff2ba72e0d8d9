//! How the program ends: exit codes, signals, and what a person reads when something went wrong.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | the work asked for is done |
//! | 2 | the user can mend it; the message says how |
//! | 3 | data on disk are corrupt |
//! | 101 | a bug |
//! | 130 | stopped by Ctrl-C, with a checkpoint or the finished shards; after a second signal: at once |
//! | 143 | the same by SIGTERM; 129 by SIGHUP |

use std::any::Any;
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use anyhow::Result;
use pipeline::{FlowError, Interrupt, Panicked, Report, Runtime};
use shards::ShardError;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;
use stages::load::LoadError;

use crate::show;

/// How a command ended that did not fail.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// The work is done.
    Done,
    /// A signal stopped it; the sentence says what is saved and how to continue.
    Interrupted(String),
    /// It was asked to look for damage and found some; the sentence says what to do.
    Damaged(String),
}

/// How a command ended whose work is a flow, and what its stages did; no report if no flow ran.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) outcome: Outcome,
    pub(crate) report: Option<Report>,
}

impl Ended {
    /// Stopped by a signal before a flow had anything to report.
    pub(crate) fn interrupted(sentence: &str) -> Self {
        Self { outcome: Outcome::Interrupted(sentence.to_owned()), report: None }
    }

    /// Done without a flow: nothing was left to do, or nothing was to be done.
    pub(crate) fn already() -> Self {
        Self { outcome: Outcome::Done, report: None }
    }
}

/// Out-of-memory texts of libtorch on the CPU and on CUDA.
const OUT_OF_MEMORY: [&str; 3] = ["out of memory", "can't allocate memory", "not enough memory"];

/// What shells add to the number of the signal that ended a program.
const SIGNALLED: u8 = 128;

/// Which signal asked the program to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Signals(Arc<AtomicUsize>);

impl Signals {
    /// Remembers the last signal, and lets any signal after the first quit at once.
    fn watch(&self) -> io::Result<()> {
        let stopping = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register_conditional_shutdown(signal, i32::from(SIGNALLED) + signal, Arc::clone(&stopping))?;
            flag::register(signal, Arc::clone(&stopping))?;
            flag::register_usize(signal, Arc::clone(&self.0), signal as usize)?;
        }
        Ok(())
    }

    /// 130 for Ctrl-C, 143 for SIGTERM.
    fn code(&self) -> u8 {
        match self.0.load(Ordering::Acquire) {
            0 => SIGNALLED + SIGINT as u8,
            signal => SIGNALLED + signal as u8,
        }
    }
}

/// A runtime whose interrupt is requested by Ctrl-C, SIGTERM or SIGHUP, and which of them it was; a second signal quits at
/// once.
pub(crate) fn runtime_with_signals() -> (Runtime, Signals) {
    let (interrupt, signals) = (Interrupt::default(), Signals::default());
    let on_signal = interrupt.clone();
    let handler = move || {
        if !on_signal.requested() {
            on_signal.request();
            show::say("\nstopping after what is under way; a second signal quits at once");
        }
    };
    // The crate of the flags calls the handler that was there before it, so this one comes first: it has a thread, on which
    // a message may be printed.
    let set = ctrlc::set_handler(handler).map_err(io::Error::other).and_then(|()| signals.watch());
    if let Err(e) = set {
        eprintln!("warning: Ctrl-C will not save anything: {e}");
    }
    (Runtime::new(interrupt), signals)
}

/// Panics are reported by [`code_of`] or, on a flow's threads, by its error; the default hook would print them as well.
pub(crate) fn silence_panics() {
    if std::env::var_os("RUST_BACKTRACE").is_none() {
        std::panic::set_hook(Box::new(|_| {}));
    }
}

/// Prints how a command ended and gives its exit code.
pub(crate) fn code_of(ended: std::thread::Result<Result<Outcome>>, signals: &Signals) -> ExitCode {
    match ended {
        Ok(Ok(Outcome::Done)) => ExitCode::SUCCESS,
        Ok(Ok(Outcome::Interrupted(message))) => {
            show::say(&message);
            ExitCode::from(signals.code())
        }
        Ok(Ok(Outcome::Damaged(message))) => fail(&message, 3),
        Ok(Err(error)) => fail(&describe(&error), code_of_error(&error)),
        Err(payload) => fail(&panic_text(&*payload), 101),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    if text.starts_with("failed printing to stdout") {
        // Whoever read our output has read enough, as in `pipeline inspect DATA | head`.
        return ExitCode::SUCCESS;
    }
    if OUT_OF_MEMORY.iter().any(|sign| text.contains(sign)) {
        show::say(&format!(
            "error: out of memory; use a smaller --batch (in training --set train.micro_batches=N) ({})",
            text.lines().next().unwrap_or_default()
        ));
        return ExitCode::from(2);
    }
    match code {
        101 => show::say(&format!("error: this is a bug, please report it: {text} (RUST_BACKTRACE=1 shows where)")),
        _ => show::say(&format!("error: {text}")),
    }
    ExitCode::from(code)
}

/// The chain of causes in one line, without causes that the sentence before already holds.
fn describe(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

fn code_of_error(error: &anyhow::Error) -> u8 {
    let mut panicked = false;
    let mut corrupt = false;
    let mut look = |cause: &(dyn Error + 'static)| {
        panicked |= cause.is::<Panicked>();
        corrupt |= cause.downcast_ref::<ShardError>().is_some_and(ShardError::is_corrupt);
        corrupt |= cause.downcast_ref::<LoadError>().is_some_and(LoadError::is_corrupt);
    };
    for cause in error.chain() {
        look(cause);
        // A flow's error shows its source in its own text, and its chain goes on behind it.
        if let Some(flow) = cause.downcast_ref::<FlowError>() {
            look(&*flow.source);
        }
    }
    match (panicked, corrupt) {
        (true, _) => 101,
        (_, true) => 3,
        _ => 2,
    }
}

fn panic_text(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without a message".to_owned())
}
