//! Memory that the start needed, and the run does not.

use std::ops::Range;

/// Returns it to the kernel: what the allocator has free (malloc_trim(3)), and the mapped pages of the program's own
/// file (`MADV_DONTNEED`, madvise(2)). The file's pages stay in the page cache: those that are used again are mapped
/// again without a read, and the kernel can take the others when it needs memory. Whatever cannot be returned stays.
pub fn release() {
    #[cfg(target_env = "gnu")]
    // SAFETY: any thread may call it at any time.
    unsafe {
        libc::malloc_trim(0);
    }
    let Ok(program) = std::fs::read_link("/proc/self/exe") else { return };
    let Ok(smaps) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for range in unchanged(&smaps, &program.to_string_lossy()) {
        // SAFETY: a mapping of the program's file that nobody can write to, and no page of which differs from the file
        // (`unchanged`): the next access finds the same bytes.
        unsafe {
            libc::madvise(range.start as *mut libc::c_void, range.len(), libc::MADV_DONTNEED);
        }
    }
}

/// The mappings of a file that are as the file is, of `/proc/<pid>/smaps` (proc(5)): not writable, private, and without
/// anonymous pages, which are copies that a relocation or a debugger has changed.
fn unchanged(smaps: &str, path: &str) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(mapping) = Mapping::of(line) {
            let is_constant = matches!(mapping.permissions, "r-xp" | "r--p");
            current = (mapping.file == path && is_constant).then_some(mapping.addresses);
        } else if line.split_ascii_whitespace().eq(["Anonymous:", "0", "kB"]) {
            found.extend(current.take());
        }
    }
    found
}

/// A mapping, of its line in `/proc/<pid>/maps`, and of the first of its lines in `smaps` (proc(5)).
pub struct Mapping<'a> {
    pub addresses: Range<usize>,
    pub permissions: &'a str,
    /// 0 where no file is behind it.
    pub inode: u64,
    /// The path, or a name in brackets; empty where it has none.
    pub file: &'a str,
}

impl Mapping<'_> {
    /// `None` for any other line.
    pub fn of(line: &str) -> Option<Mapping<'_>> {
        // The file has blanks before it, and may have some in it.
        let mut fields = line.splitn(6, ' ');
        let (start, end) = fields.next()?.split_once('-')?;
        let address = |text| usize::from_str_radix(text, 16).ok();
        let permissions = fields.next()?;
        let inode = fields.nth(2)?.parse().ok()?;
        let file = fields.next().unwrap_or_default().trim_start();
        Some(Mapping { addresses: address(start)?..address(end)?, permissions, inode, file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d0aa000000-55d0aa400000 r--p 00000000 fe:01 4711                       /opt/a program
Size:               4096 kB
Rss:                4096 kB
Anonymous:             0 kB
VmFlags: rd mr mw me sd
55d0aa400000-55d0ab000000 r-xp 00400000 fe:01 4711                       /opt/a program
Anonymous:             0 kB
55d0ab000000-55d0ab100000 r-xp 01000000 fe:01 4711                       /opt/a program
Anonymous:             4 kB
55d0ab100000-55d0ab200000 r--p 01100000 fe:01 4711                       /opt/a program
Anonymous:            12 kB
55d0ab200000-55d0ab300000 rw-p 01200000 fe:01 4711                       /opt/a program
Anonymous:             0 kB
7f0000000000-7f0000100000 r-xp 00000000 fe:01 4712                       /usr/lib/libc.so.6
Anonymous:             0 kB
7f0000100000-7f0000200000 r--p 00000000 00:00 0 
Anonymous:             0 kB
";

    #[test]
    fn only_what_is_as_the_programs_file_is_returned() {
        let found = unchanged(SMAPS, "/opt/a program");
        assert_eq!(found, [0x55d0_aa00_0000..0x55d0_aa40_0000, 0x55d0_aa40_0000..0x55d0_ab00_0000]);
        assert_eq!(unchanged(SMAPS, "/opt/a"), []);
        assert_eq!(unchanged("", ""), []);
    }

    #[test]
    fn a_process_goes_on_with_less() {
        let resident = || crate::system::usage::usage().unwrap().resident_bytes;
        // Free in the allocator, below something that is not.
        let many: Vec<_> = (0..400_000).map(|at| vec![1u8; 100 + at % 2]).collect();
        let last: Box<[u8]> = vec![1u8; 100].into();
        drop(many);
        let before = resident();
        release();
        let after = resident();
        assert!(after + (16 << 20) < before, "{before} {after}");
        // Code and constants are still what they were.
        assert_eq!(format!("{:?}", last.iter().map(|byte| u32::from(*byte)).sum::<u32>()), "100");
    }
}
