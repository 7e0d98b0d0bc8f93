//! Standard error, without waiting for the reader: a bounded queue, and a thread that writes.
//!
//! The log's reader may be slow, stopped or gone, or its disk full. Only the writing thread waits for it. A line for
//! which there is no room is refused immediately, and the caller counts it.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::Duration;

use crate::abi::errors::{Error, Result};
use crate::system::sync::lock;

/// Bytes that may wait: at the access log's rate, a reader that stops for a quarter of a second.
const CAPACITY: usize = 4 << 20;
/// A buffer that a burst made larger than this is given back.
const KEPT: usize = 256 << 10;

/// The log's queue.
pub static STDERR: Queue = Queue::new(libc::STDERR_FILENO, CAPACITY);

/// Lines on their way to a descriptor.
pub struct Queue {
    fd: RawFd,
    capacity: usize,
    waiting: Mutex<Waiting>,
    /// Something waits: for the writing thread.
    filled: Condvar,
    /// Everything is written: for `flush`.
    emptied: Condvar,
    started: AtomicBool,
    /// Lines that were taken and could not be written.
    failed: AtomicU32,
}

struct Waiting {
    bytes: Vec<u8>,
    /// The writing thread has taken some, and is not done with them.
    writing: bool,
}

impl Queue {
    const fn new(fd: RawFd, capacity: usize) -> Queue {
        Queue {
            fd,
            capacity,
            waiting: Mutex::new(Waiting { bytes: Vec::new(), writing: false }),
            filled: Condvar::new(),
            emptied: Condvar::new(),
            started: AtomicBool::new(false),
            failed: AtomicU32::new(0),
        }
    }

    /// Queues complete lines, all or none: 1, or 0 when there is no room. Never waits for the descriptor.
    pub fn push(&'static self, lines: &[u8]) -> Result<i32> {
        let mut waiting = lock(&self.waiting);
        if !self.started.load(Ordering::Relaxed) {
            self.start()?;
            self.started.store(true, Ordering::Relaxed);
        }
        if waiting.bytes.len() + lines.len() > self.capacity {
            return Ok(0);
        }
        waiting.bytes.extend_from_slice(lines);
        drop(waiting);
        self.filled.notify_one();
        Ok(1)
    }

    /// Waits up to `timeout` until all that was queued is written: 1, or 0 when it is not.
    pub fn flush(&self, timeout: Duration) -> i32 {
        let waiting = lock(&self.waiting);
        let busy = |waiting: &mut Waiting| waiting.writing || !waiting.bytes.is_empty();
        match self.emptied.wait_timeout_while(waiting, timeout, busy) {
            Ok((_, outcome)) => i32::from(!outcome.timed_out()),
            Err(_) => 0,
        }
    }

    /// How many lines were taken and could not be written so far: the reader is gone, or the disk full.
    pub fn failed(&self) -> u32 {
        self.failed.load(Ordering::Relaxed)
    }

    fn start(&'static self) -> Result<()> {
        let thread = std::thread::Builder::new().name("mmproxy log".into());
        let spawned = without_signals(|| thread.spawn(|| self.run()));
        spawned.map(drop).map_err(|error| Error::system("Cannot start the log's thread", &error))
    }

    fn run(&self) {
        let mut output = Output { fd: self.fd, within_line: false };
        let mut batch = Vec::new();
        loop {
            let mut waiting = lock(&self.waiting);
            while waiting.bytes.is_empty() {
                waiting.writing = false;
                self.emptied.notify_all();
                waiting = match self.filled.wait(waiting) {
                    Ok(waiting) => waiting,
                    Err(poisoned) => poisoned.into_inner(),
                };
            }
            waiting.writing = true;
            std::mem::swap(&mut waiting.bytes, &mut batch);
            drop(waiting);
            let failed = output.write(&batch);
            self.failed.fetch_add(failed, Ordering::Relaxed);
            batch.clear();
            batch.shrink_to(KEPT);
        }
    }
}

