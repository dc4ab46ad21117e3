//! See `synod_sidecar::outside::stored_row`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| synod_sidecar::outside::stored_row(bytes));
