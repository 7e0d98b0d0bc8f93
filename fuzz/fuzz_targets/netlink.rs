#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| mmproxy::fuzz::netlink(data));