/// A descriptor that takes lines.
struct Output {
    fd: RawFd,
    /// The last line was cut: the next begins with a line feed.
    within_line: bool,
}

impl Output {
    /// Writes lines, however long that takes; returns how many could not be written.
    fn write(&mut self, lines: &[u8]) -> u32 {
        if self.within_line && self.write_whole(b"\n") == 0 {
            return line_feeds(lines);
        }
        let written = self.write_whole(lines);
        self.within_line = match lines[..written].last() {
            Some(&last) => last != b'\n',
            None => false,
        };
        line_feeds(&lines[written..])
    }

    /// How many bytes the descriptor took before it failed for good.
    fn write_whole(&self, bytes: &[u8]) -> usize {
        let mut written = 0;
        while written < bytes.len() {
            let rest = &bytes[written..];
            // SAFETY: `rest` is valid for reading its length.
            let count = unsafe { libc::write(self.fd, rest.as_ptr().cast(), rest.len()) };
            if count >= 0 {
                written += count as usize;
                continue;
            }
            match std::io::Error::last_os_error().raw_os_error() {
                Some(libc::EINTR) => {}
                // Somebody who shares it has made it non-blocking.
                Some(libc::EAGAIN) => self.wait(),
                _ => break,
            }
        }
        written
    }

    fn wait(&self) {
        let mut poll = libc::pollfd { fd: self.fd, events: libc::POLLOUT, revents: 0 };
        // SAFETY: one pollfd, valid for the length of the call.
        unsafe { libc::poll(&mut poll, 1, -1) };
    }
}

/// Linux's last signal that is none of the real-time ones (signal(7)).
const LAST_STANDARD: libc::c_int = libc::SIGSYS;

fn line_feeds(bytes: &[u8]) -> u32 {
    bytes.iter().filter(|&&byte| byte == b'\n').count() as u32
}

