//! Errors for the operator: a status code for the program, one sentence for the person.

use std::cell::RefCell;
use std::io;
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Once;

use crate::abi::layout::status;

/// Why a call failed.
#[derive(Debug)]
pub struct Error {
    status: i32,
    text: String,
}

/// The result of whatever an export calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// A call that was wrong in itself.
    pub fn invalid(text: impl Into<String>) -> Error {
        Error { status: status::INVALID, text: text.into() }
    }

    /// An upstream that is the program's own listener.
    pub fn forwarding_loop(text: impl Into<String>) -> Error {
        Error { status: status::LOOP, text: text.into() }
    }

    /// An operating system's error: `doing` says what failed and on which address.
    pub fn system(doing: impl AsRef<str>, error: &io::Error) -> Error {
        let status = match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => status::PERMISSION,
            Some(libc::EADDRINUSE) => status::ADDRESS_IN_USE,
            Some(libc::EADDRNOTAVAIL) => status::ADDRESS_NOT_AVAILABLE,
            _ => status::SYSTEM,
        };
        Error { status, text: format!("{}: {error}", doing.as_ref()) }
    }

    /// Something that this host does not offer, in words.
    pub fn unavailable(text: String) -> Error {
        Error { status: status::SYSTEM, text }
    }

    /// The sentence.
    pub fn text(&self) -> &str {
        &self.text
    }
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
    /// Where this thread's last panic was.
    static PANICKED_AT: RefCell<String> = const { RefCell::new(String::new()) };
}

/// From now on a panic only notes where it was, for its error's text. Left to itself it is printed on
/// standard error, where it waits for the reader, and the worker with it.
pub fn keep_panics_quiet() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let print = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            if cfg!(test) {
                print(panic);
            }
            let place = panic.location().map(ToString::to_string).unwrap_or_default();
            PANICKED_AT.with(|last| *last.borrow_mut() = place);
        }));
    });
}

/// Runs the body of an export: its value, or a status below zero whose text `last_error` keeps for
/// this thread. No panic passes.
pub fn guard(body: impl FnOnce() -> Result<i32>) -> i32 {
    let error = match catch_unwind(AssertUnwindSafe(body)) {
        Ok(Ok(value)) => return value,
        Ok(Err(error)) => error,
        Err(panic) => Error { status: status::PANIC, text: panic_text(&*panic) },
    };
    LAST.with(|last| *last.borrow_mut() = error.text);
    error.status
}

/// Copies the text of this thread's last error into `buffer` as UTF-8, as far as it fits; returns the full length.
pub fn copy_last(buffer: &mut [u8]) -> usize {
    LAST.with(|last| {
        let text = last.borrow();
        let length = text.len().min(buffer.len());
        buffer[..length].copy_from_slice(&text.as_bytes()[..length]);
        text.len()
    })
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message");
    let place = PANICKED_AT.take();
    let at = if place.is_empty() { "" } else { " at " };
    format!("the native core panicked: {said}{at}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last() -> String {
        let mut buffer = [0; 256];
        let length = copy_last(&mut buffer);
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    }

    #[test]
    fn an_error_keeps_its_status_and_text() {
        let busy = io::Error::from_raw_os_error(libc::EADDRINUSE);
        assert_eq!(
            guard(|| Err(Error::system("Cannot listen on 127.0.0.1:80", &busy))),
            status::ADDRESS_IN_USE
        );
        assert!(last().starts_with("Cannot listen on 127.0.0.1:80: "), "{}", last());
    }

    #[test]
    fn a_panic_becomes_a_status_and_says_where_it_was() {
        keep_panics_quiet();
        assert_eq!(guard(|| panic!("on purpose")), status::PANIC);
        let text = last();
        assert!(text.starts_with("the native core panicked: on purpose at "), "{text}");
        assert!(text.contains("errors.rs:"), "{text}");
    }

    #[test]
    fn a_short_buffer_still_learns_the_length() {
        let _ = guard(|| Err(Error::invalid("four words of text")));
        let mut short = [0; 4];
        assert_eq!(copy_last(&mut short), 18);
        assert_eq!(&short, b"four");
    }
}
