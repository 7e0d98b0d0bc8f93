//! Frames standard input, for the comparison with the decoder: see `mmproxy::fuzz::frames`.

use std::io::{self, Read, Write};

fn main() -> io::Result<()> {
    let mut cases = Vec::new();
    io::stdin().read_to_end(&mut cases)?;
    io::stdout().write_all(&mmproxy::fuzz::frames(&cases))
}
