//! Work that may never return, on a thread that is then left alone.

use std::io;
use std::thread;
use std::time::Duration;

use crossbeam_channel::bounded;

/// What `work` returns, if it does so within `timeout`; it has a thread of its own, which is abandoned where it does not.
///
/// For calls into code that has no deadline itself, at the end of a run: an abandoned thread lives as long as the process.
///
/// # Errors
/// The system refuses the thread.
pub fn within<T: Send + 'static>(
    timeout: Duration,
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<Option<T>> {
    let (give, take) = bounded(1);
    thread::Builder::new().name(name.to_owned()).spawn(move || give.send(work()))?;
    Ok(take.recv_timeout(timeout).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_returns_is_returned_and_what_does_not_is_left() {
        assert_eq!(within(Duration::from_secs(60), "works", || 7).unwrap(), Some(7));
        let (keep, never) = bounded::<()>(1);
        let found = within(Duration::from_millis(20), "waits", move || never.recv().is_ok()).unwrap();
        assert_eq!(found, None);
        drop(keep);
        assert_eq!(within(Duration::from_secs(60), "panics", || panic!("for the test")).unwrap(), None::<()>);
    }
}
