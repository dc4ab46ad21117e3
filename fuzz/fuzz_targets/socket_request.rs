//! See `synod_sidecar::outside::socket_request`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| synod_sidecar::outside::socket_request(bytes));
