//! The functions that fuzz/ calls: one per target, which takes any bytes and panics if an invariant does not hold.
//! `cargo test` runs each over its corpus.

use crate::abi::layout::AccessRecord;
use crate::header::frame::{self, Frame, SPP_LENGTH};
use crate::netlink;
use crate::observe::access::Account;
use crate::observe::refusal::Refusal;
use crate::udp::simulation;

/// Takes any bytes.
pub type Target = fn(&[u8]);

/// Every target by its name: fuzz/fuzz_targets/NAME.rs calls the function, and fuzz/corpus/NAME has its
/// inputs.
pub const TARGETS: &[(&str, Target)] =
    &[("access", access), ("framing", framing), ("netlink", netlink), ("udp", udp)];

/// Prefixes of an input are all framed up to this length: longer ones hold nothing new but the end of a
/// long header.
const EVERY_PREFIX: usize = 300;

/// Framing a stream piece by piece is the same as framing it whole: "more is needed" up to the byte
/// that decides, one answer from there on, and a header never ends behind the input's end.
pub fn framing(data: &[u8]) {
    let whole = frame::stream(data);
    let decided = match whole {
        Frame::Partial => data.len() + 1,
        Frame::Header(length) => {
            assert!(length > 0 && length <= data.len());
            length
        }
        // Where, is found out; behind it nothing changes.
        Frame::Refused(_) => {
            let partial = |length: &usize| frame::stream(&data[..*length]) == Frame::Partial;
            (0..=data.len()).take_while(partial).count()
        }
    };
    let long = data.len().saturating_sub(EVERY_PREFIX);
    let prefixes = (0..data.len().min(EVERY_PREFIX)).chain(long..=data.len());
    for length in prefixes {
        let framed = frame::stream(&data[..length]);
        let expected = if length < decided { Frame::Partial } else { whole };
        assert_eq!(framed, expected, "after {length} of {} bytes", data.len());
        let as_datagram = match framed {
            Frame::Partial => Frame::Refused(Refusal::Incomplete),
            framed => framed,
        };
        assert_eq!(frame::datagram(&data[..length]), as_datagram);
    }
    if matches!(whole, Frame::Header(_)) && data.len() >= 12 && data[0] == b'\r' {
        assert!(frame::announces_header(data));
    }
    match frame::spp(data) {
        Frame::Partial => panic!("a datagram is never incomplete"),
        Frame::Header(length) => assert!(length == SPP_LENGTH && length <= data.len()),
        Frame::Refused(_) => assert!(data.len() < SPP_LENGTH || data[..2] != [0x56, 0xec]),
    }
}

/// What the kernel might answer about rules and routes.
pub fn netlink(data: &[u8]) {
    netlink::read_datagram(data);
}

/// An entry of the access log has its header's first bytes, its size, and nothing behind it. The first
/// byte says how much room is too much.
pub fn access(data: &[u8]) {
    let Some((&spare, header)) = data.split_first() else { return };
    let account = Account::new(AccessRecord::default(), header);
    let size = account.size();
    assert_eq!(size % 8, 0);
    let mut room = vec![0xaa; size + usize::from(spare)];
    account.write(&mut room);
    let (entry, behind) = room.split_at(size);
    let number = |at: usize| entry[at..at + 4].try_into().map(u32::from_ne_bytes).unwrap_or(0);
    assert_eq!(number(0) as usize, size);
    let (record, rest) = entry.split_at(std::mem::size_of::<AccessRecord>());
    let kept = number(4) as usize;
    assert_eq!(record.len() % 8, 0);
    assert_eq!(rest[..kept], header[..kept]);
    assert!(kept == header.len() || kept == 4096);
    assert!(rest[kept..].iter().all(|&byte| byte == 0));
    assert!(behind.iter().all(|&byte| byte == 0xaa));
}

/// A story of the complete UDP side, driven by the bytes, ends as its model expects.
pub fn udp(data: &[u8]) {
    let story = &mut simulation::Bytes(data);
    if let Err(unexpected) = simulation::run(story, Default::default()) {
        panic!("{unexpected}");
    }
}

/// Answers cases for the comparison with the decoder (tests/framing_test.ts). A case is a byte, 0 for a
/// stream, 1 for a datagram, 2 for the Simple Proxy Protocol, then a length (u32, host byte order) and so
/// many bytes. An answer is an i32: the header's length, 0 where more is needed, or a `Refusal`'s code
/// below zero.
pub fn frames(mut cases: &[u8]) -> Vec<u8> {
    let mut answers = Vec::new();
    while let Some((head, rest)) = cases.split_at_checked(5) {
        let length = u32::from_ne_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (data, rest) = rest.split_at(length);
        cases = rest;
        let framed = match head[0] {
            0 => frame::stream(data),
            1 => frame::datagram(data),
            _ => frame::spp(data),
        };
        let answer = match framed {
            Frame::Partial => 0,
            Frame::Header(length) => length as i32,
            Frame::Refused(refusal) => -(refusal as i32),
        };
        answers.extend(answer.to_ne_bytes());
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::PathBuf;

    fn fuzz_dir(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fuzz").join(name)
    }

    fn names_in(dir: PathBuf) -> BTreeSet<String> {
        let entries =
            fs::read_dir(&dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    #[test]
    fn every_target_has_its_file_its_function_and_a_corpus() {
        let known: BTreeSet<String> = TARGETS.iter().map(|(name, _)| name.to_string()).collect();
        assert!(!known.is_empty(), "there is no fuzz target");
        let files: BTreeSet<String> = names_in(fuzz_dir("fuzz_targets"))
            .iter()
            .map(|file| file.strip_suffix(".rs").expect("a target is a Rust file").to_owned())
            .collect();
        assert_eq!(files, known, "fuzz/fuzz_targets and TARGETS");
        assert_eq!(names_in(fuzz_dir("corpus")), known, "fuzz/corpus and TARGETS");
        for name in &known {
            let source = fs::read_to_string(fuzz_dir(&format!("fuzz_targets/{name}.rs"))).unwrap();
            assert!(source.contains(&format!("mmproxy::fuzz::{name}(")), "what {name}.rs drives");
            let entry = format!("name = \"{name}\"");
            assert!(
                fs::read_to_string(fuzz_dir("Cargo.toml")).unwrap().contains(&entry),
                "{entry}"
            );
        }
    }

    #[test]
    fn the_corpus_passes_every_target() {
        for (name, target) in TARGETS {
            let dir = fuzz_dir("corpus").join(name);
            let inputs = names_in(dir.clone());
            assert!(!inputs.is_empty(), "the corpus of {name} is empty");
            for input in inputs {
                let data = fs::read(dir.join(&input)).unwrap();
                // The panic's own message does not know which input it was.
                let outcome = std::panic::catch_unwind(|| target(&data));
                assert!(outcome.is_ok(), "fuzz/corpus/{name}/{input}");
            }
        }
    }

    #[test]
    fn a_case_is_answered_by_its_kind() {
        let case = |kind: u8, data: &[u8]| {
            let length = (data.len() as u32).to_ne_bytes();
            [&[kind][..], &length, data].concat()
        };
        let cases = [case(0, b"PROXY"), case(1, b"PROXY"), case(0, b"PROXY UNKNOWN\r\nx")].concat();
        let answers: Vec<i32> = frames(&cases)
            .chunks(4)
            .map(|answer| i32::from_ne_bytes(answer.try_into().unwrap()))
            .collect();
        assert_eq!(answers, [0, -(Refusal::Incomplete as i32), 15]);
    }
}
