//! What a datagram's payload starts with: which run and client it belongs to, which of that
//! client's datagrams it is, and when it was sent.

/// Bytes of it; the rest of a payload is filler.
pub const LENGTH: usize = 24;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload {
    /// Tells the datagrams of one run from late ones of another.
    pub run: u32,
    /// Counted from the run's first client.
    pub client: u32,
    /// Counted from 0 for each client.
    pub sequence: u64,
    /// Nanoseconds of the monotonic clock.
    pub sent_at: u64,
}

impl Payload {
    /// Writes it to the first `LENGTH` bytes.
    pub fn write(&self, bytes: &mut [u8]) {
        bytes[0..4].copy_from_slice(&self.run.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.client.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sent_at.to_le_bytes());
    }

    /// Reads it; `None` when the datagram is too short.
    pub fn read(bytes: &[u8]) -> Option<Payload> {
        let (run, rest) = bytes.split_first_chunk()?;
        let (client, rest) = rest.split_first_chunk()?;
        let (sequence, rest) = rest.split_first_chunk()?;
        let sent_at = rest.first_chunk()?;
        Some(Payload {
            run: u32::from_le_bytes(*run),
            client: u32::from_le_bytes(*client),
            sequence: u64::from_le_bytes(*sequence),
            sent_at: u64::from_le_bytes(*sent_at),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let payload = Payload { run: 1, client: 2, sequence: 3, sent_at: u64::MAX };
        let mut bytes = [0; 30];
        payload.write(&mut bytes);
        assert_eq!(Payload::read(&bytes), Some(payload));
        assert_eq!(Payload::read(&bytes[..LENGTH]), Some(payload));
        assert_eq!(Payload::read(&bytes[..LENGTH - 1]), None);
    }
}
