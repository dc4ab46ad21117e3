//! See `synod_sidecar::outside::peer_message`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| synod_sidecar::outside::peer_message(bytes));
