//! See `synod_sidecar::outside::accepted`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| synod_sidecar::outside::accepted(bytes));
