#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    flanneld_fuzz::cmsg(data);
});