/// Runs `body`, which starts a thread, with every standard signal blocked: the thread inherits that, and
/// neither runs a handler of Deno's nor is ended by SIGPIPE. A real-time signal is the core's own way to
/// every thread (`sandbox::threads`), and stays open.
fn without_signals<T>(body: impl FnOnce() -> T) -> T {
    // SAFETY: an all-zero sigset_t is a value, and sigemptyset(3) sets it; both sets are valid for the
    // calls, which cannot fail with valid signals (pthread_sigmask(3)).
    unsafe {
        let (mut standard, mut before) = std::mem::zeroed::<(libc::sigset_t, libc::sigset_t)>();
        libc::sigemptyset(&mut standard);
        for signal in 1..=LAST_STANDARD {
            libc::sigaddset(&mut standard, signal);
        }
        libc::pthread_sigmask(libc::SIG_BLOCK, &standard, &mut before);
        let result = body();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{AsRawFd, FromRawFd};

    fn pipe() -> (File, File) {
        let mut ends = [0; 2];
        // SAFETY: room for two descriptors, which are nobody else's afterwards.
        unsafe {
            assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
            (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
        }
    }

    fn queue(to: &File, capacity: usize) -> &'static Queue {
        Box::leak(Box::new(Queue::new(to.as_raw_fd(), capacity)))
    }

    const SOON: Duration = Duration::from_secs(20);

    #[test]
    fn lines_arrive_in_order() {
        let (mut reader, writer) = pipe();
        let queue = queue(&writer, 1 << 16);
        for index in 0..1000 {
            assert_eq!(queue.push(format!("line {index}\n").as_bytes()).unwrap(), 1);
        }
        assert_eq!(queue.flush(SOON), 1);
        drop(writer);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let expected: String = (0..1000).map(|index| format!("line {index}\n")).collect();
        assert_eq!(text, expected);
        assert_eq!(queue.failed(), 0);
    }

    #[test]
    fn a_pipe_that_nobody_reads_refuses_lines_and_holds_nobody_up() {
        let (mut reader, writer) = pipe();
        // Four times what the pipe holds.
        let queue = queue(&writer, 4 << 16);
        let line = [b"x".repeat(99).as_slice(), b"\n"].concat();
        let taken = (0..100_000).filter(|_| queue.push(&line).unwrap() == 1).count();
        // What the pipe holds, what waits, and what is being written.
        let most = (9 << 16) / line.len();
        assert!((2621..=most).contains(&taken), "{taken}");
        assert_eq!(queue.flush(Duration::from_millis(20)), 0);

        // Whoever reads again gets every line that was taken, whole.
        let mut text = vec![0; taken * line.len()];
        reader.read_exact(&mut text).unwrap();
        assert!(text.chunks(line.len()).all(|chunk| chunk == line));
        assert_eq!(queue.flush(SOON), 1);
        assert_eq!(queue.push(&line).unwrap(), 1);
    }

    #[test]
    fn a_reader_that_is_gone_ends_nothing_and_is_counted() {
        let (reader, writer) = pipe();
        drop(reader);
        let queue = queue(&writer, 1 << 16);
        for round in 1..=3 {
            queue.push(b"one\ntwo\n").unwrap();
            assert_eq!(queue.flush(SOON), 1);
            assert_eq!(queue.failed(), 2 * round);
        }
    }

    #[test]
    fn a_full_disk_ends_nothing_and_is_counted() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let queue = queue(&full, 1 << 16);
        queue.push(b"one\n").unwrap();
        assert_eq!(queue.flush(SOON), 1);
        assert_eq!(queue.failed(), 1);
    }

    #[test]
    fn a_non_blocking_descriptor_is_waited_for() {
        let (mut reader, writer) = pipe();
        // SAFETY: no pointers are passed.
        unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        let queue = queue(&writer, 1 << 20);
        let lines = b"y\n".repeat(100_000);
        assert_eq!(queue.push(&lines).unwrap(), 1);
        let mut text = vec![0; lines.len()];
        reader.read_exact(&mut text).unwrap();
        assert_eq!(text, lines);
        assert_eq!(queue.failed(), 0);
    }

    #[test]
    fn a_line_that_was_cut_does_not_run_into_the_next() {
        let (mut reader, writer) = pipe();
        let mut output = Output { fd: writer.as_raw_fd(), within_line: false };
        let long = [b"x".repeat(200_000).as_slice(), b"\n", b"two\n"].concat();
        std::thread::scope(|scope| {
            let failed = scope.spawn(|| output.write(&long));
            // The reader goes when the pipe is full of the first line.
            reader.read_exact(&mut [0; 1000]).unwrap();
            while !failed.is_finished() && unread(&reader) < 64_000 {
                std::thread::yield_now();
            }
            drop(reader);
            assert_eq!(failed.join().unwrap(), 2);
        });
        assert!(output.within_line);

        let (mut reader, next) = pipe();
        output.fd = next.as_raw_fd();
        assert_eq!(output.write(b"next\n"), 0);
        assert_eq!(output.write(b"last\n"), 0);
        drop(next);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "\nnext\nlast\n");
    }

    #[test]
    fn the_thread_takes_real_time_signals_and_no_other() {
        // SAFETY: zeroes are a sigset_t, which pthread_sigmask(3) sets.
        let blocked = || unsafe {
            let mut set = std::mem::zeroed();
            libc::pthread_sigmask(libc::SIG_BLOCK, std::ptr::null(), &mut set);
            [libc::SIGUSR1, libc::SIGPIPE, libc::SIGSYS, libc::SIGRTMIN(), libc::SIGRTMAX()]
                .map(|signal| libc::sigismember(&set, signal))
        };
        let before = blocked();
        let inside = without_signals(|| std::thread::spawn(blocked)).join().unwrap();
        assert_eq!(inside, [1, 1, 1, 0, 0]);
        assert_eq!(blocked(), before);
    }

    /// Bytes that wait in a pipe.
    fn unread(reader: &File) -> i32 {
        let mut count = 0;
        // SAFETY: FIONREAD writes one int (pipe(7)).
        unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &mut count) };
        count
    }
}
